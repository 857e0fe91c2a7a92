"""What can be chosen when an agent is trained: an algorithm, a world, when to stop, and a seed.

The settings of an algorithm are defined beside it; here they are put together. Named settings are in `presets.py`.
"""

import json
import re
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped
from tyro.conf import arg

from reverie.agents.a2c import A2CConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.agents.maml import MAMLConfig
from reverie.agents.metadreamer import MetaDreamerConfig
from reverie.agents.pearl import PEARLConfig
from reverie.agents.ppo import PPOConfig
from reverie.agents.rsac import RSACConfig
from reverie.agents.sac import SACConfig
from reverie.envs.core import Numbered, Suite, World
from reverie.envs.fleet import weights
from reverie.envs.fleet.env import FleetEnv, Reward, Task, View
from reverie.envs.fleet.families import Load, draw_tasks, trace_unit
from reverie.envs.fleet.families import family as find_family
from reverie.envs.fleet.formats.reading import AS_IT_IS, Reading
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.sources import read_source
from reverie.envs.fleet.suites import VIEWS, find_suite, fleet_suite, suite_fleets
from reverie.envs.fleet.traces import Trace
from reverie.envs.fleet.weights import GAIN, USUAL, FleetWorld, Proxy, WeightsEnv
from reverie.envs.games import ABOUT_TASKS, Game, find_game
from reverie.envs.outside.sources import open_outside
from reverie.envs.outside.tasks import ManyTasks, tasks_of
from reverie.envs.outside.worlds import LIMIT
from reverie.ranges import Count, PositiveOrNone, Seed, Weight, above, at_least, between, checked
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.on_policy import OnPolicyConfig


@dataclass(frozen=True)
@checked
class OffPolicyRun:
    """An agent that learns from replay."""

    algorithm: Annotated[DreamerConfig | SACConfig | RSACConfig | PEARLConfig | MetaDreamerConfig, arg(name="")] = (
        field(default_factory=DreamerConfig)
    )
    """What is learned, and how."""
    experience: Annotated[OffPolicyConfig, arg(name="")] = field(default_factory=OffPolicyConfig)
    """How experience is gathered and replayed."""
    chunk: Count = 20
    """Rounds of experience and updates (`repeats`) in one compiled call: each call is one line of metrics, and signals
    are heard in between."""
    averaging: Annotated[float, *between(0, 1, low_open=True)] = 1.0
    """Rate at which the weights that are judged follow those in training, each update; 1 judges the latter. They are
    the mean of all until there are 1 / rate updates."""

    @property
    def name(self) -> str:
        return self.algorithm.name


@dataclass(frozen=True)
@checked
class OnPolicyRun:
    """An agent that learns from what its present policy does."""

    algorithm: Annotated[A2CConfig | PPOConfig | MAMLConfig, arg(name="")] = field(default_factory=A2CConfig)
    """What is learned, and how."""
    experience: Annotated[OnPolicyConfig, arg(name="")] = field(default_factory=OnPolicyConfig)
    """How experience is gathered."""
    chunk: Count = 500
    """Updates in one compiled call: each call is one line of metrics, and signals are heard in between."""
    averaging: Annotated[float, *between(0, 1, low_open=True)] = 1.0
    """Rate at which the weights that are judged follow those in training, each update; 1 judges the latter. They are
    the mean of all until there are 1 / rate updates."""

    @property
    def name(self) -> str:
        return self.algorithm.name


@dataclass(frozen=True)
@checked
class WorldConfig:
    """The fleets and the traffic that an agent is trained in."""

    family: str = "hard"
    """The family that tasks are drawn from."""
    trace: Path | None = None
    """Instead of a family, a trace: windows of its first half. The second is left to be examined on. A file, or
    `conversation-like`, the built-in one."""
    reading: Annotated[Reading, arg(name="")] = field(default_factory=Reading)
    """How the trace is read."""
    own: Annotated[Own, arg(name="")] = field(default_factory=Own)
    """Your own servers and jobs in place of the family's."""
    load: Annotated[Load, *above(0)] = 0.8
    """The offered load that the trace is brought to; `recorded` keeps its clock."""
    tasks: Annotated[int, *at_least(1, 1_000_000, "all are drawn before training and held in RAM")] = 64
    """Tasks that are drawn from it, once; each trial plays one of them."""
    jobs: Annotated[int, *at_least(1, 10_000_000, "an episode is held in RAM")] = 250
    """Length of an episode in jobs."""
    view: weights.View = "full"
    """What the agent sees of the fleet. With `weights` it sends no job, but sets the weights of a proxy that does."""
    proxy: Proxy = field(default_factory=Proxy)
    """The proxy of `weights`."""
    gain: Weight = GAIN
    """With `weights`, the power of estimated rates that is shown as a rule's weight."""
    correction: Annotated[float | None, *above(1)] = None
    """With `weights`, the factor by which an action may raise or lower the rule's weights at most, so that 0 is that
    rule; unless given an action is the weights themselves."""
    reward: Reward = "admission"
    """When response times are credited; `lateness` prices the time beyond a deadline alone."""
    deadline: PositiveOrNone = None
    """Of the reward `lateness`: the response time up to which a job costs nothing, in time units. A trace's mean job is
    300 units of work, which the fastest of Park's servers does in 286 time units."""

    def __post_init__(self):
        replace(self.env)  # its reward and deadline fit
        find_family(self.family)
        if self.view != "weights" and (self.proxy, self.gain, self.correction) != (USUAL, GAIN, None):
            raise ValueError(
                f"proxy, gain and correction are about the view `weights`, and view is {self.view!r}; got "
                f"{self.proxy}, {self.gain} and {self.correction}"
            )
        if self.trace is None and (self.reading != AS_IT_IS or self.load == "recorded"):
            raise ValueError(
                "load `recorded` and the options of reading (unit, columns, drop, sort, from, to) are about a trace; "
                "give one as trace"
            )

    def draw(self, count: int, seed: int) -> Task:
        """Tasks [K, ...] to train on.

        Raises:
            ValueError: the trace is not there or broken, or half of it is shorter than an episode; or servers come and
                go, and weights are to be set.
        """
        if (trace := self._half) is None:
            tasks = draw_tasks(self.own.tasks(self.family, None, self.jobs), count, seed)
        else:
            tasks = draw_tasks(self.own.play(trace, self.load, self.jobs), count, seed)
        if self.view == "weights":
            weights.check_stay(tasks)
        return tasks

    @property
    def _half(self) -> Trace | None:
        return None if self.trace is None else read_source(str(self.trace), reading=self.reading).halves()[0]

    @property
    def seconds(self) -> float | None:
        """In a time unit of its tasks, where these are a trace's."""
        return None if (trace := self._half) is None else 1 / trace_unit(trace)

    def open(self, seed: int) -> tuple[FleetWorld, Task]:
        """The world, and the tasks [K, ...] to train on."""
        tasks = self.draw(self.tasks, seed)
        return replace(self.env, servers=tasks.mask.shape[-1]), tasks

    @property
    def env(self) -> FleetWorld:
        """The world, whatever the number of servers."""
        if self.view == "weights":
            if self.reward != "elapsed":
                raise ValueError(
                    "a proxy's weights are held for a while and no single job is credited to them: with view `weights` "
                    f"the reward is `elapsed`, got {self.reward!r}"
                )
            return WeightsEnv(jobs=self.jobs, proxy=self.proxy, gain=self.gain, correction=self.correction)
        return FleetEnv(jobs=self.jobs, view=self.view, reward=self.reward, deadline=self.deadline)


@dataclass(frozen=True)
@checked
class GameConfig:
    """A world that is no fleet: one in which nothing is hard but to remember (`envs/memory/`) or to find out which task
    it is (`envs/games.py`), or one outside."""

    game: str = "repeat_previous/easy"
    """Its name and level, or the name of a world outside JAX, such as gym:CartPole-v1 (`envs/outside/`). A wrong one
    is answered by the list of them."""
    repeat: Annotated[int, *at_least(1, 10_000)] = 1
    """How often each action is done in a row in a world outside; a step is all of them."""
    limit: Annotated[int, *at_least(1)] = LIMIT
    """Steps after which an episode of a world outside is cut off, in training and when the agent is judged: one that
    acts greedily may never come to an end."""
    arguments: str = "{}"
    """What a world of Gymnasium or Atari is made with, as JSON, such as {"is_slippery": false}, {"sticky": 0.0}."""

    def __post_init__(self):
        try:
            made_with = json.loads(self.arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"GameConfig: arguments must be a JSON object, got {self.arguments!r}: {error}") from error
        if not isinstance(made_with, dict):
            raise ValueError(f"GameConfig: arguments must be a JSON object, got {self.arguments!r}")
        if not self.is_outside:
            find_game(self.game)
            if (self.repeat, self.limit, made_with) != (1, LIMIT, {}):
                raise ValueError(f"repeat, limit and arguments are for worlds outside, and {self.game} is none")

    @property
    def is_outside(self) -> bool:
        return ":" in self.game

    @property
    def untold(self) -> "GameConfig":
        """The same world under its shortest name, which tells nothing of its tasks, and has the usual ones to learn
        from."""
        name, _, about = self.game.rpartition("/")
        return replace(self, game=name).untold if about in ABOUT_TASKS else self

    @property
    def tasks(self) -> Shaped[np.ndarray, "K ..."]:
        """The tasks to learn from."""
        return self._played.tasks

    @property
    def tests(self) -> tuple[str, ...]:
        """The sets of tasks that agents of the game are judged on, where these are not those to learn from."""
        return tuple(self._played.tests)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tasks, where they are worlds of their own, whose number observations tell."""
        return tasks_of(self.game).names if self.is_outside else ()

    @property
    def _played(self) -> Game | ManyTasks:
        return tasks_of(self.game) if self.is_outside else find_game(self.game)

    def world(self, copies: int, judged: bool = False) -> World:
        """The world, of which there will be so many copies.

        Arguments: `judged`, whether they are there to judge an agent.

        Raises:
            ValueError: there is no such world outside.
            ModuleNotFoundError: its package is not installed.
        """
        if self.is_outside:
            return open_outside(self.game, copies, self.repeat, self.limit, json.loads(self.arguments), judged)
        return find_game(self.game).world

    def drawn(self, copies: int, test: str | None = None) -> Shaped[Array, "B ..."]:
        """A task for each of so many copies (B): they take turns at the tasks of the game, and differ by their random
        keys otherwise.

        Arguments: `test`, which of `tests` to take instead of the tasks to learn from.
        """
        tasks = self.tasks if test is None else self._played.tests[test]
        return jnp.resize(tasks, (copies, *tasks.shape[1:]))


@dataclass(frozen=True)
@checked
class SuiteConfig:
    """Unlike fleets that one agent learns all at once, each of which has a name (`envs/fleet/suites.py`)."""

    suite: str = "fleets"
    """Its name: `fleets`, 16 tasks of unlike fleets and traffic; `corners`, four of these; `schemas`, the same, seen in
    unlike views; `loads`, one fleet at four loads."""
    tasks: tuple[str, ...] = ()
    """The tasks to train on, all unless given. The agent is judged on the others too, as tasks that are new to it."""
    draws: Annotated[int, *at_least(1, 100_000, "all are drawn before training and held in RAM")] = 4
    """How often each task is drawn, where its traffic is: trials take turns at them."""
    jobs: Annotated[int, *at_least(1, 10_000_000, "an episode is held in RAM")] = 250
    """Length of an episode in jobs."""
    view: View = "full"
    """What the agent sees of the fleet; in `schemas` each task has its own, and this is left alone."""
    reward: Literal["elapsed", "admission"] = "admission"
    """When response times are credited."""

    def __post_init__(self):
        find_suite(self.suite, self.tasks)
        if self.suite in VIEWS and self.view != "full":
            raise ValueError(
                f"SuiteConfig: each task of {self.suite} has a view of its own; view was given: {self.view}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tasks of the suite, by number."""
        return tuple(find_suite(self.suite))

    @property
    def learned(self) -> tuple[str, ...]:
        """Of those to train on."""
        return tuple(find_suite(self.suite, self.tasks))

    @property
    def views(self) -> tuple[View, ...]:
        """Of all tasks, by number."""
        return VIEWS.get(self.suite, (self.view,) * len(self.names))

    def open(self, draws: int, seed: int, only: tuple[str, ...] = ()) -> tuple[Suite, Numbered]:
        """The world, and so many draws of all tasks or of those named."""
        return self.seen(suite_fleets(self.suite, draws, seed, only))

    def seen(self, fleets: Numbered) -> tuple[Suite, Numbered]:
        """The world, and drawn fleets as tasks of it."""
        return fleet_suite(self.suite, fleets, self.jobs, self.view, self.reward)


@dataclass(frozen=True)
@checked
class CurveConfig:
    """The learning curve: the agent, taking its likeliest action, plays the same few episodes again and again."""

    episodes: Annotated[int, *at_least(1, 100_000, "all are played at once")] = 16
    """Episodes of each point."""
    jobs: Annotated[int, *at_least(1, 10_000_000, "an episode is held in RAM")] = 1000
    """Their length in jobs; the games of a `GameConfig` have theirs."""
    trial: Count = 1
    """Episodes on one task in a game, of which the last is judged: an agent that adapts has the others to do so."""


@dataclass(frozen=True)
@checked
class LoopConfig:
    """When to stop (at the first limit that is reached), evaluate and save."""

    steps: Annotated[int | None, *at_least(1, 10**15)] = 1_000_000
    """Environment steps, over all streams, after which training stops."""
    minutes: Annotated[float | None, *above(0)] = None
    """Minutes on the wall clock after which training stops; compilation does not count."""
    cpu_minutes: Annotated[float | None, *above(0)] = None
    """Minutes of CPU time, over all cores, after which training stops; compilation does not count."""
    evaluate_every: Annotated[int, *at_least(1, 10**15)] = 100_000
    """Environment steps between two points of the learning curve; there is one at the beginning and one at the end."""
    save_every: Weight = 60.0
    """Seconds between two checkpoints; one is made at the end and at a signal in any case."""

    def __post_init__(self):
        if self.steps is self.minutes is self.cpu_minutes is None:
            raise ValueError("training needs an end: give one of steps, minutes, cpu_minutes")


@dataclass(frozen=True)
@checked
class TrainConfig:
    """Everything that decides the numbers of a training run."""

    agent: OffPolicyRun | OnPolicyRun
    """The algorithm."""
    world: WorldConfig | GameConfig | SuiteConfig = field(default_factory=WorldConfig)
    """What it is trained in."""
    loop: Annotated[LoopConfig, arg(name="")] = field(default_factory=LoopConfig)
    """When it stops, is evaluated and saved."""
    curve: CurveConfig = field(default_factory=CurveConfig)
    """How it is evaluated on the way."""
    seed: Seed = 0
    """Of everything random in training."""
    start: Path | None = None
    """The folder of a run to begin from: with the networks and the optimiser of its newest checkpoint, and its replay
    too where streams, episodes and replay are as large, in the world given here. None begins with fresh networks."""
    label: str | None = None
    """What tables call the agent; None is the name of its algorithm."""

    def __post_init__(self):
        if self.label is not None and not re.fullmatch(r"[\w.+-]+", self.label):
            raise ValueError(f"label names files: give it letters, digits and . + - _ only, got {self.label!r}")

    @property
    def name(self) -> str:
        """What tables call the agent."""
        return self.label or self.agent.name

    @property
    def game(self) -> GameConfig | None:
        """The world, where it is a game."""
        match self.world:
            case GameConfig() as game:
                return game
            case WorldConfig() | SuiteConfig():
                return None

    @property
    def suite(self) -> SuiteConfig | None:
        """The world, where it is a suite of fleets."""
        match self.world:
            case SuiteConfig() as suite:
                return suite
            case WorldConfig() | GameConfig():
                return None

    @property
    def fleet(self) -> WorldConfig:
        """The world, where it is one of fleets.

        Raises:
            ValueError: it is a game or a suite.
        """
        match self.world:
            case WorldConfig() as fleet:
                return fleet
            case GameConfig(game=name):
                raise ValueError(f"{self.name} is trained in the game {name}: it has never seen a fleet to dispatch to")
            case SuiteConfig(suite=name):
                raise ValueError(
                    f"{self.name} is trained in the suite {name}, whose tasks it tells apart by their number: "
                    "`reverie evaluate` and `reverie report` judge it on each of them"
                )


def stream_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that tasks, training and evaluation of one seed have nothing in common."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])
