"""Your own fleet and traffic: the one place that reads them, from short texts on a command line and from a small file.

Servers are named by their speeds or described in a TOML file; arrivals and sizes are laws with numbers, such as
`poisson:2.5`. What a family or a trace would have brought is replaced by what is given here.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from reverie.envs.core import TaskFamily
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import Fleet, Task
from reverie.envs.fleet.families import Load, traced, windows
from reverie.envs.fleet.families import family as find_family
from reverie.envs.fleet.load import offered_load, with_load
from reverie.envs.fleet.schedule import Schedule
from reverie.envs.fleet.sharing import sharing
from reverie.envs.fleet.traces import Trace


class Law(NamedTuple):
    """A law by name: what its numbers are called, and what they make."""

    numbers: str
    make: Callable[..., Any]


ARRIVALS: dict[str, Law] = {
    "poisson": Law("RATE", lambda sizes, rng, rate: workloads.poisson(1 / rate, sizes)),
    "regular": Law("RATE", lambda sizes, rng, rate: workloads.regular(1 / rate, sizes)),
    "bursts": Law(
        "CALM_RATE,BURST_RATE,CALM_TIME,BURST_TIME",
        lambda sizes, rng, calm, burst, *times: workloads.modulated((1 / calm, 1 / burst), times, sizes, rng),
    ),
    "diurnal": Law(
        "RATE,SWING,DAY", lambda sizes, rng, rate, swing, day: workloads.diurnal(1 / rate, swing, day, sizes)
    ),
}
"""When jobs come. Rates are jobs per time unit; a burst's and a calm's time, the mean; a swing, a share of the rate."""

SIZES: dict[str, Law] = {
    "fixed": Law("SIZE", workloads.deterministic),
    "exponential": Law("MEAN", workloads.exponential),
    "lognormal": Law(
        "MEDIAN,SIGMA",
        lambda median, sigma: workloads.lognormal(median * np.exp(sigma**2 / 2), np.expm1(sigma**2)),
    ),
    "pareto": Law("SHAPE,SMALLEST", workloads.pareto),
    "bounded-pareto": Law("SHAPE,SMALLEST,LARGEST", workloads.bounded_pareto),
    "hyperexponential": Law("SHARE,MEAN,OTHER_MEAN", workloads.hyperexponential),
    "bimodal": Law("SHARE,SIZE,OTHER_SIZE", workloads.bimodal),
}
"""How much work a job brings, in work units: a server of speed 1 does one in a time unit."""


@dataclass(frozen=True)
class Own:
    """Your own servers and jobs, in place of a family's."""

    speeds: str | None = None
    """Your servers: the speed of each, work per time unit, as in 1,0.5,0.25."""
    fleet: Path | None = None
    """Your servers in a TOML file, with how many jobs each serves at once, when their speeds change and when they leave
    and join (docs/your-fleet.md)."""
    arrivals: str | None = None
    """When your jobs come: poisson:RATE, regular:RATE, bursts:CALM_RATE,BURST_RATE,CALM_TIME,BURST_TIME or
    diurnal:RATE,SWING,DAY; --load scales the rate."""
    sizes: str | None = None
    """The work of your jobs: fixed:SIZE, exponential:MEAN, lognormal:MEDIAN,SIGMA, pareto:SHAPE,SMALLEST,
    bounded-pareto:SHAPE,SMALLEST,LARGEST, hyperexponential:SHARE,MEAN,OTHER_MEAN or bimodal:SHARE,SIZE,OTHER_SIZE."""

    def __post_init__(self):
        if self.speeds is not None and self.fleet is not None:
            raise ValueError(f"give speeds or a fleet file, not both; got {self.speeds} and {self.fleet}")
        if self.speeds is not None:
            _numbers("speeds", self.speeds)
        for what, text, laws in (("arrivals", self.arrivals, ARRIVALS), ("sizes", self.sizes, SIZES)):
            if text is not None:
                made = _law(what, text, laws)
                made(workloads.exponential(1.0), np.random.default_rng(0)) if laws is ARRIVALS else made()

    def called(self, jobs: str) -> str:
        """What tables call it where all jobs but own ones are `jobs`."""
        jobs = " ".join(text for text in (self.arrivals or jobs, self.sizes) if text)
        servers = self.speeds if self.fleet is None else self.fleet.stem
        return jobs if servers is None else f"{jobs} on {servers}"

    def servers(self) -> Fleet | None:
        """The fleet, where it is the user's own.

        Errors: ValueError that names what is wrong in the file, or that it is not there.
        """
        if self.speeds is not None:
            return Fleet.constant(_numbers("speeds", self.speeds))
        return None if self.fleet is None else read_fleet(self.fleet)

    @property
    def on_a_trace(self) -> "Own":
        """The servers alone: a trace brings its own jobs."""
        return replace(self, arrivals=None, sizes=None)

    def windows(self, trace: Trace, load: Load, jobs: int, per_window: bool = False) -> Iterator[Task]:
        """Disjoint windows of a trace on these servers, see `families.windows`. Errors: as for `play`."""
        return windows(trace, load, jobs, self._servers_of(trace), per_window)

    def play(self, trace: Trace, load: Load, jobs: int) -> TaskFamily:
        """Windows of a trace on these servers, see `traced`. Errors: ValueError where the jobs are to be own ones."""
        return traced(trace, load, jobs, self._servers_of(trace))

    def _servers_of(self, trace: Trace) -> Fleet | None:
        if self.arrivals or self.sizes:
            raise ValueError(f"the trace {trace.name} says when jobs come and how large they are: give no own ones")
        return self.servers()

    def tasks(self, family: str | TaskFamily, load: float | None, jobs: int) -> TaskFamily:
        """What is not own is that of `family`, a name or what draws tasks. Episodes have `jobs` jobs.

        A family keeps its load on other servers and with other sizes, unless `load` says another. Own arrivals come at
        the rate they say, unless `load` is given.
        Errors: ValueError, when a task is drawn, for what would be lost: the sharing of a family's servers, where own
        ones are given that serve one job at a time; own jobs in a family whose jobs are recorded.
        """
        draw, fleet = find_family(family) if isinstance(family, str) else family, self.servers()
        if self == NOTHING_OWN:
            return draw if load is None else lambda rng: with_load(draw(rng), load, jobs)

        def task(rng: np.random.Generator):
            base = draw(rng)
            _fits(base, fleet, bool(self.sizes or self.arrivals))
            sizes = base.workload.sizes if self.sizes is None else _law("sizes", self.sizes, SIZES)()
            if self.arrivals is None:
                wanted = offered_load(base, workloads.span(base.workload, jobs)) if load is None else load
                workload = base.workload._replace(sizes=sizes)
            else:
                wanted, workload = load, _law("arrivals", self.arrivals, ARRIVALS)(sizes, rng)
            own = base._replace(workload=workload) if fleet is None else fleet.task(workload)
            return own if wanted is None else with_load(own, wanted, jobs)

        return task


NOTHING_OWN = Own()


def _fits(base: Task, fleet: Fleet | None, own_jobs: bool) -> None:
    if base.sharing is not None and fleet is not None and fleet.sharing is None:
        raise ValueError(
            "own servers (speeds or fleet) serve one job at a time unless their file says how many (slots, b), and "
            "those of this family several: say it there, leave them out, or choose another family"
        )
    if own_jobs and base.workload.recording.length > 0:
        raise ValueError(
            "the jobs of this family are recorded: leave out own sizes and arrivals, or choose another family"
        )


def _numbers(what: str, text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < np.inf for number in numbers):
        raise ValueError(f"{what} are numbers above 0 with commas between them, as in 1,0.5,0.25; got {text!r}")
    return numbers


def _law(what: str, text: str, laws: Mapping[str, Law]) -> Callable[..., Any]:
    """The maker of arrivals (from sizes and a generator) or of sizes that `text` describes."""
    name, _, rest = text.partition(":")
    there_are = ", ".join(f"{known}:{law.numbers}" for known, law in laws.items())
    if name not in laws:
        near = difflib.get_close_matches(name, laws, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{what} {text!r}: there is no law {name!r}; {hint}there are {there_are}")
    law = laws[name]
    wanted = law.numbers.count(",") + 1
    given = _numbers(f"{what} {name!r}: its {law.numbers}", rest)
    if len(given) != wanted:
        raise ValueError(f"{what} {text!r}: expected {name}:{law.numbers}, {wanted} numbers; got {len(given)}")
    return lambda *context: law.make(*context, *given)


ALONE = (1.0, 0.0, 1.0)
"""The numbers a, b and slots of a server that serves one job at a time, first come, first served."""


# --- the fleet file --------------------------------------------------------------------------------------------------


def read_fleet(path: Path) -> Fleet:
    """Read a fleet file; docs/your-fleet.md describes it.

    Errors: ValueError that names the file, the server and what was expected.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not TOML: {error}") from error
    try:
        _only(data, ("server", "repeat"))
        rows = data.get("server")
        if not isinstance(rows, list) or not rows:
            raise ValueError("names no server: begin each with a line [[server]] and give it a speed")
        (repeat,) = _row([data.get("repeat", np.inf)], "repeat", 1)
        servers, how = [], []
        for i, row in enumerate(rows):
            try:
                servers.append(_server(row, repeat))
                how.append(_sharing(row))
            except ValueError as error:
                raise ValueError(f"server {i}: {error}") from None
        _check_presence(servers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    speed = schedules.stack([server for server, _ in servers])
    longest = speed.start.shape[-1]
    member = jnp.asarray([np.pad(there, (0, longest - len(there)), mode="edge") for _, there in servers])
    return Fleet(speed, member, None if all(each == ALONE for each in how) else sharing(*np.transpose(how)))


def _server(row: Any, repeat: float) -> tuple[Schedule, Bool[np.ndarray, " P"]]:
    """The speeds of one server, and in which of their segments it is a member."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a table with a speed, got {row!r}")
    _only(row, ("name", "speed", "a", "b", "slots", "changes", "away"))
    if "speed" not in row:
        raise ValueError("has no speed, as in speed = 1.0")
    (first,) = _row([row["speed"]], "speed", 1)
    changes = [(0.0, first), *(_row(change, "changes", 2) for change in _rows(row, "changes"))]
    away = [_row(span, "away", 2) for span in _rows(row, "away")]
    time, speed = np.array(changes, float).T
    if (np.diff(time) <= 0).any():
        raise ValueError(f"changes must come one after another, at times above 0; got {row['changes']}")
    if any(leaves >= back for leaves, back in away):
        raise ValueError(f"away holds spans [leaves, is back], the second later (inf: never); got {row['away']}")
    start = np.unique([*time, *(border for span in away for border in span if border < np.inf)])
    there = ~np.array([any(leaves <= at < back for leaves, back in away) for at in start])
    return schedules.schedule(start, speed[np.searchsorted(time, start, side="right") - 1], repeat), there


def _sharing(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The numbers of `sharing.Sharing` of one server: a, b and slots."""
    given = [_row([row.get(name, usual)], name, 1)[0] for name, usual in zip(("a", "b", "slots"), ALONE, strict=True)]
    sharing(*given)
    return given[0], given[1], given[2]


def _check_presence(servers: Sequence[tuple[Schedule, Bool[np.ndarray, " _"]]]) -> None:
    for time in np.unique(np.concatenate([speed.start for speed, _ in servers])):
        if not any(there[np.searchsorted(speed.start, time, side="right") - 1] for speed, there in servers):
            raise ValueError(f"nobody is there at time {time:g}: a job that came then could go nowhere")


def _only(table: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in table:
        if name not in known:
            raise ValueError(f"does not know {name!r}; there are {', '.join(known)}")


def _rows(table: Mapping[str, Any], name: str) -> list[Any]:
    rows = table.get(name, [])
    if not isinstance(rows, list):
        raise ValueError(f"{name} must be a list of pairs, as in {name} = [[600, 1200]]; got {rows!r}")
    return rows


def _row(numbers: Any, name: str, count: int) -> tuple[float, ...]:
    fine = isinstance(numbers, list) and len(numbers) == count
    if not fine or not all(type(x) in (int, float) and x >= 0 for x in numbers):
        wanted = "a number" if count == 1 else "a pair of numbers"
        raise ValueError(f"{name} must be {wanted} that {'is' if count == 1 else 'are'} not negative, got {numbers!r}")
    return tuple(map(float, numbers))
