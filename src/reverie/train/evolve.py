"""Tuning a rule by evolution: CMA-ES (Hansen, arXiv 1604.00772; the library `cmaes`) over its free numbers.

Each generation meets jobs of its own, the same for all its members, so that nothing is learned by heart. What a member
is worth is the logarithm of its cost beside that of the rule as it stands in books, on the same jobs, averaged over
episodes. A history of vectors' worths is all that has to be kept: told them again, the search goes on as if it had
never stopped, since it draws from its own seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from reverie.envs.core import World
from reverie.envs.fleet.env import FleetEnv, Task, known_at_dispatch, responses
from reverie.envs.fleet.weights import USUAL, Proxy, WeightsEnv
from reverie.policies.rollout import rollout, trials
from reverie.policies.tunable import Tunable
from reverie.ranges import Seed, at_least, checked

Cost = Callable[[Float[Array, "J E"]], Float[Array, "*R E"]]
"""What an episode costs, by the response times of its jobs: their mean, or a percentile. A search wants one number."""


def as_it_is(env: WeightsEnv) -> World:
    """The world of rules that set weights, showing what a proxy tells."""
    return env


@dataclass(frozen=True)
@checked
class EvolveConfig:
    """How a rule is tuned."""

    members: Annotated[int, *at_least(4, 4096, "all of them play at once")] = 24
    """Vectors that are tried in each generation (P)."""
    episodes: Annotated[int, *at_least(1, 4096, "all of them are played at once")] = 32
    """Episodes that each of them plays (E)."""
    jobs: Annotated[int, *at_least(1, 1_000_000, "an episode is held in RAM")] = 1000
    """Their length in jobs (J)."""
    seed: Seed = 0
    """Of vectors, tasks and jobs."""


class Generation(NamedTuple):
    """Where the search stands after a generation."""

    number: int
    """From 1 on."""
    worths: Float[np.ndarray, " P"]
    """The logarithm of each member's cost, beside that of the rule as it stood."""
    centre: Float[np.ndarray, " D"]
    """The mean of the vectors that are drawn: the one to take."""


def evolve(
    config: EvolveConfig,
    rule: Tunable,
    draw: Callable[[int, int], Task],
    cost: Cost,
    history: Sequence[Float[np.ndarray, " P"]] = (),
    proxy: Proxy = USUAL,
    shown: Callable[[WeightsEnv], World] = as_it_is,
) -> Iterator[Generation]:
    """Generation after generation, for as long as it is asked.

    Arguments: `draw(count, seed)` gives tasks [E, ...] to tune on; `history`, the worths of generations that were
    before, which are not played again; `proxy`, whose weights are set by rules that do; `shown`, the world around such
    a proxy that shows them what they read.
    """
    from cmaes import CMA  # here, as it imports most of scipy

    size = len(rule.names)
    search = CMA(np.zeros(size), rule.spread, population_size=config.members, seed=config.seed)
    number = 0
    while True:
        members = np.stack([search.ask() for _ in range(config.members)])
        if number < len(history):
            worths = np.asarray(history[number], float)
        else:
            tasks, key = draw(config.episodes, config.seed + number), jax.random.key(number)
            key = jax.random.fold_in(key, config.seed)
            vectors = jnp.asarray(np.vstack([np.zeros(size), members]), jnp.float32)
            took = np.asarray(play(rule, vectors, tasks, key, config.jobs, cost, proxy, shown), float)
            worths = np.log(took[1:] / took[0]).mean(1)
        search.tell(list(zip(members, worths.tolist(), strict=True)))
        number += 1
        if number > len(history):
            yield Generation(number, worths, search.mean.copy())


@eqx.filter_jit
def play(
    rule: Tunable,
    vectors: Float[Array, "P D"],
    tasks: Task,
    key: Key[Array, ""],
    jobs: int,
    cost: Cost,
    proxy: Proxy = USUAL,
    shown: Callable[[WeightsEnv], World] = as_it_is,
) -> Float[Array, "P *R E"]:
    """What each vector costs in each episode; all meet the same jobs. Arguments as of `evolve`."""
    view, servers = rule.make(jnp.zeros(len(rule.names))).view, tasks.mask.shape[-1]
    if view == "weights":
        once = jax.tree.map(lambda leaf: leaf[None], tasks)

        def held(vector: Float[Array, " D"]) -> Float[Array, "*R E"]:
            env, policy = shown(WeightsEnv(servers, jobs, proxy)), rule.make(vector)
            ended = trials(env, policy, once, key, None, lambda *_: None, lambda ended: ended.states.record.response)[1]
            return cost(ended[0].T)

        return jax.vmap(held)(vectors)
    env = FleetEnv(servers, jobs, view, "admission" if known_at_dispatch(tasks) else "elapsed")

    def one(vector: Float[Array, " D"]) -> Float[Array, "*R E"]:
        ended, record = rollout(env, rule.make(vector), tasks, key, jobs, lambda state, *_: state.record)
        return cost(responses(record, ended.states))

    return jax.vmap(one)(vectors)
