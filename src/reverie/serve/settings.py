"""The one configuration file of `reverie serve`, in TOML: every key, its range and its default; others are errors."""

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from reverie.ranges import Count, Positive, PositiveOrNone, above, at_least, between, checked
from reverie.runs.config_json import RENAMED, config_from_json, config_to_json
from reverie.serve.balancer import Balancer
from reverie.serve.drivers import DRIVERS

Mode = Literal["off", "shadow", "canary", "active"]

ADAPTIVE = "adaptive-least-connections"
WEIGHTS = "adaptive-weights"


@dataclass(frozen=True)
@checked
class Server:
    """One server, as the balancer's configuration has it."""

    name: str
    address: str
    """host:port; read by `reverie serve init` alone, and empty where a log did not say it."""
    slots: Count
    """How many requests it serves at once; more wait in HAProxy (`maxconn`). Envoy has no such queue."""
    weight: Annotated[int, *between(1, 256)] = 128
    """What it gets while nobody knows better."""


@dataclass(frozen=True)
@checked
class Balanced:
    """The balancer."""

    driver: Literal["haproxy", "envoy"] = "haproxy"
    """What it is."""
    socket: Path = Path("/run/haproxy/reverie.sock")
    """HAProxy's runtime socket, or Envoy's admin socket."""
    endpoints: Path | None = None
    """Of Envoy, the file of its endpoints, which takes the weights; in a folder that the agent may write to."""
    backend: str = "servers"
    """The servers' name there: HAProxy's backend, Envoy's cluster."""
    listen: str = "127.0.0.1:8080"
    """Where it takes requests; read by `reverie serve init` alone."""
    queue: Positive = 10.0
    """Seconds that a request may wait in HAProxy before it is refused; read by `reverie serve init` alone."""

    def __post_init__(self):
        if (self.driver == "envoy") != (self.endpoints is not None):
            raise ValueError(
                f"balancer.endpoints: the driver envoy, and no other, needs this file; got the driver {self.driver} "
                f"and {self.endpoints}"
            )

    def connect(self) -> Balancer:
        """Its driver."""
        return DRIVERS[self.driver].connect(self.socket, self.backend, self.endpoints)


@dataclass(frozen=True)
@checked
class Limits:
    """What no policy may pass; see `guards.py`."""

    floor: Annotated[int, *between(1, 128)] = 8
    """The least weight, where the largest is 256."""
    step: Annotated[float, *above(1)] = 2.0
    """The factor by which a weight may change in a second."""
    share: Annotated[float | None, *between(0, 1, low_open=True)] = None
    """The largest share of all weight that a server may have; None: half, or twice an equal one where that is more."""
    age: Positive = 1.0
    """Seconds after which what is known is stale."""
    failure: Positive = 5.0
    """Seconds that a failure counts for, however fast it was."""
    forgets: Positive = 10.0
    """Seconds after which failures are forgotten to 1/e."""
    dead: Positive = 2.0
    """Seconds without a sign of life after which the dead-man's switch sets the configured weights."""


@dataclass(frozen=True)
@checked
class Trial:
    """How the policy is held against the configured weights, in slices of time; see `trial.py`."""

    slice: Positive = 60.0
    """Seconds of one arm."""
    settle: Annotated[float, *at_least(0)] = 10.0
    """The first seconds of a slice, which are not judged: requests of the slice before are still on their way."""
    active: Annotated[int, *at_least(2)] = 20
    """In mode `active`, slices of a block, of which one is control; in mode `canary` it is one of two."""
    worse: Annotated[float, *above(1)] = 1.2
    """A block is lost where p99 is this many times control's."""
    blocks: Count = 3
    """So many lost in a row end it: the configured weights come back and stay."""
    level: Annotated[float, *between(0, 0.5, low_open=True)] = 0.05
    """The chance of an end by mistake, over as many blocks as it takes."""
    requests: Count = 200
    """Fewer in either arm are no block."""


@dataclass(frozen=True)
@checked
class ServeConfig:
    """All of it."""

    server: tuple[Server, ...]
    mode: Mode = "shadow"
    """off: nothing is computed. shadow: computed and logged, nothing is sent. canary: sent in every other slice of
    time. active: sent, but for a control slice now and then."""
    policy: str = ADAPTIVE
    """The rule by its name, a file of `reverie tune --rule adaptive-weights`, or of an agent that sets weights."""
    tau: Positive = 3.0
    """Seconds after which the rule by its name forgets to 1/e; a tuned file has its own."""
    unit: PositiveOrNone = None
    """Seconds in a time unit of the world that a file was tuned in; unless given, what the file says (of a trace), or
    else 1."""
    hz: Annotated[float, *between(1, 10)] = 10.0
    """Decisions a second."""
    state: Path = Path("/run/reverie")
    """A folder that is gone after a reboot: signs of life, the socket for the balancer's log."""
    audit: Path = Path("/var/log/reverie/audit.jsonl")
    """One line for each change."""
    audit_bytes: Annotated[int, *at_least(10_000)] = 100_000_000
    """Size at which the audit log is moved aside to `.1`; the one before that goes."""
    metrics: Annotated[int, *between(0, 65_535)] = 9_431
    """Port of /metrics on the loopback; 0 for none."""
    balancer: Balanced = Balanced()
    limits: Limits = Limits()
    trial: Trial = Trial()

    def __post_init__(self):
        names = self.names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"server: at least one, each with a name of its own, got {list(names)}")
        if self.limits.share is not None and self.limits.share * len(names) < 1:
            raise ValueError(f"limits.share: {len(names)} servers need at least {1 / len(names):.3f} each")
        if self.trial.settle >= self.trial.slice:
            raise ValueError(
                f"trial.settle must be less than trial.slice ({self.trial.slice}), got {self.trial.settle}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(server.name for server in self.server)

    @property
    def log_socket(self) -> Path:
        """Where the balancer sends a line for each request."""
        return self.state / "requests.sock"

    @property
    def sha(self) -> str:
        """Of the resolved configuration, short."""
        return sha(config_to_json(self))


def sha(described: Any) -> str:
    """A short name of anything JSON can hold."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: Path) -> ServeConfig:
    """Read the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, has a key that is not known, or a value that is not possible.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return config_from_json(ServeConfig, _complete(ServeConfig, data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _complete(cls: Any, data: Any) -> Any:
    """What a person wrote, with defaults and names of classes, as configurations are stored."""
    if not isinstance(data, dict):
        return data
    renamed = RENAMED.get(cls.__name__, {})
    data = {renamed.get(name, name): value for name, value in data.items()}
    hints, complete = get_type_hints(cls), {"class": cls.__name__, **data}
    for field in dataclasses.fields(cls):
        inner = next(
            (each for each in (hints[field.name], *get_args(hints[field.name])) if dataclasses.is_dataclass(each)), None
        )
        if inner is not None and isinstance(data.get(field.name), list):
            complete[field.name] = [_complete(inner, each) for each in data[field.name]]
        elif inner is not None and field.name in data:
            complete[field.name] = _complete(inner, data[field.name])
        elif field.name not in data and field.default is not dataclasses.MISSING:
            complete[field.name] = _stored(field.default)
        elif field.name not in data and field.default_factory is dataclasses.MISSING and hints.keys() >= data.keys():
            whose = " ".join(filter(None, (cls.__name__.lower(), data.get("name"))))
            raise ValueError(f"{whose} lacks {field.name}: write `{field.name} = ...` there")
    return complete


def _stored(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_json(value)
    return str(value) if isinstance(value, Path) else value
