"""A workload that imitates a recorded one, for use where no recording is at hand."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from reverie.envs.fleet.records import TraceError
from reverie.envs.fleet.traces import DEFAULT_COST, Trace


@dataclass(frozen=True)
class _Stream:
    """Poisson arrivals whose rate is redrawn at random times: gamma distributed, held for exponential times."""

    share: float  # of all arrivals
    level_cv: float  # of the rate
    mean_hold: float  # seconds


_CONVERSATION_RATE = 5.53  # arrivals per second
_CONVERSATION_STREAMS = (
    _Stream(share=0.5, level_cv=0.48, mean_hold=80.0),  # the tide: dispersion that still grows at 60 s
    _Stream(share=0.5, level_cv=0.36, mean_hold=0.7),  # the ripple: dispersion within seconds
)
_CONTEXT_MEAN, _CONTEXT_CV = 1155.0, 0.96  # tokens
_LONG_ANSWERS = 0.34  # share of the requests
_SHORT_MEAN, _SHORT_CV = 101.0, 0.46  # tokens generated for the others
_LONG_MEAN, _LONG_CV = 422.0, 0.17  # tokens generated for these


def conversation_like(num_jobs: int, seed: int) -> Trace:
    """Make a workload with the statistics of Azure's conversation trace of 2023, for use without a recording.

    The model is ours, fitted to published statistics (Patel et al., Splitwise, ISCA 2024): 5.5 arrivals per second
    with gap CV about 1.09 and index of dispersion about 1.4, 4 and 16 in windows of 1, 10 and 60 s (in the mean over
    seeds: an hour holds few turns of the tide); on average 1155 tokens of context (lognormal, CV 0.96) and 210
    generated (short or long answers, CV 0.77), independent of one another; work by `TokenCost()`, mean 5.5, squared
    CV 0.54. Arrivals are a sum of two Poisson streams whose rates are redrawn every 80 s and 0.7 s on average.

    Args:
        num_jobs: J, at least 1.
        seed: of the random numbers, at least 0.

    Raises:
        TraceError: num_jobs or seed is too small.
    """
    if num_jobs < 1:
        raise TraceError(f"num_jobs is {num_jobs}: expected at least 1")
    if seed < 0:
        raise TraceError(f"seed is {seed}: expected at least 0")
    rng = np.random.default_rng(seed)
    first, second = _CONVERSATION_STREAMS
    of_first = round(first.share * num_jobs)
    arrival = np.sort(
        np.concatenate(
            [
                _modulated_poisson(of_first, first, rng),
                _modulated_poisson(num_jobs - of_first, second, rng),
            ]
        )
    )
    context = np.ceil(_lognormal(_CONTEXT_MEAN, _CONTEXT_CV, num_jobs, rng))
    long = rng.random(num_jobs) < _LONG_ANSWERS
    generated = np.ceil(
        np.where(long, _gamma(_LONG_MEAN, _LONG_CV, num_jobs, rng), _gamma(_SHORT_MEAN, _SHORT_CV, num_jobs, rng))
    )
    columns = {"context_tokens": context, "generated_tokens": generated}
    return Trace("conversation-like", arrival - arrival[0], DEFAULT_COST.work(context, generated), columns)


def _modulated_poisson(count: int, stream: _Stream, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    """`count` arrival times, unsorted, of a stream over the time in which it has that many on average.

    Given their number, the arrivals of such a stream are independent, with a density in proportion to the rate.
    """
    span = count / (stream.share * _CONVERSATION_RATE)
    redrawn = rng.uniform(0, span, rng.poisson(span / stream.mean_hold))
    edges = np.concatenate([[0.0], np.sort(redrawn), [span]])
    levels = _gamma(1.0, stream.level_cv, len(edges) - 1, rng)
    expected = np.concatenate([[0.0], np.cumsum(levels * np.diff(edges))])
    return np.interp(rng.uniform(0, expected[-1], count), expected, edges)


def _gamma(mean: float, cv: float, count: int, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    return rng.gamma(cv**-2, mean * cv**2, count)


def _lognormal(mean: float, cv: float, count: int, rng: np.random.Generator) -> Float64[np.ndarray, " K"]:
    variance = math.log1p(cv**2)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
