"""What is wanted of response times: the number that policies are ranked and tuned by. Less is better."""

import difflib
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

QUANTILES = {"median": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class Objective:
    """The mean or a percentile of the response times of an episode, or the share of them beyond a deadline."""

    metric: str = "mean"
    """`mean`, `median`, `p95`, `p99` or `late`: the name of a column of results."""
    deadline: float | None = None
    """Of `late`: what is longer than this is late."""

    def __call__(self, response: Float[Array, "J *B"]) -> Float[Array, "*B"]:
        """Of J response times, for each of a batch; a pure function, differentiable but for `late`."""
        if self.deadline is not None:
            return (response > self.deadline).mean(0)
        return response.mean(0) if self.metric == "mean" else jnp.percentile(response, QUANTILES[self.metric], axis=0)


def objective(text: str) -> Objective:
    """What `mean`, `median`, `p95`, `p99` or `late:DEADLINE` stands for, the deadline in units of response times.

    Errors: ValueError for any other text, or a deadline that is not a positive finite number.
    """
    name, colon, deadline = text.partition(":")
    if name == "late":
        try:
            limit = float(deadline)
        except ValueError:
            limit = np.nan
        if not 0 < limit < np.inf:
            raise ValueError(
                f"objective {text!r}: late needs a deadline, a positive number in units of response times; try late:2.5"
            )
        return Objective(name, limit)
    if colon or name not in ("mean", *QUANTILES):
        near = difflib.get_close_matches(name, ("mean", *QUANTILES), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown objective {text!r}: {hint}it is mean, median, p95, p99 or late:DEADLINE")
    return Objective(name)
