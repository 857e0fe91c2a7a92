"""What is said of each view, in one place. How a state is shown is in `env.py` and `weights.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reverie.envs.fleet.env import LATENCY_FEATURES
from reverie.envs.fleet.weights import FEATURES, View


@dataclass(frozen=True)
class About:
    """What users are told of a view, and what it is compared by."""

    seen: str
    """What it shows, and who knows that."""
    units: Mapping[str, str]
    """What the numbers of each entry are; times and work are in the units of the fleet."""
    tells: int | None
    """Of two views, the one with the higher number tells more; None where it is not to be compared."""


_GAP = "[time since the last arrival]"

VIEWS: Mapping[View, About] = MappingProxyType(
    {
        "park": About(
            "Park's vector: the work at each server and the size of the job; no proxy knows them",
            {"vector": "of each server, work that waits plus time that the job in service takes; then the job's size"},
            None,
        ),
        "full": About(
            "speeds and remaining work of all servers and the size of each job; no proxy knows them "
            "(--view counts and --view latency are what one sees)",
            {"servers": "of each server [backlog in work units, speed in work per time]", "job": "[size, gap]"},
            3,
        ),
        "latency": About(
            "how many jobs each server holds and how long those took that it has finished, as a proxy does",
            {
                "servers": f"of each server [{', '.join(LATENCY_FEATURES)}], the second to the fifth since the last "
                "arrival",
                "job": _GAP,
            },
            2,
        ),
        "counts": About(
            "how many jobs each server holds, as a proxy does",
            {"servers": "of each server [jobs in progress]", "job": _GAP},
            1,
        ),
        "weights": About(  # whoever sets them sees the past, and sends no job
            "what a proxy counts in an interval, by whoever sets its weights for the next; it sends each job itself",
            {
                "servers": f"of each server [{', '.join(FEATURES)}]",
                "proxy": "[jobs that wait in it, jobs that came in the interval, how long that was]",
            },
            0,
        ),
    }
)


def hides(view: View, other: View) -> bool:
    """Whether a view tells less than another."""
    ours, theirs = VIEWS[view].tells, VIEWS[other].tells
    return ours is not None and theirs is not None and theirs > ours
