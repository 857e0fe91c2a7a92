"""What a balancer's log says of the servers behind it: how fast each is, how many requests it serves at once, and how
much these slow each other down.

The model is that of `sharing.py`. Up to B requests are in service, first come, first served; while n are, each is
served at the rate v / (1 + b (n - 1)): `speed` v is that of a request alone, b from 0 (workers) to 1 (processor
sharing). In a log stand the times s_j at which requests were sent to a server and e_j at which they ended, so n(t) is
known, and for any (v, b, B) so is the work that each must have brought,

    w_j = v * integral from t_j to e_j of dt / (1 + b (n(t) - 1)),    n(t) at most B,

where t_j is when it got a slot: at s_j, or when all but B - 1 of those before it had ended. The balancer sends without
knowing sizes, so for the right numbers works are independent draws of one law F, at every server and whatever n. Given
arrivals and places, ends are a one-to-one function of works, triangular in the order of ends, with
d w_j / d e_j = v / (1 + b (n(e_j) - 1)): the likelihood is, exactly,

    sum over j of  log f(w_j) + log v - log(1 + b (n(e_j) - 1)).

No form of f is assumed: it is the smoothed histogram of the logarithms of all works (a kernel density, Silverman's
bandwidth), found in turn with the servers' numbers. B and b are searched on a grid, v by shifting the histogram. An
end that the numbers rule out (one that comes before its beginning) costs as much as an outlier that is anywhere.

What cannot be known: works and speeds have a common factor, so the fastest server's speed is 1 and work is in its
seconds. B is known from below by requests that overtake, from above only if more than B were there; b and v apart only
if n varied. The intervals say so (profile likelihood, 95 %): B may be "5 or more", b anything. Network and proxy are
taken to cost nothing, and numbers to stay as they are; the check that they do is `serve/logged.py`.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d

from reverie.envs.fleet.records import TraceError
from reverie.envs.fleet.traces import Requests

FEWEST = 30
"""Requests, with fewer of which nothing is said."""
_STEP, _SPAN = 0.02, 14.0
"""The grid of logarithms of works: its step, and how far it reaches to either side of their mean."""
_BINS = 2 * round(_SPAN / _STEP) + 1
_SHIFTS = 75
"""By how many steps the works of a server may lie off the others'."""
_DROP = 1.92
"""Of the log-likelihood to the ends of an interval of 95 %: half of chi-square's quantile."""
_OUTLIERS = 0.01


class Interval(NamedTuple):
    """A number and its interval of 95 %."""

    value: float
    low: float
    high: float


class Server(NamedTuple):
    """What is known of one server."""

    name: str
    requests: int
    most: int
    """Requests that were there at once, at most."""
    speed: Interval
    b: Interval
    slots: Interval
    """B; its interval is open (inf) where never more were there than it allows."""

    @property
    def capacity(self) -> float:
        """Work a second with all slots taken."""
        return self.speed.value * self.slots.value / (1 + self.b.value * (self.slots.value - 1))


class Fit(NamedTuple):
    """The servers, and the works of the requests [J] in seconds of the fastest server, alone on it."""

    servers: tuple[Server, ...]
    work: Float[np.ndarray, " J"]


def fit(requests: Requests) -> Fit:
    """The likeliest numbers of each server of a log, and the work of each request.

    Raises:
        TraceError: there are too few requests, or one server got none of them.
    """
    counts = np.bincount(requests.server, minlength=len(requests.servers))
    if len(requests.server) < FEWEST:
        raise TraceError(
            f"requests that say where they went: {len(requests.server)}, too few; expected {FEWEST} at least"
        )
    if not counts.all():
        raise TraceError(f"no request went to {requests.servers[counts.argmin()]}: leave it out, or take a longer log")
    paths = [_path(requests, i) for i in range(len(counts))]
    tried = [_candidates(path, _slots(path.most)) for path in paths]
    # At first each server by the law of its own works, then by that of all.
    best = [max(each, key=lambda c: c.constant + c.histogram @ _log_density(c.histogram)) for each in tried]
    shifts = [0.0] * len(paths)
    judged: list[list[_Judged]] = []
    for finer in (False, False, True, True):
        law = _shifted(_log_density(_pooled(best, shifts)))
        if finer:
            around = [_around([_judge(c, law) for c in each]) for each in tried]
            tried = [_candidates(path, *near) for path, near in zip(paths, around, strict=True)]
        judged = [[_judge(c, law) for c in each] for each in tried]
        likeliest = [max(each, key=lambda j: j.likelihood) for each in judged]
        best, shifts = [j.candidate for j in likeliest], [j.shift for j in likeliest]
    found = [_server(name, path, each) for name, path, each in zip(requests.servers, paths, judged, strict=True)]
    fastest = max(server.speed.value for server in found)
    servers = tuple(s._replace(speed=Interval(*(x / fastest for x in s.speed))) for s in found)
    return Fit(servers, works(requests, servers))


def works(requests: Requests, servers: Sequence[Server]) -> Float[np.ndarray, " J"]:
    """The work that each request must have brought to servers of these numbers; at least as much as the resolution of
    times lets see."""
    work = np.empty(len(requests.server))
    for i, server in enumerate(servers):
        path, slots = _path(requests, i), int(server.slots.value)
        found, slow = _works(path, server.b.value, slots, _begun(path, [slots])[slots])
        work[path.rows] = server.speed.value * np.maximum(found, requests.resolution / slow)
    return work


# --- one server ------------------------------------------------------------------------------------------------------


class _Path(NamedTuple):
    """The requests of one server (M) in the order in which they were sent, and how many were there over time, with
    those that failed (M + F)."""

    rows: Int[np.ndarray, " M"]
    """Where they stand in the log."""
    sent: Float[np.ndarray, " M"]
    ended: Float[np.ndarray, " M"]
    all_sent: Float[np.ndarray, " M+F"]
    all_ended: Float[np.ndarray, " M+F"]
    counts: Int[np.ndarray, " M"]
    """Which of these did not fail."""
    time: Float[np.ndarray, " 2*(M+F)"]
    there: Int[np.ndarray, " 2*(M+F)"]
    """From each of these times on."""
    at_end: Int[np.ndarray, " M"]
    """How many were there just before each ended."""
    resolution: float

    @property
    def most(self) -> int:
        return int(self.there.max())


def _path(requests: Requests, server: int) -> _Path:
    rows = np.flatnonzero(requests.server == server)
    rows = rows[np.argsort(requests.sent[rows], kind="stable")]
    sent, ended = requests.sent[rows], requests.ended[rows]
    failed = requests.failed.at(server)
    all_sent, all_ended = np.append(sent, failed[0]), np.append(ended, failed[1])
    order = np.argsort(all_sent, kind="stable")
    all_sent, all_ended, counts = all_sent[order], all_ended[order], np.flatnonzero(order < len(rows))
    time = np.concatenate([all_ended, all_sent])  # at one moment, ends come first
    order = np.argsort(time, kind="stable")
    there = np.cumsum(np.where(order < len(all_sent), -1, 1))
    at_end = np.searchsorted(all_sent, ended, "right") - np.searchsorted(np.sort(all_ended), ended, "left")
    at_end = np.maximum(at_end, 1)
    return _Path(rows, sent, ended, all_sent, all_ended, counts, time[order], there, at_end, requests.resolution)


def _begun(path: _Path, slots: Sequence[int]) -> dict[int, Float[np.ndarray, " M"]]:
    """When each request got a slot, if there are so many: at once, or when all before it but one less had ended."""
    begun = {count: path.all_sent.copy() for count in slots}
    present: list[float] = []  # ends of those before that are still there
    for j, now in enumerate(path.all_sent):
        del present[: bisect_right(present, now)]
        for count in slots:
            if count <= len(present):
                begun[count][j] = present[len(present) - count]
        insort(present, path.all_ended[j])
    return {count: each[path.counts] for count, each in begun.items()}


def _works(
    path: _Path, b: float, slots: int, begun: Float[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """The works at speed 1, and by which factor each request was slowed down as it ended."""
    slow = 1 + b * (np.clip(path.there, 1, slots) - 1)
    done = np.concatenate([[0.0], np.cumsum(np.diff(path.time) / slow[:-1])])
    ended, begun = np.interp(path.ended, path.time, done), np.interp(begun, path.time, done)
    return ended - begun, 1 + b * (np.minimum(path.at_end, slots) - 1)


class _Candidate(NamedTuple):
    """A b and a B of a server, and what its works would be."""

    b: float
    slots: int
    mean: float
    """Of the logarithms of works at speed 1."""
    histogram: Float[np.ndarray, " K"]
    """Of these logarithms, around their mean."""
    constant: float
    """What the log-likelihood has beside the law of works."""


class _Judged(NamedTuple):
    """A candidate with its likeliest speed."""

    candidate: _Candidate
    likelihood: float
    """Its logarithm."""
    shift: float
    """From the mean logarithm at speed 1 to that of the law; less the former, the logarithm of the speed."""
    error: float
    """Of the shift, by the curvature of the likelihood."""


def _slots(most: int) -> list[int]:
    """The B to try first: all up to 8, then each a seventh more, and as many as were there."""
    grid = np.concatenate([np.arange(1, 9), np.round(8 * 1.15 ** np.arange(1, 60)).astype(int), [most]])
    return np.unique(grid[grid <= most]).tolist()


def _candidates(path: _Path, slots: Sequence[int], low: float = 0.0, high: float = 1.0) -> list[_Candidate]:
    """Of these B, each with b from `low` to `high`, in even steps of the logarithm of how much all slow each other."""
    found = []
    for count, begun in _begun(path, slots).items():
        others = min(count, path.most) - 1
        slow = np.geomspace(1 + low * others, 1 + high * others, 25 if others else 1)
        found += [_candidate(path, float(b), count, begun) for b in (slow - 1) / max(others, 1)]
    return found


def _candidate(path: _Path, b: float, slots: int, begun: Float[np.ndarray, " M"]) -> _Candidate:
    work, slow = _works(path, b, slots, begun)
    least = path.resolution / slow
    possible = work > -2 * least
    logs = np.log(np.maximum(work, least)[possible])
    mean = float(logs.mean()) if len(logs) else 0.0
    outliers = (~possible).sum() * np.log(_OUTLIERS / (path.ended - path.sent).max())
    return _Candidate(b, slots, mean, _binned(logs - mean), outliers - logs.sum() - np.log(slow[possible]).sum())


def _around(judged: Sequence[_Judged]) -> tuple[list[int], float, float]:
    """The B that are not far from likely, and those between them that were not tried; the range of b of these."""
    highest = max(j.likelihood for j in judged)
    near = [j.candidate for j in judged if j.likelihood > highest - 4 * _DROP]
    grid = sorted({j.candidate.slots for j in judged})
    first, last = (grid.index(pick(c.slots for c in near)) for pick in (min, max))
    slots = range(grid[max(first - 1, 0)], grid[min(last + 1, len(grid) - 1)] + 1)
    bs = sorted({j.candidate.b for j in judged if j.candidate.slots in {c.slots for c in near}})
    low, high = (bs.index(pick(c.b for c in near)) for pick in (min, max))
    kept = np.unique(np.linspace(slots[0], slots[-1], 24).astype(int)) if len(slots) > 24 else np.array(slots)
    return kept.tolist(), bs[max(low - 1, 0)], bs[min(high + 1, len(bs) - 1)]


def _server(name: str, path: _Path, judged: Sequence[_Judged]) -> Server:
    best = max(judged, key=lambda j: j.likelihood)
    within = [j for j in judged if j.likelihood >= best.likelihood - _DROP]
    # Each candidate's likelihood is a parabola in the logarithm of its speed.
    reach = [j.error * np.sqrt(2 * (j.likelihood - best.likelihood + _DROP)) for j in within]
    logs = [j.shift - j.candidate.mean for j in within]
    low = min(at - each for at, each in zip(logs, reach, strict=True))
    high = max(at + each for at, each in zip(logs, reach, strict=True))
    speed = Interval(*np.exp([best.shift - best.candidate.mean, low, high]).tolist())
    slots, bs = [j.candidate.slots for j in within], [j.candidate.b for j in within]
    known = path.most > 1
    return Server(
        name,
        len(path.rows),
        path.most,
        speed,
        Interval(best.candidate.b, min(bs), max(bs)) if known else Interval(0.0, 0.0, 1.0),
        Interval(best.candidate.slots, min(slots), max(slots) if max(slots) < path.most else np.inf),
    )


# --- the law of works: a histogram of logarithms, smoothed -----------------------------------------------------------


def _binned(logs: Float[np.ndarray, " M"]) -> Float[np.ndarray, " K"]:
    """Each between two bins in proportion, so that likelihoods have no steps."""
    at = np.clip(logs / _STEP + _BINS // 2, 0, _BINS - 2)
    first = at.astype(int)
    part = at - first
    return np.bincount(first, 1 - part, _BINS) + np.bincount(first + 1, part, _BINS)


def _pooled(best: Sequence[_Candidate], shifts: Sequence[float]) -> Float[np.ndarray, " K"]:
    bins = np.arange(_BINS)
    moved = [np.interp(bins - shift / _STEP, bins, c.histogram) for c, shift in zip(best, shifts, strict=True)]
    return np.sum(moved, 0)


def _log_density(histogram: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The logarithm of the density of logarithms of works, a hundredth of them anywhere."""
    count, bins = max(histogram.sum(), 1e-9), np.arange(_BINS)
    mean = histogram @ bins / count
    below = np.cumsum(histogram) / count
    middle = np.searchsorted(below, 0.75) - np.searchsorted(below, 0.25)
    spread = min(np.sqrt(histogram @ (bins - mean) ** 2 / count), middle / 1.34)
    smooth = gaussian_filter1d(histogram / count, max(0.9 * spread * count**-0.2, 1.0), mode="constant")
    return np.log((1 - _OUTLIERS) * smooth + _OUTLIERS / _BINS) - np.log(_STEP)


def _shifted(law: Float[np.ndarray, " K"]) -> Float[np.ndarray, "S K"]:
    """The law as works meet it that are shifted by so many steps, from the most to the left on."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(law, _SHIFTS, mode="edge"), _BINS)


def _judge(candidate: _Candidate, law: Float[np.ndarray, "S K"]) -> _Judged:
    """The likeliest shift, by a parabola through the three best."""
    likelihood = law @ candidate.histogram
    k = int(np.clip(likelihood.argmax(), 1, len(likelihood) - 2))
    before, at, after = likelihood[k - 1 : k + 2]
    bend = min(before - 2 * at + after, -1e-6)
    slope = (after - before) / 2
    best = candidate.constant + at - slope**2 / (2 * bend)
    return _Judged(candidate, float(best), (k - _SHIFTS - slope / bend) * _STEP, _STEP / np.sqrt(-bend))
