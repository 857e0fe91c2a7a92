"""The classical dispatch rules: every opponent that a learned policy is compared with, as pure functions of a batch.

A rule is an Equinox module that implements `Policy` and names the view it reads: `full` (remaining work, current speeds
and job size) or `counts` (jobs in progress; speeds, where a rule needs them, are those it was configured with and may
be stale). `rules` makes them all by name. Those that estimate something while they run live in `adaptive.py`.
"""

import difflib
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from numpy.typing import ArrayLike

from reverie.envs.core import TimeStep
from reverie.policies.adaptive import (
    AdaptiveLeastConnections,
    LittleConnections,
    ServerEstimates,
    ValueFunctionDispatch,
)
from reverie.policies.core import PolicyState
from reverie.policies.latency import ResponseRule
from reverie.policies.residual import ResidualLife
from reverie.policies.views import Checked, Rule, View, allowed_servers, as_speeds, counts_view, full_view, pick
from reverie.policies.weights import weight_rules
from reverie.ranges import Count, Positive, Weight, above


def rules(speeds: ArrayLike, sizes: ArrayLike, names: Iterable[str] | None = None) -> dict[str, Rule]:
    """The rules by name, all that send each job or those asked for.

    Arguments: `speeds` [N], nominal speeds in work per time unit (0 for padding), for the rules that cannot see them;
    `sizes`, a sample of job sizes in work units, for the size intervals and the time scale of the adaptive rule.
    Errors: ValueError for an unknown name, a negative speed or a size that is not positive.
    """
    nominal, sample = np.asarray(as_speeds(speeds)), _as_sizes(sizes)
    equal = np.where(nominal > 0, 1.0, 0.0)
    patience = 20 * float(sample.mean() / nominal[nominal > 0].mean())
    known: dict[str, Rule] = {
        "random": Random(equal),
        "random-speed": Random(nominal),
        "round-robin": RoundRobin(equal),
        "weighted-round-robin": RoundRobin(nominal),
        "jsq": JoinShortestQueue(nominal),
        "p2c": PowerOfTwoChoices(nominal, equal),
        "p2c-speed": PowerOfTwoChoices(nominal, nominal),
        "sed": ShortestExpectedDelay(nominal),
        "adaptive-least-connections": AdaptiveLeastConnections(nominal, tau=patience),
        "little": LittleConnections(equal, tau=patience),
        "little-root": LittleConnections(equal, tau=patience, power=0.5, prior=1.0),
        "jsq-little": LittleConnections(equal, tau=patience, power=0.0),
        "orca": UtilisationWeights(AdaptiveLeastConnections(equal, tau=patience)),
        "ewma": ResponseRule(equal, "ewma"),
        "c3": ResponseRule(equal, "c3"),
        "normalised-service": ResponseRule(equal, "normalised", tau=patience),
        "peak-ewma": ResponseRule(equal, "peak", tau=patience),
        "p2c-peak-ewma": ResponseRule(equal, "peak", tau=patience, two=True),
        "least-work": LeastWork(),
        "shortest-wait": WaitPlusService(0.0),
        "residual-life": ResidualLife(equal, unit=patience / 20),
        "late-binding": LateBinding(nominal),
        "late-binding-fastest": LateBinding(nominal, fastest=True),
        "late-binding-4": LateBinding(nominal, cap=4),
        "wait-plus-service": WaitPlusService(),
        "guarded-wait-plus-service": Guarded(WaitPlusService(), nominal, smallest=float(sample.min())),
        "least-completion": WaitPlusService(1.0),
        "fpi": ValueFunctionDispatch(),
        "sita": SizeIntervals.of_equal_load(nominal, sample),
    }
    names = list(known) if names is None else list(names)
    known |= weight_rules(nominal, patience)
    for name in names:
        if name not in known:
            word = name.lower()
            near = [word] if word in ELSEWHERE else difflib.get_close_matches(word, [*known, *ELSEWHERE], n=1)
            hint = f"did you mean {near[0]!r}? " if near and word not in ELSEWHERE else ""
            hint += f"{near[0]} {ELSEWHERE[near[0]]}; " if near and near[0] in ELSEWHERE else ""
            raise ValueError(f"unknown rule {name!r}: {hint}the known ones are {', '.join(known)}")
    return {name: known[name] for name in names}


ELSEWHERE = {
    "leastconn": "is called jsq here",
    "least_conn": "is called jsq here",
    "least_request": "is called p2c here, and over all servers jsq",
    "roundrobin": "is called round-robin here, and with weights weighted-round-robin",
    "round_robin": "is called round-robin here, and with weights weighted-round-robin",
    "random(2)": "is called p2c here",
    "maxconn": "1 is called late-binding here (4: late-binding-4), or late-binding-fastest by the order of servers",
    "first": "is called late-binding-fastest here, with maxconn 1 and the fastest server first",
    "least_time": "is called ewma here",
    "peak_ewma": "is called p2c-peak-ewma here, and over all servers peak-ewma",
}
"""What rules are called in HAProxy, nginx and Envoy."""


class _Memoryless(Checked):
    def initial_state(self, batch: int) -> tuple[()]:
        return ()


# --- rules that see nothing of the servers' state --------------------------------------------------------------------


class Random(_Memoryless):
    """Chooses at random in proportion to `weights`: equal ones, or the nominal speeds."""

    view: ClassVar[View] = "counts"
    weights: Float[Array, " N"] = eqx.field(converter=as_speeds)

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        logits = jnp.where(allowed_servers(timestep, self.weights), jnp.log(self.weights), -jnp.inf)
        return jax.random.categorical(key, logits).astype(jnp.int32), state


class RoundRobin(eqx.Module):
    """Smooth weighted round robin as in nginx (`ngx_http_upstream_round_robin.c`); with equal weights, round robin.

    The credit of each server grows by its weight; the one with the most credit is chosen and pays the sum of the
    weights. Servers that are not allowed take no part. Credits start from 0 in each episode.
    """

    view: ClassVar[View] = "counts"
    weights: Float[Array, " N"] = eqx.field(converter=as_speeds)

    def initial_state(self, batch: int) -> Float[Array, "B N"]:
        return jnp.zeros((batch, self.weights.shape[0]))

    def act(
        self, state: Float[Array, "B N"], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], Float[Array, "B N"]]:
        allowed = allowed_servers(timestep, self.weights)
        weights = jnp.where(allowed, self.weights, 0.0)  # [B, N]
        credit = jnp.where(timestep.is_first[:, None], 0.0, state)
        return _smooth(credit, weights, self.weights, allowed)


class UtilisationWeights(eqx.Module):
    """Weighted round robin by what each server completes while it is busy: the weights of ORCA reports (Envoy and gRPC
    A58: requests per second over utilisation), which are refreshed at each arrival here, and no jobs in progress."""

    view: ClassVar[View] = "counts"
    estimates: AdaptiveLeastConnections
    """What takes the part of the reports: completions over busy time."""

    def initial_state(self, batch: int) -> tuple[ServerEstimates, Float[Array, "B N"]]:
        known = self.estimates.initial_state(batch)
        return known, jnp.zeros_like(known.jobs)

    def act(
        self, state: tuple[ServerEstimates, Float[Array, "B N"]], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], tuple[ServerEstimates, Float[Array, "B N"]]]:
        known, credit = state
        seen, known = self.estimates.watch(known, timestep)
        rates = self.estimates.rates(known)
        credit = jnp.where(timestep.is_first[:, None], 0.0, credit)
        action, credit = _smooth(credit, jnp.where(seen.allowed, rates, 0.0), rates, seen.allowed)
        return action, (self.estimates.dispatched(known, action), credit)


def _smooth(
    credit: Float[Array, "B N"], weights: Float[Array, "B N"], speed: Float[Array, "*#B N"], allowed: Bool[Array, "B N"]
) -> tuple[Int[Array, " B"], Float[Array, "B N"]]:
    """One turn of smooth weighted round robin: the server, and what credit is left."""
    credit = credit + weights
    action = pick(-credit, speed, allowed)
    return action, credit - jax.nn.one_hot(action, weights.shape[-1]) * weights.sum(-1, keepdims=True)


# --- rules that see the jobs in progress -----------------------------------------------------------------------------


class JoinShortestQueue(_Memoryless):
    """Least connections: the fewest jobs in progress, ties to the nominally fastest."""

    view: ClassVar[View] = "counts"
    speeds: Float[Array, " N"] = eqx.field(converter=as_speeds)

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = counts_view(timestep, self.speeds)
        return pick(seen.jobs, seen.speed, seen.allowed), state


class ShortestExpectedDelay(_Memoryless):
    """Weighted least connections, the new job included: the least (jobs in progress + 1) / nominal speed.

    Banawan and Zahorjan, "Load sharing in heterogeneous queueing systems", INFOCOM 1989.
    """

    view: ClassVar[View] = "counts"
    speeds: Float[Array, " N"] = eqx.field(converter=as_speeds)

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = counts_view(timestep, self.speeds)
        return pick((seen.jobs + 1) / seen.speed, seen.speed, seen.allowed), state


class PowerOfTwoChoices(_Memoryless):
    """Draws two different servers in proportion to `weights` and takes the one with less (jobs in progress) / speed.

    Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001. With equal weights a
    slow server is drawn as often as a fast one and may be overloaded; the nominal speeds as weights avoid that.
    """

    view: ClassVar[View] = "counts"
    speeds: Float[Array, " N"] = eqx.field(converter=as_speeds)
    weights: Float[Array, " N"] = eqx.field(converter=as_speeds)

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = counts_view(timestep, self.speeds)
        # The two largest of log weight + Gumbel noise are a weighted sample without replacement.
        noise = jax.random.gumbel(key, seen.jobs.shape)
        draw = jnp.where(seen.allowed, jnp.log(self.weights) + noise, -jnp.inf)  # [B, N]
        second = jax.lax.top_k(draw, min(2, draw.shape[-1]))[0][..., -1:]
        return pick(seen.jobs / seen.speed, seen.speed, seen.allowed & (draw >= second)), state


# --- rules that see remaining work, speeds and the size of the job ---------------------------------------------------


class LeastWork(_Memoryless):
    """The least remaining work."""

    view: ClassVar[View] = "full"

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = full_view(timestep)
        return pick(seen.work, seen.speed, seen.allowed), state


class WaitPlusService(_Memoryless):
    """The least waiting time + c times the job's own service time: c = 0 shortest wait, c = 1 least completion time."""

    view: ClassVar[View] = "full"
    c: Weight = 0.3

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = full_view(timestep)
        return pick((seen.work + self.c * seen.size) / seen.speed, seen.speed, seen.allowed), state


class LateBinding(Checked):
    """One queue in the proxy and at most `cap` jobs at a server (`maxconn`): a job goes where the fewest are in
    progress, or waits in the proxy until the first slot frees.

    To be sent at once to the server whose slot frees first is the same, since slots take the head of that queue in
    order. With a cap of 1 it is who is idle that decides, and else where the wait is shortest: so of what this rule
    reads, an operator needs nothing. Jobs are served one at a time.
    """

    view: ClassVar[View] = "full"
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """Nominal speeds, 0 for padding."""
    cap: Count = eqx.field(static=True, default=1)
    """Jobs that a server may have (K)."""
    fastest: bool = eqx.field(static=True, default=False)
    """Whether the nominally fastest is taken of several that have as few, as a proxy does that lists servers in that
    order; any of them else."""

    def initial_state(self, batch: int) -> Float[Array, "B N K"]:
        """The work that was sent to a server after each of its last K jobs, the newest first."""
        return jnp.full((batch, self.servers.shape[0], self.cap), jnp.inf)

    def act(
        self, state: Float[Array, "B N K"], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], Float[Array, "B N K"]]:
        seen = full_view(timestep)
        behind = jnp.where(timestep.is_first[:, None, None], jnp.inf, state)
        left = seen.work[..., None] - behind  # until that job is done
        jobs = (left > 1e-6 * seen.work[..., None]).sum(-1)
        wait = left[..., -1] / seen.speed  # until there are fewer than K
        chance = jax.random.uniform(key, seen.speed.shape, minval=0.5)
        first = self.servers if self.fastest else chance
        action = pick(jnp.where(jobs < self.cap, jobs - self.cap, wait), first, seen.allowed)
        chosen = jax.nn.one_hot(action, jobs.shape[-1], dtype=bool)[..., None]
        later = behind[..., :-1] + seen.size[..., None]
        return action, jnp.where(chosen, jnp.concatenate([jnp.zeros_like(behind[..., :1]), later], -1), behind)


class Guarded(Checked):
    """Guardrails around any rule: among servers with about as much work from jobs of this class of sizes, its choice.

    Grosof, Scully and Harchol-Balter, "Load balancing guardrails: keeping your heavy traffic on the road to low
    response times", SIGMETRICS 2019: sizes are classes, each `base` times as large; a dispatch is safe if what a server
    was given of the class then exceeds the least of all by at most g base^(class + 1); a server that runs empty is set
    to the least. They have equal servers; here work is counted in the server's own time, and the server that would have
    least is always safe.
    """

    view: ClassVar[View] = "full"
    rule: Rule
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """Nominal speeds, 0 for padding."""
    smallest: Positive
    """Work units where the first class begins; smaller jobs are of it too."""
    g: Positive = 4.0
    """How tight: 1 allows no rule much, a very large number allows it all."""
    base: Annotated[float, *above(1)] = eqx.field(static=True, default=2.0)
    classes: Count = eqx.field(static=True, default=24)
    """Classes of sizes (R)."""

    def initial_state(self, batch: int) -> tuple[PolicyState, Float[Array, "B N R"]]:
        return self.rule.initial_state(batch), jnp.zeros((batch, self.servers.shape[0], self.classes))

    def act(
        self, state: tuple[PolicyState, Float[Array, "B N R"]], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], tuple[PolicyState, Float[Array, "B N R"]]]:
        seen, (inner, given) = full_view(timestep), state
        given = jnp.where(timestep.is_first[:, None, None], 0.0, given)
        least = jnp.where(seen.allowed[..., None], given, jnp.inf).min(-2, keepdims=True)
        given = jnp.where((seen.work == 0)[..., None], least, given)
        place = jnp.log(jnp.maximum(seen.size / self.smallest, 1.0)) / np.log(self.base)
        rank = jnp.minimum(place.astype(jnp.int32), self.classes - 1)  # [B, 1]
        service = seen.size / seen.speed
        then = jnp.take_along_axis(given, rank[..., None], -1)[..., 0] + service
        then = jnp.where(seen.allowed, then, jnp.inf)
        lowest = jnp.take_along_axis(least, rank[..., None], -1)[..., 0]
        mean_speed = self.servers.sum() / (self.servers > 0).sum()
        width = self.g * self.smallest * self.base ** (rank + 1.0) / mean_speed
        safe = (then <= lowest + width) | (then == then.min(-1, keepdims=True))
        guarded = timestep._replace(observation={**timestep.observation, "mask": seen.allowed & safe})
        action, inner = self.rule.act(inner, guarded, key)
        chosen = jax.nn.one_hot(action, service.shape[-1])[..., None] * jax.nn.one_hot(rank, self.classes)
        return action, (inner, given + chosen * service[..., None])


class SizeIntervals(_Memoryless):
    """SITA: each server takes the jobs of one interval of sizes, whatever the queues are.

    Harchol-Balter, Crovella and Murta, "On choosing a task assignment policy for a distributed server system", JPDC
    59(2), 1999. Where the server of an interval is not allowed, that of the nearest interval takes its jobs.
    """

    view: ClassVar[View] = "full"
    intervals: Float[Array, " N"]
    """The number of the interval of each server, 0 for the smallest jobs."""
    cutoffs: Float[Array, " N-1"]
    """Sizes between the intervals, ascending, work units."""
    splits: Float[Array, " N-1"]
    """Which share of the jobs of exactly the cutoff's size lies below it."""

    @classmethod
    def of_equal_load(
        cls, speeds: ArrayLike, sizes: ArrayLike, small_jobs: Literal["fast", "slow"] = "fast"
    ) -> "SizeIntervals":
        """SITA-E: intervals that bring each server work in proportion to its speed.

        Arguments: nominal `speeds` [N], 0 for padding; `sizes`, a sample of job sizes in work units, or an even grid of
        their quantiles; `small_jobs`, the servers that take them. With Park's fleet and sizes `fast` is better: mean
        response 1590 against 2135 at load 0.909, 918 against 1048 at 0.667, 740 against 765 at 0.455 (200 episodes).
        Errors: ValueError where a speed is negative, a size is not positive or `small_jobs` is unknown.
        """
        if small_jobs not in ("fast", "slow"):
            raise ValueError(f"SITA: small_jobs must be 'fast' or 'slow', got {small_jobs!r}")
        speed = np.asarray(as_speeds(speeds), float)
        order = np.argsort(-speed if small_jobs == "fast" else speed, kind="stable")
        return cls.of_shares(speed[order] / speed.sum(), order, sizes)

    @classmethod
    def of_shares(cls, shares: ArrayLike, order: ArrayLike, sizes: ArrayLike) -> "SizeIntervals":
        """Intervals that bring the server `order[i]` the i-th of these `shares` [N] of all work, which may be traced.

        Arguments: shares sum to 1; `sizes`, as for `of_equal_load`.
        """
        size, count = np.unique(_as_sizes(sizes), return_counts=True)
        work = size * count / (size * count).sum()  # share of all work that comes in jobs of each size
        upto, wanted = jnp.asarray(np.cumsum(work)), jnp.cumsum(jnp.asarray(shares))[:-1]
        at = jnp.minimum(jnp.searchsorted(upto, wanted), size.size - 1)
        splits = jnp.clip(1 - (upto[at] - wanted) / jnp.asarray(work)[at], 0, 1)
        intervals = np.argsort(order)  # the inverse permutation
        return cls(*(jnp.asarray(values, jnp.float32) for values in (intervals, jnp.asarray(size)[at], splits)))

    def act(self, state: tuple[()], timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], tuple[()]]:
        seen = full_view(timestep)
        above = (seen.size == self.cutoffs) & (jax.random.uniform(key, seen.size.shape) >= self.splits)
        interval = ((seen.size > self.cutoffs) | above).sum(-1, keepdims=True)  # [B, 1]
        return pick(jnp.abs(self.intervals - interval), seen.speed, seen.allowed), state


def _as_sizes(values: ArrayLike) -> np.ndarray:
    sizes = np.asarray(values, np.float32)  # as the observation has them, so that equal sizes are equal
    if sizes.ndim != 1 or not sizes.size or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"sizes must be a list of finite positive numbers, got {values!r}")
    return sizes.astype(float)
