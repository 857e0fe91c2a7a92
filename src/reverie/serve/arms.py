"""Ways to balance that race against each other (`race.py`): which proxy, in which of its ways, with what beside it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Arm(NamedTuple):
    """A way to balance."""

    balance: str
    """The proxy's words for it."""
    proxy: Literal["haproxy", "nginx", "envoy"] = "haproxy"
    cap: Literal["no", "slots", "one"] = "no"
    """Whether servers take only so many requests at once, and others wait in the balancer (maxconn)."""
    weighted: bool = False
    """Whether weights are the speeds at the beginning, which somebody once measured."""
    served: bool = False
    """Whether `reverie serve` sets the weights."""


ARMS: Mapping[str, Arm] = {
    "roundrobin": Arm("roundrobin"),
    "random": Arm("random(2)"),
    "leastconn": Arm("leastconn"),
    "leastconn-weights": Arm("leastconn", weighted=True),
    "maxconn": Arm("leastconn", cap="slots"),
    "maxconn-1": Arm("leastconn", cap="one"),
    "nginx-least-conn": Arm("least_conn", "nginx"),
    "nginx-least-time": Arm("least_time last_byte", "nginx"),
    "envoy": Arm("N_CHOICES", "envoy"),
    "envoy-all": Arm("FULL_SCAN", "envoy"),
    "envoy-serve": Arm("FULL_SCAN", "envoy", served=True),
    "adaptive": Arm("leastconn", served=True),
    "serve": Arm("leastconn", cap="slots", served=True),
    "serve-1": Arm("leastconn", cap="one", served=True),
}
"""`envoy` is least_request with two drawn, `envoy-all` with all compared; `adaptive` is weights by `reverie serve`
without maxconn, `serve` these on top of it, and in arms that end in -1 it is 1, however many slots servers have."""
