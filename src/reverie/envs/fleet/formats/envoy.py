"""Envoy's access logs in its default format: times in ISO 8601, durations in milliseconds.

The work of a request is how long the server took to answer (x-envoy-upstream-service-time). A line carries the time at
which its request came, and is written at its end. Envoy has no queue before its servers.
"""

import re

import numpy as np

from reverie.envs.fleet.formats.core import Jobs, Served, Text, is_error
from reverie.envs.fleet.records import Records, TraceError

_LINE = re.compile(
    r'\[(\d{4}-\d\d-\d\dT[^\]]+)\] "[^"]*" (\d+) \S+ (?:\S+ )*?\d+ \d+ (\d+) (\d+|-) "[^"]*" "[^"]*" "[^"]*" "[^"]*" '
    r'"([^"]*)"'
)
_COLUMNS = "time", "status", "duration", "service time", "server"


def _split(line: str) -> list[str]:
    found = _LINE.search(line)
    if found is None:
        raise TraceError("no line of Envoy's default format")
    if found[4] == "-" or found[5] == "-":
        raise TraceError("no server answered")
    return [*found.groups()[:4], found[5].removeprefix("tcp://")]


def read(text: Text) -> Jobs | None:
    if not any(_LINE.search(line) for _, line in text.lines[:100]):
        return None
    records = Records(text.path, text.lines, _COLUMNS, _split)
    seconds, clock = records.times("time")
    duration, service = (records.numbers(name) / 1000 for name in ("duration", "service time"))
    records.complain(service == 0, "a service time of 0 brings no work", "zero")
    failed = np.array([is_error(status) for status in records.texts("status")])
    served = Served(records.texts("server"), seconds, seconds, seconds + duration, failed, 0.001)
    remark = "work: the upstream's service time, waits within it included"
    return Jobs("Envoy access log", records, seconds, service, clock, at_the_end=True, remark=remark, served=served)
