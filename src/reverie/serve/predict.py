"""What the simulator says of a race: its plan (arrivals, works, changes of speed) under the rule that an arm comes to.

HAProxy's `leastconn` looks at weights only beside requests: an idle server comes before all others, and of equals the
one that was used longest ago. Two that are drawn may be the same, in HAProxy as in Envoy; nginx's `least_time` is
`ewma` without its rounding.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep, World, stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import LATENCY_FEATURES, FleetEnv, Task, fleet_task, known_at_dispatch, responses
from reverie.envs.fleet.sharing import sharing
from reverie.envs.fleet.weights import Proxy, WeightsEnv
from reverie.policies.adaptive import AdaptiveLeastConnections
from reverie.policies.core import PolicyState
from reverie.policies.rollout import Play, rollout, trials
from reverie.policies.rules import rules
from reverie.policies.views import Rule, View, as_speeds, counts_view, latency_view, pick
from reverie.policies.weights import AdaptiveWeights, HeldWeights
from reverie.serve.arms import Arm
from reverie.serve.race import RaceConfig

_POLL = 0.1
"""Seconds between two decisions of `reverie serve`."""


class LeastConnections(eqx.Module):
    """The least (jobs in progress + 1) / weight of `drawn` servers, drawn with replacement, or of all (0), idle servers
    before all others; of those that are equal, who has been neither sent a job nor finished one for longest."""

    view: ClassVar[View] = "latency"
    weights: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """0 for padding."""
    drawn: int = eqx.field(static=True, default=0)

    def initial_state(self, batch: int) -> Float[Array, "B N"]:
        """Time since each server was sent a job."""
        return jnp.full((batch, self.weights.shape[0]), jnp.inf)

    def act(
        self, state: Float[Array, "B N"], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], Float[Array, "B N"]]:
        seen = latency_view(timestep, self.weights)
        some, since = seen.allowed, state + seen.gap
        if self.drawn:
            shape = self.drawn, len(some)
            draw = jax.random.categorical(key, jnp.where(some, 0.0, -jnp.inf), shape=shape)
            some = jax.nn.one_hot(draw, some.shape[-1]).any(0)
        weight = jnp.where(self.weights > 0, self.weights, 1.0)
        score = jnp.where(seen.jobs > 0, (seen.jobs + 1) / weight, 0.0)
        completed = timestep.observation["servers"][..., LATENCY_FEATURES.index("since completion")]
        action = pick(score, jnp.minimum(since, completed), some)
        return action, jnp.where(jax.nn.one_hot(action, since.shape[-1], dtype=bool), 0.0, since)


class IdleFirst(eqx.Module):
    """A rule that may choose among all servers only where none of them is idle."""

    view: ClassVar[View] = "counts"
    rule: Rule
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """1 for a server, 0 for padding."""

    def initial_state(self, batch: int) -> PolicyState:
        return self.rule.initial_state(batch)

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], PolicyState]:
        seen = counts_view(timestep, self.servers)
        idle = seen.allowed & (seen.jobs == 0)
        mask = jnp.where(idle.any(-1, keepdims=True), idle, seen.allowed)
        return self.rule.act(state, timestep._replace(observation={**timestep.observation, "mask": mask}), key)


def simulate(config: RaceConfig, arm: Arm) -> Float[np.ndarray, " J"] | None:
    """Seconds of each request, at most the time after which it would be given up; None where there is no such rule."""
    if arm.cap != "no":
        return np.minimum(_in_the_proxy(config, arm), config.timeout)
    rule = _rule(config, arm)
    if rule is None:
        return None
    assert rule.view != "weights", "those here send each job"
    task, jobs = _task(config), len(config.plan.at)
    reward = "admission" if known_at_dispatch(task) else "elapsed"
    env = FleetEnv(servers=len(config.speeds), jobs=jobs, view=rule.view, reward=reward)
    play, record = _play(env, rule, stack_tasks([task]), jobs, lambda state, *_: state.record)
    return np.minimum(responses(record, play.states)[:, 0], config.timeout)


def _in_the_proxy(config: RaceConfig, arm: Arm) -> Float[np.ndarray, " J"]:
    """Seconds of each request where those that find no slot wait in the proxy, whose weights are set ten times a second
    or never."""
    hold = _POLL if arm.served else 2 * config.seconds
    proxy = Proxy(hold=hold, caps=(1 if arm.cap == "one" else config.slots,), idle_first=True, late=0)
    env = WeightsEnv(servers=len(config.speeds), jobs=len(config.plan.at), proxy=proxy)
    equal = np.ones(len(config.speeds))
    estimates = AdaptiveLeastConnections(equal, tau=config.tau)
    rule = AdaptiveWeights(estimates) if arm.served else HeldWeights(jnp.asarray(equal))
    task = jax.tree.map(lambda leaf: leaf[None, None], _task(config))  # one trial of one episode

    @eqx.filter_jit
    def responses_of(rule: Rule, task: Task) -> Float[Array, "1 1 J"]:
        key = jax.random.key(0)
        return trials(env, rule, task, key, None, lambda *_: None, lambda ended: ended.states.record.response)[1]

    return np.asarray(responses_of(rule, task))[0, 0]


@eqx.filter_jit
def _play(env: World, rule: Rule, tasks: Task, steps: int, keep: Callable[..., Any]) -> tuple[Play, Any]:
    return rollout(env, rule, tasks, jax.random.key(0), steps, keep)


def _task(config: RaceConfig) -> Task:
    """The servers and the requests."""
    halves = [0.0, config.length / 2] if config.drift else [0.0]
    rows = zip(config.speeds, reversed(config.speeds), strict=True)
    speed = schedules.stack([schedules.schedule(np.array(halves), np.array(row[: len(halves)])) for row in rows])
    at, work = config.plan
    task = fleet_task(speed, workloads.recorded(np.diff(at, prepend=0.0), work))
    if config.slots == 1:
        return task
    same = np.ones(len(config.speeds))
    return task._replace(sharing=sharing((1 - config.sharing) * same, config.sharing * same, config.slots * same))


def _rule(config: RaceConfig, arm: Arm) -> Rule | None:
    """What an arm without a queue in the proxy comes to."""
    equal = np.ones(len(config.speeds))
    known = rules(equal, config.plan.work, ["round-robin", "ewma"])
    match arm.balance:
        case "roundrobin":
            return known["round-robin"]
        case "random(2)" | "N_CHOICES":
            return LeastConnections(equal, 2)
        case "least_time last_byte":
            return known["ewma"]
        case _ if arm.proxy == "envoy" and arm.served:
            return None
        case _ if arm.served:
            return IdleFirst(AdaptiveLeastConnections(equal, tau=config.tau), equal)
        case _ if arm.weighted:
            return LeastConnections(np.array(config.speeds))
        case _:
            return LeastConnections(equal)
