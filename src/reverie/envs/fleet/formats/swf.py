"""The Standard Workload Format of the Parallel Workloads Archive (Chapin et al., 1999): 18 columns, times in seconds.

The work of a job is its run time times the processors it was given (those it asked for where that is not known).
"""

import numpy as np

from reverie.envs.fleet.formats.core import Jobs, Text
from reverie.envs.fleet.records import Records, TraceError, is_number

_COLUMNS = {"submit time": 1, "run time": 3, "processors": 4, "requested processors": 7}


def _split(line: str) -> list[str]:
    values = line.split()
    if len(values) != 18:
        raise TraceError(f"{len(values)} columns where the Standard Workload Format has 18")
    return [values[position] for position in _COLUMNS.values()]


def read(text: Text) -> Jobs | None:
    lines = [line for line in text.lines if not line[1].startswith(";")]
    if not lines or len(lines[0][1].split()) != 18 or not all(map(is_number, lines[0][1].split())):
        return None
    records = Records(text.path, lines, list(_COLUMNS), _split)
    seconds, clock = records.times("submit time", text.unit, "s")
    run, given, asked = (records.numbers(name, least=-1.0) for name in list(_COLUMNS)[1:])
    processors = np.where(given > 0, given, asked)
    records.complain(run == 0, "a run time of 0 brings no work", "zero")
    records.complain(run < 0, "the run time is not known")
    records.complain(processors <= 0, "the number of processors is not known")
    remark = "work: run time times processors, in seconds of one"
    return Jobs("Standard Workload Format", records, seconds, run * processors, clock, remark=remark)
