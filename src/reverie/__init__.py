"""Reverie: agents that learn a model of a server fleet, dream inside it, and adapt to traffic they have never seen."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverie.serve.policy import ServedPolicy

__version__ = "0.1.0"


def load_policy(path: "Path | str") -> "ServedPolicy":
    """A policy that `reverie export` wrote, ready to decide from plain numbers, without JAX; see `serve/policy.py`."""
    from reverie.serve import policy  # numpy is not needed by those who do not ask

    return policy.load_policy(path)
