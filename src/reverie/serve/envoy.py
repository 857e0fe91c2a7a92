"""Envoy by two things: its admin socket, which tells counts, and the file of its endpoints (EDS), which takes weights.
Standard library alone.

The file is replaced whole, as Envoy looks for a new one under the name; what was changed counts when Envoy says that it
has it. Configured weights stand in the file too, beside each server (metadata `reverie`, `configured`), as Envoy has no
place for them. A restarted Envoy begins with the file, so with the weights of before.
"""

import http.client
import json
import re
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reverie.files import read_json, write_text
from reverie.serve.balancer import Counts

_LOOK = 0.015
"""Seconds between two looks at whether a new file has been taken, which it is after 1 to 13 ms."""
_IDENTITY = "/config_dump?mask=last_updated"


class Envoy:
    """The servers of one cluster."""

    def __init__(self, path: Path, cluster: str, endpoints: Path, timeout: float = 0.5):
        """Arguments: `path` of the admin socket; `endpoints`, the file; `timeout`, seconds within which an answer must
        come, and a new file be taken."""
        self._path, self._cluster, self._endpoints, self._timeout = path, cluster, endpoints, timeout
        self._clusters = f"/clusters?format=json&filter=^{quote(re.escape(cluster))}$"

    def observe(self) -> Counts:
        at = time.monotonic()
        dump, answer = self._get(_IDENTITY, self._clusters)
        process = _process(dump)
        configured = {name: _configured(each) for name, each in self._servers(self._file()).items()}
        with self._whole():
            hosts = _hosts(answer)
            rows = [hosts[name] for name in configured]
            stats = [{each["name"]: int(each.get("value", 0)) for each in row["stats"]} for row in rows]
            return Counts(
                at,
                process,
                tuple(configured),
                tuple(each["rq_active"] for each in stats),
                tuple(each["rq_total"] for each in stats),
                tuple(each["rq_error"] for each in stats),
                tuple(row["weight"] for row in rows),
                tuple(configured.values()),
                tuple(row["health_status"] == {"eds_health_status": "HEALTHY"} for row in rows),
            )

    def apply(self, weights: Mapping[str, int]) -> None:
        if wrong := {name: weight for name, weight in weights.items() if not 1 <= weight <= 256}:
            raise ValueError(f"weights must lie in [1, 256], got {wrong}")
        self._set(weights)

    def defaults(self) -> None:
        self._set({name: _configured(each) for name, each in self._servers(self._file()).items()})

    def identity(self) -> str:
        return _process(*self._get(_IDENTITY))

    def _set(self, weights: Mapping[str, int]) -> None:
        """Write them, and wait until Envoy has them."""
        end, file = time.monotonic() + self._timeout, self._file()
        servers = self._servers(file)
        if unknown := weights.keys() - servers.keys():
            raise ValueError(f"{self._endpoints} has no server {', '.join(sorted(unknown))}")
        for name, weight in weights.items():
            servers[name]["load_balancing_weight"] = weight
        write_text(self._endpoints, json.dumps(file, indent=1))
        while True:
            time.sleep(_LOOK)
            (answer,) = self._get(self._clusters)  # of the process of now: it may have changed since the last look
            with self._whole():
                hosts = _hosts(answer)
                if all(hosts.get(name, {}).get("weight") == weight for name, weight in weights.items()):
                    return
            if time.monotonic() > end:
                raise TimeoutError(f"Envoy did not take {self._endpoints} within {self._timeout} s")

    def _get(self, *what: str) -> list[Any]:
        """Answers of the admin socket, over a connection of their own: an open one may end with the process.

        Errors: OSError where there is none, ValueError where it is no answer.
        """
        try:
            with closing(_Connection(self._path, self._timeout)) as connection:
                return [self._answer(connection, each) for each in what]
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self._path}: {error!r}") from error

    def _answer(self, connection: http.client.HTTPConnection, what: str) -> Any:
        connection.request("GET", what)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{self._path}: Envoy answers {answer.status} to {what}")
        return json.loads(text)

    @contextmanager
    def _whole(self) -> Generator[None]:
        """Where an answer is read: that something is missing there is said."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path}: Envoy's cluster {self._cluster!r} has not all servers of {self._endpoints} with all "
                f"their counts ({error!r}); versions from 1.30 on are known"
            ) from error

    def _file(self) -> Any:
        return read_json(self._endpoints)

    def _servers(self, file: Any) -> dict[str, dict[str, Any]]:
        """By name, each with a configured weight."""
        try:
            (cluster,) = file["resources"]
            servers = [each for group in cluster["endpoints"] for each in group["lb_endpoints"]]
            for each in servers:
                _configured(each)
            return {each["endpoint"]["hostname"]: each for each in servers}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._endpoints} is no file of endpoints of one cluster ({error!r})") from error


class _Connection(http.client.HTTPConnection):
    """To a socket of this machine; opened anew where Envoy says with an answer that it hangs up."""

    def __init__(self, path: Path, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request_times(line: bytes, failure: float) -> list[float]:
    """Seconds that requests took, of what Envoy sends as `statsd`: a line for each, and now and then how many failed;
    these count for `failure` seconds each."""
    name, _, rest = line.partition(b":")
    value, _, kind = rest.partition(b"|")
    if name.endswith(b".downstream_rq_time") and kind == b"ms":
        return [int(value) / 1000]
    return [failure] * int(value) if name.endswith(b".downstream_rq_5xx") else []


def _process(dump: Any) -> str:
    """When it read its own configuration, which it does once."""
    try:
        return dump["configs"][0]["last_updated"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"Envoy does not say since when it runs ({error!r})") from error


def _configured(server: Mapping[str, Any]) -> int:
    return server["metadata"]["filter_metadata"]["reverie"]["configured"]


def _hosts(answer: Any) -> dict[str, Any]:
    """The servers of the one cluster that was asked for, by name."""
    (cluster,) = answer["cluster_statuses"]
    return {host["hostname"]: host for host in cluster.get("host_statuses", [])}
