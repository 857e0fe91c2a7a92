"""What MetaDreamer's runs and tables look like: the pictures of docs/metadreamer.md.

Of seed 0 of runs that `metadreamer.py` trained (3,000 and 3,600 real steps): a merge as it is driven, what tasks are
taken for and imagined, what the model foretells; and from its tables, returns over real steps.

    python experiments/metadreamer_pictures.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from metadreamer import KEY, TABLES, TESTS, TRIALS, GameName, curve
from study import RESULTS, Study, study

from reverie.agents.metadreamer import Learner, MetaDreamer
from reverie.envs.core import Task, World
from reverie.envs.merging import LENGTH, STEP, unseen
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.policies.rollout import rollout
from reverie.report.figures import WIDTH
from reverie.report.imagined_page import codes_of_tasks, world_and_model
from reverie.report.style import BLUE, GREY, INK, VERMILLION, setting
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.tables import Row, read_csv

YIELDING = (-0.8, 0.0, 0.8)
"""Of the drivers among whom a merge is drawn."""
ROOM = LENGTH + 2.0
"""Metres between the middles of two cars, below which a merge is a crash."""


class Shown(NamedTuple):
    """How returns over real steps are drawn."""

    sign: int
    ticks: tuple[int, ...]
    label: str
    rules: Mapping[str, str]
    """Rules that are drawn beside them, and by which line."""


COSTS = "third episode's response times, summed"
SHOWN: Mapping[GameName, Shown] = MappingProxyType(
    {
        "merging": Shown(1, (-5, 0, 5, 10, 15), "third episode's return", MappingProxyType({})),
        "dispatch": Shown(
            -1, (50, 70, 100, 200, 500, 1_000), COSTS, MappingProxyType({"told-speeds": "--", "equal-speeds": ":"})
        ),
    }
)


@dataclass(frozen=True)
class Pictures(Study):
    """The options of this script."""

    seeds: tyro.conf.Suppress[int] = 1
    workers: tyro.conf.Suppress[int | None] = None

    def run(self, game: GameName, row: str) -> RunFolder:
        """Seed 0 of a row."""
        return RunFolder(self.runs / self.scale / game / f"{row}-0")


class Trained(NamedTuple):
    """What became of a run, in a world that serves any number of trials at once."""

    world: World
    agent: MetaDreamer
    learner: Learner
    between: Task
    """Those that lie between the tasks that it learned from."""


def loaded(run: RunFolder) -> Trained:
    config = run.config(TrainConfig)
    assert isinstance(config.world, GameConfig)
    trainer = build(config)
    _, state = loop.newest_state(trainer, run)
    return Trained(trainer.env, trainer.agent, state.learning.learner, config.world.drawn(TRIALS, "interpolated"))


def tasks_of(run: RunFolder) -> Figure:
    """What an agent takes tasks for and imagines."""
    world, agent, learner, between = loaded(run)
    sets = {"interpolated": np.asarray(between)}
    return codes_of_tasks(code_rows(agent, learner, lambda copies: world, sets, 1), agent.factors)


def foretelling_of(run: RunFolder) -> Figure:
    """What its model foretells."""
    world, agent, learner, _ = loaded(run)
    return world_and_model(foretold_rows(agent, learner, lambda copies: world, 1))


def merges(run: RunFolder) -> Figure:
    """Where the other cars are over time, seen from the one that merges, in the third episode on a task, up to the end
    of the ramp; in the band are those that would be hit there."""
    world, agent, learner, _ = loaded(run)
    policy = agent.policy(learner.networks, greedy=True)

    def keep(state: object, timestep, action) -> tuple:
        return unseen(timestep.observation["road"]).position, timestep.is_first, timestep.is_last

    tasks = jnp.array(YIELDING)[:, None]
    position, begins, ends = map(np.asarray, rollout(world, policy, tasks, KEY, 4 * world.limit, keep)[1])
    with setting():
        figure = Figure(figsize=(WIDTH, 2.8))
        axes = figure.subplots(1, len(YIELDING), sharey=True)
        for k, (axis, yielding) in enumerate(zip(axes, YIELDING, strict=True)):
            begin = np.flatnonzero(begins[:, k])[1]  # the first episode began before the first step
            end = begin + np.flatnonzero(ends[begin:, k])[0]
            road = position[begin : end + 1, k]
            seconds = STEP * np.arange(len(road))
            axis.axhspan(-ROOM, ROOM, color=VERMILLION, alpha=0.15, linewidth=0)
            axis.plot(seconds, road[:, 1:] - road[:, :1], color=INK, linewidth=1.2)
            axis.set(title=f"yielding {yielding:g}", xlabel="seconds")
        axes[0].set_ylabel("metres ahead of the car that merges")
    return figure


def learning(game: GameName, rows: list[Row]) -> Figure:
    """What the third episode brings over real steps of both agents: in load balancing what it costs, minus its return,
    with rules beside them."""
    sign, ticks, label, rules = SHOWN[game]
    with setting():
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, tasks in zip(axes, TESTS, strict=True):
            steps: dict[int, str] = {}
            for agent, colour, shift in (("metadreamer", BLUE, 1.02), ("pearl", VERMILLION, 0.98)):
                own = curve(rows, agent)
                ends = np.array([[row[f"{tasks}{end}"] for row in own] for end in ("", "_low", "_high")], float)
                real = [int(str(row["real_steps"])) for row in own]
                steps |= {each: f"{each:,}" for each in real}
                at = shift * np.array(real)  # so that their intervals can be told apart
                axis.errorbar(
                    at, sign * ends[0], np.abs(ends[1:] - ends[0]), fmt="o-", color=colour, capsize=3, label=agent
                )
            for rule, style in rules.items():
                (row,) = (row for row in rows if row["agent"] == rule)
                axis.axhline(sign * float(str(row[tasks])), color=GREY, linestyle=style, label=rule)
            axis.set(xscale="log", xlabel="real steps", title=f"{tasks} tasks", yscale="log" if rules else "linear")
            axis.set_ylim(min(ticks), max(ticks))
            axis.set_xticks(list(steps), list(steps.values()))
            axis.set_yticks(ticks, [f"{each:,}" for each in ticks])
            axis.minorticks_off()
        axes[0].set_ylabel(label)
        axes[1].legend(loc="best")
    return figure


def main() -> None:
    asked = study(Pictures, __doc__)
    merging = asked.run("merging", "metadreamer-3000")
    asked.draw("metadreamer-merging", merges(merging))
    asked.draw("metadreamer-tasks", tasks_of(merging))
    asked.draw("metadreamer-foretelling", foretelling_of(merging))
    asked.draw("metadreamer-dispatch-foretelling", foretelling_of(asked.run("dispatch", "metadreamer-3600")))
    for row, picture in (("metadreamer-3600", "plain"), ("structured", "structured")):
        asked.draw(f"metadreamer-dispatch-{picture}", tasks_of(asked.run("dispatch", row)))
    for game, picture in (("dispatch", "samples"), ("merging", "merging-samples")):
        asked.draw(f"metadreamer-{picture}", learning(game, read_csv(RESULTS / f"{TABLES[game]}.csv")))


if __name__ == "__main__":
    main()
