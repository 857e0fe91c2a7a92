"""HAProxy's logs of HTTP requests (`option httplog`, chapter 8.2.3 of its manual): times to the millisecond.

The work of a request is Tr, the time in which its server answered; time in HAProxy's queue (Tw) is not in it, time in
the server's own queue is. A line carries the time at which its request began to come (TR more until it was there) and
is written at its end, Ta after that.
"""

import re

import numpy as np

from reverie.envs.fleet.formats.core import LOG_DATE, Jobs, Served, Text, is_error, log_time
from reverie.envs.fleet.records import Records, TraceError

_LINE = re.compile(rf"{LOG_DATE} \S+ [^/\s]+/(\S+) ([-+\d]+)/([-+\d]+)/([-+\d]+)/([-+\d]+)/([-+\d]+) ([-\d]+) ")
_COLUMNS = "time", "server", "TR", "Tw", "Tr", "Ta", "status"


def _split(line: str) -> list[str]:
    found = _LINE.search(line)
    if found is None:
        raise TraceError("no line of an HTTP request")
    date, zone, server, request, queue, _, answered, total, status = found.groups()
    if answered == "-1":
        raise TraceError("no server answered (Tr is -1)")
    return [log_time(date, zone), server, *(each.lstrip("+") for each in (request, queue, answered, total)), status]


def read(text: Text) -> Jobs | None:
    if not any(_LINE.search(line) for _, line in text.lines[:100]):
        return None
    records = Records(text.path, text.lines, _COLUMNS, _split)
    seconds, clock = records.times("time")
    request, queue, answered, total = (records.numbers(name) / 1000 for name in ("TR", "Tw", "Tr", "Ta"))
    records.complain(answered == 0, "a Tr of 0 brings no work", "zero")
    failed = np.array([is_error(status) for status in records.texts("status")])
    came = seconds + request
    served = Served(records.texts("server"), came, came + queue, seconds + total, failed, 0.001)
    remark = "work: Tr, the time in which the server answered, waits within the server included"
    return Jobs("HAProxy HTTP log", records, seconds, answered, clock, at_the_end=True, remark=remark, served=served)
