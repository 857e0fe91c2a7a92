"""One queue in a proxy, and weights that are held for a while: what an agent beside a proxy may do.

The proxy lets so many jobs be at each server at once (its cap, `maxconn`) and keeps the others in one queue, first
come, first served. A job goes to the server of the least (jobs there + 1) / weight among those below their caps: at
once where there is one, or else when a slot that frees takes the head of the queue (HAProxy's weighted `leastconn`).
One step is one interval: its weights stay, and what the proxy can tell of it is shown at its end. Servers are those of
`sharing.py`; those that serve one job at a time are the case of one slot.

An interval is a loop over its events: arrivals and, while jobs wait in the proxy, departures one after the other. All
fleets of a batch share the loop, so a round is wasted on those that have fewer events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec, Continuous, TimeStep, first, later
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import sharing
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Record, Task
from reverie.envs.fleet.env import View as Shown
from reverie.envs.fleet.queues import Completions
from reverie.envs.fleet.schedule import Time
from reverie.envs.fleet.sharing import Sharing, Slots, as_one_batch
from reverie.envs.fleet.workload import Job
from reverie.ranges import Positive, Weight, Whole, above, at_least, checked

View = Literal[Shown, "weights"]
"""What can be seen of a fleet: by who sends each job, or by who sets the weights of a proxy."""
type FleetWorld = FleetEnv | WeightsEnv
"""The worlds of fleets and jobs, whose tasks are the same: policies of either kind can meet the same jobs."""
LEAST = 8 / 256
"""The least weight beside a largest of 1: HAProxy's are whole numbers up to 256, and a server keeps being tried."""
FEATURES = ("in progress", "completions", "weight", "completions so far", "busy so far", "jobs so far", "rule's weight")
"""What is shown of each server, which is what any proxy can tell (`serve/`): jobs at the end of the interval;
completions in it; the weight, as an action says it that gives the heaviest a 1; the completions, the time in which a
look at the interval's end found jobs, and these jobs times that time, of this and all intervals before it, forgotten
exponentially (`span`); the weight by a rule, a power (`gain`) of `estimated_rates` of the first two of these, said as
the other."""
_RULE = FEATURES.index("rule's weight")
_LATE = 1 + 1e-6
"""By which a departure is waited for, so that rounding never stops just before it."""


class Waiting(NamedTuple):
    """The proxy's side of all jobs, by number: those from `sent` on to `came` wait in it."""

    came: Int[Array, "*E"]
    sent: Int[Array, "*E"]
    upcoming: Job
    """The one that comes next."""
    comes: Time
    """When."""
    waited: Float[Array, "*E J"]
    """How long in the proxy; 0 until it was sent."""
    server: Int[Array, "*E J"]
    """Where it was sent."""
    since: Float[Array, "*E N"]
    """Since each server was sent a job; inf if it never was."""


class Told(NamedTuple):
    """What the proxy tells at the end of an interval."""

    servers: Float[Array, "*B N F"]
    """`FEATURES`."""
    proxy: Float[Array, "*B 3"]
    """Jobs that wait in it, jobs that came in the interval, and how long that was."""


class WeightsState(NamedTuple):
    clock: Time
    """Since the episode began; the end of the last interval."""
    slots: Slots
    """The jobs at the servers. Their `arrival` is when they came there, and `response` the time from then on."""
    waiting: Waiting
    since: Float[Array, "*B N"]
    """Since each server last finished a job."""
    remembered: Float[Array, "*B N 3"]
    """Completions, time found busy, and jobs found times that time."""
    told: tuple[Told, ...]
    """Of the last intervals, the one that is shown first."""
    stream: Key[Array, "*B"]

    @property
    def record(self) -> Record:
        """What became of the jobs [*B, J] of an episode that has ended."""
        waited, slots = self.waiting.waited, self.slots
        arrival = (slots.arrival.coarse - waited) + slots.arrival.fine
        return Record(self.waiting.server, slots.size, arrival, waited + slots.response)


@dataclass(frozen=True)
@checked
class Proxy:
    """How a proxy is set up, and what it tells."""

    hold: Positive = 500.0
    """Time units for which weights are held."""
    caps: tuple[Annotated[int, *at_least(1, 1_000_000)], ...] = ()
    """Jobs that may be at each server at once (`maxconn`): a number for each server, one for all, or none at all for as
    many as a server has slots."""
    idle_first: bool = False
    """Take an idle server before all others whatever its weight, as HAProxy does, which counts an idle one as 0; else
    one job at a server of weight w is worth 1 / w of idleness, and of idle servers the heaviest is taken."""
    late: Whole = 1
    """Intervals by which what the proxy tells is late: 0 shows the one that has just ended, 1 the one before."""
    span: Positive = 10.0
    """Intervals after which what is shown as `so far` counts for 1/e."""


USUAL = Proxy()
GAIN = 0.5
"""The usual power of estimated rates that is shown as the rule's weight. The square root is within 2 % of the best of
four on servers that share and on those that do not."""


@dataclass(frozen=True)
@checked
class WeightsEnv:
    """Set the weights of `servers` servers for the next interval, until `jobs` jobs have come and gone.

    An action is a number in [-1, 1] for each server: its weight on a scale of logarithms from `LEAST` to 1, rounded to
    256ths as a proxy does; or, with `correction` f, the power of f by which the rule's weight is multiplied. The reward
    is minus the integral of the number of jobs in the system, the queue included, over the interval (`elapsed`); the
    last one holds the whole drain, so that rewards sum to minus the total response time of the episode.
    """

    servers: Annotated[int, *at_least(1, 100_000, "each is a row of what is seen")] = 10
    """N, padding included."""
    jobs: Annotated[int, *at_least(1, 10_000_000, "an episode is held in RAM")] = 1000
    """J, the jobs of an episode."""
    proxy: Proxy = field(default_factory=Proxy)
    """Its caps, and for how long weights are held."""
    gain: Weight = GAIN
    """The power of estimated rates that is shown as the rule's weight."""
    correction: Annotated[float | None, *above(1)] = None
    """The factor by which an action may raise or lower the rule's weights at most; unless given it is the weights."""

    view: ClassVar[Literal["weights"]] = "weights"
    steps: ClassVar[None] = None
    """Episodes differ in length."""

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        n = self.servers
        rows = ArraySpec((n, len(FEATURES)), "servers")
        return {"servers": rows, "proxy": ArraySpec((3,)), "mask": ArraySpec((n,), "mask")}

    @property
    def action_spec(self) -> Continuous:
        return Continuous(self.servers)

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[WeightsState, TimeStep]:
        """Empty servers and an empty queue at time 0. `key` is the stream of jobs."""
        if task.mask.shape[-1] != self.servers:
            raise ValueError(
                f"WeightsEnv: the task has {task.mask.shape[-1]} rows of servers and the environment {self.servers}: "
                "give `servers=` the same number"
            )
        if len(self.proxy.caps) not in (0, 1, self.servers):
            raise ValueError(
                f"WeightsEnv: caps must be none, one for all or one for each of {self.servers} rows of servers, got "
                f"{self.proxy.caps}"
            )
        if task.others is not None:
            raise ValueError("WeightsEnv: other balancers' jobs are not simulated behind a queue in the proxy")
        start, no_time = schedules.instant(0.0), jnp.zeros((self.servers,))
        job = workloads.draw_job(task.workload, key, jnp.int32(0), start)
        slots = sharing.empty(self.servers_of(task), self.jobs, job.prompt is not None)
        nothing, none = jnp.zeros((self.jobs,)), jnp.int32(0)
        comes, nowhere = schedules.later(start, job.gap), nothing.astype(jnp.int32)
        waiting = Waiting(none, none, job, comes, nothing, nowhere, no_time + jnp.inf)
        told = Told(jnp.zeros((self.servers, len(FEATURES))), jnp.zeros((3,)))
        remembered = jnp.zeros((self.servers, 3))
        state = WeightsState(start, slots, waiting, no_time, remembered, (told,) * (1 + self.proxy.late), key)
        return state, first(self._observe(task, state))

    def step(
        self, task: Task, state: WeightsState, action: Float[Array, " N"], key: Key[Array, ""]
    ) -> tuple[WeightsState, TimeStep]:
        """Hold the weights that `action` says for one interval or, if the last job comes in it, until all work ends."""
        weights = self._weights(state.told[0].servers[:, _RULE], action)
        end = schedules.later(state.clock, jnp.float32(self.proxy.hold))
        before, how = state.waiting.came, self.servers_of(task)
        idle_first = jnp.asarray(self.proxy.idle_first)
        sure = (how, self._caps(how), task, weights, idle_first, end, state.stream)
        one = jax.tree.map(lambda leaf: leaf[None], (sure, _Interval.begin(state)))
        now: _Interval = jax.tree.map(lambda leaf: leaf[0], _pass_interval(*one))
        busy = now.slots.in_progress
        done, kept = now.done, jnp.exp(-1 / self.proxy.span)
        found = jnp.stack([done.count, jnp.where(busy > 0, self.proxy.hold, 0.0), busy * self.proxy.hold], -1)
        remembered = kept * state.remembered + found
        rule = estimated_rates(remembered[:, 0], remembered[:, 1], task.mask.astype(jnp.float32))
        servers = jnp.column_stack([busy, done.count, action_of(weights), remembered, action_of(rule**self.gain)])
        queue = now.waiting.came - now.waiting.sent
        proxy = jnp.stack([queue, now.waiting.came - before, self.proxy.hold]).astype(jnp.float32)
        told = (*state.told[1:], Told(jnp.where(task.mask[:, None], servers, 0.0), proxy))
        state = WeightsState(end, now.slots, now.waiting, done.since, remembered, told, state.stream)
        return state, later(self._observe(task, state), -now.elapsed, now.waiting.came == self.jobs)

    def _weights(self, rule: Float[Array, " N"], action: Float[Array, " N"]) -> Float[Array, " N"]:
        """What an action means, where the rule's weights are shown as `rule`."""
        if (most := self.correction) is None:
            return weights_of(action)
        return weights_of(action_of(most ** jnp.clip(action, -1.0, 1.0) * LEAST ** ((1 - rule) / 2)))

    def meeting(self, task: Task, jobs: int, paid: bool) -> "WeightsEnv":
        """The same for the servers of tasks [..., N] and so many jobs. Rewards stay as they are, `paid` or not.

        Errors: ValueError where a server joins or leaves.
        """
        check_stay(task)
        return replace(self, servers=task.mask.shape[-1], jobs=jobs)

    def outcome(self, nothing: None, ended: WeightsState) -> Record:
        """What became of the jobs [J, *B] of episodes that have `ended` [*B]; of their steps there is `nothing`."""
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), ended.record)

    def servers_of(self, task: Task) -> Sharing:
        """How the servers of a task serve; without the slots that no cap lets be taken."""
        how = sharing.one_by_one(task.mask) if task.sharing is None else task.sharing
        return how._replace(slot=how.slot[:, : max(self.proxy.caps, default=None)])

    def _caps(self, how: Sharing) -> Int[Array, " N"]:
        caps = self.proxy.caps
        return jnp.broadcast_to(jnp.asarray(caps), (self.servers,)) if caps else how.slot.sum(-1)

    def _observe(self, task: Task, state: WeightsState) -> dict[str, Array]:
        shown = state.told[0]
        return {"servers": shown.servers, "proxy": shown.proxy, "mask": task.mask}


def check_stay(task: Task) -> None:
    """Errors: ValueError where a server joins or leaves: jobs that wait in the queue would not be told."""
    if not bool((task.member | ~task.mask[..., None]).all()):
        raise ValueError("WeightsEnv: servers that join or leave are not simulated behind a queue in the proxy")


def weights_of(action: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    """The weights, from `LEAST` to 1, of an action; what lies outside [-1, 1] is clipped."""
    exact = LEAST ** ((1 - jnp.clip(action, -1.0, 1.0)) / 2)
    return jnp.round(256 * exact) / 256


def action_of(weights: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    """The action of positive weights of any scale: the largest is taken for 1, what is below `LEAST` is clipped."""
    share = weights / weights.max(-1, keepdims=True)
    return 1 - 2 * jnp.log(jnp.maximum(share, LEAST)) / jnp.log(LEAST)


def estimated_rates(
    completed: Float[Array, "*B N"], busy: Float[Array, "*B N"], speeds: Float[Array, " N"]
) -> Float[Array, "*B N"]:
    """Jobs per time unit of each server, of what was seen lately; nominal `speeds` (0: padding) until a job has ended.

    One completion at the rate that is nominal for the server is added, as fast as the fleet as a whole completes.
    """
    every = completed.sum(-1, keepdims=True)  # [*B, 1]
    capacity = (busy * speeds).sum(-1, keepdims=True)
    known = (every > 0) & (capacity > 0)
    nominal = speeds * jnp.where(known, every / jnp.where(known, capacity, 1.0), 1.0)
    return jnp.where(known, (completed + 1) / (busy + 1 / nominal), nominal)


# --- within an interval ----------------------------------------------------------------------------------------------


class _Interval(NamedTuple):
    """Where an interval stands."""

    now: Time
    slots: Slots
    waiting: Waiting
    done: Completions
    """In the interval."""
    elapsed: Float[Array, "*E"]
    """The integral of the number of jobs in it."""
    over: Bool[Array, "*E"]

    @classmethod
    def begin(cls, state: WeightsState) -> "_Interval":
        none = jnp.zeros_like(state.since)
        done = Completions(jnp.zeros_like(state.slots.busy), none, none, state.since)
        return cls(state.clock, state.slots, state.waiting, done, jnp.zeros(()), jnp.zeros((), bool))


class _Sure(NamedTuple):
    """What stays as it is."""

    how: Sharing
    caps: Int[Array, "*E N"]
    task: Task
    weights: Float[Array, "*E N"]
    idle_first: Bool[Array, "*E"]
    end: Time
    stream: Key[Array, "*E"]


@as_one_batch
def _pass_interval(sure: tuple, interval: _Interval) -> _Interval:
    """The interval to its end, of E fleets at once: the loop goes on until it is over for all."""
    sure = _Sure(*sure)
    return jax.lax.while_loop(
        lambda interval: ~interval.over.all(), lambda interval: jax.vmap(_event)(sure, interval), interval
    )


def _event(sure: _Sure, interval: _Interval) -> _Interval:
    """Time passes to the next arrival, to the end of the interval or, while jobs wait in the proxy, to the next
    departure; then a job may come, and one may be sent. Nothing happens where the interval is over."""
    now, slots, waiting, done, elapsed, over = interval
    how, caps, task, weights, idle_first, end, stream = sure
    nobody, jobs = slots.waiting.shape[0], slots.behind.shape[0]
    all_came = waiting.came == jobs
    queue = waiting.came - waiting.sent
    free = task.mask & (slots.in_progress < caps)
    departs = sharing.until_departure(how, slots, task.speed, now).min() * _LATE
    until_end = jnp.where(all_came, jnp.inf, _between(now, end))
    until_job = jnp.where(all_came, jnp.inf, _between(now, waiting.comes))
    gap = jnp.minimum(jnp.minimum(until_end, until_job), jnp.where(queue > 0, departs, jnp.inf))
    gap = jnp.where(over | ((queue > 0) & free.any()), 0.0, jnp.maximum(gap, 0.0))
    slots, completed, passed = sharing.advance(how, slots, done, task.speed, now, gap)
    assert completed is not None
    done = Completions(
        done.count + completed.count,
        done.total + completed.total,
        jnp.maximum(done.longest, completed.longest),
        completed.since,
    )
    elapsed = elapsed + passed + jnp.where(queue > 0, queue * gap, 0.0)
    # Where the next job or the end is due, the clock is set by it, so that no rounding adds up.
    arrives = ~over & ~all_came & (until_job <= jnp.minimum(until_end, gap))
    ends = ~over & ~all_came & ~arrives & (until_end <= gap)
    passed_by = schedules.later(now, jnp.where(jnp.isinf(gap), 0.0, gap))
    now = jax.tree.map(
        lambda job, last, other: jnp.where(arrives, job, jnp.where(ends, last, other)), waiting.comes, end, passed_by
    )

    # One may come: what it brings is kept where the servers look for it.
    number = jnp.where(arrives, waiting.came, jobs)  # J: dropped
    slots = _put(slots, number, waiting.upcoming, waiting.comes)
    came = waiting.came + arrives
    following = workloads.draw_job(task.workload, stream, came, waiting.comes)
    upcoming, comes = jax.tree.map(
        lambda new, old: jnp.where(arrives, new, old),
        (following, schedules.later(waiting.comes, following.gap)),
        (waiting.upcoming, waiting.comes),
    )

    # One may be sent: the head of the queue.
    free = task.mask & (slots.in_progress < caps)
    since = waiting.since + gap
    unchanged = jnp.minimum(since, done.since)
    sends = ~over & (waiting.sent < came) & free.any()
    number = jnp.where(sends, waiting.sent, jobs)
    server = jnp.where(sends, _choose(slots.in_progress, weights, idle_first, free, unchanged), nobody)
    head = jnp.minimum(number, jobs - 1)
    arrival = jax.tree.map(lambda leaf: leaf[head], slots.arrival)
    job = Job(slots.size[head], jnp.zeros(()), None if slots.prompt is None else slots.prompt[head])
    slots = sharing.enter(how, slots, server, number, job, now)
    waiting = Waiting(
        came,
        waiting.sent + sends,
        upcoming,
        comes,
        waiting.waited.at[number].set(_between(arrival, now), mode="drop"),
        waiting.server.at[number].set(server, mode="drop"),
        since.at[server].set(0.0, mode="drop"),
    )
    nothing_left = (came == jobs) & (waiting.sent == jobs) & (slots.in_progress == 0).all()
    return _Interval(now, slots, waiting, done, elapsed, over | ends | nothing_left)


def _choose(
    in_progress: Int[Array, " N"],
    weights: Float[Array, " N"],
    idle_first: Bool[Array, ""],
    free: Bool[Array, " N"],
    unchanged: Float[Array, " N"],
) -> Int[Array, ""]:
    """Weighted `leastconn`: the least (jobs + 1) / weight; of equals the largest weight, then whose number of jobs has
    been `unchanged` for longest."""
    weightless = idle_first & (in_progress == 0)
    score = jnp.where(free, jnp.where(weightless, 0.0, (in_progress + 1) / weights), jnp.inf)
    ties = free & (score <= score.min() * (1 + 1e-6))
    equal = ties & (weightless | (weights >= jnp.where(ties, weights, 0.0).max()))
    return jnp.where(equal, unchanged, -1.0).argmax()


def _put(slots: Slots, number: Int[Array, ""], job: Job, comes: Time) -> Slots:
    arrival = jax.tree.map(lambda leaf, time: leaf.at[number].set(time, mode="drop"), slots.arrival, comes)
    prompt = None if slots.prompt is None else slots.prompt.at[number].set(job.prompt, mode="drop")
    return slots._replace(size=slots.size.at[number].set(job.size, mode="drop"), arrival=arrival, prompt=prompt)


def _between(earlier: Time, then: Time) -> Float[Array, ""]:
    return (then.coarse - earlier.coarse) + (then.fine - earlier.fine)
