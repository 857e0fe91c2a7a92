"""Park's `load_balance` environment, number for number, as a Gymnasium environment.

What lives here follows the published environment (Park, Mao et al. 2019, commit 08f8f7f) exactly, its quirks included:
the legacy random stream, whole-number sizes and times, observations that add work to time, and the order of events at
equal times. The simulator of our own, which has none of these, lives in the neighbouring modules.
"""

import heapq
import math
import operator
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any, SupportsFloat, SupportsIndex

import gymnasium
import numpy as np
from jaxtyping import Float64, UInt8

from reverie.envs.fleet import PARK_SERVICE_RATES, picture

_LARGEST_EXPONENTIAL = 37.0
"""Above every value of NumPy's legacy exponential draw, -log(1 - u) with u at most 1 - 2^-53."""


class ParkLoadBalance(gymnasium.Env[Float64[np.ndarray, " D"], np.int64]):
    """Assign each arriving job to one of N first-come, first-served servers of different speeds.

    An action is the index of the server for the job just arrived; a step lasts until the next arrival, and after the
    last job until every server is empty. The observation is, in float64 and clipped at `observation_cap`, for each
    server the work waiting plus the *time* that the job in service still needs (Park's mixed units), then the work of
    the job to be assigned; all zeros after the last step. The reward is minus the integral of the number of jobs in
    the system over the step, so an episode's rewards sum to minus the sum of all response times.

    Sizes are `floor(scale * X)` with X Pareto distributed from 1, gaps are `floor` of an exponential, and a service
    takes `floor(size / rate)`. As in Park, the stream of jobs is seeded with 42 and one job of it is drawn when the
    environment is made; `reset()` continues the stream, `reset(seed=s)` restarts it at s. It does not depend on the
    actions, so policies can be compared on the same jobs. `info["clock"]` is the time; the info of the last step also
    holds `info["jobs"]`, see `jobs`.

    Args:
        num_jobs: jobs, and so steps, of an episode.
        job_interval: mean time between arrivals before rounding down.
        job_size_pareto_shape: tail index of the job sizes.
        job_size_pareto_scale: smallest job size before rounding down, in work units.
        observation_cap: largest value of an observation's entries.
        service_rates: speed of each of the N servers, in work per time.
        render_mode: None, or rgb_array, with which `render` shows the servers and their jobs.

    Raises:
        ValueError: an argument is not positive and finite, or allows jobs that last longer than a float can hold, or
            there is no such mode of rendering.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium declares it so

    def __init__(
        self,
        num_jobs: SupportsIndex = 1000,
        job_interval: SupportsFloat = 55.0,
        job_size_pareto_shape: SupportsFloat = 1.5,
        job_size_pareto_scale: SupportsFloat = 100.0,
        observation_cap: SupportsFloat = 500_000.0,
        service_rates: Iterable[SupportsFloat] = PARK_SERVICE_RATES,
        render_mode: str | None = None,
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r}: there is rgb_array")
        self.render_mode = render_mode
        self._num_jobs = _at_least_one("num_jobs", num_jobs)
        self._interval = _positive("job_interval", job_interval)
        self._shape = _positive("job_size_pareto_shape", job_size_pareto_shape)
        self._scale = _positive("job_size_pareto_scale", job_size_pareto_scale)
        self._cap = _positive("observation_cap", observation_cap)
        self._rates = [_positive(f"service_rates[{i}]", rate) for i, rate in enumerate(service_rates)]
        if not self._rates:
            raise ValueError("service_rates is empty: give the speed of at least one server")
        longest = _LARGEST_EXPONENTIAL / self._shape + math.log(self._scale) - math.log(min(1.0, *self._rates))
        if longest > math.log(sys.float_info.max):
            raise ValueError(
                f"job_size_pareto_shape {self._shape} with scale {self._scale} and slowest rate {min(self._rates)} "
                "allows service times beyond the range of a float: raise the shape (Park uses 1.5)"
            )
        num_servers = len(self._rates)
        self.observation_space = gymnasium.spaces.Box(0.0, self._cap, (num_servers + 1,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(num_servers)
        self.reset(seed=42)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float64[np.ndarray, " D"], dict[str, Any]]:
        """Empty the servers, set the clock to 0 and run to the first arrival."""
        if seed is not None and seed >= 2**32:
            raise ValueError(f"seed {seed} is too large: Park's random stream takes seeds from 0 to 2**32 - 1")
        super().reset(seed=seed)
        if seed is not None:
            # Gymnasium's own generator stays unused: Park's jobs come from NumPy's legacy stream.
            self._random = np.random.RandomState(seed)
        # Sizes and times are whole numbers and are kept as such; they become float64 on the way out.
        self._clock = 0
        self._in_system = 0
        self._size: list[int] = []  # of each job that has been drawn
        self._arrival: list[int] = []
        self._server: list[int] = []  # of each job that has been assigned
        self._start: list[float] = []  # NaN until the service begins
        self._finish: list[float] = []
        self._queue: list[deque[int]] = [deque() for _ in self._rates]  # the jobs that wait, per server
        self._work_waiting = [0] * len(self._rates)
        self._running: list[int | None] = [None] * len(self._rates)  # the job in service, per server
        self._calendar: list[tuple[int, int, int]] = []  # heap of (time, order of entry, job)
        self._entries = 0
        self._draw_job()
        self._advance()
        return self._observation(), self._info()

    def step(self, action: SupportsIndex) -> tuple[Float64[np.ndarray, " D"], float, bool, bool, dict[str, Any]]:
        """Assign the waiting job to the server `action` and run to the next arrival, or to the end."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not the index of a server, 0 to {len(self._rates) - 1}")
        if self._terminated:
            raise gymnasium.error.ResetNeeded("the episode has ended: call reset() before the next step()")
        server, job = operator.index(action), len(self._server)
        self._server.append(server)
        self._start.append(math.nan)
        self._finish.append(math.nan)
        self._queue[server].append(job)
        self._work_waiting[server] += self._size[job]
        self._in_system += 1
        self._serve(server)
        if job + 1 < self._num_jobs:
            self._draw_job()
        reward = self._advance()
        return self._observation(), reward, self._terminated, False, self._info()

    def jobs(self) -> dict[str, np.ndarray]:
        """The jobs assigned so far, in order of arrival.

        `size` (work), `arrival`, `start` and `finish` (times; NaN where the service has not begun) in float64, and
        `server` in int64; each of shape [J].
        """
        assigned = len(self._server)
        return {
            "size": np.array(self._size[:assigned], np.float64),
            "arrival": np.array(self._arrival[:assigned], np.float64),
            "server": np.array(self._server, np.int64),
            "start": np.array(self._start, np.float64),
            "finish": np.array(self._finish, np.float64),
        }

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The servers with their jobs, and the job at the door; None, with a warning, without a `render_mode`."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() was called without a mode: make it with render_mode='rgb_array'")
            return None
        jobs, free = self.jobs(), [0.0] * len(self._rates)
        for job, server in enumerate(self._server):
            begin = max(self._arrival[job], free[server])
            free[server] = jobs["finish"][job] = begin + math.floor(self._size[job] / self._rates[server])
        response, door = jobs["finish"] - jobs["arrival"], None if self._terminated else float(self._size[-1])
        speed = np.array(self._rates)
        order, there = np.argsort(-speed, kind="stable"), speed > 0
        seen = jobs["server"], jobs["size"], jobs["arrival"], response
        return picture.draw(picture.Scene(float(self._clock), *seen, door, self._num_jobs, speed, there, order))

    @property
    def _terminated(self) -> bool:
        return len(self._server) == self._num_jobs

    def _draw_job(self) -> None:
        """Draw the next job, its size first, and enter its arrival in the calendar."""
        self._size.append(math.floor((self._random.pareto(self._shape) + 1) * self._scale))
        self._arrival.append(self._clock + math.floor(self._random.exponential(self._interval)))
        self._enter(self._arrival[-1], len(self._arrival) - 1)

    def _enter(self, time: int, job: int) -> None:
        # Events at equal times happen in the order in which they were entered.
        heapq.heappush(self._calendar, (time, self._entries, job))
        self._entries += 1

    def _serve(self, server: int) -> None:
        """Let a free server begin its next job; one whose job ends at this very instant is free."""
        running, queue = self._running[server], self._queue[server]
        if queue and (running is None or self._finish[running] <= self._clock):
            job = queue.popleft()
            self._work_waiting[server] -= self._size[job]
            self._running[server] = job
            self._start[job] = self._clock
            self._finish[job] = finish = self._clock + math.floor(self._size[job] / self._rates[server])
            self._enter(finish, job)

    def _advance(self) -> float:
        """Run the calendar to the next arrival or to its end; return the reward of that time."""
        job_time = 0
        while self._calendar:
            time, _, job = heapq.heappop(self._calendar)
            job_time += (time - self._clock) * self._in_system
            self._clock = time
            if job == len(self._server):  # not assigned yet, so this is its arrival
                break
            self._in_system -= 1
            server = self._server[job]
            if self._running[server] == job:
                self._running[server] = None
            self._serve(server)
        return float(-job_time)

    def _observation(self) -> Float64[np.ndarray, " D"]:
        load = [
            waiting if running is None else waiting + self._finish[running] - self._clock
            for waiting, running in zip(self._work_waiting, self._running, strict=True)
        ]
        incoming = 0 if self._terminated else self._size[-1]
        return np.minimum(np.array([*load, incoming], np.float64), self._cap)

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"clock": float(self._clock)}
        return info | {"jobs": self.jobs()} if self._terminated else info


def _positive(name: str, value: SupportsFloat) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {value!r}: expected a finite number above 0")
    return number


def _at_least_one(name: str, value: SupportsIndex) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")
    return number
