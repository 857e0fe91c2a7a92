"""Any other file of lines, by what the user says of its columns: `arrival=ts,size=bytes,unit=ms`.

Columns are named as in the header or in JSON lines, or counted from 1. The file is JSON lines, CSV of any delimiter, or
columns with blanks between them. With `server=host` too, sizes are how long that server took.
"""

from collections.abc import Mapping

import numpy as np

from reverie.envs.fleet.formats.core import Jobs, Served, Text, token_jobs
from reverie.envs.fleet.formats.plain import plain_jobs
from reverie.envs.fleet.records import PER_SECOND, Records, TraceError, Unit, is_time, split_csv

_KEYS = "arrival", "size", "context", "generated", "server", "unit", "size_unit"
_HOW = "expected arrival=NAME,size=NAME or arrival=NAME,context=NAME,generated=NAME, and unit=ms or size_unit=ms"


def parse_columns(said: str) -> dict[str, str]:
    """What `--columns` says, by key.

    Raises:
        TraceError: it is not of the form KEY=NAME,...; a key is unknown, occurs twice or is missing; a unit is unknown.
    """
    found: dict[str, str] = {}
    for part in said.split(","):
        key, equals, name = (word.strip() for word in part.partition("="))
        if not equals or not name or key not in _KEYS or key in found:
            raise TraceError(f"--columns {said}: {part.strip()!r} is not understood; {_HOW}")
        found[key] = name
    if set(found) - {"unit", "size_unit", "server"} not in ({"arrival", "size"}, {"arrival", "context", "generated"}):
        raise TraceError(f"--columns {said}: {_HOW}")
    for key in ("unit", "size_unit"):
        unit_of(found, key)
    return found


def unit_of(columns: Mapping[str, str], key: str) -> Unit | None:
    """The unit that stands under a key, if any does."""
    if key not in columns:
        return None
    for unit in PER_SECOND:
        if columns[key] == unit:
            return unit
    raise TraceError(f"--columns {key}={columns[key]}: expected one of {', '.join(PER_SECOND)}")


def read(text: Text, columns: Mapping[str, str]) -> Jobs:
    """The jobs of a file whose `columns` are known; TraceError where it does not have them."""
    lines = [line for line in text.lines if not line[1].startswith(("#", ";"))]
    if not lines:
        raise TraceError(f"{text.path} has comments but no records")
    text = Text(text.path, lines, text.unit, text.cost)
    names = {key: columns[key] for key in ("arrival", "size", "context", "generated") if key in columns}
    records = _records(text, [*names.values(), *([columns["server"]] if "server" in columns else [])])
    said = ", ".join(f"{key} from {name}" for key, name in names.items())
    if "size" not in names:
        return token_jobs(text, said, records, list(names.values()))
    size_unit = unit_of(columns, "size_unit")
    work = 1.0 if size_unit is None else 1 / PER_SECOND[size_unit]
    jobs = plain_jobs(said, records, [names["arrival"], names["size"]], text.unit, work=work)
    if "server" not in columns:
        return jobs
    resolution = max(_resolution(jobs.work), _resolution(jobs.seconds - np.nanmin(jobs.seconds)))
    failed = np.zeros(len(jobs.work), bool)
    server, at = records.texts(columns["server"]), jobs.seconds
    served = Served(server, at, at, at + jobs.work, failed, resolution)
    return jobs._replace(served=served)


def _resolution(seconds: np.ndarray) -> float:
    """The least that two of these times differ by; 1 at most."""
    return float(np.diff(np.unique(np.round(seconds[np.isfinite(seconds)], 9))).min(initial=1.0))


def _records(text: Text, names: list[str]) -> Records:
    if text.first.startswith("{"):
        return Records.from_json(text.path, text.lines, names)
    blanks = text.delimiter == "," and "," not in text.first

    def cut(line: str, delimiter: str) -> list[str]:
        return line.split() if blanks else split_csv(line, delimiter)

    header = cut(text.first, text.delimiter)
    known = [name.casefold() for name in header]
    if all(name.casefold() in known for name in names):
        return Records.from_csv(text.path, header, text.lines[1:], names, text.delimiter, cut)
    if all(name.isdecimal() for name in names):
        numbered = [str(k + 1) for k in range(len(header))]
        titled = int(names[0]) <= len(header) and not is_time(header[int(names[0]) - 1])
        return Records.from_csv(text.path, numbered, text.lines[titled:], names, text.delimiter, cut)
    raise TraceError(
        f"{text.path}: --columns names {', '.join(n for n in names if n.casefold() not in known)}; expected columns of "
        f"its first line, {', '.join(header)}, or their numbers from 1"
    )
