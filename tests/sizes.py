"""World models so small that they compile quickly."""

from reverie.models.rssm import RSSMConfig
from reverie.models.s3m import S3MConfig
from reverie.models.storm import StormConfig

RSSM = RSSMConfig(units=32, deter=64, stoch=8, classes=4, depth=1, blocks=4)
S3M = S3MConfig(units=32, layers=2, state=16, blocks=2, deter=32, stoch=8, classes=4, depth=1)
STORM = StormConfig(
    units=32,
    deter=32,
    heads=2,
    window=4,
    dropout=0.0,
    stoch=8,
    classes=4,
    depth=2,
    encoder_layers=1,
    decoder_layers=1,
    reward_layers=1,
    continue_layers=1,
)
