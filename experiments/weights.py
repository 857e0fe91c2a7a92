"""Weights: how much is there to be had by who sets them, and what keeps the tuned rule from it?

On servers that serve several jobs at once and whose speeds change unseen, five searches by evolution for each of four
formulas of a proxy's weights. Two see what a proxy tells: the rule that `reverie tune --rule adaptive-weights` tunes
(its time constant and gain), and one of eight constants: two rates of different memory, what each starts from, jobs
there, their mean stay, and a gain that follows how busy the fleet is. Two are told more than any proxy can tell: the
speed of each server at the moment at which the weights are set; or besides how each server serves, the jobs that it
has at that moment and the work that they still bring. All play the same held-out episodes.

    python experiments/weights.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from study import ExamOptions, Study, study

from reverie.envs.core import ArraySpec, Continuous, TimeStep
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import Task
from reverie.envs.fleet.families import draw_tasks, family
from reverie.envs.fleet.sharing import most
from reverie.envs.fleet.weights import LEAST, Proxy, View, WeightsEnv, WeightsState, action_of
from reverie.evaluate import statistics
from reverie.evaluate.examination import Exam
from reverie.policies.tunable import Tunable
from reverie.policies.weights import COLUMN
from reverie.report.output import say
from reverie.settings.config import stream_seed
from reverie.tables import Row
from reverie.train.evolve import EvolveConfig, evolve, play

CHUNK = 20
"""Held-out episodes that are played at once: the fewer there are, the better they fit into caches."""
PATIENCE = 10_000.0
"""The time constant where a search begins, 20 mean service times."""
Told = Literal["what a proxy tells", "speeds", "everything"]


@dataclass(frozen=True)
class Weights(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    families: tuple[str, ...] = ("workers", "shared")
    """Families of tasks."""
    hold: float = 500.0
    """Time units for which weights are held."""


# --- a world that tells the truth besides -----------------------------------------------------------------------------


class Truth(NamedTuple):
    """What no proxy tells, of each server at the moment at which weights are set."""

    speed: Float[Array, "*B N"]
    alone: Float[Array, "*B N"]
    """How much work it does in a time unit, at speed 1, with one job."""
    crowded: Float[Array, "*B N"]
    """The same with all slots taken."""
    jobs: Float[Array, "*B N"]
    work: Float[Array, "*B N"]
    """That these jobs still bring."""
    slots: Float[Array, "*B N"]
    """Which whoever configures the proxy may know."""


@dataclass(frozen=True)
class Open:
    """A proxy's world, in which `Truth` is shown besides."""

    env: WeightsEnv

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        return dict(self.env.observation_spec) | dict.fromkeys(Truth._fields, ArraySpec((self.env.servers,)))

    @property
    def action_spec(self) -> Continuous:
        return self.env.action_spec

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[WeightsState, TimeStep]:
        return self._shown(task, *self.env.reset(task, key))

    def step(
        self, task: Task, state: WeightsState, action: Float[Array, " N"], key: Key[Array, ""]
    ) -> tuple[WeightsState, TimeStep]:
        return self._shown(task, *self.env.step(task, state, action, key))

    def _shown(self, task: Task, state: WeightsState, timestep: TimeStep) -> tuple[WeightsState, TimeStep]:
        how = self.env.servers_of(task)
        slots, speed = state.slots, jax.vmap(lambda s: schedules.at(s, state.clock))(task.speed)
        left = jnp.where(jnp.isinf(slots.left), 0.0, slots.left).sum(-1) + slots.queued
        truth = Truth(
            speed,
            1 / how.pace(jnp.ones_like(slots.busy)),
            most(how),
            slots.in_progress * 1.0,
            left,
            how.slot.sum(-1) * 1.0,
        )
        return state, timestep._replace(observation=timestep.observation | truth._asdict())


# --- formulas ---------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What is remembered of each server, forgotten exponentially at two rates [B, 2, N]; `lasted`, [B, 2, 1]."""

    completed: Float[Array, "B 2 N"]
    busy: Float[Array, "B 2 N"]
    presence: Float[Array, "B 2 N"]
    lasted: Float[Array, "B 2 1"]


class Formula(eqx.Module):
    """log weight = gain (1 + slope (busy - 0.7)) log rate, and other logarithms, each times a constant.

    `busy` is the share of servers that were found busy. With all constants 0 it is the rule `adaptive-weights` or, of
    who is told them, the speeds themselves.
    """

    view: ClassVar[View] = "weights"
    x: Float[Array, " D"]
    names: tuple[str, ...] = eqx.field(static=True)
    """Of the constants."""
    told: Told = eqx.field(static=True)
    servers: int = eqx.field(static=True)

    def initial_state(self, batch: int) -> Sums:
        nothing = jnp.zeros((batch, 2, self.servers))
        return Sums(nothing, nothing, nothing, nothing[..., :1])

    def act(self, state: Sums, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Float[Array, "B N"], Sums]:
        seen, c = timestep.observation, dict(zip(self.names, self.x, strict=True))
        mask = seen["mask"]
        tau = PATIENCE * jnp.exp(c.get("tau", 0.0) + jnp.stack([jnp.float32(0.0), c.get("quick tau", 0.0) - 1.5]))
        state = _watched(state, tau, seen)
        found = (state.busy[:, 0] / jnp.maximum(state.lasted[:, 0], 1.0)).sum(-1, keepdims=True)  # [B, 1]
        busy = found / mask.sum(-1, keepdims=True)
        if self.told == "what a proxy tells":
            rate, quick = (_rate(state, k, mask, jnp.exp(c.get("prior", 0.0))) for k in range(2))
            jobs = seen["servers"][..., COLUMN["in progress"]]
            terms = {"quick": quick, "stay": _stay(state), "jobs": jobs + 1, "slots": seen["slots"]}
        else:
            rate, usual = (
                seen["speed"],
                seen["work"].sum(-1, keepdims=True) / jnp.maximum(seen["jobs"].sum(-1), 1)[:, None],
            )
            work = seen["work"] / jnp.maximum(usual, 1e-6) + 1
            terms = {"crowded": seen["crowded"], "alone": seen["alone"], "jobs": seen["jobs"] + 1, "work": work}
        word = jnp.exp(c["gain"]) * (1 + c.get("slope", 0.0) * (busy - 0.7)) * _log(rate)
        word += sum(c[name] * _log(term) for name, term in terms.items() if name in c)
        weights = jnp.where(mask, jnp.exp(word - jnp.where(mask, word, -jnp.inf).max(-1, keepdims=True)), 0.0)
        if self.told == "what a proxy tells":  # the guard `spread` of `serve`
            apart = (mask & (weights <= LEAST)).sum(-1, keepdims=True) > mask.sum(-1, keepdims=True) / 2
            weights = jnp.where(apart, mask, weights)
        return action_of(weights), state


def _log(x: Float[Array, "B N"]) -> Float[Array, "B N"]:
    return jnp.log(jnp.maximum(x, 1e-9))


def _watched(state: Sums, tau: Float[Array, "2"], seen: dict[str, Array]) -> Sums:
    jobs, completed = (seen["servers"][:, None, :, COLUMN[name]] for name in ("in progress", "completions"))
    lasted = seen["proxy"][:, None, 2:]  # [B, 1, 1]
    kept = jnp.exp(-lasted / tau[:, None])  # [B, 2, 1]
    new = Sums(completed, jnp.where(jobs > 0, lasted, 0.0), jobs * lasted, lasted)
    return Sums(*(kept * old + more for old, more in zip(state, new, strict=True)))


def _rate(state: Sums, k: int, mask: Array, prior: Float[Array, ""]) -> Float[Array, "B N"]:
    """As `estimated_rates`, of equal nominal speeds and with so many completions added."""
    completed, busy = state.completed[:, k], state.busy[:, k]
    every, capacity = completed.sum(-1, keepdims=True), (busy * mask).sum(-1, keepdims=True)
    known = (every > 0) & (capacity > 0)
    nominal = jnp.where(known, every / jnp.where(known, capacity, 1.0), 1.0)
    return jnp.where(known, (completed + prior) / (busy + prior / nominal), nominal)


def _stay(state: Sums) -> Float[Array, "B N"]:
    """Of a job, by Little's law, with four jobs of the fleet's mean added."""
    completed, presence = state.completed[:, 0], state.presence[:, 0]
    every = completed.sum(-1, keepdims=True)
    usual = presence.sum(-1, keepdims=True) / jnp.maximum(every, 1e-6)
    return jnp.where(every > 0, (presence + 4 * usual) / (completed + 4), 1.0)


class Arm(NamedTuple):
    told: Told
    names: tuple[str, ...]
    generations: int
    members: int
    episodes: int


UNTUNED = {"tuned": "usual constants", "told speeds": "speeds as weights"}
"""What arms begin with; the others begin with one of these."""
EQUAL_WEIGHTS = (0.0, -30.0)
"""The rule with a gain of next to nothing."""
ALIKE = {"knows slots": ("shared", "llm")}
"""Families in which an arm knows nothing more, as all servers are alike in it."""
RICHER = ("tau", "gain", "slope", "prior", "quick tau", "quick", "stay", "jobs")
ARMS = {
    "tuned": Arm("what a proxy tells", ("tau", "gain"), 10, 8, 16),
    "richer": Arm("what a proxy tells", RICHER, 20, 12, 8),
    "knows slots": Arm("what a proxy tells", ("tau", "gain", "slope", "prior", "stay", "jobs", "slots"), 20, 12, 8),
    "told speeds": Arm("speeds", ("gain", "slope"), 10, 8, 16),
    "told everything": Arm("everything", ("gain", "slope", "crowded", "alone", "jobs", "work"), 20, 12, 8),
}
"""The name of each constant that is searched, generations, members, episodes that each of them plays."""


@cache  # what is compiled of a rule is found again by the rule itself
def free(arm: Arm, servers: int) -> Tunable:
    return Tunable(arm.names, lambda x: Formula(x, arm.names, arm.told, servers), spread=0.5)


# --- search and exam --------------------------------------------------------------------------------------------------


def mean(response: Float[Array, "J E"]) -> Float[Array, " E"]:
    return response.mean(0)


def mean_and_p99(response: Float[Array, "J E"]) -> Float[Array, "2 E"]:
    return jnp.stack([response.mean(0), jnp.quantile(response, 0.99, axis=0)])


def searched(asked: Weights, name: str, arm: Arm, seed: int) -> list[Row]:
    """The constants that one search found."""
    draw = family(name)
    servers = draw(np.random.default_rng(0)).mask.shape[-1]
    search = EvolveConfig(arm.members, arm.episodes, asked.exam.jobs, seed)

    def tasks(count: int, number: int) -> Task:
        return draw_tasks(draw, count, stream_seed(number, "tuning"))

    found = evolve(search, free(arm, servers), tasks, mean, (), Proxy(hold=asked.hold), Open)
    centre = next(islice(found, arm.generations - 1, None)).centre
    say(f"{name}: {arm.names} {np.round(centre, 2)}")
    return [dict(zip(arm.names, centre.tolist(), strict=True))]


def examined(asked: Weights, name: str, arm: Arm, vectors: Sequence[Sequence[float]]) -> list[Row]:
    """Mean and p99 of each vector in each held-out episode."""
    tasks = draw_tasks(family(name), asked.exam.episodes, asked.exam.stream)
    rule, rows = free(arm, tasks.mask.shape[-1]), []
    x = jnp.asarray(vectors, jnp.float32)
    for first in range(0, asked.exam.episodes, CHUNK):
        chunk = jax.tree.map(lambda leaf, first=first: leaf[first : first + CHUNK], tasks)
        key = jax.random.fold_in(jax.random.key(asked.exam.stream), first)  # other jobs than those that are tuned on
        found = np.asarray(play(rule, x, chunk, key, asked.exam.jobs, mean_and_p99, Proxy(hold=asked.hold), Open))
        for (search, episode), took in np.ndenumerate(found[:, 0]):
            slowest = float(found[search, 1, episode])
            rows.append({"search": search, "episode": first + episode, "mean": float(took), "p99": slowest})
    return rows


def table(asked: Weights, name: str) -> list[Row]:
    """Every arm over the tuned rule."""
    times: dict[str, dict[str, np.ndarray]] = {}
    for label, arm in ARMS.items():
        if name in ALIKE.get(label, ()):
            continue
        place = f"weights-{name}-{label.replace(' ', '-')}-{asked.hold:g}-{asked.exam.jobs}"
        vectors = []
        for seed in range(asked.seeds):
            (row,) = asked.kept(f"{place}-{seed}", lambda arm=arm, seed=seed: searched(asked, name, arm, seed))
            vectors.append([float(str(row[number])) for number in arm.names])
        vectors.append([0.0] * len(arm.names))
        rows = asked.kept(
            f"{place}-of-{asked.seeds}",
            lambda arm=arm, vectors=vectors: examined(asked, name, arm, vectors),
            asked.exam,
        )
        times[label] = by_search(rows, slice(-1))
        if label in UNTUNED:
            times[UNTUNED[label]] = by_search(rows, slice(-1, None))
    arm = ARMS["tuned"]
    rows = asked.kept(
        f"weights-{name}-equal-{asked.hold:g}", lambda: examined(asked, name, arm, [EQUAL_WEIGHTS]), asked.exam
    )
    times["equal weights"] = by_search(rows, slice(None))
    found = []
    for label, of in times.items():
        row: Row = {"family": name, "arm": label, "searches": len(of["mean"]), "episodes": of["mean"].shape[1]}
        row["response"] = float(of["mean"].mean())
        for measure, values in of.items():
            value, low, high = statistics.ratio(values, times["tuned"][measure])
            row |= {f"{measure}_ratio": value, f"{measure}_ratio_low": low, f"{measure}_ratio_high": high}
        found.append(row)
    return found


def by_search(rows: Sequence[Row], part: slice) -> dict[str, Float[np.ndarray, "S E"]]:
    """The mean and p99 of each episode, of some of the searches."""
    searches = sorted({int(str(row["search"])) for row in rows})[part]
    return {
        measure: np.array([[float(str(row[measure])) for row in rows if row["search"] == s] for s in searches])
        for measure in ("mean", "p99")
    }


def main() -> None:
    asked = study(Weights, __doc__)
    asked.only_here()
    asked.publish("weights", [row for name in asked.families for row in table(asked, name)])


if __name__ == "__main__":
    main()
