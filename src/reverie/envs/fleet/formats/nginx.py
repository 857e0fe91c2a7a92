"""Access logs of nginx in its combined format with the request time: `rt=$request_time` or the like at the end.

A line is written when a request ends, with that second. The request time lasts until the client has all, and takes the
wait for a server in. With `msec=$msec` the end is known to the millisecond, with `upstream=$upstream_addr` and
`urt=$upstream_response_time` who served it and for how long; of several that were tried the last one counts.
"""

import re

import numpy as np

from reverie.envs.fleet.formats.core import LOG_DATE, Jobs, Served, Text, is_error, log_time
from reverie.envs.fleet.records import Records, TraceError

_COMBINED = re.compile(rf'\S+ \S+ .*?{LOG_DATE} "[^"]*" (\d*)')
_REQUEST_TIME = re.compile(r'\b(?:rt|request_time|req_time)[=:]"?([^\s",]+)')
_END = re.compile(r'\bmsec[=:]"?(\d+\.\d+)')
_UPSTREAM = re.compile(r'\b(?:upstream|upstream_addr|uaddr)[=:]\s*"?([^\s",;]+(?:,? [:,]? ?[\w.\[\]-]*:\d+)*)')
_UPSTREAM_TIME = re.compile(r'\b(?:urt|upstream_response_time|upstream_time)[=:]\s*"?([-\d.]+(?:,? :? ?[-\d.]+)*)')
_COLUMNS = "time", "request time"
_SERVED = "server", "upstream response time", "earlier tries", "status"


def _split(line: str) -> list[str]:
    date, taken = _COMBINED.match(line), _REQUEST_TIME.search(line)
    if date is None:
        raise TraceError("no line of an access log")
    if taken is None:
        raise TraceError("no request time")
    end = _END.search(line)
    return [log_time(date[1], date[2]) if end is None else end[1], taken[1]]


def _split_served(line: str) -> list[str]:
    server, took, line_of = _UPSTREAM.search(line), _UPSTREAM_TIME.search(line), _COMBINED.match(line)
    if server is None or took is None or line_of is None:
        raise TraceError("no server, or not how long it took")
    if took[1].endswith("-"):
        raise TraceError("no server answered")
    *earlier, last_took = re.findall(r"[\d.]+", took[1])
    last_server = re.split(r",? :? ?| ", server[1])[-1]
    return [*_split(line), last_server, last_took, str(sum(map(float, earlier))), line_of[3]]


def read(text: Text) -> Jobs | None:
    if _COMBINED.match(text.first) is None:
        return None
    if not any(_REQUEST_TIME.search(line) for _, line in text.lines):
        raise TraceError(
            f"{text.path} is an access log without request times, so the work of its jobs is not known; expected "
            "rt=$request_time at the end of nginx's log_format"
        )
    exact = any(_END.search(line) for _, line in text.lines)
    told = any(_UPSTREAM.search(line) and _UPSTREAM_TIME.search(line) for _, line in text.lines)
    names, split = ((*_COLUMNS, *_SERVED), _split_served) if told else (_COLUMNS, _split)
    records = Records(text.path, text.lines, names, split)
    (end, clock), taken = records.times("time"), records.numbers("request time")
    records.complain(taken == 0, "a request time of 0 brings no work", "zero")
    served = None
    if told:
        failed = np.array([is_error(status) for status in records.texts("status")])
        # The end is that of the client's download, which nginx buffers: the server was done by then.
        sent = end - taken + records.numbers("earlier tries")
        done = sent + records.numbers("upstream response time")
        served = Served(records.texts("server"), sent, sent, done, failed, 0.001 if exact else 1.0)
    written = "to the millisecond" if exact else "in whole seconds"
    remark = f"arrival: end, {written}, less request time; work: the request time, waits within it included"
    return Jobs("nginx access log", records, end - taken, taken, clock, at_the_end=True, remark=remark, served=served)
