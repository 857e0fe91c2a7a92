"""Servers that serve several jobs at once: worker slots, processor sharing, batches of a language model.

A server has some slots; each job in one is served at the rate v / (a + b n) while n jobs are in slots, and who finds
none waits, first come, first served. So (1, 0) with one slot is the FIFO server, (k, 0) with k slots are k workers of
speed v / k, (0, 1) shares the server evenly, and (a, b) in seconds a token is a replica that batches what it generates.

When a job will be finished depends on jobs that are yet to come (unless b is 0 everywhere and nothing is read, which
`env.py` does without this file), so it is known at its departure alone. Time is kept as
the work that a server could have done by then, its capacity: in this the jobs in its slots run evenly also while its
speed changes. A job's prompt, if it has one, is read first, and stops the server for all of them (prefill). What a
step costs grows with the departures in it, and they are awaited for a whole batch in one loop.
Here are servers alone; who sends them jobs is `env.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.queues import Completions
from reverie.envs.fleet.schedule import Schedule, Time
from reverie.envs.fleet.workload import Job


class Sharing(NamedTuple):
    """How N servers serve: each job in a slot at v / (a + b n), n of the K being taken."""

    a: Float[Array, "*B N"]
    slot: Bool[Array, "*B N K"]
    """Which of them a server has; the others are padding."""
    b: Float[Array, "*B N"] | None
    """None where it is 0 at all servers and nothing stops them: no later job has a say in how long one takes."""
    prefill: Float[Array, "*B N"]
    """How long a token of a prompt stops a server of speed 1."""

    def pace(self, jobs: Int[Array | np.ndarray, "*E N"]) -> Float[Array | np.ndarray, "*E N"]:
        """How long a unit of work takes at speed 1 while so many jobs are served."""
        return self.a if self.b is None else self.a + self.b * jobs


class Slots(NamedTuple):
    """The jobs at sharing servers, by number. Of E fleets at once."""

    left: Float[Array, "*E N K"]
    """Work that is left of the job in each slot; inf where there is none."""
    job: Int[Array, "*E N K"]
    """Its number."""
    busy: Int[Array, "*E N"]
    """Slots that are taken."""
    pause: Float[Array, "*E N"]
    """For how much of its capacity a server reads prompts, before the jobs in its slots go on."""
    waiting: Int[Array, "*E N"]
    """Jobs without a slot."""
    queued: Float[Array, "*E N"]
    """The work that these bring."""
    head: Int[Array, "*E N"]
    """Which of them is next; J where there is none."""
    tail: Int[Array, "*E N"]
    """Which came last."""
    behind: Int[Array, "*E J"]
    """The job that came after this one, where both waited."""
    size: Float[Array, "*E J"]
    prompt: Float[Array, "*E J"] | None
    """None where no job has any."""
    arrival: Time
    """[*E, J], as `response`."""
    response: Float[Array, "*E J"]
    """NaN until the job has departed."""

    @property
    def in_progress(self) -> Int[Array, "*E N"]:
        """Jobs at each server."""
        return self.busy + self.waiting


def sharing(a: ArrayLike, b: ArrayLike, slots: ArrayLike, prefill: ArrayLike = 0.0) -> Sharing:
    """Servers of these numbers [N], each with as many of its slots [N] as there are.

    Errors: ValueError where a, b or prefill is negative or not finite, a and b are 0, or a server has no slot.
    """
    numbers = (jnp.atleast_1d(jnp.asarray(x, jnp.float32)) for x in (a, b, slots, prefill))
    a, b, slots, prefill = jnp.broadcast_arrays(*numbers)
    if not (jnp.isfinite(a + b).all() and (a >= 0).all() and (b >= 0).all() and (a + b > 0).all()):
        raise ValueError(
            f"sharing: a and b are to be at least 0, one of them more, as a job is served at v / (a + b n); got "
            f"{a.tolist()} and {b.tolist()}"
        )
    if not ((slots >= 1) & (slots == jnp.floor(slots)) & jnp.isfinite(slots)).all():
        raise ValueError(f"sharing: each server needs a whole number of slots, at least 1; got {slots.tolist()}")
    if not (jnp.isfinite(prefill) & (prefill >= 0)).all():
        raise ValueError(f"sharing: prefill must be finite and not negative, got {prefill.tolist()}")
    slot = jnp.arange(int(slots.max())) < slots[:, None]
    return Sharing(a, slot, b if (b + prefill > 0).any() else None, prefill)


def one_by_one(mask: Bool[Array, "*B N"]) -> Sharing:
    """Servers that serve one job at a time."""
    alone = jnp.ones(mask.shape)
    return Sharing(alone, alone[..., None] > 0, None, 0 * alone)


def most(servers: Sharing, prompt: float = 0.0) -> Float[Array | np.ndarray, "*B N"]:
    """What a server does with all slots taken, per unit of speed: n / (a + b n), where there is no `prompt` to be read
    for a unit of work."""
    n = servers.slot.sum(-1)
    return 1 / (servers.pace(n) / n + servers.prefill * prompt)


def empty(servers: Sharing, jobs: int, prompts: bool = False) -> Slots:
    """No jobs as yet at the servers [N]; there will be J, perhaps with `prompts`."""
    count, slots = servers.slot.shape
    nobody, nothing = jnp.zeros((count,), jnp.int32), jnp.zeros((jobs,))
    return Slots(
        left=jnp.full((count, slots), jnp.inf),
        job=jnp.zeros((count, slots), jnp.int32),
        busy=nobody,
        pause=jnp.zeros((count,)),
        waiting=nobody,
        queued=jnp.zeros((count,)),
        head=nobody + jobs,
        tail=nobody + jobs,
        behind=jnp.full((jobs,), jobs, jnp.int32),
        size=nothing,
        prompt=nothing if prompts else None,
        arrival=Time(nothing, nothing),
        response=nothing + jnp.nan,
    )


def enter(servers: Sharing, slots: Slots, server: Int[Array, ""], number: Int[Array, ""], job: Job, now: Time) -> Slots:
    """Let a job come to a server: into the first slot that is free, or else to the end of the queue."""
    free = servers.slot[server] & jnp.isinf(slots.left[server])  # [K]
    place = server, jnp.where(free.any(), free.argmax(), free.size)  # beyond the last where none is: dropped
    at_once, waits = (jnp.zeros((), jnp.int32) + where for where in (free.any(), ~free.any()))
    alone = slots.waiting[server] == 0
    pause = 0.0 if job.prompt is None else at_once * servers.prefill[server] * job.prompt
    last = jnp.where((waits > 0) & ~alone, slots.tail[server], slots.behind.shape[-1])
    return Slots(
        left=slots.left.at[place].set(job.size, mode="drop"),
        job=slots.job.at[place].set(number, mode="drop"),
        busy=slots.busy.at[server].add(at_once),
        pause=slots.pause.at[server].add(pause),
        waiting=slots.waiting.at[server].add(waits),
        queued=slots.queued.at[server].add(waits * job.size),
        head=slots.head.at[server].set(jnp.where((waits > 0) & alone, number, slots.head[server])),
        tail=slots.tail.at[server].set(jnp.where(waits > 0, number, slots.tail[server])),
        behind=slots.behind.at[last].set(number, mode="drop"),
        size=slots.size.at[number].set(job.size),
        prompt=None if slots.prompt is None else slots.prompt.at[number].set(job.prompt),
        arrival=Time(slots.arrival.coarse.at[number].set(now.coarse), slots.arrival.fine.at[number].set(now.fine)),
        response=slots.response,
    )


def backlog(slots: Slots) -> Float[Array, "*E N"]:
    """Work that each server has still to do, that of waiting jobs included."""
    return jnp.where(jnp.isfinite(slots.left), slots.left, 0.0).sum(-1) + slots.queued


def advance(
    servers: Sharing,
    slots: Slots,
    completed: Completions | None,
    speed: Schedule,
    now: Time,
    gap: Float[Array, ""],
) -> tuple[Slots, Completions | None, Float[Array, ""]]:
    """Let `gap` time units pass, inf for all that it takes: what is left of the jobs, what was completed, if that is
    kept, and the integral of the number of jobs. `speed` is that of each server: start and value [N, P], period [N]."""
    one = jax.tree.map(lambda leaf: leaf[None], (servers, slots, completed, speed, now, gap))
    return jax.tree.map(lambda leaf: leaf[0], _advance(*one))


def until_departure(servers: Sharing, slots: Slots, speed: Schedule, now: Time) -> Float[Array, " N"]:
    """How long until each server would finish the next job, if no other came; inf where there is none."""
    amount = slots.pause + slots.left.min(-1) * servers.pace(slots.busy)
    busy = slots.busy > 0
    return jnp.where(busy, jax.vmap(schedules.inverse, (0, None, 0))(speed, now, jnp.where(busy, amount, 0.0)), jnp.inf)


class _Next(NamedTuple):
    """The next departure of each server [E, N]."""

    least: Array
    """Where it stands in `left`."""
    after: Array
    """The capacity that will be used up."""
    due: Array
    """Whether that is in this step."""


def as_one_batch[F: Callable](function: F) -> F:
    """Let `jax.vmap` of a function whose arguments and results begin with an axis E make that axis longer: loops in it
    then run for all at once, and nothing is copied to keep what has ended as it was."""
    longer = custom_vmap(function)

    @longer.def_vmap
    def batch(axis_size: int, in_batched: list, *args: PyTree) -> tuple:
        def whole(leaf: Array, batched: bool) -> Array:
            leaf = leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
            return leaf.reshape(axis_size * leaf.shape[1], *leaf.shape[2:])

        results = longer(*jax.tree.map(whole, args, tuple(in_batched)))
        results = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return longer  # ty: ignore[invalid-explicit-return]


@as_one_batch
def _advance(
    servers: Sharing,
    slots: Slots,
    completed: Completions | None,
    speed: Schedule,
    now: Time,
    gap: Float[Array, " E"],
) -> tuple[Slots, Completions | None, Float[Array, " E"]]:
    """`advance` of E fleets. One loop for all: each round lets the next job depart of every server that has one due."""
    fleet = jnp.arange(gap.shape[0])[:, None]  # [E, 1], beside which [E, N] are numbers of jobs
    server, slot = (jnp.arange(count) for count in slots.left.shape[1:])
    nobody = slots.behind.shape[-1]
    time = jnp.broadcast_to(gap[:, None], slots.waiting.shape)  # [E, N]
    for_ever = jnp.isinf(time)
    capacity = jnp.where(for_ever, jnp.inf, _each(schedules.integral)(speed, now, jnp.where(for_ever, 0.0, time)))

    def following(slots: Slots, served: Array, used: Array) -> _Next:
        """The next departure of each server, if one is due."""
        least = slots.left.min(-1)
        after = used + slots.pause + (least - served) * servers.pace(slots.busy)
        return _Next(least, after, (slots.busy > 0) & (after <= capacity))

    def depart(carry: tuple) -> tuple:
        slots, (least, after, done), served, used, completed, elapsed = carry
        served, used = jnp.where(done, least, served), jnp.where(done, after, used)
        when = _each(schedules.inverse)(speed, now, used)
        which = jnp.where(slots.left == least[..., None], slot, slot.size).min(-1)
        who = jnp.where(done, slots.job.at[fleet, server, which].get(mode="clip"), nobody)
        came = jax.tree.map(lambda leaf: leaf.at[fleet, who].get(mode="clip"), slots.arrival)
        stayed = ((now.coarse[:, None] - came.coarse) + (now.fine[:, None] - came.fine)) + when
        completed = completed and completed.and_done(done, stayed, when)
        enters = done & (slots.waiting > 0)
        brings = jnp.where(enters, slots.size.at[fleet, slots.head].get(mode="clip"), jnp.inf)
        freed = jnp.where(done, which, slot.size)
        pause = jnp.where(done, 0.0, slots.pause)
        if slots.prompt is not None:
            reads = servers.prefill * slots.prompt.at[fleet, slots.head].get(mode="clip")
            pause = jnp.where(enters, reads, pause)
        slots = slots._replace(
            left=slots.left.at[fleet, server, freed].set(served + brings, mode="drop"),
            job=slots.job.at[fleet, server, freed].set(slots.head, mode="drop"),
            busy=slots.busy - (done & ~enters),
            pause=pause,
            waiting=slots.waiting - enters,
            queued=jnp.where(slots.waiting > enters, slots.queued - jnp.where(enters, brings, 0.0), 0.0),
            head=jnp.where(enters, slots.behind.at[fleet, slots.head].get(mode="clip"), slots.head),
            response=slots.response.at[fleet, who].set(stayed, mode="drop"),
        )
        elapsed = elapsed + jnp.where(done, when, 0.0).sum(-1)
        return slots, following(slots, served, used), served, used, completed, elapsed

    none = jnp.zeros(capacity.shape)
    completed = completed and completed.anew()
    start = (slots, following(slots, none, none), none, none, completed, jnp.zeros(gap.shape))
    slots, _, served, used, completed, elapsed = jax.lax.while_loop(lambda carry: carry[1].due.any(), depart, start)
    rest = capacity - used
    read = jnp.minimum(slots.pause, rest)
    served = served + jnp.where(slots.busy > 0, (rest - read) / servers.pace(slots.busy), 0.0)
    count = slots.in_progress
    elapsed = elapsed + jnp.where(count > 0, count * gap[:, None], 0.0).sum(-1)
    slots = slots._replace(left=jnp.maximum(slots.left - served[..., None], 0.0), pause=slots.pause - read)
    return slots, completed and completed.after(time), elapsed


def _each(function: Callable[..., Array]) -> Callable[..., Float[Array, "E N"]]:
    """`function(schedule, time, amount)` for the N servers of E fleets."""
    return jax.vmap(jax.vmap(function, (0, None, 0)))
