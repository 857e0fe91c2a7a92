"""Wikibench's traces of Wikipedia (Urdaneta et al., Computer Networks 2009): counter, seconds since 1970, URL, flag."""

import re

import numpy as np

from reverie.envs.fleet.formats.core import Jobs, Text
from reverie.envs.fleet.records import Records, TraceError

_LINE = re.compile(r"\d+ (\d+(?:\.\d+)?) \w+://\S+ \S+")


def _split(line: str) -> list[str]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise TraceError("not the four columns of Wikibench")
    return [found[1]]


def read(text: Text) -> Jobs | None:
    if _LINE.fullmatch(text.first) is None:
        return None
    records = Records(text.path, text.lines, ("time",), _split)
    seconds, clock = records.times("time", text.unit, "s")
    remark = "work: 1 for every request, as the trace has no sizes"
    return Jobs("Wikibench", records, seconds, np.ones(len(seconds)), clock, remark=remark)
