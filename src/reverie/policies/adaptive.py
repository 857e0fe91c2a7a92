"""The classical rules that learn something while they run: the servers' rates, or the offered load.

They estimate with running sums, not with gradients; rules that are told all they need live in `rules.py`.
"""

from typing import Annotated, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep
from reverie.envs.fleet.weights import estimated_rates
from reverie.policies.views import Checked, CountsView, View, as_speeds, counts_view, full_view, pick
from reverie.ranges import Positive, Weight, between

HIGHEST_LOAD = 0.95
"""Where `ValueFunctionDispatch` caps its estimate: at load 1 its queues have no mean delay."""


class ServerEstimates(NamedTuple):
    """What `AdaptiveLeastConnections` goes by; the two sums are forgotten exponentially."""

    jobs: Float[Array, "B N"]
    """In progress right after the last dispatch."""
    completed: Float[Array, "B N"]
    """Jobs seen to end."""
    busy: Float[Array, "B N"]
    """Time units in which the server had work."""


class AdaptiveLeastConnections(Checked):
    """Least (jobs in progress + c) / rate, each server's rate estimated from what it completes while it is busy.

    rate = (completed + 1) / (busy time + 1 / nominal rate), where both sums are forgotten with time constant `tau` and
    nominal rate = speed x what the fleet as a whole completes per unit of speed and busy time. The one completion that
    is added is where an estimate starts; it is also the floor: a rate stays above 0, and that of a server left
    idle returns to nominal, so that a server once found slow is tried again. Estimates live through a whole trial.
    """

    view: ClassVar[View] = "counts"
    speeds: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """Nominal speeds, all equal if nothing is known; 0 for padding."""
    tau: Positive
    """Time units after which an observation counts for 1/e; 20 mean service times suit steady and changing fleets."""
    c: Positive = 1.0
    """What the new job counts for. At 1 the score is the expected delay if all jobs were alike; less favours servers
    that are free, which pays where few large jobs hold servers up."""

    def initial_state(self, batch: int) -> ServerEstimates:
        nothing = jnp.zeros((batch, self.speeds.shape[0]))
        return ServerEstimates(nothing, nothing, nothing)

    def rates(self, state: ServerEstimates) -> Float[Array, "B N"]:
        """The estimates, in jobs per time unit; the nominal speeds until a job has been seen to end."""
        return estimated_rates(state.completed, state.busy, self.speeds)

    def watch(self, state: ServerEstimates, timestep: TimeStep) -> tuple[CountsView, ServerEstimates]:
        """What is seen, and the estimates with what was completed since the last dispatch."""
        seen = counts_view(timestep, self.speeds)
        gap, completed = _since(state.jobs, seen, timestep)
        # A server that ran empty was busy for an unseen part of the gap. Its d jobs took d / rate on average if the gap
        # was long, gap d / (d + 1) if it was short (they end evenly spaced). The two limits are joined; for exponential
        # services this is within 7 % of the exact conditional mean at d = 1 and within 13 % up to d = 7.
        until_empty = completed / jnp.hypot((completed + 1) / gap, self.rates(state))
        kept = jnp.exp(-gap / self.tau)
        return seen, ServerEstimates(
            jobs=seen.jobs,
            completed=kept * state.completed + completed,
            busy=kept * state.busy + jnp.where(seen.jobs > 0, gap, until_empty),
        )

    def dispatched(self, state: ServerEstimates, action: Int[Array, " B"]) -> ServerEstimates:
        """The estimates once the job is on its way."""
        return state._replace(jobs=state.jobs + jax.nn.one_hot(action, state.jobs.shape[-1]))

    def act(
        self, state: ServerEstimates, timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], ServerEstimates]:
        seen, state = self.watch(state, timestep)
        rates = self.rates(state)
        action = pick((seen.jobs + self.c) / rates, rates, seen.allowed)
        return action, self.dispatched(state, action)


class StayEstimates(NamedTuple):
    """What `LittleConnections` goes by; the two sums are forgotten exponentially."""

    jobs: Float[Array, "B N"]
    """In progress right after the last dispatch."""
    completed: Float[Array, "B N"]
    """Jobs seen to end."""
    presence: Float[Array, "B N"]
    """Time that jobs spent there, summed over jobs."""


class LittleConnections(Checked):
    """Least (jobs in progress + 1) x stay^power, with each server's mean stay T inferred from counts by Little's law.

    T = time spent there by all jobs / jobs that ended, both forgotten with time constant `tau`; each server begins with
    `prior` jobs of the fleet's mean. With power 1 this is nginx's `least_time` (T x (n + 1)) for a balancer that sees
    no response times; with power 0 it is least connections whose ties go to the server with the shortest stays.
    Estimates live through a whole trial. Ours.
    """

    view: ClassVar[View] = "counts"
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """1 for a server, 0 for padding."""
    tau: Positive
    """Time units after which an observation counts for 1/e."""
    power: Weight = 1.0
    """How much stays count beside jobs in progress, which they contain already: half of it holds both apart."""
    prior: Positive = 4.0
    """Jobs for which the fleet's mean counts at each server."""

    def initial_state(self, batch: int) -> StayEstimates:
        nothing = jnp.zeros((batch, self.servers.shape[0]))
        return StayEstimates(nothing, nothing, nothing)

    def stays(self, state: StayEstimates) -> Float[Array, "B N"]:
        """The estimates; 1 for all until a job has been seen to end."""
        completed, presence = (x.sum(-1, keepdims=True) for x in (state.completed, state.presence))
        known = (completed > 0) & (presence > 0)
        mean = jnp.where(known, presence / jnp.where(known, completed, 1.0), 1.0)  # [B, 1]
        return jnp.where(known, (state.presence + self.prior * mean) / (state.completed + self.prior), 1.0)

    def act(
        self, state: StayEstimates, timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], StayEstimates]:
        seen = counts_view(timestep, self.servers)
        gap, completed = _since(state.jobs, seen, timestep)
        kept = jnp.exp(-gap / self.tau)
        # Departures are taken to lie evenly in the gap: between so many jobs before and so many now, half way.
        presence = kept * state.presence + gap * (seen.jobs + completed / 2)
        state = StayEstimates(seen.jobs, kept * state.completed + completed, presence)
        stays = self.stays(state)
        action = pick((seen.jobs + 1) * stays**self.power, 1 / stays, seen.allowed)
        return action, state._replace(jobs=seen.jobs + jax.nn.one_hot(action, seen.jobs.shape[-1]))


def _since(
    jobs: Float[Array, "B N"], seen: CountsView, timestep: TimeStep
) -> tuple[Float[Array, "B 1"], Float[Array, "B N"]]:
    """The time since the last dispatch, and the jobs that ended in it; across an episode's border none of both."""
    border = (timestep.is_first | timestep.is_last)[:, None]
    return jnp.where(border, 0.0, seen.gap), jnp.where(border, 0.0, jnp.maximum(jobs - seen.jobs, 0.0))


class LoadEstimates(NamedTuple):
    """What `ValueFunctionDispatch` has seen since the episode began."""

    jobs: Float[Array, " B"]
    mean_size: Float[Array, " B"]
    mean_gap: Float[Array, " B"]


class ValueFunctionDispatch(Checked):
    """FPI: the least sum of the job's own response time and the delay that it is expected to add to later jobs.

    One step of policy improvement over random splitting in proportion to speed, under which each server is an
    M/G/1-FIFO queue (Hyytia, Penttinen and Aalto, "Size- and state-aware dispatching problem with queue-specific job
    sizes", EJOR 217, 2012). With waiting time b, service time s, the server's arrival rate l and load rho the cost is
    b + s + l (2 b s + s^2) / (2 (1 - rho)); with l = rho speed / mean size that is
    b + s + rho / (1 - rho) (size / mean size) (b + s / 2). Rho is the same at all servers, unless the split that is
    improved favours fast ones (`split`).
    In each episode rho is estimated anew, from the mean size and gap so far and the speed of all servers now.
    """

    view: ClassVar[View] = "full"
    load: Annotated[float, *between(0, HIGHEST_LOAD, low_open=True)] = 0.8
    """The load that is expected before any job is seen."""
    prior_jobs: Positive = 10.0
    """How many seen jobs this expectation counts for; a very large number fixes the load."""
    split: Positive = 1.0
    """The random split that is improved is in proportion to this power of speed; more than 1 favours fast servers."""

    def initial_state(self, batch: int) -> LoadEstimates:
        nothing = jnp.zeros((batch,))
        return LoadEstimates(nothing, nothing, nothing)

    def act(
        self, state: LoadEstimates, timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], LoadEstimates]:
        seen = full_view(timestep)
        size = seen.size[:, 0]
        gaps = jnp.where(timestep.is_first, 0.0, state.jobs)  # before the first job there is none
        mean_size = jnp.where(gaps > 0, state.mean_size + (size - state.mean_size) / (gaps + 1), size)
        mean_gap = jnp.where(gaps > 0, state.mean_gap + (seen.gap - state.mean_gap) / jnp.maximum(gaps, 1.0), 0.0)

        capacity = jnp.where(seen.allowed, seen.speed, 0.0).sum(-1)  # [B]
        inverse = self.prior_jobs / self.load + gaps * capacity * mean_gap / mean_size
        favour = jnp.where(seen.allowed, seen.speed ** (self.split - 1), 0.0)
        favour *= capacity[:, None] / (favour * seen.speed).sum(-1, keepdims=True)
        load = jnp.minimum(((self.prior_jobs + gaps) / inverse)[:, None] * favour, HIGHEST_LOAD)  # [B, N]
        delayed = load / (1 - load) / mean_size[:, None] * seen.size  # later jobs, in the mean
        wait, service = seen.work / seen.speed, seen.size / seen.speed
        action = pick(wait + service + delayed * (wait + service / 2), seen.speed, seen.allowed)
        return action, LoadEstimates(gaps + 1, mean_size, mean_gap)
