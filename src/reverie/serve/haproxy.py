"""HAProxy by its runtime socket (`stats socket PATH level admin`). Standard library alone.

Each exchange has a connection of its own (tens of microseconds): an open one would outlive a reload and go on talking
to the old process. Columns are found by name. A weight of 0 drains a server; it is never sent, and left alone.
"""

import csv
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from reverie.serve.balancer import Counts

_FAILURES = "econ", "eresp", "wretr", "hrsp_5xx"
_ASIDE = "DOWN", "DRAIN", "MAINT", "NOLB"


class HAProxy:
    """The servers of one backend."""

    def __init__(self, path: Path, backend: str, timeout: float = 0.5):
        """Arguments: `path` of the socket; `timeout`, seconds within which all of an answer must come."""
        self._path, self._backend, self._timeout = path, backend, timeout

    def observe(self) -> Counts:
        at = time.monotonic()
        answers = self._ask("show info", f"show servers state {self._backend}", f"show stat {self._backend} 6 -1")
        info, state, stat = [*answers, "", ""][:3]
        process = _process(info)
        table, known = _table(stat, "# ", ","), _table(state.partition("\n")[2], "# ", " ")

        def column(name: str) -> tuple[int, ...]:
            return tuple(int(row[name] or 0) for row in rows)

        try:
            by_name = {row["svname"]: row for row in table}
            whole, rows = by_name.pop("BACKEND"), by_name.values()
            configured = {row["srv_name"]: int(row["srv_iweight"]) for row in known}
            return Counts(
                at,
                process,
                names := tuple(by_name),
                column("scur"),
                column("stot"),
                tuple(map(sum, zip(*map(column, _FAILURES), strict=True))),
                weights := column("weight"),
                tuple(configured[name] for name in names),
                tuple(w > 0 and not row["status"].startswith(_ASIDE) for w, row in zip(weights, rows, strict=True)),
                int(whole["qcur"]),
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self._path}: HAProxy's answer lacks {error}; versions from 2.4 on are known") from error

    def apply(self, weights: Mapping[str, int]) -> None:
        if wrong := {name: weight for name, weight in weights.items() if not 1 <= weight <= 256}:
            raise ValueError(f"weights must lie in [1, 256], got {wrong}")
        # Of idle servers `leastconn` takes the one that was used or set longest ago: the heaviest is to come first.
        self._set({name: str(weight) for name, weight in sorted(weights.items(), key=lambda each: -each[1])})

    def defaults(self) -> None:
        seen = self.observe()
        self._set({name: "100%" for name, takes in zip(seen.names, seen.takes, strict=True) if takes})

    def identity(self) -> str:
        return _process(self._ask("show info")[0])

    def _set(self, weights: Mapping[str, str]) -> None:
        commands = [f"set server {self._backend}/{name} weight {weight}" for name, weight in weights.items()]
        for at in range(0, len(commands), 100):  # a line must fit in HAProxy's buffer
            if said := " ".join(self._ask(*commands[at : at + 100])):
                raise ValueError(f"{self._path}: {said}")

    def _ask(self, *commands: str) -> list[str]:
        """The answers, each without the empty lines around it; commands that have nothing to say have none."""
        end = time.monotonic() + self._timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            connection.connect(str(self._path))
            connection.sendall(";".join(commands).encode() + b"\n")
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
                connection.settimeout(max(end - time.monotonic(), 1e-3))
        return [part.strip() for part in answer.decode(errors="replace").split("\n\n") if part.strip()]


def request_times(line: bytes, failure: float) -> list[float]:
    """Seconds that a request took, of a line of the log (`%Ta %ST`); one that failed counts for `failure` at least."""
    took, status = map(int, line.split())
    failed = status >= 500 or status < 100
    return [max(took / 1000, failure) if failed else took / 1000]


def _process(info: str) -> str:
    facts = dict(line.partition(": ")[::2] for line in info.splitlines())
    if not {"Pid", "Start_time_sec"} <= facts.keys():
        raise ValueError(f"HAProxy answered {info.strip()[:200]!r} to `show info`")
    return f"{facts['Pid']} of {facts['Start_time_sec']}"


def _table(text: str, mark: str, separator: str) -> list[dict[str, str]]:
    if not text.startswith(mark):
        raise ValueError(f"HAProxy answered {text.strip()[:200]!r} where a table was expected")
    return list(csv.DictReader(text.removeprefix(mark).splitlines(), delimiter=separator))
