"""Memory: what the recurrent state holds, and what it is worth in trials of one to sixteen episodes.

The world model's state ends with the episode; only the RL2 memory lives through a trial. So each agent plays trials of
16 episodes on one task twice, on the same jobs: with its memory kept, and with it wiped where an episode begins. One
agent sees the fleet in full, two see counts alone, and of these one was trained in trials of four episodes. Then probes
decode load, time since the last change and the speeds of servers from the memory, from what the actor reads of the
model's state and, as a control, from the observation; once more in agents that were never trained.

    python experiments/memory.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from standard import dreamers
from study import UNTRAINED, ExamOptions, Study, agent, study, untrained

from reverie.envs.core import TaskFamily
from reverie.envs.fleet.env import FleetEnv
from reverie.envs.fleet.families import draw_tasks, family
from reverie.evaluate import statistics
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import Exam, Setting, hold
from reverie.evaluate.probes import Wiped, decode, numbers, record
from reverie.evaluate.statistics import over_seeds, verdict
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREY, INK, VERMILLION, looks, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, TrainConfig
from reverie.settings.presets import preset
from reverie.tables import Row

EPISODES = 16
"""Of a trial."""
PROBED_TRIALS, PROBED_JOBS, EVERY = 60, 1000, 20
"""Trials of one episode that are probed, their length, and between how many jobs a moment is taken."""
CONTROL = "observation"


@dataclass(frozen=True)
class Memory(Study):
    """The options of this experiment."""

    seeds: int = 2
    """Training seeds of each agent."""
    exam: ExamOptions = field(default_factory=lambda: Exam(jobs=100))
    """Trials, and the length of each of their episodes."""


def plans(asked: Memory) -> dict[str, list[TrainConfig]]:
    """By agent, what is trained for each seed. The first is that of `standard.py`."""
    hidden = preset("dreamer", "hidden")
    others = [asked.larger(plan) for plan in (hidden, in_trials(hidden))]
    return {"dreamer-queue-rl2": dreamers(asked)} | {
        plan.name: [replace(plan, seed=seed) for seed in range(asked.seeds)] for plan in others
    }


def in_trials(plan: TrainConfig, episodes: int = 4) -> TrainConfig:
    """The same number of jobs in a trial, but in several episodes: what was learned in one is worth something in the
    next."""
    assert isinstance(plan.agent, OffPolicyRun)
    run = replace(plan.agent, experience=replace(plan.agent.experience, episodes=episodes))
    world = replace(plan.fleet, jobs=plan.fleet.jobs // episodes)
    return replace(plan, agent=run, world=world, label=f"{plan.name}-trials")


# --- what memory is worth ---------------------------------------------------------------------------------------------


def of_trials(name: str, draw: TaskFamily, exam: Exam) -> Setting:
    """Trials of 16 episodes, each on one task of a family: its loads and speeds begin anew with each episode."""
    tasks = draw_tasks(draw, exam.episodes, exam.stream)
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (EPISODES, *leaf.shape)), tasks)
    return Setting(name, repeated, experiment="adaptive")


def played(asked: Memory, runs: Sequence[RunFolder]) -> list[Row]:
    """Results of agents of one kind, with memory kept and wiped, and of the rules, for whole episodes."""
    world = runs[0].config(TrainConfig).fleet
    place = of_trials(f"{EPISODES} episodes of {world.family}", family(world.family), asked.exam)
    rows = asked.examined(asked.exam, place, runs, world.view)
    for run in runs:
        rows += asked.kept(
            f"{place.name.replace(' ', '-')}-{run.path.name}-wiped",
            lambda run=run: hold(place, [wiped(agent(run))], asked.exam).results,
            asked.exam,
        )
    return [row for row in rows if row["level"] is None]


def wiped(contestant: Contestant) -> Contestant:
    return replace(contestant, name=f"{contestant.name}-wiped", policy=Wiped(contestant.policy))


def curve(name: str, rows: Sequence[Row]) -> list[Row]:
    """Response time by episode, as a ratio to the same agent without memory and to the best rule of whole trials."""
    best = next(str(row["against"]) for row in verdict(rows))
    found: list[Row] = []
    for episode in range(EPISODES):
        kept, without, rule = (logs(rows, who)[..., episode] for who in (name, f"{name}-wiped", best))
        # Each seed is its own control.
        paired = statistics.difference(kept - without, np.zeros((1, kept.shape[1])))
        to_rule = statistics.difference(kept, rule)
        row: Row = {"agent": name, "episode": episode + 1, "seeds": len(kept), "trials": kept.shape[1]}
        row |= dict(zip(("to_wiped", "to_wiped_low", "to_wiped_high"), np.exp(paired).tolist(), strict=True))
        row |= {"against": best}
        found.append(row | dict(zip(("to_rule", "to_rule_low", "to_rule_high"), np.exp(to_rule).tolist(), strict=True)))
    return found


def logs(rows: Sequence[Row], name: str, measure: str = "mean") -> np.ndarray:
    """Logarithms of mean response times, or of another `measure` of these, [S, E, K]."""
    mine = {
        (row["training_seed"], row["evaluation_seed"], row["episode"]): row[measure]
        for row in rows
        if row["agent"] == name
    }
    seeds, trials, episodes = (list(dict.fromkeys(key[i] for key in mine)) for i in range(3))
    return np.log([[[mine[seed, trial, episode] for episode in episodes] for trial in trials] for seed in seeds])


# --- what memory holds ------------------------------------------------------------------------------------------------


def probed(contestant: Contestant, plan: TrainConfig, stream: int) -> list[Row]:
    """R^2 on held-out trials of each target from each source, for one agent on the family that it was trained on."""
    tasks = draw_tasks(family(plan.fleet.family), PROBED_TRIALS, stream)
    env = FleetEnv(tasks.mask.shape[-1], PROBED_JOBS, plan.fleet.view, plan.fleet.reward)
    recorded = record(env, contestant.policy, tasks, jax.random.key(stream))
    seen: Any = jax.tree.map(lambda leaf: np.swapaxes(leaf[0, ::EVERY], 0, 1), recorded)  # [E, Q, ...]
    policy: Any = contestant.policy
    features = policy.networks.model.features(jax.tree.map(jnp.asarray, seen.state.model))
    observation = {name: leaf for name, leaf in seen.observation.items() if name != "mask"}
    sources = {"recurrent": seen.state.recurrent, "model": (features.context, features.servers), CONTROL: observation}
    targets = {"load": np.log(seen.load), "jobs since the change": np.log1p(seen.jobs_since)}
    values = {
        (source, target): decode(numbers(state, 2), truth)
        for target, truth in targets.items()
        if np.ptp(truth) > 0
        for source, state in sources.items()
    }
    if plan.fleet.view == "counts":  # each server's speed, from its own row
        speed = np.log(seen.speed)  # [E, Q, N]
        for source, rows in {"model": features.servers, CONTROL: observation["servers"]}.items():
            flat = numbers(rows, 3)
            values[source, "speed"] = decode(flat.reshape(len(flat), -1, flat.shape[-1]), speed.reshape(len(flat), -1))
    who: Row = {"agent": contestant.name, "training_seed": plan.seed}
    return [who | {"source": source, "target": target, "r2": r2} for (source, target), r2 in values.items()]


def probes(asked: Memory, of_agent: Sequence[TrainConfig], runs: Sequence[RunFolder]) -> list[Row]:
    """The same for all seeds of an agent, trained and untrained."""
    stream = asked.exam.stream
    rows: list[Row] = []
    for plan, run in zip(of_agent, runs, strict=True):
        name = f"probes-{run.path.name}"
        rows += asked.kept(name, lambda plan=plan, run=run: probed(agent(run), plan, stream), asked.exam)
        rows += asked.kept(f"{name}-{UNTRAINED}", lambda plan=plan: probed(untrained(plan), plan, stream), asked.exam)
    return rows


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Over seeds, with intervals."""
    found: list[Row] = []
    for agent_name, source, target in dict.fromkeys((row["agent"], row["source"], row["target"]) for row in rows):
        key = {"agent": agent_name, "source": source, "target": target}
        mine = np.array([row["r2"] for row in rows if key.items() <= row.items()], float)
        value, low, high = over_seeds(mine)
        found.append(key | {"seeds": len(mine), "r2": value, "low": low, "high": high})
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------


def curve_picture(rows: Sequence[Row]) -> Figure:
    """Response time by episode, over that without memory and over the best rule's."""
    names = list(dict.fromkeys(str(row["agent"]) for row in rows))
    panels = {"to_wiped": "over the same agent, wiped each episode", "to_rule": "over the best rule"}
    with setting():
        figure = Figure(figsize=(WIDTH, 3.2))
        for axis, (column, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            axis.axhline(1, color=INK, linewidth=1)
            for name, (colour, dashes, _) in looks([{"agent": name, "role": "agent"} for name in names]).items():
                mine = [row for row in rows if row["agent"] == name]
                episode, ratio, low, high = (
                    np.array([row[c] for row in mine], float)
                    for c in ("episode", column, f"{column}_low", f"{column}_high")
                )
                axis.fill_between(episode, low, high, color=colour, alpha=0.15, linewidth=0)
                axis.plot(episode, ratio, dashes, color=colour, label=name)
            axis.set_title(title)
            axis.set_xlabel("episode of the trial")
        figure.axes[0].set_ylabel("response time ratio")
        figure.axes[0].legend()
    return figure


def probe_picture(rows: Sequence[Row]) -> Figure:
    """R^2 of each target, trained (filled) and untrained (hollow), by source."""
    trained = [name for name in dict.fromkeys(str(row["agent"]) for row in rows) if not name.endswith(UNTRAINED)]
    targets = list(dict.fromkeys(str(row["target"]) for row in rows))
    sources = {"recurrent": (VERMILLION, "memory"), "model": (BLUE, "model's features"), CONTROL: (GREY, CONTROL)}
    with setting():
        figure = Figure(figsize=(WIDTH, 3.0))
        for axis, target in zip(figure.subplots(1, len(targets), sharey=True), targets, strict=True):
            for shift, (source, (colour, words)) in zip((-0.2, 0, 0.2), sources.items(), strict=True):
                for x, name in enumerate(trained):
                    for who, face in ((f"{name}-{UNTRAINED}", "white"), (name, colour)):
                        key = {"agent": who, "source": source, "target": target}
                        for row in (row for row in rows if key.items() <= row.items()):
                            value, low, high = (max(float(row[c]), 0.0) for c in ("r2", "low", "high"))
                            axis.vlines(x + shift, low, high, color=colour, linewidth=1)
                            axis.plot(x + shift, value, "o", color=colour, markerfacecolor=face)
                axis.plot([], [], "o", color=colour, label=words)
            axis.set_title(target)
            axis.set_xticks(range(len(trained)), trained, rotation=20, ha="right")
            axis.set_xlim(-0.5, len(trained) - 0.5)
            axis.set_ylim(-0.02, 1.02)
        figure.axes[0].set_ylabel("R² on held-out trials")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def main() -> None:
    asked = study(Memory, __doc__)
    wanted = plans(asked)
    runs = asked.train([plan for of_agent in wanted.values() for plan in of_agent])
    by_agent = {name: [run for run in runs if run.path.name.rsplit("-", 1)[0] == name] for name in wanted}
    curves = [row for name, mine in by_agent.items() for row in curve(name, played(asked, mine))]
    asked.publish("memory_episodes", curves)
    decoded = averaged([row for name, mine in by_agent.items() for row in probes(asked, wanted[name], mine)])
    asked.publish("memory_probes", decoded)
    asked.draw("memory", curve_picture(curves))
    asked.draw("probes", probe_picture(decoded))


if __name__ == "__main__":
    main()
