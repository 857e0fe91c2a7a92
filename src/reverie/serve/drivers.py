"""The drivers there are, by the names that the configuration has. Standard library alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from reverie.serve import envoy, haproxy
from reverie.serve.balancer import Balancer


class Driver(NamedTuple):
    """What differs from balancer to balancer."""

    connect: Callable[[Path, str, Path | None], Balancer]
    """From its socket, the name it has for the servers, and the file of its endpoints."""
    request_times: Callable[[bytes, float], list[float]]
    """Seconds of requests, out of a datagram that it sends to the agent; of failures, at least so many."""


def _envoy(socket: Path, cluster: str, endpoints: Path | None) -> Balancer:
    assert endpoints is not None, "settings.py demands it"
    return envoy.Envoy(socket, cluster, endpoints)


DRIVERS: Mapping[str, Driver] = {
    "haproxy": Driver(lambda socket, backend, _: haproxy.HAProxy(socket, backend), haproxy.request_times),
    "envoy": Driver(_envoy, envoy.request_times),
}
