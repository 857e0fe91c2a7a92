"""A world model for a balancer that sees no sizes and no speeds, only how many jobs each server holds.

Jobs are not lost: what a server held, and what was sent to it, it still holds or has completed. So the model knows how
counts add up, and learns how many jobs each server completes until the next arrival: one discrete token a server, given
a recurrent state of its own that has followed it since the episode began, or since the trial did (`forgets`): a memory
for each server, which outlives episodes. That state has to infer what is hidden: how fast the server is by now, and
whether a giant holds it up. All servers share the weights, so neither their order nor their number matters. This form
is our choice, beside `queue.py`, whose jobs and speeds are seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from reverie.envs.core import ArraySpec, select
from reverie.models.core import Border, Features, Needed, Sequence, WorldModel, shifted
from reverie.models.encoders import Entries
from reverie.models.tokens import draw, inverse, token, token_head
from reverie.nn.distributions import Bernoulli, Categorical, symlog
from reverie.nn.layers import GRU, Head, over_time
from reverie.ranges import Horizon, Positive, Width, checked

MOST = 8
"""Completions of one server between two arrivals that are told apart; dreams have no more."""
SPANS = (8.0, 40.0)
"""Two spans over which rates are averaged, in arrivals per server."""


@dataclass(frozen=True)
@checked
class CountsConfig:
    """Sizes of the model."""

    kind: ClassVar[str] = "counts"
    needs: ClassVar[Needed | None] = Needed(
        "elapsed", "the counts model takes rewards for time in the system (`elapsed`)"
    )
    """The fleet's reward that it can read, where it is one alone."""
    units: Width = 64
    """Width of all hidden layers."""
    deter: Width = 32
    """Width of the recurrent state of each server, and of that of the arrivals."""
    unit: Positive = 50.0
    """A usual gap between arrivals, in time units."""
    horizon: Horizon = 150.0
    """Steps that the discount 1 - 1 / horizon looks ahead."""
    forgets: Border = "episode"
    """`trial`: what is known of servers and arrivals lives through the episodes of a trial, whose servers stay."""


class CountsState(NamedTuple):
    """What was seen of each server and of the arrivals. S spans."""

    servers: Float[Array, "*B N D"]
    """The recurrent state of each server's jobs."""
    count: Float[Array, "*B N"]
    """Jobs that it holds."""
    age: Float[Array, "*B N"]
    """How long the job in service has been there, as far as can be seen; 0 where there is none."""
    completed: Float[Array, "*B N S"]
    """Jobs seen to end, forgotten over each span."""
    busy: Float[Array, "*B N S"]
    """Time in which it had work, forgotten alike."""
    mask: Bool[Array, "*B N"]
    arrivals: Float[Array, "*B D"]
    """Another, of the gaps before the last."""
    gap: Float[Array, "*B"]
    """Time between the last two arrivals."""
    elapsed: Float[Array, "*B"]
    """The integral of the number of jobs over that time, as far as counts tell."""


class CountsModel(WorldModel):
    """A model for the fleet's view `counts` with rewards `elapsed`."""

    server_gru: GRU
    completions_head: Head
    arrival_gru: GRU
    gap_head: Head
    price: Float[Array, ""]
    """Logarithm of what one job in the system costs in a `unit` of time."""
    continue_head: Head
    config: CountsConfig = eqx.field(static=True)
    entries: Entries = eqx.field(static=True)

    def __init__(
        self, config: CountsConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """Errors: ValueError where an observation is not one count for each server and one gap, or where there is not
        one action for each server."""
        self.config, self.entries = config, Entries.of(observation_spec)
        if not self.entries.one_set_and_job((actions, 1), 1):
            raise ValueError(
                "CountsModel reads one count of each server, the gap since the last arrival, and takes one action for "
                f"each server, which is a fleet's view `counts`; got {dict(observation_spec)} and {actions} actions"
            )
        c, keys = config, jax.random.split(key, 5)
        told = 3 + 2 * len(SPANS)  # count, action and age; a rate and its weight for each span
        self.server_gru = GRU(told + 2, c.deter, key=keys[0])
        self.completions_head = Head(c.deter + told + 1, MOST + 1, c.units, 2, scale=0.01, key=keys[1])
        self.arrival_gru = GRU(1, c.deter, key=keys[2])
        self.gap_head = token_head(c.deter, c.units, key=keys[3])
        self.price = jnp.zeros(())
        self.continue_head = Head(c.deter + 2, 1, c.units, 1, key=keys[4])

    @property
    def forgets(self) -> Border:
        return self.config.forgets

    def initial(self, batch: int) -> CountsState:
        (n, _), d = self.entries.servers[0][1].shape, self.config.deter
        each, spans, nothing = jnp.zeros((batch, n)), jnp.zeros((batch, n, len(SPANS))), jnp.zeros((batch,))
        servers, mask = jnp.zeros((batch, n, d)), jnp.ones((batch, n), bool)
        return CountsState(servers, each, each, spans, spans, mask, jnp.zeros((batch, d)), nothing, nothing)

    def observe(self, state: CountsState, sequence: Sequence, key: Key[Array, ""]) -> tuple[CountsState, CountsState]:
        """What is seen is known; nothing is drawn, and `key` is not used."""
        observation, action = sequence.observation, sequence.action
        (servers, _), (job, _) = self.entries.servers[0], self.entries.vectors[0]
        mask = jnp.broadcast_to(self.entries.present(observation, servers), action.shape)
        count = jnp.where(mask, observation[servers][..., 0], 0.0)
        gap = observation[job][..., 0]

        def step(state: CountsState, now):
            count, gap, action, mask, first, drains, forgets = now
            state = select(forgets, self.initial(len(gap)), state)._replace(mask=mask)
            fresh = state._replace(count=count, age=jnp.zeros_like(count), gap=gap, elapsed=jnp.zeros_like(gap))
            after = self._after(state, action, gap, count)
            unread = after._replace(servers=state.servers, completed=state.completed, busy=state.busy)
            state = select(first, fresh, select(drains, unread, after))
            return state, state

        # After an episode's last job all are gone at once: what outlives the episode must not take that for speed.
        drains = sequence.is_last & (self.forgets == "trial")
        flags = sequence.is_first, drains, self.borders(sequence)
        return over_time(step, state, (count, gap, action, mask, *flags))

    def imagine(self, state: CountsState, action: Float[Array, "B A"], key: Key[Array, ""]) -> CountsState:
        """The next gap is drawn, then what each server completes in it."""
        gap_key, completions_key = jax.random.split(key)
        arrivals = self._hear(state)
        gap = draw(self.gap_head(arrivals), jax.random.uniform(gap_key, (2, *state.gap.shape)), self.config.unit)
        logits = self._completions(state, action, gap)
        completed = inverse(logits, jax.random.uniform(completions_key, state.count.shape))
        return self._after(state, action, gap, state.count + action - completed)

    def features(self, state: CountsState) -> Features:
        """One row per server: what is told of it, and its recurrent state. The context: the last gap, the number
        of jobs over the last gap, and the arrivals' recurrent state."""
        rows = jnp.concatenate([self._told(state, jnp.zeros_like(state.count)), state.servers], -1)
        numbers = jnp.log1p(jnp.stack([state.gap, state.elapsed], -1) / self.config.unit)
        return Features(
            jnp.concatenate([numbers, state.arrivals], -1), jnp.where(state.mask[..., None], rows, 0.0), state.mask
        )

    def reward(self, state: CountsState) -> Float[Array, "*B"]:
        return -jnp.exp(self.price) * jnp.expm1(jnp.log1p(state.elapsed / self.config.unit))

    def continues(self, state: CountsState) -> Float[Array, "*B"]:
        return Bernoulli(self.continue_head(self.features(state).context)[..., 0]).mean()

    def loss(
        self, state: CountsState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[CountsState, dict[str, Float[Array, ""]]]]:
        _, states = self.observe(state, sequence, key)
        features = self.features(states)
        before = jax.tree.map(shifted, state, states)
        # After an episode's last job the fleet is run empty, and nothing of how long that took is seen.
        seen = ~(sequence.is_first | sequence.is_last)
        completed = jnp.clip(before.count + sequence.action - states.count, 0, MOST).astype(jnp.int32)
        told = Categorical.from_logits(self._completions(before, sequence.action, states.gap)).loss(completed)
        gaps = Categorical.from_logits(self.gap_head(self._hear(before))).loss(token(states.gap, self.config.unit))
        error = jnp.square(symlog(self.reward(states)) - symlog(sequence.reward))
        goes_on = (1.0 - sequence.is_terminal) * self.discount
        losses = {
            "model/completions": (jnp.where(before.mask, told, 0.0).sum(-1) * seen).mean(),
            "model/gaps": (gaps * seen).mean(),
            "model/reward": (error * seen).mean(),
            "model/continue": Bernoulli(self.continue_head(features.context)[..., 0]).loss(goes_on).mean(),
        }
        return sum(losses.values(), jnp.zeros(())), (states, losses)

    def compress(self, state: CountsState) -> CountsState:
        """The state as replay keeps it: numbers in half precision, but for counts, which have to add up."""
        return super().compress(state)._replace(count=state.count)

    # --- one arrival to the next ------------------------------------------------------------------------------------

    def _after(
        self, state: CountsState, action: Float[Array, "*B N"], gap: Float[Array, "*B"], count: Float[Array, "*B N"]
    ) -> CountsState:
        """The state once `gap` has passed since the job was given to the server that `action` marks, and servers hold
        `count` jobs."""
        held, time = state.count + action, gap[..., None]
        completed = jnp.maximum(held - count, 0.0)
        # Completions are taken to be spread evenly over the gap, as nothing else is seen of them.
        between = time / (completed + 1)
        age = jnp.where(count > 0, jnp.where(completed > 0, between, state.age + time), 0.0)
        busy = jnp.where(held > 0, jnp.where(count > 0, time, time - between), 0.0)
        kept = jnp.exp(-1 / (jnp.array(SPANS) * state.mask.sum(-1)[..., None, None]))  # [*B, 1, S]
        passes = jnp.broadcast_to(self._log(time), held.shape)
        heard = [self._told(state, action), jnp.stack([symlog(completed), passes], -1)]
        return CountsState(
            self.server_gru(state.servers, jnp.concatenate(heard, -1)),
            count,
            age,
            kept * state.completed + completed[..., None],
            kept * state.busy + busy[..., None],
            state.mask,
            self._hear(state),
            gap,
            gap * (held - completed / 2).sum(-1),
        )

    def _told(self, state: CountsState, action: Float[Array, "*B N"]) -> Float[Array, "*B N I"]:
        """What is read of each server besides its recurrent state: count, action, age; over each span its rate (the
        logarithm of completions per busy unit of time, one of each added) and how much busy time that rests on."""
        busy = state.busy / self.config.unit
        rate = jnp.log1p(state.completed) - jnp.log1p(busy)
        numbers = jnp.stack([symlog(state.count), action, self._log(state.age)], -1)
        return jnp.concatenate([numbers, rate, jnp.log1p(busy)], -1)

    def _completions(
        self, state: CountsState, action: Float[Array, "*B N"], gap: Float[Array, "*B"]
    ) -> Float[Array, "*B N K"]:
        """How many jobs each server completes within `gap` of being given what `action` marks: logits of 0 to `MOST`,
        where no server completes more than it holds."""
        passes = jnp.broadcast_to(self._log(gap)[..., None, None], (*state.count.shape, 1))
        logits = self.completions_head(jnp.concatenate([state.servers, self._told(state, action), passes], -1))
        possible = jnp.arange(MOST + 1) <= (state.count + action)[..., None]
        return jnp.where(possible, logits, -1e9)

    def _hear(self, state: CountsState) -> Float[Array, "*B D"]:
        """The arrivals' recurrent state once the last gap has been heard."""
        return self.arrival_gru(state.arrivals, self._log(state.gap)[..., None])

    def _log(self, time: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return jnp.log1p(time / self.config.unit)
