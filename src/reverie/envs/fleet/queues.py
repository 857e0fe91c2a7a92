"""FIFO queues whose jobs are followed one by one: who is in progress where, and what each server has completed.

When a job will be finished is known as it is dispatched, so a queue is a chain of jobs with the spans that each will be
in service. Only views and rewards that count jobs keep it; a backlog (`env.py`) needs no jobs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Completions(NamedTuple):
    """What each server has finished since the last arrival, as any proxy knows it. The view `latency` shows it."""

    count: Int[Array, "*B N"]
    total: Float[Array, "*B N"]
    """Sum of the response times of the jobs finished."""
    longest: Float[Array, "*B N"]
    """The longest of these response times; 0 where no job was finished."""
    since: Float[Array, "*B N"]
    """Time since the server last finished a job, or since the episode began; 0 once all work has ended. While a gap is
    worked through it is counted from its beginning."""

    def anew(self) -> "Completions":
        """At the beginning of a gap."""
        none = jnp.zeros_like(self.total)
        return Completions(jnp.zeros_like(self.count), none, none, self.since)

    def and_done(
        self, done: Bool[Array, "*B N"], took: Float[Array, "*B N"], when: Float[Array, "*B N"]
    ) -> "Completions":
        """With one more job of each server that has `done` one: how long it took, and when in the gap it ended."""
        took = jnp.where(done, took, 0.0)
        return Completions(
            self.count + done,
            self.total + took,
            jnp.maximum(self.longest, took),
            jnp.where(done, -when, self.since),
        )

    def of_servers(self, count: int) -> "Completions":
        """Of `count` servers, each of them several queues in a row."""
        number, total, longest, since = (leaf.reshape(count, -1) for leaf in self)
        return Completions(number.sum(-1), total.sum(-1), longest.max(-1), since.min(-1))

    def after(self, gap: Float[Array, "*#B N"] | Float[Array, ""]) -> "Completions":
        """At the end of a gap; of one that is inf, all work has ended."""
        return self._replace(since=jnp.where(jnp.isinf(gap), 0.0, self.since + gap))


class Ledger(NamedTuple):
    """The jobs in progress: one queue per server, or per slot of one, linked by job number. Only views and rewards that
    count jobs keep it.

    Every time in it is a duration, so that nothing is lost to rounding when the clock is far along.
    """

    count: Int[Array, "*B N"]
    """Jobs in progress at each server."""
    head: Int[Array, "*B N"]
    """The job in service."""
    until_finish: Float[Array, "*B N"]
    """Time until the job in service is finished."""
    tail: Int[Array, "*B N"]
    """The job dispatched last; J where there was none."""
    behind: Int[Array, "*B J"]
    """The job that is served after this one."""
    span: Float[Array, "*B J"]
    """How long that job will be in service."""
    response: Float[Array, "*B J"] | None
    """Of each job, known since it was dispatched; kept only for the view that tells it when the job is finished."""
    until_last: Float[Array, "*B N"]
    """Time until the job dispatched last is finished."""


def empty(servers: int, jobs: int, told: bool) -> Ledger:
    """No jobs as yet; there will be J. `told`, that it keeps response times, for what is completed."""
    none, time = jnp.zeros((servers,), jnp.int32), jnp.zeros((servers,))
    response = jnp.zeros((jobs,)) if told else None
    behind, span = jnp.zeros((jobs,), jnp.int32), jnp.zeros((jobs,))
    return Ledger(none, none, time, none + jobs, behind, span, response, until_last=time)


def enter(
    ledger: Ledger, chosen: Bool[Array, " N"], job: Int[Array, ""], response: Float[Array, ""], span: Float[Array, ""]
) -> Ledger:
    """Put a job, which will be in service for `span`, at the end of the queue of the chosen server."""
    alone = chosen & (ledger.count == 0)
    last = jnp.where(chosen, ledger.tail, 0).sum()
    return Ledger(
        count=ledger.count + chosen,
        head=jnp.where(alone, job, ledger.head),
        until_finish=jnp.where(alone, response, ledger.until_finish),
        tail=jnp.where(chosen, job, ledger.tail),
        behind=ledger.behind.at[last].set(job, mode="drop"),
        span=ledger.span.at[last].set(span, mode="drop"),
        response=None if ledger.response is None else ledger.response.at[job].set(response),
        until_last=jnp.where(chosen, response, ledger.until_last),
    )


def advance(
    ledger: Ledger, completed: Completions | None, gap: Float[Array, ""]
) -> tuple[Ledger, Completions | None, Float[Array, ""]]:
    """Let `gap` time units pass: the ledger after them, what was completed in them, and the integral of the number of
    jobs in progress."""

    def due(count, until_finish):
        return (count > 0) & (until_finish <= gap)

    def finish(carry):
        count, head, until_finish, elapsed, completed = carry
        done = due(count, until_finish)
        if completed is not None and ledger.response is not None:
            completed = completed.and_done(done, ledger.response[head], until_finish)
        elapsed = elapsed + jnp.where(done, until_finish, 0.0).sum()
        until_finish = until_finish + jnp.where(done & (count > 1), ledger.span[head], 0.0)
        return count - done, jnp.where(done, ledger.behind[head], head), until_finish, elapsed, completed

    completed = completed and completed.anew()
    start = (ledger.count, ledger.head, ledger.until_finish, jnp.zeros(()), completed)
    count, head, until_finish, elapsed, completed = jax.lax.while_loop(lambda c: due(c[0], c[2]).any(), finish, start)
    completed = completed and completed.after(gap)
    until_finish = jnp.where(count > 0, until_finish - gap, 0.0)
    return (
        ledger._replace(
            count=count,
            head=head,
            until_finish=until_finish,
            until_last=jnp.maximum(ledger.until_last - gap, 0.0),
        ),
        completed,
        elapsed + jnp.where(count > 0, count * gap, 0.0).sum(),
    )
