"""What the simulator says of a race: its plan (arrivals, works, changes of speed) under the rule that an arm comes to.

`leastconn` takes any of the servers with the fewest requests, as a proxy takes them by turns; two are drawn one by one,
so that they may be the same, as HAProxy and Envoy do it; nginx's `least_time` is `ewma` without its rounding.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep, stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Task, fleet_task, responses
from reverie.envs.fleet.sharing import sharing
from reverie.policies.core import PolicyState
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules
from reverie.policies.views import Rule, View, as_speeds, counts_view, pick
from reverie.serve.arms import Arm
from reverie.serve.race import RaceConfig


class FewestOf(eqx.Module):
    """The fewest jobs in progress of `drawn` servers, drawn with replacement, or of all (0); any of them where several
    have as few."""

    view: ClassVar[View] = "counts"
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """1 for a server, 0 for padding."""
    drawn: int = eqx.field(static=True, default=0)

    def initial_state(self, batch: int) -> PolicyState:
        return ()

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], PolicyState]:
        seen, (draw, chance) = counts_view(timestep, self.servers), jax.random.split(key)
        some = seen.allowed
        if self.drawn:
            logits = jnp.where(some, 0.0, -jnp.inf)
            shape = self.drawn, len(some)
            some = jax.nn.one_hot(jax.random.categorical(draw, logits, shape=shape), some.shape[-1]).any(0)
        return pick(seen.jobs, jax.random.uniform(chance, some.shape), some), state


def simulate(config: RaceConfig, arm: Arm) -> Float[np.ndarray, " J"] | None:
    """Seconds of each request; None where there is no such rule."""
    rule = _rule(config, arm)
    if rule is None:
        return None
    task, jobs = _task(config, alone=arm.cap == "one"), len(config.plan.at)
    reward = "admission" if task.sharing is None else "elapsed"
    env = FleetEnv(servers=len(config.speeds), jobs=jobs, view=rule.view, reward=reward)
    play, record = _play(env, rule, stack_tasks([task]))
    return np.asarray(responses(record, play.states))[:, 0]


@eqx.filter_jit
def _play(env: FleetEnv, rule: Rule, tasks: Task):
    return rollout(env, rule, tasks, jax.random.key(0), env.jobs, lambda state, *_: state.record)


def _task(config: RaceConfig, alone: bool) -> Task:
    """The servers and the requests; `alone`, where a server never has more than one."""
    halves = [0.0, config.seconds / 2] if config.drift else [0.0]
    rows = zip(config.speeds, reversed(config.speeds), strict=True)
    speed = schedules.stack([schedules.schedule(np.array(halves), np.array(row[: len(halves)])) for row in rows])
    at, work = config.plan
    task = fleet_task(speed, workloads.recorded(np.diff(at, prepend=0.0), work))
    if config.slots == 1 or alone:
        return task
    same = np.ones(len(config.speeds))
    return task._replace(sharing=sharing((1 - config.sharing) * same, config.sharing * same, config.slots * same))


def _rule(config: RaceConfig, arm: Arm) -> Rule | None:
    """What the arm comes to."""
    equal, alone = np.ones(len(config.speeds)), arm.cap == "one" or (arm.cap == "slots" and config.slots == 1)
    known = rules(equal, config.plan.work)
    match arm.balance:
        case "roundrobin":
            return known["round-robin"]
        case "random(2)" | "N_CHOICES":
            return FewestOf(equal, 2)
        case "least_time last_byte":
            return known["ewma"]
        case _ if alone:
            return known["late-binding"]
        case _ if arm.cap == "slots" or (arm.proxy == "envoy" and arm.served):
            return None
        case _ if arm.served:
            return known["adaptive-least-connections"]
        case _ if arm.weighted:
            return rules(config.speeds, config.plan.work, ["sed"])["sed"]
        case _:
            return FewestOf(equal)
