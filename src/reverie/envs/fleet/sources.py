"""Where jobs come from: a trace by its file, or the built-in workload by its name."""

from pathlib import Path

from reverie.envs.fleet.conversation import conversation_like
from reverie.envs.fleet.formats.reading import AS_IT_IS, Reading, read_trace
from reverie.envs.fleet.traces import Trace

BUILT_IN = "conversation-like"
"""Stands for a trace with the published statistics of Azure's conversation trace."""

_BUILT_IN_JOBS = 20_000  # an hour, as long as the original


def read_source(name: str, held_out: bool = False, reading: Reading = AS_IT_IS) -> Trace:
    """The trace in the file `name`, or the built-in one; only its second half if the first was to train on.

    Raises:
        TraceError: there is no such file, or it is not a trace.
    """
    if name == BUILT_IN:
        trace = reading.cut(conversation_like(_BUILT_IN_JOBS, seed=0))
    else:
        trace = read_trace(Path(name), reading=reading)
    return trace.halves()[1] if held_out else trace
