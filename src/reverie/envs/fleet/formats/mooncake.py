"""Mooncake's traces (Qin et al., FAST 2025): JSON lines, times in milliseconds or ISO 8601.

Others write the same fields with other units. What tells Mooncake's is `hash_ids`; without them the unit is asked for.
"""

from reverie.envs.fleet.formats.core import Jobs, Text, token_jobs
from reverie.envs.fleet.records import Records, TraceError, split_json

_FIELDS = "timestamp", "input_length", "output_length"


def read(text: Text) -> Jobs | None:
    if not text.first.startswith("{"):
        return None
    try:
        first = split_json(text.first)
    except TraceError:
        first = {}
    unit = "ms" if "hash_ids" in first else None
    records = Records.from_json(text.path, text.lines, _FIELDS)
    return token_jobs(text, "JSON lines of Mooncake", records, _FIELDS, unit)
