"""Our own: CSV with the columns arrival and size, in that order where there is no header.

Sizes are in work units, of which a server of speed 1 does one per second. Arrivals are in seconds, unless their numbers
can only be times since 1970 in another unit, are ISO 8601, or the user says otherwise.
"""

from collections.abc import Sequence

from reverie.envs.fleet.formats.core import Jobs, Text
from reverie.envs.fleet.records import Records, Unit, is_number

_COLUMNS = "arrival", "size"


def read(text: Text) -> Jobs | None:
    if text.has_columns("arrival") or text.has_columns("size"):
        records = text.csv(*_COLUMNS)
    elif len(text.header) == 2 and is_number(text.header[1]):
        records = Records.from_csv(text.path, list(_COLUMNS), text.lines, _COLUMNS, text.delimiter)
    else:
        return None
    return plain_jobs("arrival,size", records, _COLUMNS, text.unit, "s")


def plain_jobs(
    name: str, records: Records, columns: Sequence[str], unit: Unit | None, usual: Unit | None = None, work: float = 1.0
) -> Jobs:
    """Jobs whose `columns` are arrival and size, where a size of 1 brings so much `work`."""
    arrival, size = columns
    (seconds, clock), sizes = records.times(arrival, unit, usual), records.numbers(size)
    records.complain(sizes == 0, f"a {size} of 0 brings no work", "zero")
    return Jobs(name, records, seconds, sizes * work, clock)
