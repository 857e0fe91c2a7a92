"""Dispatching as a task of factors: how much work comes, how unlike jobs are and which servers are fast is not seen and
has to be found out.

The fleet is that of `fleet/env.py`. What is known of it without the factors, so that MetaDreamer (arXiv 2311.06673)
can imagine in it, is the queue itself: W' = max(0, W + work - speed x dt), and what a job then waits for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec, Discrete, TimeStep, later
from reverie.envs.fleet.env import Fleet, FleetEnv, FleetState, Task
from reverie.envs.fleet.workload import lognormal, poisson
from reverie.ranges import Count, checked

SERVERS = 4
MIDDLE: Mapping[str, float] = {"load": 0.65, "tail": 0.8, "skew": 0.0}
"""Of the factors that a world does not have."""


@dataclass(frozen=True)
@checked
class Dispatch:
    """Send each job to one of four FIFO servers, knowing its size, the work that each server still has and whether it
    is busy, and the time since the job before (dt); each job pays minus its response time, as it is dispatched.

    Factors, none of which is seen: `load`, work that arrives over work that can be done, with Poisson arrivals; `tail`,
    the standard deviation of the logarithm of sizes, which are lognormal of mean 1; `skew`, the logarithm of how much
    faster the last server is than one in the middle, the first being as much slower. The mean speed is 1.

    An episode is cut after `limit` jobs, and begins with empty servers.

    Note that what a job pays tells the speed of its server at once, to whoever reads rewards; a balancer in front of
    real servers would learn it when the job is done.
    """

    factors: tuple[str, ...] = ("load", "tail", "skew")
    """What the numbers of a task are called; of the others, the world has those of `MIDDLE`."""
    limit: Count = 64
    """Jobs of an episode."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {
        "servers": ArraySpec((SERVERS, 2), "servers"),
        "job": ArraySpec((2,)),
    }
    """Of each server, work that is left and whether there is any; of the job, its size and dt."""
    action_spec: ClassVar[Discrete] = Discrete(SERVERS)
    unknowns: ClassVar[int] = SERVERS + 2
    """Logarithms of speeds, of arrivals per time unit and of the tail: what of a step the factors decide."""
    bound: ClassVar[float] = 4.0
    constant: ClassVar[bool] = True

    def __post_init__(self):
        if strange := sorted(set(self.factors) - set(MIDDLE)):
            raise ValueError(f"Dispatch: factors are of {', '.join(MIDDLE)}; got {', '.join(strange)}")

    @property
    def fleet(self) -> FleetEnv:
        """One job longer than an episode: what is seen last is what would go on."""
        return FleetEnv(SERVERS, self.limit + 1, "full", "admission")

    def reset(self, task: Float[Array, " F"], key: Key[Array, ""]) -> tuple[FleetState, TimeStep]:
        state, timestep = self.fleet.reset(self.task(task), key)
        return state, timestep._replace(observation=shown(timestep.observation))

    def step(
        self, task: Float[Array, " F"], state: FleetState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[FleetState, TimeStep]:
        state, timestep = self.fleet.step(self.task(task), state, action, key)
        never, cut = jnp.zeros((), bool), state.dispatched >= self.limit
        return state, later(shown(timestep.observation), timestep.reward, never, cut)

    def task(self, factors: Float[Array, " F"]) -> Task:
        """The fleet and the jobs that factors stand for."""
        speed, rate, tail = self.laws(factors)
        like = Fleet.constant(np.ones(SERVERS)).task(poisson(1.0, lognormal(1.0, 1.0)))
        jobs = like.workload
        sizes = jobs.sizes._replace(units=jobs.sizes.units.at[0].set(jnp.exp(-jnp.square(tail) / 2)), spread=tail)
        jobs = jobs._replace(rate=jobs.rate._replace(value=rate[None]), sizes=sizes)
        return like._replace(speed=like.speed._replace(value=speed[:, None]), workload=jobs)

    def laws(
        self, factors: Float[Array, "*B F"]
    ) -> tuple[Float[Array, "*B N"], Float[Array, "*B"], Float[Array, "*B"]]:
        """Speeds, arrivals per time unit, and the tail of sizes."""
        load, tail, skew = (
            factors[..., self.factors.index(name)] if name in self.factors else jnp.full(factors.shape[:-1], middle)
            for name, middle in MIDDLE.items()
        )
        speed = SERVERS * jax.nn.softmax(skew[..., None] * jnp.linspace(-1, 1, SERVERS), -1)
        return speed, SERVERS * load, tail

    # --- physics ------------------------------------------------------------------------------------------------------

    def draw(self, unknown: Float[Array, "*B U"], key: Key[Array, ""]) -> Float[Array, "*B 2"]:
        size_key, gap_key = jax.random.split(key)
        rate, tail = apart(unknown)[1:]
        size = jnp.exp(tail * jax.random.normal(size_key, tail.shape) - jnp.square(tail) / 2)
        return jnp.stack([size, jax.random.exponential(gap_key, rate.shape) / rate], -1)

    def brought(self, after: dict[str, Array]) -> Float[Array, "*B 2"]:
        return after["job"]

    def unlikelihood(self, unknown: Float[Array, "*B U"], chance: Float[Array, "*B 2"]) -> Float[Array, "*B"]:
        _, rate, tail = apart(unknown)
        size, gap = jnp.moveaxis(chance, -1, 0)
        off = (jnp.log(size) + jnp.square(tail) / 2) / tail
        return rate * gap - jnp.log(rate) + 0.5 * jnp.square(off) + jnp.log(tail)

    def advance(
        self,
        observation: dict[str, Array],
        action: Int[Array, "*B"],
        unknown: Float[Array, "*B U"],
        chance: Float[Array, "*B 2"],
    ) -> tuple[dict[str, Array], Float[Array, "*B"], Bool[Array, "*B"]]:
        speed = apart(unknown)[0]
        chosen = jax.nn.one_hot(action, SERVERS)
        work = observation["servers"][..., 0] + chosen * observation["job"][..., :1]
        reward = -(chosen * work / speed).sum(-1)
        left = jnp.maximum(0, work - speed * chance[..., 1:])
        return _seen(left, chance), reward, jnp.zeros(reward.shape, bool)


def apart(unknown: Float[Array, "*B U"]) -> tuple[Float[Array, "*B N"], Float[Array, "*B"], Float[Array, "*B"]]:
    """Speeds, arrivals per time unit, and the tail of sizes."""
    numbers = jnp.exp(unknown)
    return numbers[..., :SERVERS], numbers[..., SERVERS], numbers[..., SERVERS + 1]


def shown(full: dict[str, Array]) -> dict[str, Array]:
    """What is seen, of what the fleet's view `full` shows."""
    return _seen(full["servers"][..., 0], full["job"])


def _seen(work: Float[Array, "*B N"], job: Float[Array, "*B 2"]) -> dict[str, Array]:
    return {"servers": jnp.stack([work, (work > 0).astype(jnp.float32)], -1), "job": job}
