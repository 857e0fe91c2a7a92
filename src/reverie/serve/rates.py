"""The policy that makes weights: adaptive least-connections, the rule of `policies/adaptive.py`, for a proxy.

A proxy's `leastconn` sends a request to the server with the least (requests there + 1) / weight. With each server's
rate for its weight that is the rule, at c = 1; `slots` (maxconn) come before it. A rate is requests answered over time
busy, both forgotten exponentially, with one answer at the fleet's mean rate added. A poll catches a server busy for
just the share of time that it is busy, so a gap counts for busy where requests are there at its end. Tuned, weights may
be a power of the rates (`gain`; `AdaptiveWeights` in `policies/weights.py`).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from reverie.serve.settings import ADAPTIVE, WEIGHTS, ServeConfig


@dataclass(frozen=True)
class Rates:
    """What is remembered of each server (N)."""

    answered: tuple[float, ...]
    """Requests answered without failure; forgotten with time, as is the next."""
    busy: tuple[float, ...]
    """Seconds in which requests were there, and what failures count for."""


@dataclass(frozen=True)
class Rule:
    """What the policy is, in full: enough to make its decisions again."""

    tau: float
    """Seconds after which an observation counts for 1/e."""
    failure: float
    """Seconds that a failure counts for."""
    gain: float = 1.0
    """Weights are rates to this power."""


def nothing_known(servers: int) -> Rates:
    return Rates((0.0,) * servers, (0.0,) * servers)


def failures_as_slow(
    done: np.ndarray, failed: np.ndarray, busy: np.ndarray, failure: float
) -> tuple[np.ndarray, np.ndarray]:
    """Requests answered and time busy [N], with each failure as so many seconds without an answer: a server that fails
    at once would pass for a fast one."""
    return np.maximum(done - failed, 0), busy + failure * failed


def watch(rule: Rule, rates: Rates, gap: float, in_progress: np.ndarray, done: np.ndarray, failed: np.ndarray) -> Rates:
    """The memory after `gap` seconds, in which requests ended (`done`) or failed [N]."""
    answered, busy = failures_as_slow(done, failed, np.where(in_progress > 0, gap, 0.0), rule.failure)
    kept = math.exp(-gap / rule.tau)
    return Rates(
        tuple((kept * np.asarray(rates.answered) + answered).tolist()),
        tuple((kept * np.asarray(rates.busy) + busy).tolist()),
    )


def estimate(rates: Rates, configured: np.ndarray) -> np.ndarray:
    """Requests a second [N] while busy; `configured` weights stand for nominal speeds, and are all that is known until
    a request was answered."""
    answered, busy = np.asarray(rates.answered), np.asarray(rates.busy)
    capacity = (busy * configured).sum()
    if answered.sum() < 1e-9 or capacity < 1e-9:
        return configured.astype(float)
    nominal = configured * (answered.sum() / capacity)
    return (answered + 1) / (busy + 1 / nominal)


def load_rule(config: ServeConfig) -> Rule:
    """The rule that the configuration names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds a policy that makes no weights.
    """
    if config.policy == ADAPTIVE:
        return Rule(config.tau, config.limits.failure)
    path = Path(config.policy)
    if not path.is_file():
        raise FileNotFoundError(f"there is no policy at {path}; the rule by its name is {ADAPTIVE}")
    try:
        with safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {}).get("reverie", "{}")).get("metadata", {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    if told.get("kind") != "tuned rule" or told["config"]["rule"] not in (ADAPTIVE, WEIGHTS):
        raise ValueError(
            f"{path} decides where each request goes, and a proxy takes weights that are held for a while. Policies "
            f"that make weights come from `reverie tune --rule {WEIGHTS}`"
        )
    speeds, sizes = arrays[".speeds"], arrays[".sizes"]
    service = sizes.mean() / speeds[speeds > 0].mean()  # as in `policies/tunable.py`
    found = dict(zip(told["names"], np.exp(arrays[".centre"]).tolist(), strict=True))
    tau = 20 * float(service) * found.get("tau", found.get("estimates.tau"))
    return Rule(tau * (config.unit or told.get("seconds") or 1.0), config.limits.failure, found.get("gain", 1.0))
