"""What a world model is: the one contract behind which RSSM, S3M, STORM, set and queue models stand.

A world model is an Equinox module (a pytree of parameters); its state is a NamedTuple that it alone understands. It
knows observations, actions, rewards, ends of episodes and borders of trials, and nothing of actors, critics or replay.
"""

import abc
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

ModelState = Any
Border = Literal["episode", "trial"]
USE = "model/use/"
"""Metrics whose names begin so, what a task uses of a model, are NaN where an update says nothing of it."""


class Needed(NamedTuple):
    """The one reward of a fleet that a model can read."""

    reward: str
    why: str
    """What the model takes rewards for."""


def bounded(action: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Actions as DreamerV3 reads them: none is beyond 1."""
    return action / stop_gradient(jnp.maximum(1, jnp.abs(action)))


def shifted(first: Shaped[Array, "B *A"], rest: Shaped[Array, "B T *A"]) -> Shaped[Array, "B T *A"]:
    """At each step of a sequence what `rest` has one step before; at the first `first`, which is from before it."""
    return jnp.concatenate([first[:, None], rest[:, :-1]], 1)


class Features(NamedTuple):
    """What actor and critic read of a model state.

    A model that keeps servers apart offers one row per server; a flat model offers the context alone.
    """

    context: Float[Array, "*B D"]
    servers: Float[Array, "*B N G"] | None = None
    mask: Bool[Array, "*B N"] | None = None
    """Which rows are servers (the others are padding). Given together with `servers`."""
    critic: Int[Array, "*B"] | None = None
    """Which critic judges the state, where the model asks for several (`critics`)."""


class Sequence(NamedTuple):
    """A stretch of experience, one row per time step.

    `action[t]` is what was done *before* `observation[t]` was seen (zeros where nothing was done: `is_first`), so that
    a state at t follows from the state at t-1, `action[t]` and `observation[t]`; `reward[t]` and `is_terminal[t]`
    belong to arriving at t.
    """

    observation: dict[str, Array]
    action: Float[Array, "B T A"]
    reward: Float[Array, "B T"]
    is_first: Bool[Array, "B T"]
    is_last: Bool[Array, "B T"]
    is_terminal: Bool[Array, "B T"]
    is_trial_first: Bool[Array, "B T"]
    """Where another trial begins, hence an episode too: from here on the task may be another."""
    task: Int[Array, "B T"]
    """Index of the task among those trained on, -1 where it is not known. It is for losses and metrics: no state may
    depend on it, as nobody tells it who acts. What a policy may know of the task stands in the observation."""


class WorldModel(eqx.Module):
    """What every model must be; concrete models are final. `tests/test_world_models.py` holds all of them to it:

    - states from `observe` on a sequence equal those from observing step by step, across borders;
    - nothing passes a border (`forgets`), not even the action before it;
    - gradients of `loss` reach every parameter;
    - what replay keeps of a state comes back, up to rounding;
    - a model that reads a set of servers treats them alike in any order.

    A state of one step is *complete*: all that comes later follows from it. Of the states of a sequence, a model may
    leave out what the next step alone needs and what is too large to have for each, such as a Transformer's cache:
    `features`, `reward`, `continues`, `compress` and `starts` read what is left.
    """

    config: eqx.AbstractVar[Any]
    """Its configuration. It says how many steps the discount looks ahead: `horizon`."""

    @property
    def discount(self) -> float:
        """The discount per step, which `continues` contains."""
        return 1 - 1 / self.config.horizon

    @property
    def forgets(self) -> Border:
        """Where a state begins anew. What it is to know of the task must live through the episodes of a `trial`."""
        return "episode"

    @property
    def critics(self) -> int:
        """How many critics its states are judged by; `features` says which."""
        return 1

    @property
    def placing(self) -> tuple[PyTree, ...]:
        """Of its parameters those that say what a task is like, which alone may be learned for a new one.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"the model {self.config.kind} is told nothing of tasks: only a mixture can place a new one")

    @property
    def rows_lent(self) -> int:
        """How many rows before a sequence replay lends the model (C), for what it does not keep of each state."""
        return 0

    @abc.abstractmethod
    def initial(self, batch: int) -> ModelState:
        """The state before anything was seen, leaves [B, ...]."""

    @abc.abstractmethod
    def observe(self, state: ModelState, sequence: Sequence, key: Key[Array, ""]) -> tuple[ModelState, ModelState]:
        """The complete state after a sequence that begins right after `state` [B, ...], and the posterior states
        [B, T, ...] of all its steps. Acting is T = 1."""

    @abc.abstractmethod
    def imagine(self, state: ModelState, action: Float[Array, "B A"], key: Key[Array, ""]) -> ModelState:
        """One step of the prior: what comes after doing `action` in `state`, unseen."""

    @abc.abstractmethod
    def features(self, state: ModelState) -> Features:
        """What actor and critic see of states with any leading axes."""

    @abc.abstractmethod
    def reward(self, state: ModelState) -> Float[Array, "*B"]:
        """Expected reward of arriving in states with any leading axes."""

    @abc.abstractmethod
    def continues(self, state: ModelState) -> Float[Array, "*B"]:
        """Discount times the probability that the episode goes on (the discount is folded in)."""

    @abc.abstractmethod
    def loss(
        self, state: ModelState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Float[Array, ""]]]]:
        """The training loss on a sequence after `state`, its posterior states [B, T, ...] and named metrics."""

    def updated(self) -> "WorldModel":
        """The model after an update of its parameters, for what else changes with them, such as a temperature."""
        return self

    def compress(self, state: ModelState) -> PyTree[Array]:
        """States as replay keeps them, in fewer bytes: by default, numbers in half precision."""
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state)

    def expand(self, stored: PyTree[Array]) -> ModelState:
        """Undo `compress`, up to rounding."""
        return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, stored)

    def resume(self, stored: PyTree[Array], lent: Sequence, key: Key[Array, ""]) -> ModelState:
        """The complete state right before a replayed sequence.

        Arguments: `stored` [B, ...], what replay kept of the step before it; `lent` [B, C, ...], the `rows_lent` steps
        that end with that one. By default what was kept is complete; a cache is built by observing what was lent.
        """
        return self.expand(stored)

    def starts(self, before: ModelState, states: ModelState, index: Int[Array, " n"]) -> ModelState:
        """Complete states [n, ...] for dreams to begin from.

        Arguments: `states` [B, T, ...] of a sequence right after `before` [B, ...]; `index` into the B x T steps, laid
        flat. By default they are picked; a Transformer makes the cache of each from the `rows_lent` steps before it.
        """
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[index], states)

    def borders(self, sequence: Sequence) -> Bool[Array, "B T"]:
        """Where states begin anew."""
        return sequence.is_trial_first if self.forgets == "trial" else sequence.is_first
