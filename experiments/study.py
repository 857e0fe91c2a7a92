"""What all experiments share: their options, training side by side, tables that are kept, and where results go.

An experiment is a script of one table or figure. It trains what it needs, examines it, writes a small table beside
itself (`results/NAME.csv`) and can be stopped at any time: started again, it goes on where it was.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from reverie import runtime
from reverie.agents.inputs import Reading
from reverie.envs.fleet.env import View
from reverie.evaluate.agents import load_agents
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import Exam, Setting, hold, rules_of
from reverie.report.figures import forest
from reverie.report.output import print_table, say
from reverie.report.style import save_png
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, OnPolicyRun, TrainConfig
from reverie.settings.presets import with_steps
from reverie.sweep.engines import Local
from reverie.sweep.side_by_side import train_all
from reverie.tables import Row, read_csv, write_csv

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
UNTRAINED = "untrained"
Scale = Literal["cpu", "gpu"]


ExamOptions = Annotated[Exam, tyro.conf.arg(name="")]
"""The exam of an experiment on fleets, its options without a prefix."""
ANYWAY = ("runs", "workers", "game", "trace", "speeds", "suite", "arms", "only")
"""Options that say where and what, and not how."""


@dataclass(frozen=True)
class Study:
    """The options of every experiment."""

    scale: Scale = "cpu"
    """`cpu` ends within an hour on two cores; `gpu` is ten times as much experience of larger networks."""
    seeds: int = 5
    """Training seeds; a claim takes five."""
    runs: Path = Path("runs/experiments")
    """Where everything is kept that can be thrown away."""
    workers: int | None = None
    """Trainings at a time; one for each core unless given."""

    @property
    def as_published(self) -> bool:
        """Whether what is measured may stand in the docs: nothing is asked for but what the bare command does, or a
        part of it."""
        bare = type(self)()
        return all(getattr(self, f.name) == getattr(bare, f.name) for f in fields(self) if f.name not in ANYWAY)

    def only_here(self) -> None:
        """Errors: ValueError where a scale or workers are asked of an experiment that knows neither."""
        if self.scale != "cpu" or self.workers is not None:
            raise ValueError("this experiment has one scale, and runs in one process: no --scale or --workers")

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """A plan at the scale of this study."""
        if self.scale == "cpu":
            return plan
        plan = plan if plan.loop.steps is None else with_steps(plan, 10 * plan.loop.steps)
        if not isinstance(plan.agent, OffPolicyRun):
            return plan
        return replace(plan, agent=replace(plan.agent, algorithm=replace(plan.agent.algorithm, units=256)))

    def train(self, plans: Sequence[TrainConfig], under: str = "fleets") -> list[RunFolder]:
        """Train all plans, or go on with them; folders are named after scale, `under`, label and seed."""
        folders = {self.runs / self.scale / under / f"{plan.name}-{plan.seed}": plan for plan in plans}
        return train_all(folders, Local(self.workers), command=sys.argv)

    def train_games(self, plans: Mapping[str, Sequence[TrainConfig]], under: str) -> dict[str, list[RunFolder]]:
        """Train the plans of each game, of which there are as many as seeds: the first seed of all games first."""
        runs = self.train([plan for seed in zip(*plans.values(), strict=True) for plan in seed], under)
        return {game: runs[i :: len(plans)] for i, game in enumerate(plans)}

    def kept(self, name: str, make: Callable[[], Sequence[Row]], exam: Exam | None = None) -> list[Row]:
        """A table that is made once; its name, and the exam if it is of one, say all that it depends on."""
        of_exam = f"-{exam.episodes}x{exam.jobs}-{exam.seed}" if exam else ""
        path = self.runs / self.scale / "tables" / f"{name}{of_exam}.csv"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_csv(path, list(make()))
        return read_csv(path)

    def examined(
        self, exam: Exam, setting: Setting, runs: Sequence[RunFolder], view: View, rules: Sequence[str] | None = None
    ) -> list[Row]:
        """Result rows of the rules and of the agents of some runs in a setting."""
        place = setting.name.replace(" ", "-").replace("/", "-")
        rows = self.kept(
            f"{place}-rules-{view}", lambda: hold(setting, rules_of(setting, view, rules), exam).results, exam
        )
        for run in runs:
            say(f"{setting.name}: {run.path.name}")
            rows += self.kept(
                f"{place}-{run.path.name}",
                lambda run=run: hold(setting, [agent(run, setting.tasks.mask.shape[-1])], exam).results,
                exam,
            )
        return rows

    def publish(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Write the experiment's small table, with numbers as they are read, and print it."""
        rounded = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write_csv(self._folder(RESULTS) / f"{name}.csv", rounded)
        table = Table(box=box.SIMPLE_HEAD, title=name, title_justify="left")
        for column in rounded[0]:
            table.add_column(column, justify="left" if isinstance(rounded[0][column], str) else "right")
        for row in rounded:
            table.add_row(*("" if v is None else str(v) for v in row.values()))
        print_table(table)

    def publish_games(self, name: str, rows: Sequence[Row], *keys: str) -> list[Row]:
        """Publish rows of some games, or of what `keys` name, with those of others that were published before; returns
        all of them."""
        together = self.with_others(name, rows, *keys or ("game",))
        self.publish(name, together)
        return together

    def with_others(self, name: str, rows: Sequence[Row], *keys: str) -> list[Row]:
        """Rows, with those of others, by what `keys` name, that were published before."""
        path = self._folder(RESULTS) / f"{name}.csv"
        before = read_csv(path) if path.exists() else []
        return list({tuple(row[key] for key in keys): row for row in [*before, *rows]}.values())

    def draw(self, name: str, figure: Figure, dpi: int = 100) -> None:
        """Save a picture of the docs."""
        save_png(figure, self._folder(PICTURES) / f"{name}.png", dpi)

    def draw_verdict(self, name: str, rows: Sequence[Row]) -> None:
        """A forest plot of whole trials, without those that are half as slow again as the opponent everywhere."""
        whole = [row for row in rows if row["level"] is None and row["role"] != "bound"]
        near = {row["agent"] for row in whole if row["role"] == "agent" or float(str(row["ratio"])) < 1.5}
        self.draw(name, forest([row for row in whole if row["agent"] in near]))

    def _folder(self, published: Path) -> Path:
        """Where results go: into the docs if they were measured as those that stand there, else beside the runs."""
        folder = published if self.as_published else self.runs / self.scale / published.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def agent(run: RunFolder, servers: int | None = None) -> Contestant:
    """The agent of a run, named as its plan is."""
    return load_agents([run.path], servers)[0]


def untrained(plan: TrainConfig) -> Contestant:
    """The agent that a plan begins with."""
    trainer = build(plan)
    policy = trainer.policy(trainer.init(jax.random.key(plan.seed)))
    return Contestant(f"{plan.name}-{UNTRAINED}", policy, plan.fleet.env, training_seed=plan.seed)


def study[T: Study](kind: type[T], description: str | None) -> T:
    """The options on the command line; the head of the experiment's module is what `--help` shows."""
    asked = tyro.cli(kind, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    if not asked.as_published:
        say(f"not measured as what the docs show: results will be in {asked.runs / asked.scale}")
    runtime.configure()
    return asked


def learning_curve(run: RunFolder) -> np.ndarray:
    """Environment steps and mean returns [P, 2] of a run in a game."""
    points = [(line["step"], line["evaluation/return"]) for line in run.metrics() if "evaluation/return" in line]
    return np.array(points, float)


SHOWN = ("experiment", "task", "level", "agent", "role", "seeds", "episodes", "against", "ratio", "low", "high", "mean")


def brief(rows: Sequence[Row]) -> list[Row]:
    """Of a verdict, the columns that a small table shows."""
    return [{name: row[name] for name in SHOWN} for row in rows]


# --- opponents -------------------------------------------------------------------------------------------------------


def with_steps_of(dreamer: TrainConfig, rival: TrainConfig) -> TrainConfig:
    """A2C or PPO for as many environment steps as Dreamer, from as few streams: it learns as often from as much."""
    assert isinstance(rival.agent, OnPolicyRun)
    steps = dreamer.loop.steps or 0
    experience = replace(rival.agent.experience, streams=dreamer.agent.experience.streams)
    chunk = max(1, steps // (20 * experience.env_steps))
    return replace(
        rival,
        label=f"{rival.name}-equal-steps",
        agent=replace(rival.agent, experience=experience, chunk=chunk, averaging=1 - 0.8 ** (1 / chunk)),
        loop=replace(rival.loop, steps=steps, evaluate_every=max(1, steps // 4)),
    )


def with_time_of(runs: Sequence[RunFolder], rival: TrainConfig) -> TrainConfig:
    """A2C or PPO for as much CPU time as Dreamer's runs took, on average; compilation does not count."""
    spent = [run.metrics()[-1]["cpu_seconds"] for run in runs]
    minutes = round(sum(spent) / len(spent) / 60, 2)
    loop = replace(rival.loop, steps=None, cpu_minutes=minutes)
    return replace(rival, label=f"{rival.name}-equal-time", loop=loop)


def with_memory(rival: TrainConfig, units: int, servers: Reading = "flat") -> TrainConfig:
    """A2C or PPO with a recurrent policy: one memory, or one for each server where servers are a set."""
    network = replace(rival.agent.algorithm.network, memory=units, servers=servers)
    return replace(rival, agent=replace(rival.agent, algorithm=replace(rival.agent.algorithm, network=network)))
