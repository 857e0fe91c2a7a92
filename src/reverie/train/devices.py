"""Several devices share one training: streams, replay, batches and dreams are divided among them, networks are copied.

This is the program of one device, which JAX's sharding divides: random numbers do not depend on how many devices there
are, so neither do the results, up to the order of sums. Gradients are summed over devices and sampled rows cross
between them; replay stays where it is.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from reverie.agents.a2c import A2C
from reverie.agents.ppo import PPO
from reverie.nn.devices import AXIS, copied, divided
from reverie.policies.core import Policy
from reverie.train.collect import Collector
from reverie.train.dreaming import Dreaming, DreamingConfig
from reverie.train.on_policy import OnPolicy, OnPolicyConfig
from reverie.train.replay import Replay
from reverie.train.trainers import InWorld, WorldTrainer, check_inside


@dataclass(frozen=True)
class DevicesTrainer:
    """An algorithm in a world, on several devices; a `Trainer`. Make one with `spread`."""

    one: WorldTrainer
    """Whose agent knows the mesh as well."""
    mesh: Mesh

    @property
    def first_steps(self) -> int:
        return self.one.first_steps

    @property
    def env_steps(self) -> int:
        return self.one.env_steps

    @property
    def updates(self) -> int:
        return self.one.updates

    def init(self, key: Key[Array, ""]) -> InWorld:
        return jax.jit(self.one.init, out_shardings=self._layout)(key)

    def place(self, state: PyTree) -> PyTree:
        """The state on its devices. Of mere shapes, the shapes with the devices noted."""

        def put(leaf, sharding):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)
            return jax.device_put(leaf, sharding)

        return jax.tree.map(put, state, jax.tree.broadcast(self._layout, state))

    def train(self, state: InWorld) -> tuple[InWorld, dict[str, Float[Array, " U"]]]:
        state, metrics = self.one.train(state)
        return jax.lax.with_sharding_constraint(state, self._layout), metrics

    def policy(self, state: InWorld, greedy: bool = True) -> Policy:
        """Its networks are on one device."""
        averaged = jax.device_put(state.averaged, self.mesh.devices.flat[0])
        return self.one.agent.policy(averaged, greedy)

    @property
    def _layout(self) -> InWorld:
        return layout(self.one.config, self.mesh)


def spread(trainer: WorldTrainer, count: int) -> DevicesTrainer:
    """`trainer` on the first `count` devices.

    Raises:
        ValueError: there are fewer devices, or something that is to be divided is no multiple of their number, or the
            world is outside JAX.
    """
    check_inside(trainer)
    mesh = first_devices(count)
    agent, config = trainer.agent, trainer.config
    if isinstance(config, DreamingConfig):
        sizes = {"streams": config.streams, "batch": config.batch}
    else:
        sizes = {"streams / workers": config.streams // config.workers}
    if isinstance(agent, PPO):
        sizes["streams / minibatches"] = trainer.config.streams // agent.config.minibatches
    for name, size in sizes.items():
        if size % count:
            raise ValueError(
                f"{name} must be a multiple of the {count} devices that share them, got {size}; "
                f"{size + count - size % count} would do, and so would a number of devices that divides {size}"
            )
    if not isinstance(agent, A2C):  # what A2C computes follows from its streams
        agent = replace(agent, mesh=mesh)
    return DevicesTrainer(replace(trainer, agent=agent), mesh)


def first_devices(count: int) -> Mesh:
    """A mesh of the first `count` devices.

    Raises:
        ValueError: there are fewer.
    """
    found = jax.devices()
    if not 1 <= count <= len(found):
        names = ", ".join(str(device) for device in found)
        raise ValueError(
            f"devices must lie in 1 .. {len(found)}, as this process sees {names}; got {count}. A CPU counts as one "
            f"device; with XLA_FLAGS=--xla_force_host_platform_device_count={count} in the environment it plays "
            f"{count}, which is for tests and brings no speed"
        )
    return Mesh(np.asarray(found[:count]), (AXIS,))


def layout(config: DreamingConfig | OnPolicyConfig, mesh: Mesh) -> InWorld:
    """Where each part of the training state lies, as a prefix of its tree."""
    whole: Any = copied(mesh)  # stands for any subtree
    streams: Any = divided(mesh)
    rows: Any = divided(mesh, axis=1)
    collector = Collector(*[streams] * len(Collector._fields))._replace(key=whole)
    if isinstance(config, DreamingConfig):
        return InWorld(Dreaming(whole, collector, Replay(rows, whole, whole), whole, whole), whole, whole)
    return InWorld(OnPolicy(whole, (collector,) * config.workers, whole, whole), whole, whole)
