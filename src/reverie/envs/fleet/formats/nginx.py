"""Access logs of nginx in its combined format with the request time: `rt=$request_time` or the like at the end.

A line is written when a request ends, with that second. The request time lasts until the client has all, and takes the
wait for a server in.
"""

import re

from reverie.envs.fleet.formats.core import LOG_DATE, Jobs, Text, log_time
from reverie.envs.fleet.records import Records, TraceError

_COMBINED = re.compile(rf'\S+ \S+ .*?{LOG_DATE} "')
_REQUEST_TIME = re.compile(r'\b(?:rt|request_time|req_time)[=:]"?([^\s",]+)')


def _split(line: str) -> list[str]:
    date, taken = _COMBINED.match(line), _REQUEST_TIME.search(line)
    if date is None:
        raise TraceError("no line of an access log")
    if taken is None:
        raise TraceError("no request time")
    return [log_time(date[1], date[2]), taken[1]]


def read(text: Text) -> Jobs | None:
    if _COMBINED.match(text.first) is None:
        return None
    if not any(_REQUEST_TIME.search(line) for _, line in text.lines):
        raise TraceError(
            f"{text.path} is an access log without request times, so the work of its jobs is not known; expected "
            "rt=$request_time at the end of nginx's log_format"
        )
    records = Records(text.path, text.lines, ("time", "request time"), _split)
    (end, clock), taken = records.times("time"), records.numbers("request time")
    records.complain(taken == 0, "a request time of 0 brings no work", "zero")
    remark = "arrival: end, in whole seconds, less request time; work: the request time, waits within it included"
    return Jobs("nginx access log", records, end - taken, taken, clock, at_the_end=True, remark=remark)
