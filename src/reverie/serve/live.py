"""Requests and servers for trials on the loopback: a plan that is drawn before, played without waiting for answers, and
servers that sleep for as long as their model says. A response time counts from the moment that the plan intended."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from reverie.envs.fleet.records import TraceError
from reverie.envs.fleet.traces import Trace, scale_to_load

TIMED_OUT, BROKEN = 0, -1
"""Instead of an HTTP status."""


class Plan(NamedTuple):
    """When requests come (J), in seconds from the beginning, and how many seconds of work each brings."""

    at: np.ndarray
    work: np.ndarray


class Answers(NamedTuple):
    """What became of the requests of a plan (J)."""

    status: np.ndarray
    """Of HTTP, or `TIMED_OUT`, or `BROKEN`."""
    seconds: np.ndarray
    """From the intended moment to the answer, or to when it was given up."""
    lag: np.ndarray
    """How late they were sent; a player that lags measures itself."""

    @property
    def failed(self) -> int:
        return int((self.status != 200).sum())


def poisson_plan(rate: float, seconds: float, mean_work: float, seed: int, scv: float | None = None) -> Plan:
    """Independent arrivals, `rate` a second, with exponential work; lognormal of this squared variation if given."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds)))
    if scv is None:
        return Plan(at, rng.exponential(mean_work, size=len(at)))
    sigma = np.sqrt(np.log1p(scv))
    return Plan(at, mean_work * rng.lognormal(-(sigma**2) / 2, sigma, size=len(at)))


def trace_plan(trace: Trace, load: float, capacity: float, seconds: float, mean_work: float) -> Plan:
    """The first `seconds` of a trace whose works are brought to a mean and whose clock to a load, each by one factor:
    bursts stay bursts. Errors: TraceError where fewer than two jobs come by then."""
    work = trace.work * (mean_work / trace.work.mean())
    scaled = scale_to_load(replace(trace, work=work), load, capacity).between(end=seconds)
    if len(scaled.work) < 2:
        raise TraceError(f"trace {trace.name}: brought to load {load:g}, it has one job in {seconds:g} s; play longer")
    return Plan(scaled.arrival, scaled.work)


async def play(plan: Plan, port: int, timeout: float = 30.0) -> Answers:
    """Send each request at its time to a port of the loopback, whatever became of those before."""
    client, begin = _Client(port), time.perf_counter() + 0.05
    count = len(plan.at)
    status, seconds, lag = np.full(count, TIMED_OUT), np.full(count, timeout), np.zeros(count)

    async def one(i: int) -> None:
        meant = begin + plan.at[i]
        lag[i] = time.perf_counter() - meant
        try:
            async with asyncio.timeout(timeout):
                status[i] = await client.get(plan.work[i])
        except TimeoutError:
            pass
        except (OSError, asyncio.IncompleteReadError):
            status[i] = BROKEN
        seconds[i] = time.perf_counter() - meant

    async with asyncio.TaskGroup() as group:
        for i in range(count):
            await asyncio.sleep(begin + plan.at[i] - time.perf_counter())
            group.create_task(one(i))
    client.close()
    return Answers(status, seconds, lag)


class _Client:
    """Connections that are kept open between requests, as many as are needed at once."""

    def __init__(self, port: int):
        self._port, self._idle = port, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()

    async def get(self, work: float) -> int:
        while self._idle and self._idle[-1][0].at_eof():  # closed meanwhile, as idle ones are some day
            self._idle.pop()[1].close()
        connection = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = connection
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: loopback\r\nX-Work: %.6f\r\n\r\n" % work)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0]))
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append(connection)
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


@dataclass(eq=False)
class _Request:
    left: float
    """Seconds of work."""
    answer: Callable[[], None]


class SleepingServer:
    """A server that does up to `slots` requests at once, each at the rate speed / (a + b n), and lets others wait.

    (a, b, slots) = (1, 0, 1) is first come, first served; (0, 1, many) is processor sharing.
    """

    def __init__(self, speed: float, a: float = 1.0, b: float = 0.0, slots: int = 1):
        self.speed = speed
        """Seconds of work done in a second; may change at any time by `set_speed`."""
        self.behaviour: Literal["works", "fails", "closes"] = "works"
        """`fails` answers 500 at once, `closes` closes connections at each request."""
        self._a, self._b, self._slots = a, b, slots
        self._served, self._waiting = list[_Request](), deque[_Request]()
        self._then, self._timer = 0.0, None
        self._connections = set[_Connection]()

    async def start(self, port: int = 0) -> int:
        """Listen; gives the port."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Connection(self, self._connections), "127.0.0.1", port)
        return self._listening.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close the port and every connection."""
        self._listening.close()
        for connection in [*self._connections]:
            connection.transport.close()

    def set_speed(self, speed: float) -> None:
        self._advance()
        self.speed = speed
        self._plan()

    def take(self, work: float, answer: Callable[[], None]) -> None:
        """Do `work`, then call `answer`."""
        self._advance()
        (self._served if len(self._served) < self._slots else self._waiting).append(_Request(work, answer))
        self._plan()

    def _advance(self) -> None:
        """Do the work of the time since the last event, exactly, however late this is called."""
        now = asyncio.get_running_loop().time()
        time_left, self._then = now - self._then, now
        while self._served:
            due = self._due()
            step = min(due, time_left)
            work = step * self.speed / (self._a + self._b * len(self._served))
            for each in self._served:
                each.left -= work
            if due > time_left:
                return
            time_left -= step
            first = min(self._served, key=lambda each: each.left)
            self._served.remove(first)
            first.answer()
            if self._waiting:
                self._served.append(self._waiting.popleft())

    def _due(self) -> float:
        """Seconds until the next request is done."""
        left = max(min(each.left for each in self._served), 0.0)
        return left * (self._a + self._b * len(self._served)) / self.speed

    def _plan(self) -> None:
        """Come back when the next request is done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._served:
            self._timer = asyncio.get_running_loop().call_later(self._due(), self._event)

    def _event(self) -> None:
        self._advance()
        self._plan()


class _Connection(asyncio.Protocol):
    """HTTP/1.1, just enough for a proxy: one GET after the other."""

    def __init__(self, server: SleepingServer, all_of_them: set["_Connection"]):
        self._server, self._all, self._heard = server, all_of_them, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            head, _, self._heard = self._heard.partition(b"\r\n\r\n")
            match self._server.behaviour:
                case "closes":
                    self.transport.close()
                case "fails":
                    self._answer(b"500 No")
                case _:
                    work = head.lower().partition(b"x-work: ")[2].split(b"\r\n", 1)[0]
                    self._server.take(float(work or 0), lambda: self._answer(b"200 OK"))

    def _answer(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)


def quantile(seconds: Sequence[float] | np.ndarray, q: float) -> float:
    """The q-quantile that was really seen (no interpolation)."""
    return float(np.quantile(np.asarray(seconds), q, method="inverted_cdf"))
