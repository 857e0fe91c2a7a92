"""What an agent that infers its task believes, and how far its generative model is off between tasks that it knows.

Codes are judged by `disentanglement.py`. The paper on MetaDreamer (arXiv 2311.06673) names errors of single and
multiple factors without a definition that is public; the ones here are ours.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from reverie.agents.pearl import PEARLPolicy
from reverie.envs.core import ActionSpec, Continuous, Discrete, World, batch_reset, batch_step
from reverie.models.generative import GenerativeModel
from reverie.policies.rollout import rollout


@eqx.filter_jit
def codes_of(
    world: World,
    policy: PEARLPolicy,
    tasks: Float[Array, "M F"],
    contexts: int,
    steps: int,
    key: Key[Array, ""],
) -> Float[Array, "M C Z"]:
    """Posterior means of `contexts` (C) contexts of each task, of `steps` steps of experience with the prior."""
    policy = PEARLPolicy(policy.networks, greedy=False, prior_episodes=steps)
    each = jnp.repeat(tasks, contexts, 0)
    ended, _ = rollout(world, policy, each, key, steps + 1, lambda state, timestep, action: None)
    mean, _ = policy.networks.encoder.gaussian(ended.policy_state.belief)
    return mean.reshape(len(tasks), contexts, -1)


def midpoints(factors: Float[np.ndarray, "K F"]) -> Mapping[int, list[tuple[int, int]]]:
    """Pairs of tasks, by the number of factors that they differ in, each of which are neighbours in all of these: no
    other task has a value between."""
    values = [np.unique(column) for column in factors.T]
    places = np.stack([np.searchsorted(v, column) for v, column in zip(values, factors.T, strict=True)], 1)
    found: dict[int, list[tuple[int, int]]] = {}
    for one, other in combinations(range(len(factors)), 2):
        apart = np.abs(places[one] - places[other])
        if apart.max() == 1:
            found.setdefault(int(apart.sum()), []).append((one, other))
    return found


class Foretold(NamedTuple):
    """What came after 1 .. H steps in B episodes, as numbers of an observation, and what was foretold."""

    came: Float[Array, "H B D"]
    said: Float[Array, "H B D"]
    counts: Bool[Array, "H B"]
    """Whether the episode had not ended before, in the world or in the model."""

    @property
    def error(self) -> Float[Array, " H"]:
        """The root of the mean squared difference of a number; NaN where no episode is left."""
        off = jnp.square(self.said - self.came).mean(-1)
        return jnp.sqrt(jnp.where(self.counts, off, 0.0).sum(1) / self.counts.sum(1))


@eqx.filter_jit
def foretold(
    world: World,
    model: GenerativeModel,
    tasks: Float[Array, "B F"],
    z: Float[Array, "B Z"],
    steps: int,
    key: Key[Array, ""],
) -> Foretold:
    """The world in these tasks, and the model that is told z, in `steps` (H) steps of the same actions, drawn evenly.
    Physics is told what chance brought in the world, and is not judged by it; `free` foretells that too."""
    reset_key, key = jax.random.split(key)

    def step(now: tuple, key: Key[Array, ""]) -> tuple[tuple, Foretold]:
        states, timestep, numbers, going = now
        act_key, step_key = jax.random.split(key)
        action = anything(world.action_spec, len(z), act_key)
        states, timestep = batch_step(world, tasks, states, timestep, action, step_key)
        came = model.numbers.flat(timestep.observation)
        led, *_ = model(numbers, action, z, came)
        after = going & ~timestep.is_last & (led.ends < 0.5)
        return (states, timestep, led.observation, after), Foretold(came, led.observation, going)

    states, timestep = batch_reset(world, tasks, reset_key)
    begun = states, timestep, model.numbers.flat(timestep.observation), jnp.ones(len(z), bool)
    return jax.lax.scan(step, begun, jax.random.split(key, steps))[1]


def anything(spec: ActionSpec, batch: int, key: Key[Array, ""]) -> Array:
    """Actions [B, ...], drawn evenly."""
    match spec:
        case Discrete(n):
            return jax.random.randint(key, (batch,), 0, n)
        case Continuous(size):
            return jax.random.uniform(key, (batch, size), minval=-1.0)
