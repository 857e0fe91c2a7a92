"""A race of ways to balance, on the loopback: all of them at once on the same requests, each with a real proxy and
sleeping servers of its own, so that what disturbs this machine disturbs all alike, and differences are paired.

The plan is drawn before; response times count from the intended moment; what timed out is kept as that. A player that
is late measures itself, so a race with too much lag is refused.
"""

import asyncio
import math
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from reverie.envs.fleet.formats.reading import read_trace
from reverie.ranges import Count, Positive, PositiveOrNone, Seed, Share, between, checked
from reverie.runs.config_json import config_to_json
from reverie.serve.agent import Agent
from reverie.serve.arms import ARMS, Arm
from reverie.serve.live import Answers, Plan, SleepingServer, play, poisson_plan, trace_plan
from reverie.serve.proxies import PROXIES, find, launch
from reverie.serve.settings import Balanced, ServeConfig, Server, Trial

OURS = frozenset(name for name, arm in ARMS.items() if arm.served)
"""The arms whose weights `reverie serve` sets."""
DEFAULT_ARMS = "leastconn", "leastconn-weights", "maxconn", "serve", "random", "roundrobin"
MOST_LAG = 0.1
"""Of the mean response time of the first arm: above, a race means nothing."""


@dataclass(frozen=True)
@checked
class RaceConfig:
    """Which servers, and which requests."""

    speeds: tuple[Positive, ...] = (1.0, 0.5, 0.2)
    """Seconds of work that each server does in a second."""
    slots: Count = 1
    """Requests that a server has in service at once; others wait in it, or in the balancer where that has `maxconn`."""
    sharing: Share = 0.0
    """How far requests in service share a server: 0, each at full speed; 1, each at speed / n (processor sharing)."""
    load: Annotated[float, *between(0, 1, low_open=True, high_open=True)] = 0.7
    """Offered work over what servers can do."""
    work: Positive = 0.12
    """Seconds of work of a request, in the mean; exponential."""
    scv: PositiveOrNone = None
    """Squared coefficient of variation of work that is lognormal instead."""
    trace: Path | None = None
    """A trace (`reverie trace`) whose requests are played instead, brought to that load and mean work."""
    seconds: Positive = 300.0
    """How long requests come; a trace may end before."""
    drift: bool = False
    """Whether speeds are reversed half-way."""
    timeout: Positive = 30.0
    """Seconds after which a request is given up."""
    seed: Seed = 0

    @property
    def capacity(self) -> float:
        """Seconds of work that all servers do in a second, when all slots are taken."""
        return sum(self.speeds) * self.slots / (1 - self.sharing + self.sharing * self.slots)

    @property
    def tau(self) -> float:
        """The time constant of `reverie serve`, seconds: 25 services at the mean speed."""
        return 25 * self.work / (sum(self.speeds) / len(self.speeds))

    @cached_property
    def plan(self) -> Plan:
        """The requests."""
        if self.trace is not None:
            return trace_plan(read_trace(self.trace), self.load, self.capacity, self.seconds, self.work)
        plan = poisson_plan(self.load * self.capacity / self.work, self.seconds, self.work, self.seed, self.scv)
        if not (plan.at > self.seconds / 2).any():
            raise ValueError(f"seconds: there is no request in the second half of {self.seconds:g} s; play longer")
        return plan

    @property
    def length(self) -> float:
        """Seconds that the race takes: `seconds`, or until the last request of a trace that ends before."""
        return self.seconds if self.trace is None else min(self.seconds, float(self.plan.at[-1]))


class Outcome(NamedTuple):
    """One race."""

    config: RaceConfig
    answers: Mapping[str, Answers]
    """By arm."""
    simulated: Mapping[str, np.ndarray | None]
    """What the simulator says of the same requests: seconds of each [J]; None where it has no such rule."""

    @property
    def lag(self) -> float:
        """p99 of how late requests were sent, over the mean response time of the first arm."""
        late = max(float(np.quantile(each.lag, 0.99)) for each in self.answers.values())
        return late / float(next(iter(self.answers.values())).seconds.mean())

    @property
    def fair(self) -> bool:
        """Whether requests were sent early enough for the race to mean anything."""
        return self.lag <= MOST_LAG


class Lane(NamedTuple):
    """How an arm came off, over one race or several."""

    name: str
    failed: int
    mean: float
    """Seconds, as are the others; of several races, in the mean."""
    p99: float
    second_half: float
    """The mean of requests that came in the second half."""
    ratio: tuple[float, float, float]
    """The mean over that of the first arm, and its 95 % interval."""
    simulated: float | None
    """The mean that the simulator says."""
    of_simulated: float | None
    """The mean over that."""


def races(config: RaceConfig, names: Sequence[str], runs: int, tell: Callable[[str], None]) -> list[Outcome]:
    """Run the arms as often as that, with one seed after the other; `tell` hears how far each race lagged."""
    outcomes = []
    for run in range(runs):
        outcome = race(replace(config, seed=config.seed + run), names)
        late = f"race {run + 1} of {runs}: p99 of the lag is {100 * outcome.lag:.1f} % of the mean response time"
        tell(late if outcome.fair else f"{late}, too much: left out")
        outcomes.append(outcome)
    return outcomes


def race(config: RaceConfig, names: Sequence[str]) -> Outcome:
    """Run the arms.

    Raises:
        ValueError: there is no such arm.
        FileNotFoundError: there is no such proxy here.
    """
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    for proxy in {ARMS[name].proxy for name in names}:
        find(proxy)
    answers = asyncio.run(_run(config, names))
    from reverie.serve.predict import simulate  # it needs JAX, which is none of the agent's business

    return Outcome(config, answers, {name: simulate(config, ARMS[name]) for name in names})


def lanes(outcomes: Sequence[Outcome]) -> list[Lane]:
    """How each arm came off in races between the same arms."""
    found = []
    for name in outcomes[0].answers:
        played = [each.answers[name] for each in outcomes]
        first = [next(iter(each.answers.values())) for each in outcomes]
        late = [each.config.plan.at > each.config.length / 2 for each in outcomes]
        predicted = [float(each.mean()) for outcome in outcomes if (each := outcome.simulated[name]) is not None]
        means = np.array([each.seconds.mean() for each in played])
        ratios = means / [each.seconds.mean() for each in first]
        found.append(
            Lane(
                name,
                sum(each.failed for each in played),
                float(means.mean()),
                float(np.mean([np.quantile(each.seconds, 0.99) for each in played])),
                float(np.mean([each.seconds[when].mean() for each, when in zip(played, late, strict=True)])),
                paired_ratio(played[0].seconds, first[0].seconds) if len(outcomes) == 1 else paired_runs(ratios),
                float(np.mean(predicted)) if predicted else None,
                float(np.exp(np.log(means / predicted).mean())) if predicted else None,
            )
        )
    return found


def described(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Races as data; those that are not fair say no more than their lag, unless none is."""
    fair = [each for each in outcomes if each.fair]
    return {
        "config": config_to_json(outcomes[0].config),
        "lag": [each.lag for each in outcomes],
        "lanes": [lane._asdict() for lane in lanes(fair or outcomes)],
        "races": [[lane._asdict() for lane in lanes([each])] for each in fair],
    }


def seen(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """All requests of each arm in each race, for pictures."""
    return [
        {"arm": name, "served": name in OURS, "at": each.config.plan.at, "seconds": answers.seconds}
        for each in outcomes
        for name, answers in each.answers.items()
    ]


def paired_runs(ratios: np.ndarray) -> tuple[float, float, float]:
    """The geometric mean of the ratios of several races, and its 95 % interval by Student's t."""
    from scipy.stats import t

    logs = np.log(ratios)
    half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]).tolist())


def paired_ratio(seconds: np.ndarray, of: np.ndarray, blocks: int = 20) -> tuple[float, float, float]:
    """The ratio of two means over the same requests, and its 95 % interval: a bootstrap of stretches of requests, as
    neighbours met the same queue."""
    blocks = min(blocks, len(of))  # none is empty
    parts = [np.array([part.sum() for part in np.array_split(each, blocks)]) for each in (seconds, of)]
    drawn = np.random.default_rng(0).integers(0, blocks, (2000, blocks))
    low, high = np.quantile(parts[0][drawn].sum(1) / parts[1][drawn].sum(1), [0.025, 0.975])
    return float(seconds.mean() / of.mean()), float(low), float(high)


async def _run(config: RaceConfig, names: Sequence[str]) -> dict[str, Answers]:
    plan, lanes = config.plan, {}
    with ExitStack() as stack:
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="race", dir="/tmp")))
            lanes[name] = lane = _Lane(config, ARMS[name], folder)
            stack.callback(lane.close)
            await lane.start()
        drift = asyncio.create_task(_reverse(config, [*lanes.values()])) if config.drift else None
        agents = [asyncio.create_task(lane.tick()) for lane in lanes.values() if lane.agent is not None]
        try:
            played = await asyncio.gather(*(play(plan, lane.port, config.timeout) for lane in lanes.values()))
        finally:
            for task in [*agents, *([drift] if drift else [])]:
                task.cancel()
        for task in agents:  # an agent that broke down has lost
            if not task.cancelled() and task.done() and (error := task.exception()):
                raise error
    return dict(zip(lanes, played, strict=True))


async def _reverse(config: RaceConfig, lanes: Sequence["_Lane"]) -> None:
    await asyncio.sleep(config.length / 2)
    for lane in lanes:
        for server, speed in zip(lane.servers, reversed(config.speeds), strict=True):
            server.set_speed(speed)


class _Lane:
    """An arm with its servers and its proxy."""

    agent: Agent | None = None

    def __init__(self, config: RaceConfig, arm: Arm, folder: Path):
        self._config, self._arm, self._folder = config, arm, folder
        self.servers = [
            SleepingServer(speed, 1 - config.sharing, config.sharing, config.slots) for speed in config.speeds
        ]

    async def start(self) -> None:
        """Have everything running."""
        config, arm, folder = self._config, self._arm, self._folder
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        weights = [max(1, round(256 * speed / max(config.speeds))) if arm.weighted else 128 for speed in config.speeds]
        slots = 1 if arm.cap == "one" else config.slots
        listed = [
            Server(f"s{i}", f"127.0.0.1:{await server.start()}", slots, weight)
            for i, (server, weight) in enumerate(zip(self.servers, weights, strict=True))
        ]
        balanced = Balanced(
            socket=folder / "admin.sock", listen=f"127.0.0.1:{self.port}", queue=max(config.timeout, 60.0)
        )
        if arm.proxy == "envoy":
            balanced = replace(balanced, driver="envoy", endpoints=folder / "endpoints.json")
        own = ServeConfig(
            tuple(listed),
            mode="active",
            tau=config.tau,
            state=folder,
            audit=folder / "audit.jsonl",
            metrics=0,
            balancer=balanced,
            trial=Trial(slice=1e6, active=10_000),
        )
        for name, text in PROXIES[arm.proxy].files(own, arm.balance, arm.cap != "no").items():
            (folder / name).write_text(text)
        self._process = launch(arm.proxy, folder)
        await self._answers(own)
        if arm.served:
            self.agent = Agent(own, balanced.connect(), lambda line: None)

    async def _answers(self, own: ServeConfig) -> None:
        """Wait until the proxy takes connections, and an Envoy has found its servers healthy."""
        for _ in range(200):
            await asyncio.sleep(0.05)
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.5):
                    if self._arm.proxy == "nginx" or all(own.balancer.connect().observe().takes):
                        return
            except (OSError, ValueError):
                if self._process.poll() is not None:
                    break
        said = (self._folder / f"{self._arm.proxy}.log").read_text()[-500:]
        raise TimeoutError(f"{self._arm.proxy} did not start: {said}")

    async def tick(self) -> None:
        """Ten decisions a second."""
        while self.agent is not None:
            await asyncio.to_thread(self.agent.tick)
            await asyncio.sleep(0.1)

    def close(self) -> None:
        if self.agent is not None:
            self.agent.stop()
        self._process.kill()
        self._process.wait()
        for server in self.servers:
            server.stop()
