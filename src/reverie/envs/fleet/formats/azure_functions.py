"""Azure Functions' trace of 2021 (Zhang et al., SOSP 2021): CSV with the end and the duration of calls in seconds."""

from reverie.envs.fleet.formats.core import Jobs, Text
from reverie.envs.fleet.records import TraceError


def read(text: Text) -> Jobs | None:
    if text.has_columns("HashFunction"):
        raise TraceError(
            f"{text.path} is of Azure Functions' trace of 2019, which has counts and means per minute and no single "
            "calls; expected that of 2021, with the columns app,func,end_timestamp,duration"
        )
    if not text.has_columns("end_timestamp", "duration"):
        return None
    records = text.csv("end_timestamp", "duration")
    (end, clock), duration = records.times("end_timestamp", text.unit, "s"), records.numbers("duration")
    records.complain(duration == 0, "a duration of 0 brings no work", "zero")
    remark = "arrival: end less duration; work: the duration in seconds"
    return Jobs("Azure Functions 2021", records, end - duration, duration, clock, at_the_end=True, remark=remark)
