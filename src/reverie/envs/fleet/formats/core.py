"""What every reader of a format takes and gives.

A reader is a function of a `Text` that answers None where the text is not in its format, and `Jobs` where it is.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from reverie.envs.fleet.records import Records, TraceError, Unit, delimiter_of, shorten, split_csv
from reverie.envs.fleet.traces import TokenCost

type Line = tuple[int, str]


class Text:
    """The lines of a file, and what they look like."""

    def __init__(self, path: Path, lines: list[Line], unit: Unit | None, cost: TokenCost):
        self.path = path
        self.lines = lines
        """With their numbers, none blank."""
        self.unit = unit
        """That the user says times have."""
        self.cost = cost
        """Turns tokens into work."""

    @property
    def first(self) -> str:
        return self.lines[0][1]

    @cached_property
    def delimiter(self) -> str:
        return delimiter_of(self.first)

    @cached_property
    def header(self) -> list[str]:
        try:
            return split_csv(self.first, self.delimiter)
        except TraceError as error:
            raise TraceError(f"{self.path}: its first line is {error}: {shorten(self.first)}") from None

    def has_columns(self, *names: str) -> bool:
        """Whether the first line is a header with these, whatever their case."""
        return {name.casefold() for name in names} <= {name.casefold() for name in self.header}

    def csv(self, *names: str) -> Records:
        """The columns `names` of a file with a header."""
        return Records.from_csv(self.path, self.header, self.lines[1:], names, self.delimiter)


class Served(NamedTuple):
    """What a balancer's log says beside arrivals and work; NaN where a line has a complaint."""

    server: Sequence[str]
    """Who served each line's request (J)."""
    came: Float64[np.ndarray, " J"]
    """When the balancer had it whole, in seconds of the same origin as arrivals."""
    sent: Float64[np.ndarray, " J"]
    """When it was sent there; later than that where the balancer has a queue."""
    ended: Float64[np.ndarray, " J"]
    failed: Bool[np.ndarray, " J"]
    """Whether it was answered by an error of the server (5xx)."""
    resolution: float
    """Seconds to which times are written."""


class Jobs(NamedTuple):
    """What a file says of each line; NaN where a line has a complaint."""

    format: str
    records: Records
    seconds: Float64[np.ndarray, " J"]
    """When they arrive, from any origin."""
    work: Float64[np.ndarray, " J"]
    clock: str
    """Of what kind the times are."""
    columns: Mapping[str, Float64[np.ndarray, " J"]] = {}
    """What the work was computed from."""
    at_the_end: bool = False
    """Lines are written when jobs end: to put them in order of arrival is part of reading them."""
    remark: str = ""
    """What else a user should know of how arrivals and work were found."""
    served: Served | None = None
    """Where lines say who served them."""


def token_jobs(
    text: Text, name: str, records: Records, columns: Sequence[str], unit: Unit | None = None, remark: str = ""
) -> Jobs:
    """Requests to a language model: `columns` are their time, tokens of context and generated tokens."""
    time, *tokens = columns
    seconds, clock = records.times(time, text.unit, unit)
    context, generated = map(records.numbers, tokens)
    work = text.cost.work(context, generated)
    records.complain(work == 0, "a request without tokens brings no work", "zero")
    counts = {"context_tokens": context, "generated_tokens": generated}
    cost = f"context / {text.cost.prefill_rate:g} + generated / {text.cost.decode_rate:g} seconds, our cost of tokens"
    return Jobs(name, records, seconds, work, clock, counts, remark=f"work: {cost}{remark}")


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
LOG_DATE = r"\[(\d\d/[A-Za-z]{3}/\d{4}:\d\d:\d\d:\d\d(?:\.\d+)?)(?: ([+-]\d{4}))?\]"
"""How web servers and proxies write a time: [10/May/2024:00:00:00.487 +0000]; two groups, time and zone."""


def is_error(status: str) -> bool:
    """Whether a status of HTTP is one of the server's errors."""
    return status[:1] == "5"


def log_time(date: str, zone: str | None) -> str:
    """The same in ISO 8601."""
    day, month, year, clock = re.split("[/:]", date, maxsplit=3)
    if month.casefold() not in _MONTHS:
        raise TraceError(f"{month} is no month")
    return f"{year}-{_MONTHS.index(month.casefold()) + 1:02}-{day}T{clock}{zone or ''}"
