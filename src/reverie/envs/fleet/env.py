"""The fleet: servers of different, changing speeds; one step dispatches one job.

A server that always works while it has work needs no calendar of events. Its backlog W (work units) follows Lindley's
recursion, W <- max(0, W + size - capacity of the gap), and a job placed on it is finished as soon as the server's
cumulative capacity covers what lies before it and itself: an exact inversion of the speed schedule, also when speeds
change, fail and recover. A server of several slots that do not slow each other is as many queues, and a job joins the
shortest (Kiefer and Wolfowitz 1955). Workloads, rules and learning live elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from numpy.typing import ArrayLike

from reverie.envs.core import ArraySpec, Discrete, TimeStep, first, stack_tasks
from reverie.envs.fleet import queues, sharing
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.queues import Completions, Ledger
from reverie.envs.fleet.schedule import Schedule, Time
from reverie.envs.fleet.sharing import Sharing, Slots
from reverie.envs.fleet.workload import Job, Sizes, Workload
from reverie.ranges import PositiveOrNone, at_least, checked

View = Literal["park", "full", "counts", "latency"]
Reward = Literal["elapsed", "admission", "lateness"]
LATENCY_FEATURES = ("in progress", "completions", "sum of responses", "longest response", "errors", "since completion")
"""What the view `latency` shows of each server; all but the first and the last since the last arrival, errors always 0
here (a proxy in front of real servers has them)."""


class Others(NamedTuple):
    """Other balancers' jobs on the same servers: a Poisson process, each job placed at random. No view counts them."""

    rate: Float[Array, "*B"]
    """Jobs per time unit, at all servers together; 0 for none."""
    weights: Float[Array, "*B N"]
    """What servers are chosen in proportion to; 0 for padding."""
    sizes: Sizes


class Task(NamedTuple):
    """A fleet and its workload."""

    speed: Schedule
    """Work per time unit, one schedule per server: start and value [N, P], period [N]."""
    mask: Bool[Array, "*B N"]
    """Which rows are servers; the others are padding."""
    workload: Workload
    member: Bool[Array, "*B N P"]
    """In which segments of its speed a server may be given jobs. One that leaves finishes those that it has."""
    others: Others | None = None
    """Jobs on these servers that are not ours; None where there are none in the whole batch, which costs nothing."""
    sharing: Sharing | None = None
    """How servers serve several jobs at once; None where all serve one, first come, first served."""


class Fleet(NamedTuple):
    """Servers without jobs: their speeds [N, P], and in which segments of these they are members [N, P]."""

    speed: Schedule
    member: Bool[Array, "N P"]
    sharing: Sharing | None = None
    """As of a `Task`."""

    @classmethod
    def constant(cls, speeds: ArrayLike) -> "Fleet":
        """Servers of `speeds` [N], work per time unit, that never change and are always there."""
        speed = constant_speeds(speeds)
        return cls(speed, jnp.ones(speed.value.shape, bool))

    def task(self, workload: Workload) -> Task:
        """These servers with that workload."""
        return fleet_task(self.speed, workload, member=self.member)._replace(sharing=self.sharing)


class Record(NamedTuple):
    """What became of a job that was dispatched."""

    server: Int[Array, "*B"]
    size: Float[Array, "*B"]
    arrival: Float[Array, "*B"]
    """Time since the episode began."""
    response: Float[Array, "*B"]
    """From arrival to finish, in time units; NaN where later jobs have a say in it (`known_at_dispatch`): `responses`
    tells it in the end."""

    @property
    def slowdown(self) -> Float[Array, "*B"]:
        """Response time over the time that an idle server of speed 1 would need."""
        return self.response / self.size


class _After(NamedTuple):
    """What a dispatch and the time after it lead to."""

    response: Float[Array, ""]
    backlog: Float[Array, " N"]
    work: Float[Array, "N K"] | None
    ledger: Ledger | None
    slots: Slots | None
    completed: Completions | None
    elapsed: Float[Array, ""]
    """The integral of the number of jobs."""


class FleetState(NamedTuple):
    clock: Time
    """Time since the episode began."""
    backlog: Float[Array, "*B N"]
    """Work units that each server still has to do, the job in service included."""
    job: Job
    """The job that waits to be dispatched."""
    dispatched: Int[Array, "*B"]
    stream: Key[Array, "*B"]
    record: Record
    """The job dispatched last."""
    work: Float[Array, "*B N K"] | None
    """The backlog by slots, where servers have several and do not share, in order unless there is a ledger; inf where
    there is none."""
    ledger: Ledger | None
    """The jobs in progress, where view or reward count them: a queue for each server, or for each of its slots."""
    slots: Slots | None
    """The same of servers that share."""
    completed: Completions | None
    """Kept for the view `latency`, of each queue."""


@dataclass(frozen=True)
@checked
class FleetEnv:
    """Dispatch `jobs` jobs to `servers` servers, one per step.

    Views: `full` shows the true remaining work and current speed of each server, the job's size and the time since the
    last arrival; `counts` only how many jobs are in progress at each server and the time since the last arrival, as a
    real balancer sees; `latency` in addition what became of the jobs that each server has finished since the last
    arrival, as any proxy knows it (`LATENCY_FEATURES`); `park` the published N + 1 numbers (size of the jobs waiting
    plus remaining *time* of the one in service, and the job's size: Park's mix of units, without its integer rounding;
    `park.py` has the original). That time is the one at the speed of now, and the remaining work itself while a server
    stands still.

    Rewards: `elapsed` is Park's, minus the integral of the number of jobs in the system up to the next arrival (the
    last one holds the whole drain); `admission` is minus the response time of the job just placed. Both sum to minus
    the total response time. `lateness` is minus the time by which the response of the job just placed exceeds
    `deadline`, so that tails alone are paid for: with the 99th percentile as the deadline, to make its mean small is to
    make the mean of the slowest 1 % small (Rockafellar and Uryasev 2000). Note that the last two tell at once what the
    view may hide (the size of the job, the speed of its server): a policy that is fed its rewards knows more than the
    view shows.
    """

    servers: Annotated[int, *at_least(1, 100_000, "each is a row of what is seen")] = 10
    """N, padding included."""
    jobs: Annotated[int, *at_least(1, 10_000_000, "an episode is held in RAM")] = 1000
    """J, the length of an episode."""
    view: View = "full"
    """What the balancer may see."""
    reward: Reward = "admission"
    """When response times are credited."""
    deadline: PositiveOrNone = None
    """Of `lateness`: the response time up to which a job costs nothing."""

    proxy: ClassVar[None] = None
    """Nobody's weights are set."""

    def __post_init__(self):
        if (self.reward == "lateness") != (self.deadline is not None):
            raise ValueError(
                f"the reward `lateness`, and no other, needs a deadline; got {self.reward} and {self.deadline}"
            )

    @property
    def observation_spec(self) -> Mapping[str, ArraySpec]:
        n = self.servers
        mask = ArraySpec((n,), "mask")
        if self.view == "park":
            return {"vector": ArraySpec((n + 1,)), "mask": mask}
        features, of_job = {"full": (2, 2), "counts": (1, 1), "latency": (len(LATENCY_FEATURES), 1)}[self.view]
        return {"servers": ArraySpec((n, features), "servers"), "job": ArraySpec((of_job,)), "mask": mask}

    @property
    def action_spec(self) -> Discrete:
        return Discrete(self.servers)

    @property
    def keeps_ledger(self) -> bool:
        return self.view != "full" or self.reward == "elapsed"

    @property
    def steps(self) -> int:
        """Of each episode."""
        return self.jobs

    def meeting(self, task: Task, jobs: int, paid: bool) -> "FleetEnv":
        """The same for the servers of tasks [..., N] and so many jobs.

        Arguments: `paid`, whether somebody looks at rewards. Where nobody does they are of another kind if these
            tasks cannot tell theirs.
        """
        fitting = replace(self, servers=task.mask.shape[-1], jobs=jobs)
        return fitting if paid or known_at_dispatch(task) else replace(fitting, reward="elapsed")

    def outcome(self, dispatched: Record, ended: FleetState) -> Record:
        """What became of the jobs [J, *B] of episodes that have `ended` [*B], from the records of their steps."""
        return dispatched._replace(response=responses(dispatched, ended))

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[FleetState, TimeStep]:
        """Empty servers at time 0, and the first job at the door. `key` is the stream of jobs."""
        if task.mask.shape[-1] != self.servers:
            raise ValueError(
                f"FleetEnv: the task has {task.mask.shape[-1]} rows of servers and the environment {self.servers}: "
                "give `servers=` the same number to FleetEnv and to fleet_task"
            )
        start, zero = schedules.instant(0.0), jnp.zeros(())
        job = workloads.draw_job(task.workload, key, jnp.int32(0), start)
        how = task.sharing
        if how is not None:
            self._check_sharing(task)
        foreseen = known_at_dispatch(task)
        slots = None if how is None or foreseen else sharing.empty(how, self.jobs, job.prompt is not None)
        work = jnp.where(how.slot, 0.0, jnp.inf) if foreseen and how is not None else None  # [N, K]
        rows = self.servers if work is None else work.size
        none, time = jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,))
        ledger = queues.empty(rows, self.jobs, self.view == "latency") if foreseen and self.keeps_ledger else None
        completed = Completions(none, time, time, time + job.gap) if self.view == "latency" else None
        record = Record(jnp.int32(0), zero, zero, zero)
        clock, nothing = schedules.later(start, job.gap), jnp.zeros((self.servers,))
        state = FleetState(clock, nothing, job, jnp.int32(0), key, record, work, ledger, slots, completed)
        return state, first(self.observe(task, state))

    def _check_sharing(self, task: Task) -> None:
        if self.view == "park":
            raise ValueError("FleetEnv: the view 'park' has no servers that serve several jobs at once; give another")
        if self.reward != "elapsed" and not known_at_dispatch(task):
            raise ValueError(
                "FleetEnv: where servers share, how long a job will take is not known when it is dispatched: give "
                f"reward='elapsed', got {self.reward!r}"
            )
        if task.others is not None:
            raise ValueError(
                "FleetEnv: other balancers' jobs at servers that share are not simulated; give one of both"
            )

    def step(
        self, task: Task, state: FleetState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[FleetState, TimeStep]:
        """Dispatch the waiting job to server `action`; time moves to the next arrival, or to the end of all work.

        An action that the mask forbids has no meaning: its reward and response time are NaN.
        """
        chosen = jnp.arange(self.servers) == action
        forbidden = ~(chosen & members(task, state.clock)).any()
        dispatched = state.dispatched + 1
        is_last = dispatched == self.jobs
        following = workloads.draw_job(task.workload, state.stream, dispatched, state.clock)
        job = jax.tree.map(lambda leaf: jnp.where(is_last, 0.0, leaf), following)
        pass_time = self._queued if known_at_dispatch(task) else self._shared
        after = pass_time(task, state, action, job.gap, is_last)
        response = jnp.where(forbidden, jnp.nan, after.response)
        record = Record(jnp.asarray(action, jnp.int32), state.job.size, state.clock.coarse, response)
        left = jnp.where(is_last, 0.0, after.backlog)
        clock = schedules.later(state.clock, job.gap)  # at the end it stays at the last arrival
        state = FleetState(
            clock, left, job, dispatched, state.stream, record, after.work, after.ledger, after.slots, after.completed
        )
        match self.reward:
            case "elapsed":
                reward = jnp.where(forbidden, jnp.nan, -after.elapsed)
            case "admission":
                reward = -response
            case "lateness":
                assert self.deadline is not None
                reward = -jnp.maximum(response - self.deadline, 0.0)  # NaN stays NaN
        no = jnp.zeros((), bool)
        return state, TimeStep(self.observe(task, state), reward, is_first=no, is_last=is_last, is_terminal=is_last)

    def _queued(
        self, task: Task, state: FleetState, action: Int[Array, ""], gap: Float[Array, ""], is_last: Bool[Array, ""]
    ) -> "_After":
        """The job joins the queue of a server or, where that has several slots, of the slot that will be free first,
        and time passes: `gap`, or until all work has ended."""
        now, how = state.clock, task.sharing
        work = state.backlog[:, None] if state.work is None else state.work  # [N, K]
        pace = jnp.ones((self.servers,)) if how is None else how.a
        speed = jax.tree.map(lambda leaf: leaf[action], task.speed)
        chosen, mine = jnp.arange(self.servers)[:, None] == action, work[action]
        if state.ledger is None:  # which slot it is does not matter, so they stay in order: the first is free first
            before = mine[0]
            with_job = jnp.clip(before + state.job.size, mine, jnp.append(mine[1:], jnp.inf))
            left = jnp.where(chosen, with_job, work)
        else:
            before = mine.min()
            chosen = chosen & (jnp.arange(len(mine)) == mine.argmin())
            left = work + jnp.where(chosen, state.job.size, 0.0)
        response = schedules.inverse(speed, now, (before + state.job.size) * pace[action])
        if task.others is None:
            left = _worked_off(task, now, left, gap, pace)
        else:
            left = _with_others(task, task.others, now, left, gap, state.stream, state.dispatched + 1)
        ledger, completed, elapsed = state.ledger, state.completed, jnp.zeros(())
        if ledger is not None:
            # Alone on the servers, our job before this one ends when the backlog does.
            alone = task.others is None
            ours = schedules.inverse(speed, now, before * pace[action]) if alone else ledger.until_last[action]
            ledger = queues.enter(ledger, chosen.reshape(-1), state.dispatched, response, response - ours)
            ledger, completed, elapsed = queues.advance(ledger, completed, jnp.where(is_last, jnp.inf, gap))
        backlog = left[:, 0]
        if how is not None:  # a product is several times as fast as a sum here
            backlog = jnp.dot(jnp.where(how.slot, left, 0.0), jnp.ones(len(mine)), precision="highest")
        return _After(response, backlog, None if how is None else left, ledger, None, completed, elapsed)

    def _shared(
        self, task: Task, state: FleetState, action: Int[Array, ""], gap: Float[Array, ""], is_last: Bool[Array, ""]
    ) -> "_After":
        """The same where servers serve several jobs at once."""
        how, slots = task.sharing, state.slots
        assert how is not None
        assert slots is not None
        slots = sharing.enter(how, slots, action, state.dispatched, state.job, state.clock)
        slots, completed, elapsed = sharing.advance(
            how, slots, state.completed, task.speed, state.clock, jnp.where(is_last, jnp.inf, gap)
        )
        return _After(jnp.full((), jnp.nan), sharing.backlog(slots), None, None, slots, completed, elapsed)

    def observe(self, task: Task, state: FleetState) -> dict[str, Array]:
        """What the view shows of a state, raw, in work and time units. Nothing of the future is in it."""
        job, mask = state.job, members(task, state.clock)
        if self.view == "full":
            speed = jax.vmap(schedules.at, (0, None))(task.speed, state.clock)
            servers = jnp.stack([state.backlog, jnp.where(task.mask, speed, 0.0)], -1)
            return {"servers": servers, "job": jnp.stack([job.size, job.gap]), "mask": mask}
        count = _in_progress(state, self.servers)
        if self.view == "counts":
            return {"servers": count.astype(jnp.float32)[:, None], "job": job.gap[None], "mask": mask}
        if self.view == "latency":
            assert state.completed is not None
            done = state.completed.of_servers(self.servers)
            rows = jnp.stack([count, done.count, done.total, done.longest, jnp.zeros_like(count), done.since], -1)
            return {"servers": jnp.where(task.mask[:, None], rows, 0.0), "job": job.gap[None], "mask": mask}
        assert state.ledger is not None
        in_service = jax.vmap(schedules.integral, (0, None, 0))(task.speed, state.clock, state.ledger.until_finish)
        waiting = jnp.where(count > 1, jnp.maximum(state.backlog - in_service, 0.0), 0.0)
        # At the speed of now: the true time would tell when the speed will change.
        speed = jax.vmap(schedules.at, (0, None))(task.speed, state.clock)
        remaining = in_service / jnp.where(speed > 0, speed, 1.0)
        return {"vector": jnp.append(waiting + remaining, job.size), "mask": mask}


def responses(record: Record, ended: FleetState) -> Float[Array, "J *B"]:
    """The response times of all jobs of episodes that have `ended` [*B], dispatched as `record` [J, *B] says."""
    return record.response if ended.slots is None else jnp.moveaxis(ended.slots.response, -1, 0)


def known_at_dispatch(task: Task) -> bool:
    """Whether how long a job will take is known as it is dispatched: not where it shares a server with later ones."""
    return task.sharing is None or task.sharing.b is None


def _in_progress(state: FleetState, servers: int) -> Int[Array, " N"]:
    if state.slots is not None:
        return state.slots.in_progress
    assert state.ledger is not None
    return state.ledger.count.reshape(servers, -1).sum(-1)


def members(task: Task, time: Time) -> Bool[Array, " N"]:
    """Which servers may be given a job at `time`: those that are there. It is what an observation's mask says."""
    there = task.speed._replace(value=task.member.astype(jnp.float32))
    return task.mask & (jax.vmap(schedules.at, (0, None))(there, time) > 0)


def _worked_off(
    task: Task, now: Time, backlog: Float[Array, "N K"], time: Float[Array, ""], pace: Float[Array, " N"]
) -> Float[Array, "N K"]:
    """What is left of the backlogs after `time`."""
    capacity = jax.vmap(schedules.integral, (0, None, None))(task.speed, now, time)  # [N]
    return jnp.maximum(backlog - (capacity / pace)[:, None], 0.0)


def _with_others(
    task: Task,
    others: Others,
    now: Time,
    backlog: Float[Array, "N 1"],
    gap: Float[Array, ""],
    stream: Key[Array, ""],
    dispatched: Int[Array, ""],
) -> Float[Array, "N 1"]:
    """The backlogs after `gap`, in which jobs of others have come as well: the same ones whatever we do."""
    pace = jnp.ones((len(backlog),))
    key = jax.random.fold_in(jax.random.fold_in(stream, 2**31 - 1), dispatched)

    def until_next(number: Int[Array, ""]) -> Float[Array, ""]:
        return jax.random.exponential(jax.random.fold_in(key, 2 * number)) / others.rate

    def arrive(carry: tuple) -> tuple:
        number, passed, wait, backlog = carry
        backlog = _worked_off(task, schedules.later(now, passed), backlog, wait, pace)
        place, size = jax.random.uniform(jax.random.fold_in(key, 2 * number + 1), (2,))
        upto = jnp.cumsum(others.weights)
        server = (place * upto[-1] >= upto).sum()
        brings = workloads.sample_size(others.sizes, 1 - size)
        backlog = backlog + jnp.where(jnp.arange(len(backlog))[:, None] == server, brings, 0.0)
        return number + 1, passed + wait, until_next(number + 1), backlog

    begin = (jnp.int32(0), jnp.zeros(()), until_next(jnp.int32(0)), backlog)
    _, passed, _, backlog = jax.lax.while_loop(lambda carry: carry[1] + carry[2] < gap, arrive, begin)
    return _worked_off(task, schedules.later(now, passed), backlog, gap - passed, pace)


def fleet_task(
    speed: Schedule, workload: Workload, servers: int | None = None, member: Bool[Array, "N P"] | None = None
) -> Task:
    """A task from one speed schedule per server (`speed`: start and value [N, P]), padded to `servers` rows.

    `member` [N, P] says in which segments of its speed a server is there; all are there always unless it is given.
    """
    n = speed.value.shape[0]
    servers = n if servers is None else servers
    if servers < n:
        raise ValueError(f"fleet: {n} servers do not fit into {servers} rows")
    member = jnp.ones(speed.value.shape, bool) if member is None else member
    return Task(_rows(speed, servers), jnp.arange(servers) < n, workload, _rows(member, servers))


def stack_fleets(tasks: Sequence[Task]) -> Task:
    """Tasks [B] of any families, fleet sizes and recordings as one batch, each padded to the largest there is.

    Padding is without effect: rows of servers that the mask leaves out, segments of no length, recorded jobs beyond the
    length of the recording, others' jobs that never come. `FleetEnv` takes its `servers` from the batch's mask:
    `mask.shape[-1]`.
    """

    def most(leaf: Callable[[Task], Array]) -> int:
        return max(leaf(task).shape[-1] for task in tasks)

    servers, segments = most(lambda task: task.mask), most(lambda task: task.speed.start)
    rates, scales = most(lambda task: task.workload.rate.start), most(lambda task: task.workload.scale.start)
    recorded = most(lambda task: task.workload.recording.gap)
    prompts = any(task.workload.recording.prompt is not None for task in tasks)
    others = any(task.others is not None for task in tasks)
    slots = max(0 if task.sharing is None else task.sharing.slot.shape[-1] for task in tasks)
    foreseen = all(known_at_dispatch(task) for task in tasks)
    return stack_tasks(
        [
            Task(
                _rows(schedules.padded(task.speed, segments), servers),
                jnp.pad(task.mask, (0, servers - task.mask.shape[-1])),
                workloads.padded(task.workload, rates, scales, recorded, prompts),
                _rows(
                    jnp.asarray(np.pad(task.member, [(0, 0), (0, segments - task.member.shape[-1])], "edge")), servers
                ),
                _padded_others(task, servers) if others else None,
                _padded_sharing(task, servers, slots, foreseen) if slots else None,
            )
            for task in tasks
        ]
    )


def _padded_others(task: Task, servers: int) -> Others:
    """The others of a task, with a weight for each of `servers` rows; without any, some who never come."""
    others = task.others or Others(jnp.zeros(()), task.mask.astype(jnp.float32), task.workload.sizes)
    return others._replace(weights=jnp.pad(others.weights, (0, servers - others.weights.shape[-1])))


def _padded_sharing(task: Task, servers: int, slots: int, foreseen: bool) -> Sharing:
    """How the servers of a task serve, in that many rows and slots; one by one unless it says otherwise."""
    how = task.sharing or sharing.one_by_one(task.mask)
    how = how if foreseen or how.b is not None else how._replace(b=jnp.zeros_like(how.a))
    how = how._replace(slot=jnp.pad(how.slot, [(0, 0), (0, slots - how.slot.shape[-1])]))
    return _rows(how, servers)


def _rows[T](of_servers: T, servers: int) -> T:
    """Leaves [N, ...] with the last server repeated until there are `servers` rows; the mask is to leave these out."""

    def longer(leaf: Array) -> Array:
        extra = servers - leaf.shape[0]
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)]) if extra else leaf

    return jax.tree.map(longer, of_servers)


def constant_speeds(speeds: ArrayLike) -> Schedule:
    """Speeds [N], work per time unit, that never change."""
    values = np.asarray(speeds, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"fleet: speeds must be a list of one number per server, got shape {values.shape}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"fleet: every speed must be a positive number, got {values.tolist()}")
    rows = values[:, None]
    return Schedule(jnp.zeros(rows.shape), jnp.asarray(rows, jnp.float32), jnp.full(values.shape, jnp.inf))
