"""From a model's configuration to the model: here alone is said which configuration belongs to which class."""

from collections.abc import Mapping

from jaxtyping import Array, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import WorldModel
from reverie.models.counts import CountsConfig, CountsModel
from reverie.models.latent import LatentModel
from reverie.models.mixture import Mixture, MixtureConfig
from reverie.models.queue import QueueConfig, QueueModel
from reverie.models.rssm import BlockGRU, RSSMConfig
from reverie.models.s3m import S3MConfig, StateSpace
from reverie.models.set_rssm import SetRSSM, SetRSSMConfig
from reverie.models.storm import Storm, StormConfig

ModelConfig = RSSMConfig | SetRSSMConfig | QueueConfig | CountsConfig | S3MConfig | StormConfig | MixtureConfig


def build_model(
    config: ModelConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
) -> WorldModel:
    """A fresh model. `actions` is the width of an encoded action (A)."""
    match config:
        case RSSMConfig():
            return LatentModel(config, BlockGRU, observation_spec, actions, key=key)
        case SetRSSMConfig():
            return SetRSSM(config, observation_spec, actions, key=key)
        case QueueConfig():
            return QueueModel(config, observation_spec, actions, key=key)
        case CountsConfig():
            return CountsModel(config, observation_spec, actions, key=key)
        case S3MConfig():
            return LatentModel(config, StateSpace, observation_spec, actions, key=key)
        case MixtureConfig():  # also a StormConfig
            return Mixture(config, observation_spec, actions, key=key)
        case StormConfig():
            return Storm(config, observation_spec, actions, key=key)
