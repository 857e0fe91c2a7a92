"""What an agent that infers its task believes, and how far its generative model is off between tasks that it knows.

Codes are judged by `disentanglement.py`. The paper on MetaDreamer (arXiv 2311.06673) names errors of single and
multiple factors without a definition that is public; the ones here are ours.
"""

from collections.abc import Mapping
from itertools import combinations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from reverie.agents.pearl import PEARLPolicy
from reverie.envs.core import ActionSpec, Continuous, Discrete, Environment, batch_reset, batch_step
from reverie.models.generative import GenerativeModel
from reverie.policies.rollout import rollout


@eqx.filter_jit
def codes_of(
    world: Environment,
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


@eqx.filter_jit
def foretelling_error(
    world: Environment,
    model: GenerativeModel,
    tasks: Float[Array, "B F"],
    z: Float[Array, "B Z"],
    steps: int,
    key: Key[Array, ""],
) -> Float[Array, " H"]:
    """How far the model, told z, is off the world in these tasks after 1 .. `steps` (H) steps of the same actions,
    drawn evenly: the root of the mean squared difference of an observation's numbers. Physics is told what chance
    brought in the world, and is not judged by it; `free` foretells that too. Episodes that have ended, in the world or
    in the model, no longer count; NaN where none is left."""
    reset_key, key = jax.random.split(key)

    def step(now: tuple, key: Key[Array, ""]) -> tuple[tuple, Float[Array, ""]]:
        states, timestep, numbers, going = now
        act_key, step_key = jax.random.split(key)
        action = anything(world.action_spec, len(z), act_key)
        states, timestep = batch_step(world, tasks, states, timestep, action, step_key)
        came = model.numbers.flat(timestep.observation)
        led, *_ = model(numbers, action, z, came)
        off = jnp.square(led.observation - came).mean(-1)
        error = jnp.sqrt(jnp.where(going, off, 0.0).sum() / going.sum())
        going &= ~timestep.is_last & (led.ends < 0.5)
        return (states, timestep, led.observation, going), error

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
