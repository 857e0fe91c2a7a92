"""Agents and a world so small that they compile quickly, the same in several files: what one of them has compiled, the
others find in the cache."""

from reverie.agents.a2c import A2CConfig
from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.envs.fleet.families import PARK_MEAN_SIZE
from reverie.models.queue import QueueConfig
from reverie.settings.config import CurveConfig, OffPolicyRun, OnPolicyRun, WorldConfig
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.on_policy import OnPolicyConfig

WORLD = WorldConfig(family="hard", tasks=2, jobs=20)
CURVE = CurveConfig(episodes=2, jobs=10)
A2C = OnPolicyRun(A2CConfig(NetworkConfig(units=8)), OnPolicyConfig(streams=4, steps=8), chunk=2)
DREAMER = OffPolicyRun(
    DreamerConfig(
        model=QueueConfig(units=8, deter=8, unit=PARK_MEAN_SIZE),  # draws no latents, which a rounding could tip
        memory=8,
        units=8,
        layers=1,
        dream_length=3,
        starts=2,
        siblings=2,
    ),
    OffPolicyConfig(streams=2, batch=2, length=4, ratio=4.0, capacity=200),
    chunk=2,
)
