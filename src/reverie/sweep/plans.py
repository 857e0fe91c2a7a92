"""What a sweep trains and examines: the options that decide its numbers, and the plans that they come to."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from reverie.agents.dreamer import DreamerConfig
from reverie.envs.fleet.env import View
from reverie.evaluate.results import Examination
from reverie.ranges import Positive, above, at_least, checked
from reverie.runs.config_json import with_changes
from reverie.settings.config import TrainConfig
from reverie.settings.presets import FOR_VIEW, Algorithm, Preset, preset, with_steps

type Agent = Literal["dreamer", "a2c", "a2c-rl2", "ppo", "ppo-rl2", "sac"]
"""Those with -rl2 have a memory as large as that of the preset's Dreamer, which has one anyway."""

_ALGORITHMS: dict[Agent, Algorithm] = {
    "dreamer": "dreamer",
    "a2c": "a2c",
    "a2c-rl2": "a2c",
    "ppo": "ppo",
    "ppo-rl2": "ppo",
    "sac": "sac",
}
_SHARES: dict[str, float] = {"dreamer": 7 / 12, "a2c": 1.5 / 12}
"""Of the minutes, what goes into training; the rest is for evaluation."""


@dataclass(frozen=True)
@checked
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
    seeds: Annotated[int, *at_least(1, 1_000, "each is a run of its own")] = 5
    """Training seeds of each agent in each family; a claim takes five."""
    steps: Annotated[int | None, *at_least(1, 10**15)] = None
    """Environment steps of each run; those of its preset unless given."""
    minutes: Annotated[float | None, *above(0)] = None
    """Minutes on the wall clock after which a run ends even so. The numbers then depend on the machine's speed."""

    def __post_init__(self):
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
            match preset("dreamer", self.preset).agent.algorithm:
                case DreamerConfig(memory=units):
                    plan = with_changes(plan, {"agent": {"algorithm": {"network": {"memory": units}}}})
        fleet = replace(plan.fleet, own=self.examination.own)
        plan = replace(plan, world=fleet)
        if family is not None:
            several = len(self.family) > 1
            label = f"{plan.name}-{family}" if several else plan.label
            plan = replace(plan, world=replace(fleet, family=family), label=label)
        plan = plan if self.steps is None else with_steps(plan, self.steps)
        return plan if self.minutes is None else replace(plan, loop=replace(plan.loop, minutes=self.minutes))


@dataclass(frozen=True)
@checked
class VerdictConfig:
    """What decides the numbers of a verdict."""

    examination: Annotated[Examination, tyro.conf.arg(name="")] = field(default_factory=Examination)
    seeds: Annotated[int, *at_least(1, 1_000, "each is trained in turn")] = 1
    """Training seeds of each agent; a claim takes five."""
    view: View | None = None
    """What agents and rules see of the fleet: `counts` and `latency` are what a proxy knows of real servers, `full` and
    `park` what a simulator alone can tell. That of the preset unless given."""
    preset: Preset | None = None
    """Dreamer's settings; those that can read the view unless given: `cpu` for full, `hidden` for counts, `learned` for
    latency, `paper` for park. A2C has its own, and is trained in the same world."""
    minutes: Positive = 12.0
    """Minutes on the wall clock for each seed: 7 of 12 train Dreamer at most, 1.5 of 12 A2C; the rest is for
    evaluation."""

    def plans(self) -> list[TrainConfig]:
        """With each seed A2C for as many environment steps as Dreamer, A2C for its time, Dreamer.

        A2C has no memory and is not told its rewards, so that `admission` tells it no more than the view does.
        """
        dreamer = preset("dreamer", self.preset or FOR_VIEW[self.view or "full"])
        world = replace(dreamer.fleet, own=self.examination.own)
        if self.view not in (None, world.view):  # Dreamer remembers its rewards: they should tell what it may know
            world = replace(world, view=self.view, reward="admission" if self.view == "full" else "elapsed")
        worlds = {"dreamer": world, "a2c": replace(world, reward="admission")}
        dreamer, a2c = (
            replace(plan, world=worlds[name], loop=replace(plan.loop, minutes=_SHARES[name] * self.minutes))
            for name, plan in (("dreamer", dreamer), ("a2c", preset("a2c", "cpu")))
        )
        long = replace(a2c, loop=replace(a2c.loop, steps=None))
        plans = _with_steps_of(dreamer, a2c), long, dreamer
        return [replace(plan, seed=seed) for seed in range(self.seeds) for plan in plans]


def _with_steps_of(dreamer: TrainConfig, a2c: TrainConfig) -> TrainConfig:
    """A2C for as many environment steps as Dreamer, from as few streams: so it learns as often from as much."""
    experience = replace(a2c.agent.experience, streams=dreamer.agent.experience.streams)
    steps = dreamer.loop.steps or 0
    chunk = -(-steps // (20 * experience.env_steps))  # a twentieth of the whole
    averaging = 1 - 0.8 ** (1 / chunk)  # over a quarter of it
    return replace(
        a2c,
        label=f"{a2c.agent.name}-equal-steps",
        agent=replace(a2c.agent, experience=experience, chunk=chunk, averaging=averaging),
        loop=replace(a2c.loop, steps=steps, evaluate_every=max(1, steps // 10)),
    )
