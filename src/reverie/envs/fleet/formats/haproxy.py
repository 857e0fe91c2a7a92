"""HAProxy's logs of HTTP requests (`option httplog`, chapter 8.2.3 of its manual): times to the millisecond.

The work of a request is Tr, the time in which its server answered; time in HAProxy's queue is not in it, time in the
server's own queue is. A line carries the time of its request's arrival and is written at its end.
"""

import re

from reverie.envs.fleet.formats.core import LOG_DATE, Jobs, Text, log_time
from reverie.envs.fleet.records import Records, TraceError

_LINE = re.compile(rf"{LOG_DATE} \S+ \S+/\S+ ([-+\d]+)/([-+\d]+)/([-+\d]+)/([-+\d]+)/([-+\d]+) ")


def _split(line: str) -> list[str]:
    found = _LINE.search(line)
    if found is None:
        raise TraceError("no line of an HTTP request")
    if found[6] == "-1":
        raise TraceError("no server answered (Tr is -1)")
    return [log_time(found[1], found[2]), found[6]]


def read(text: Text) -> Jobs | None:
    if not any(_LINE.search(line) for _, line in text.lines[:100]):
        return None
    records = Records(text.path, text.lines, ("time", "Tr"), _split)
    (seconds, clock), answered = records.times("time"), records.numbers("Tr") / 1000
    records.complain(answered == 0, "a Tr of 0 brings no work", "zero")
    remark = "work: Tr, the time in which the server answered, waits within the server included"
    return Jobs("HAProxy HTTP log", records, seconds, answered, clock, at_the_end=True, remark=remark)
