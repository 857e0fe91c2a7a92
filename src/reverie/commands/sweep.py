"""`reverie sweep`: agents x families x seeds, trained side by side on this machine or on Ray, examined and compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from reverie.commands.engines import Engine, Local, Ray
from reverie.commands.output import Output, print_json, print_table, say
from reverie.commands.pages import brief, training_table, write_report
from reverie.commands.results import Examination, Results
from reverie.commands.sweeping import RunsFailedError, train_all
from reverie.commands.training import load_agents, open_or_create
from reverie.evaluate.trials import Contestant
from reverie.report.tables import rich_table
from reverie.runs.folder import RunFolder
from reverie.settings.config import DreamerRun, OnPolicyRun, TrainConfig
from reverie.settings.presets import Algorithm, Preset, preset, with_steps

type Agent = Literal["dreamer", "a2c", "a2c-rl2", "ppo", "ppo-rl2"]
"""Those with -rl2 have a memory as large as that of the preset's Dreamer, which has one anyway."""

_ALGORITHMS: dict[Agent, Algorithm] = {
    "dreamer": "dreamer",
    "a2c": "a2c",
    "a2c-rl2": "a2c",
    "ppo": "ppo",
    "ppo-rl2": "ppo",
}
_TITLE = "Which learned balancer beats the best rule?"


@dataclass(frozen=True)
class SweepConfig:
    """What decides the numbers of a sweep."""

    examination: Annotated[Examination, tyro.conf.arg(name="")] = field(default_factory=Examination)
    agent: tyro.conf.UseAppendAction[tuple[Agent, ...]] = ()
    """An agent to train, -rl2 for one with memory (Dreamer's preset has it); give it again for each. Dreamer and A2C
    unless given."""
    preset: Preset = "cpu"
    """The settings of the agents."""
    family: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A family of tasks to train in; give it again for each. That of the preset unless given."""
    seeds: int = 5
    """Training seeds of each agent in each family; a claim takes five."""
    steps: int | None = None
    """Environment steps of each run; those of its preset unless given."""
    minutes: float | None = None
    """Minutes on the wall clock after which a run ends even so. The numbers then depend on the machine's speed."""

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        for name in ("agent", "family"):
            if len(set(given := getattr(self, name))) < len(given):
                raise ValueError(f"each {name} can be given once, got {', '.join(given)}")

    def plans(self) -> list[TrainConfig]:
        """What is trained: all agents with the first seed, then with the next.

        Raises:
            ValueError: an agent has no such preset, or there is no such family, or a limit is
                impossible.
        """
        settings = [
            self._plan(agent, family) for agent in self.agent or ("dreamer", "a2c") for family in self.family or (None,)
        ]
        return [replace(setting, seed=seed) for seed in range(self.seeds) for setting in settings]

    def _plan(self, agent: Agent, family: str | None) -> TrainConfig:
        plan = preset(_ALGORITHMS[agent], self.preset)
        if agent.endswith("-rl2"):
            plan = _with_memory(plan, preset("dreamer", self.preset))
        fleet = plan.fleet
        if family is not None:
            several = len(self.family) > 1
            label = f"{plan.name}-{family}" if several else plan.label
            plan = replace(plan, world=replace(fleet, family=family), label=label)
        plan = plan if self.steps is None else with_steps(plan, self.steps)
        return plan if self.minutes is None else replace(plan, loop=replace(plan.loop, minutes=self.minutes))


@dataclass(frozen=True)
class Sweep:
    """Train agents in task families with several seeds, side by side, each run in a process of its own; then examine
    them as `reverie verdict` does, print the verdict and write a page. What was stopped goes on where it was when
    started again with the same words; finished runs cost nothing.

    Example: reverie sweep --agent dreamer --agent a2c --agent a2c-rl2 --seeds 5

    Example: reverie sweep --agent a2c --family hard --family levels --workers 2 --out runs/families

    Example: reverie sweep --agent dreamer --engine ray --address auto --out runs/cluster
    """

    config: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    out: Path = Path("runs/sweep")
    """The folder for everything: each run, the tables, report.html. With Ray, on a disk that all its machines share."""
    engine: Literal["local", "ray"] = "local"
    """Processes on this machine, or a Ray cluster (pip install 'reverie[ray]')."""
    address: str | None = None
    """Of the Ray cluster, such as `auto` or HOST:6379; a new one on this machine unless there is one."""
    workers: int | None = None
    """Runs at a time; as many as there are cores unless given."""
    quiet: bool = False
    """Show no progress."""
    output: Output = "table"
    """A table, or JSON."""

    def on(self) -> Engine:
        """The engine that was asked for.

        Raises:
            ValueError: Ray is not installed, or an option does not belong to the engine, or no worker is allowed.
        """
        if self.engine == "ray":
            return Ray(self.address, self.workers)
        if self.address is not None:
            raise ValueError(f"--address {self.address} is that of a Ray cluster: add --engine ray, or leave it out")
        return Local(self.workers)


def parse(arguments: Sequence[str]) -> Sweep:
    return tyro.cli(Sweep, prog="reverie sweep", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    engine, plans = asked.on(), asked.config.plans()
    asked.config.examination.read()  # a mistake in it should not be found after training
    command = ["reverie", "sweep", *arguments]
    run = open_or_create(asked.out, asked.config)
    folders = {run.path / f"{plan.name}-{plan.seed}": plan for plan in plans}
    failed = None
    with run.writer(command):
        results = Results(run.tables, asked.config.examination)
        view = plans[0].fleet.view  # presets of one name agree on it
        say("examining the classical rules")
        results.examine_rules(view)
        try:
            trained = train_all(folders, engine, command=command, quiet=asked.quiet)
        except RunsFailedError as error:
            failed = error
            trained = [RunFolder.open(folder) for folder in folders if folder not in error.failures]
            if not trained:
                raise
        agents: dict[str, Contestant] = {}
        for each in trained:
            (agent,) = load_agents([each.path])
            say(f"examining {agent.name}, seed {agent.training_seed}")
            results.examine_agent(agent)
            agents.setdefault(agent.name, agent)
        results.watch([*agents.values()], view)
        judged = write_report(run, trained, results, _TITLE)
    if asked.output == "json":
        print_json({"rows": judged, "report": str(run.report)})
    else:
        print_table(rich_table(brief(judged)))
        print_table(rich_table(training_table(trained)))
        say(f"the page: {run.report}")
    if failed is not None:
        raise failed


def _with_memory(plan: TrainConfig, dreamer: TrainConfig) -> TrainConfig:
    assert isinstance(plan.agent, OnPolicyRun)
    assert isinstance(dreamer.agent, DreamerRun)
    network = replace(plan.agent.algorithm.network, memory=dreamer.agent.algorithm.memory)
    return replace(plan, agent=replace(plan.agent, algorithm=replace(plan.agent.algorithm, network=network)))
