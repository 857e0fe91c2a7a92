"""How Dreamer's networks are moved: all by one optimiser, as in DreamerV3, or each by one of its own, as in R2I."""

from dataclasses import dataclass, field, fields

import optax

from reverie.nn.optimiser import AdamConfig, OptimiserConfig, in_groups
from reverie.nn.optimiser import optimiser as single
from reverie.nn.ssm import SSM

SSM_PARAMETERS = tuple(each.name for each in fields(SSM) if not each.metadata.get("static"))
"""Each is a group of its own, over all layers, with a clip of its own."""


@dataclass(frozen=True)
class GroupsConfig:
    """An optimiser for each part of the agent. The defaults are those of R2I's release (arXiv 2403.04253) for all its
    benchmarks but Memory Maze."""

    model: AdamConfig = field(default_factory=AdamConfig)
    """For the world model but its state-space layers."""
    ssm: AdamConfig = field(default_factory=AdamConfig)
    """For state-space layers, each kind of parameter by itself."""
    actor: AdamConfig = field(default_factory=lambda: AdamConfig(3e-5, 100.0, 1e-5))
    """For the actor, and the memory that it shares with the critic."""
    critic: AdamConfig = field(default_factory=lambda: AdamConfig(3e-5, 100.0, 1e-5))
    """For the critic."""

    def __post_init__(self):
        if self.ssm.weight_decay:
            raise ValueError(
                f"GroupsConfig: ssm.weight_decay must be 0, got {self.ssm.weight_decay}: "
                "state-space layers have no weights that could decay, only B, C and the like"
            )


def optimiser(config: OptimiserConfig | GroupsConfig) -> optax.GradientTransformation:
    """The optimiser of all of Dreamer's networks."""
    match config:
        case OptimiserConfig():
            return single(config)
    parts = {"model": config.model, "actor": config.actor, "memory": config.actor, "critic": config.critic}
    return in_groups(parts | dict.fromkeys(SSM_PARAMETERS, config.ssm))
