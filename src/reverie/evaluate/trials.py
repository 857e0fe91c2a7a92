"""Trials: frozen policies meet the same jobs, and what became of every job goes into tidy tables.

`standard` plays one episode at one level, `adaptive` several episodes with levels that change inside them and a memory
that lives through the trial; `contenders` makes contestants of classical rules, `lower_bounds` rows that no policy can
beat. Comparing rows is `statistics.py`; training and choosing agents happen elsewhere.

Common random numbers: the jobs of a trial depend on the key, the name of the task and the number of the trial alone.
All contestants of one call meet the same jobs, and so do those of two calls with one key.

Columns of the results, one row per (experiment, agent, training_seed, task, evaluation_seed, episode, level):
`role` (see `Role`), `sees`, the view or what else it knows of the fleet; `windows`, how many disjoint windows of a
recording the trials are (None where they are drawn independently); `evaluation_seed`, the number of the trial;
`episode`, its number within the trial; `level`, which jobs of the episode count: those that arrived under this offered
load, None for all of them; `jobs` and `mean_size`, their number and mean size (work units); `mean`, `median`, `p95`,
`p99` response time (time units); `mean_slowdown`, `p99_slowdown` (response time x speed 1 / size); `late`, the share of
jobs beyond a deadline (None without one). Axes: K episodes of a trial, E trials, J jobs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from reverie.envs.core import ActionSpec, ArraySpec, State, TimeStep
from reverie.envs.fleet.env import FleetEnv, Record, Task
from reverie.envs.fleet.views import hides
from reverie.envs.fleet.weights import USUAL, FleetWorld, Proxy, View, WeightsEnv
from reverie.evaluate.bounds import lower_bound
from reverie.evaluate.capacity import load_at
from reverie.evaluate.contestants import Contestant, check_sides, key_of, programs
from reverie.policies.core import Policy, PolicyState
from reverie.policies.rollout import trials as rollouts
from reverie.policies.rules import LeastWork
from reverie.policies.views import Rule
from reverie.tables import Row

SURVIVAL_POINTS = 80
LATE_BINDING = frozenset({"late-binding", "late-binding-fastest", "late-binding-4"})
"""Rules that every operator of first-come-first-served servers has, whatever is hidden: to send a job where it waits
the shortest is to keep one queue in the proxy and let the server that frees next take its head (`maxconn 1`)."""


class Tables(NamedTuple):
    """What a trial leaves behind."""

    results: list[Row]
    """One row per contestant, training seed, trial, episode and level; see the head of this module."""
    responses: list[Row]
    """The distribution of the response times of all jobs: one row per (experiment, agent, role, training_seed, task,
    survival), where `response` is the time that a fraction `survival` of the jobs exceeds."""


def contenders(
    rules: Mapping[str, Rule], view: View, alone: bool = True, proxy: Proxy = USUAL
) -> list[Contestant[FleetWorld]]:
    """Classical rules as opponents of agents that see `view`; `alone`, that nobody else sends jobs to the servers,
    which serve one at a time; `proxy`, whose weights are set by rules that do.

    A rule that needs what `view` hides is an oracle: it stays in the comparison under its own name, and
    `statistics.verdict` calls the best of these the oracle of a task and level. The rules that see less than the agents
    remain rules; to look away is their choice. So do those of `LATE_BINDING` where we are alone: a proxy's slots say
    nothing of the jobs of others, nor of how much is left of jobs that share a server.
    """

    def contestant(name: str, rule: Rule) -> Contestant:
        world = WeightsEnv(proxy=proxy) if rule.view == "weights" else FleetEnv(view=rule.view)
        if alone and name in LATE_BINDING:
            return Contestant(name, rule, world, "rule", knows="who is idle")
        return Contestant(name, rule, world, "oracle" if hides(view, rule.view) else "rule")

    return [contestant(name, rule) for name, rule in rules.items()]


def standard(
    contestants: Sequence[Contestant[FleetWorld]],
    tasks: Mapping[str, Task],
    key: Key[Array, ""],
    jobs: int,
    experiment: str = "standard",
    windows: int | None = None,
    deadline: float | None = None,
) -> Tables:
    """One level, one episode of `jobs` jobs: every contestant plays the same E trials of each task.

    Arguments: `tasks`, by name; the leaves of each begin with the axis E (one task per trial); `windows`, how many
    disjoint windows of a recording they are, if so; `deadline`, beyond which jobs are counted as late (time units).
    Errors: ValueError where there is no contestant or no task, or one stands there twice.
    """
    trials = {name: _with_axis(task) for name, task in tasks.items()}
    return _trials(contestants, trials, key, jobs, experiment, False, windows, deadline)


def adaptive(
    contestants: Sequence[Contestant[FleetWorld]],
    tasks: Mapping[str, Task],
    key: Key[Array, ""],
    jobs: int,
    experiment: str = "adaptive",
    deadline: float | None = None,
) -> Tables:
    """Changing levels: K episodes of `jobs` jobs, with weights frozen and memory kept from one episode to the next.

    Jobs count for the level, the offered load, in force when they arrive; what a contestant left behind at one level
    burdens the next. Arguments: `tasks`, by name; the leaves of each begin with the axes K, E (one task per episode of
    each trial). Errors: as for `standard`.
    """
    return _trials(contestants, tasks, key, jobs, experiment, True, None, deadline)


def lower_bounds(
    tasks: Mapping[str, Task],
    key: Key[Array, ""],
    jobs: int,
    experiment: str = "standard",
    windows: int | None = None,
) -> list[Row]:
    """Result rows for what no policy can beat in the trials of `standard`: the bound on the mean, all else missing."""
    rows = []
    for name, task in tasks.items():
        met = play([Contestant("any", LeastWork(), FleetEnv(), "rule")], _with_axis(task), key_of(key, name), jobs)[0]
        for trial in range(task.mask.shape[0]):
            size, arrival = met.size[0, :, trial], met.arrival[0, :, trial]
            row: Row = {"experiment": experiment, "agent": "lower-bound", "role": "bound", "sees": None}
            row |= {
                "windows": windows,
                "training_seed": None,
                "task": name,
                "evaluation_seed": trial,
                "episode": 0,
                "level": None,
            }
            row |= {"jobs": jobs, "mean_size": float(size.mean())} | dict.fromkeys(_STATISTICS)
            bound = lower_bound(jax.tree.map(lambda leaf, e=trial: leaf[e], task), arrival, size)
            rows.append(row | {"mean": bound})
    return rows


class Jobs(NamedTuple):
    """What became of the jobs of E trials of K episodes, on the host: all [K, J, E]."""

    server: Int[np.ndarray, "K J E"]
    size: Float[np.ndarray, "K J E"]
    arrival: Float[np.ndarray, "K J E"]
    response: Float[np.ndarray, "K J E"]


def play(contestants: Sequence[Contestant[FleetWorld]], task: Task, key: Key[Array, ""], jobs: int) -> list[Jobs]:
    """Let every contestant play the trials of one task (leaves [K, E, ...]) and say what became of their jobs."""
    played: dict[int, Jobs] = {}
    for (world, _), members in programs(contestants).items():
        env = world.meeting(task, jobs, paid=contestants[members[0]].training_seed is not None)  # rules do not look
        record = _side_by_side(env, [contestants[c].policy for c in members], task, key)
        for row, c in enumerate(members):
            played[c] = Jobs(
                *(np.asarray(leaf[..., row], float if leaf.dtype == jnp.float32 else None) for leaf in record)
            )
    return [played[c] for c in range(len(contestants))]


@eqx.filter_jit
def _side_by_side(env: FleetWorld, policies: Sequence[Policy], tasks: Task, key: Key[Array, ""]) -> Record:
    """Each policy in its own copy of the same world, which is compiled once for all C: records [K, J, E, C]."""
    record, ended = rollouts(
        _Copies(env, len(policies)),
        _Beside(tuple(policies)),
        tasks,
        key,
        env.steps,
        lambda before, after: after.states.record,
        lambda ended: ended.states,
    )
    return jax.vmap(env.outcome)(record, ended)  # over episodes K


class _Copies(NamedTuple):
    """C copies of one world, which meet the same jobs: states, timesteps and actions have the axis C in front."""

    env: FleetWorld
    count: int

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        return self.env.observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        return self.env.action_spec

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[State, TimeStep]:
        opened = self.env.reset(task, key)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.count, *leaf.shape)), opened)

    def step(
        self, task: Task, state: State, action: Shaped[Array, " C ..."], key: Key[Array, ""]
    ) -> tuple[State, TimeStep]:
        return jax.vmap(self.env.step, (None, 0, 0, None))(task, state, action, key)


class _Beside(NamedTuple):
    """C policies as one, each of which sees its own copy."""

    policies: tuple[Policy, ...]

    def initial_state(self, batch: int) -> tuple[PolicyState, ...]:
        return tuple(policy.initial_state(batch) for policy in self.policies)

    def act(
        self, state: tuple[PolicyState, ...], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Shaped[Array, "E C ..."], tuple[PolicyState, ...]]:
        seen = [jax.tree.map(lambda leaf, c=c: leaf[:, c], timestep) for c in range(len(self.policies))]
        acted = [p.act(s, t, key) for p, s, t in zip(self.policies, state, seen, strict=True)]
        actions, states = zip(*acted, strict=True)
        return jnp.stack(actions, 1), states


# --- from records to rows --------------------------------------------------------------------------------------------


def _trials(
    contestants: Sequence[Contestant[FleetWorld]],
    tasks: Mapping[str, Task],
    key: Key[Array, ""],
    jobs: int,
    experiment: str,
    by_level: bool,
    windows: int | None,
    deadline: float | None,
) -> Tables:
    check_sides(contestants, tasks)
    results: list[Row] = []
    responses: list[Row] = []
    for name, task in tasks.items():
        played = play(contestants, task, key_of(key, name), jobs)
        # All met the same jobs, but arrivals differ in the last digit from one compiled program to the next.
        level = _levels(task, played[0].arrival) if by_level else None
        for c, outcome in zip(contestants, played, strict=True):
            who: Row = {"experiment": experiment, "agent": c.name, "role": c.role, "sees": c.knows or c.world.view}
            who |= {"windows": windows, "training_seed": c.training_seed, "task": name}
            results += [who | row for row in _results(outcome, level, deadline)]
            responses += [who | row for row in _survival(outcome.response)]
    return Tables(results, responses)


def _with_axis(task: Task) -> Task:
    return jax.tree.map(lambda leaf: leaf[None], task)


def _levels(task: Task, arrival: Float[np.ndarray, "K J E"]) -> Float[np.ndarray, "K J E"]:
    """The offered load in force when each job arrived."""
    host = jax.tree.map(np.asarray, task)
    level = np.empty_like(arrival)
    for k, _, e in np.ndindex(arrival[:, :1].shape):
        level[k, :, e] = load_at(jax.tree.map(lambda leaf, k=k, e=e: leaf[k, e], host), arrival[k, :, e])
    return level


def _results(jobs: Jobs, level: Float[np.ndarray, "K J E"] | None, deadline: float | None) -> list[Row]:
    rows = []
    for episode, _, trial in np.ndindex(jobs.size[:, :1].shape):
        response, size = jobs.response[episode, :, trial], jobs.size[episode, :, trial]
        at: Row = {"evaluation_seed": trial, "episode": episode}
        rows.append(at | {"level": None} | _summary(response, size, deadline))
        if level is not None:
            now = level[episode, :, trial]
            rows += [
                at | {"level": float(value)} | _summary(response[now == value], size[now == value], deadline)
                for value in np.unique(now)
            ]
    return rows


def _summary(response: Float[np.ndarray, " J"], size: Float[np.ndarray, " J"], deadline: float | None) -> Row:
    slowdown = response / size
    numbers = (response.mean(), *np.percentile(response, (50, 95, 99)), slowdown.mean(), np.percentile(slowdown, 99))
    counts: Row = {"jobs": len(size), "mean_size": float(size.mean())}
    late = None if deadline is None else float((response > deadline).mean())
    return counts | dict(zip(_STATISTICS, (*map(float, numbers), late), strict=True))


_STATISTICS = ("mean", "median", "p95", "p99", "mean_slowdown", "p99_slowdown", "late")


def _survival(response: Float[np.ndarray, "K J E"]) -> list[Row]:
    # Down to the ten slowest jobs: beyond them the estimate is one of chance.
    survival = np.geomspace(1, min(1, 10 / response.size), SURVIVAL_POINTS)
    exceeded = np.quantile(response, 1 - survival)
    return [{"survival": float(s), "response": float(r)} for s, r in zip(survival, exceeded, strict=True)]
