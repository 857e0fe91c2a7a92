"""Rules that learn from response times, as proxies run them: they read the view `latency`, and no speeds or sizes.

A proxy sees every response by itself; the view tells of those since the last arrival how many there were, their sum and
the longest. So averages take k responses at once, each as if it were their mean, and peaks take the longest. What was
in progress at a server when a finished job was dispatched is not told: it is taken to be what it was, in the mean, for
the jobs that were there. Both are ours. Formulas: the code of the products that are named.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import TimeStep
from reverie.policies.views import Checked, View, as_speeds, latency_view, pick
from reverie.ranges import Positive, between


class Latencies(NamedTuple):
    """What a rule remembers of each server; 0 where nothing is known yet."""

    response: Float[Array, "B N"]
    """An average of response times, by the rule's own formula."""
    service: Float[Array, "B N"]
    """What a response takes for each job that was in progress when its job came, itself included."""
    responses: Float[Array, "B N"]
    """The sum of response times, and below of what was in progress, both forgotten with time."""
    waits: Float[Array, "B N"]
    in_progress: Float[Array, "B N"]
    """Right after the last dispatch."""
    met: Float[Array, "B N"]
    """The sum, over the jobs in progress, of how many were in progress when they came, themselves included."""


class _Seen(NamedTuple):
    in_progress: Float[Array, "B N"]
    finished: Float[Array, "B N"]
    mean: Float[Array, "B N"]
    """Of the response times of those that finished; 0 where none did."""
    longest: Float[Array, "B N"]
    met: Float[Array, "B N"]
    """How many were in progress when those that finished came, in the mean."""
    gap: Float[Array, "B 1"]
    allowed: Bool[Array, "B N"]


class ResponseRule(Checked):
    """Least score, where the score is of an average of response times and of what is in progress (n):

    - `ewma`: average x (n + 1), over all servers: nginx 1.31 `least_time` without its rounding to 20 ms, mosn;
    - `c3`: R - s + (n + 1)^3 s, with averages R of response times and s of service times (Suresh et al., "C3: Cutting
      tail latency in cloud data stores via adaptive replica selection", NSDI 2015, for one client and servers that
      report nothing);
    - `normalised`: s x (n + 1), where s is the sum of responses over the sum of what was in progress, both forgotten
      with time, and begins with one observation of the fleet's mean;
    - `peak`: peak x (n + 1), where the peak follows longer responses at once and shorter ones, and silence, by and by
      (Finagle's and Linkerd's peak EWMA), over all servers.

    A server of which nothing is known is tried when it is idle, and avoided while its first jobs are on their way.
    """

    view: ClassVar[View] = "latency"
    servers: Float[Array, " N"] = eqx.field(converter=as_speeds)
    """1 for a server, 0 for padding."""
    kind: Literal["ewma", "c3", "normalised", "peak"] = eqx.field(static=True)
    rate: Annotated[float, *between(0, 1, low_open=True)] = 0.1
    """How much a response counts against those before (of `peak` alone not)."""
    tau: Positive = 1.0
    """Time units after which a peak, or a sum of `normalised`, is forgotten to 1/e."""
    two: bool = eqx.field(static=True, default=False)
    """Whether two servers, drawn anew each time, are compared instead of all."""

    def initial_state(self, batch: int) -> Latencies:
        return Latencies(*[jnp.zeros((batch, self.servers.shape[0]))] * 6)

    def act(self, state: Latencies, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " B"], Latencies]:
        seen = _observe(state, timestep, self.servers)
        state = self._averages(state, seen)
        n, response, service = seen.in_progress, state.response, state.service
        score = {
            "ewma": response * (n + 1),
            "c3": response - service + (n + 1) ** 3 * service,
            "normalised": service * (n + 1),
            "peak": response * (n + 1),
        }[self.kind]
        unknown = jnp.where(n > 0, jnp.finfo(jnp.float32).max / 1e6 * (1 + n), 0.0)
        score = jnp.where((service if self.kind == "normalised" else response) > 0, score, unknown)
        allowed = seen.allowed
        if self.two:
            draw = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
            allowed &= draw >= jax.lax.top_k(draw, min(2, draw.shape[-1]))[0][..., -1:]
        action = pick(score, jnp.ones_like(score), allowed)
        chosen = jax.nn.one_hot(action, score.shape[-1])
        return action, state._replace(in_progress=n + chosen, met=seen.met * n + chosen * (n + 1))

    def _averages(self, state: Latencies, seen: _Seen) -> Latencies:
        came, kept = seen.finished > 0, jnp.exp(-seen.gap / self.tau)
        if self.kind == "peak":
            faded = state.response * kept
            low = faded + (1 - kept) * jnp.where(came, seen.mean, 0.0)
            return state._replace(response=jnp.where(seen.longest > faded, seen.longest, low))
        if self.kind == "normalised":
            responses = kept * state.responses + seen.finished * seen.mean
            waits = kept * state.waits + seen.finished * seen.met
            every = responses.sum(-1, keepdims=True) / jnp.maximum(waits.sum(-1, keepdims=True), 1e-30)
            return state._replace(responses=responses, waits=waits, service=(responses + every) / (waits + 1))
        kept = (1 - self.rate) ** seen.finished

        def follow(old: Float[Array, "B N"], new: Float[Array, "B N"]) -> Float[Array, "B N"]:
            return jnp.where(came, jnp.where(old > 0, new + (old - new) * kept, new), old)

        each = seen.mean / jnp.maximum(seen.met, 1.0)
        return state._replace(response=follow(state.response, seen.mean), service=follow(state.service, each))


def _observe(state: Latencies, timestep: TimeStep, servers: Float[Array, " N"]) -> _Seen:
    """What is seen. Averages live through a trial; jobs in progress end with an episode."""
    view = latency_view(timestep, servers)
    begins = timestep.is_first[:, None]
    before, met = (jnp.where(begins, 0.0, x) for x in (state.in_progress, state.met))
    finished = jnp.where(begins, 0.0, view.finished)
    mean, longest = (jnp.where(finished > 0, x, 0.0) for x in (view.total / jnp.maximum(finished, 1.0), view.longest))
    return _Seen(view.jobs, finished, mean, longest, met / jnp.maximum(before, 1.0), view.gap, view.allowed)
