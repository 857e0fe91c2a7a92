"""`reverie verdict`, the main job: train, evaluate and report, from nothing to an honest verdict on real traffic."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from reverie.commands.output import Output, print_json, print_table, say
from reverie.commands.pages import brief, training_table, write_report
from reverie.commands.results import Examination, Results
from reverie.commands.training import load_agents, open_or_create, train_run
from reverie.evaluate.trials import Contestant
from reverie.report.tables import rich_table
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import OnPolicyRun, TrainConfig
from reverie.settings.presets import Algorithm, preset

_SHARES: dict[Algorithm, float] = {"dreamer": 7 / 12, "a2c": 1.5 / 12}
"""Of the minutes, what goes into training; the rest is for evaluation."""
_TITLE = "Would a learned balancer beat the best rule?"


@dataclass(frozen=True)
class VerdictConfig:
    """What decides the numbers of a verdict."""

    examination: Annotated[Examination, tyro.conf.arg(name="")] = field(default_factory=Examination)
    seeds: int = 1
    """Training seeds of each agent; a claim takes five."""
    minutes: float = 12.0
    """Minutes on the wall clock for each seed: 7 of 12 train Dreamer at most, 1.5 of 12 A2C; the rest is for
    evaluation."""

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if not self.minutes > 0:
            raise ValueError(f"minutes must be more than 0, got {self.minutes}")

    def plans(self, seed: int) -> list[TrainConfig]:
        """What is trained with a seed: A2C for as many environment steps as Dreamer, A2C for its time, Dreamer."""
        plans = []
        for algorithm, share in _SHARES.items():
            chosen = preset(algorithm, "cpu")
            loop = replace(chosen.loop, minutes=share * self.minutes)
            plans.append(replace(chosen, seed=seed, loop=loop))
        dreamer, a2c = plans
        long = replace(a2c, loop=replace(a2c.loop, steps=None))
        return [_with_steps_of(dreamer, a2c), long, dreamer]


@dataclass(frozen=True)
class Verdict:
    """Train Dreamer with its RL2 policy and A2C with the CPU preset, A2C once for as many environment steps and once
    for longer; examine them beside all classical rules at three loads, under loads that change without warning, and on
    a trace; print the verdict and write a page. A verdict that
    was stopped goes on where it was when started again.

    Example: reverie verdict

    Example: reverie verdict --trace conversation-like --load 0.9 --out runs/busy
    """

    config: Annotated[VerdictConfig, tyro.conf.arg(name="")] = field(default_factory=VerdictConfig)
    out: Path = Path("runs/verdict")
    """The folder for everything; report.html is the page, and shows first pictures early."""
    quiet: bool = False
    """Show no progress."""
    output: Output = "table"
    """A table, or JSON."""


def parse(arguments: Sequence[str]) -> Verdict:
    return tyro.cli(Verdict, prog="reverie verdict", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    asked.config.examination.read()  # a mistake in it should not be found after training
    command = ["reverie", "verdict", *arguments]
    run = open_or_create(asked.out, asked.config)
    with run.writer(command):
        results = Results(run.tables, asked.config.examination)
        plans = [plan for seed in range(asked.config.seeds) for plan in asked.config.plans(seed)]
        view = plans[0].fleet.view
        say("examining the classical rules")
        results.examine_rules(view)
        results.watch([], view)
        trained: list[RunFolder] = []
        agents: list[Contestant] = []
        if not run.report.exists():
            write_report(run, trained, results, _TITLE)
            say(f"first pictures: {run.report}")
        for plan in plans:
            training = open_or_create(run.path / f"{plan.name}-{plan.seed}", plan)
            train_run(plan, build(plan), training, command, asked.quiet)
            trained.append(training)
            say(f"examining {plan.name}, seed {plan.seed}")
            agents += load_agents([training.path])
            if results.examine_agent(agents[-1]) and plan != plans[-1]:
                write_report(run, trained, results, _TITLE)
        results.watch([agent for agent in agents if agent.training_seed == 0], view)
        judged = write_report(run, trained, results, _TITLE)
    if asked.output == "json":
        print_json({"rows": judged, "report": str(run.report)})
    else:
        print_table(rich_table(brief(judged)))
        print_table(rich_table(training_table(trained)))
        say(f"the page: {run.report}")


def _with_steps_of(dreamer: TrainConfig, a2c: TrainConfig) -> TrainConfig:
    """A2C for as many environment steps as Dreamer, from as few streams: so it learns as often from as much."""
    assert isinstance(a2c.agent, OnPolicyRun)
    experience = replace(a2c.agent.experience, streams=dreamer.agent.experience.streams)
    steps = dreamer.loop.steps or 0
    chunk = -(-steps // (20 * experience.env_steps))  # a twentieth of the whole
    return replace(
        a2c,
        label=f"{a2c.agent.name}-equal-steps",
        agent=replace(a2c.agent, experience=experience, chunk=chunk),
        loop=replace(a2c.loop, steps=steps, evaluate_every=max(1, steps // 10)),
    )
