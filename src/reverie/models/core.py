"""What a world model is: the one interface behind which RSSM, S3M, mixtures and queue models stand.

A world model is an Equinox module (a pytree of parameters); its recurrent state is a NamedTuple that it alone
understands. It knows observations, actions, rewards and ends of episodes, and nothing of actors, critics or replay.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Key, PyTree

ModelState = Any


class Features(NamedTuple):
    """What heads, actor and critic read of a model state.

    A model that keeps servers apart offers one row per server; a flat model offers the context alone.
    """

    context: Float[Array, "*B D"]
    servers: Float[Array, "*B N G"] | None = None
    mask: Bool[Array, "*B N"] | None = None
    """Which rows are servers (the others are padding). Given together with `servers`."""
    own: Float[Array, "*B W"] | None = None
    """What the model's own heads read before the context, where actor and critic are not to see it."""


class Sequence(NamedTuple):
    """A stretch of replayed experience, one row per time step.

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


@runtime_checkable
class WorldModel(Protocol):
    """Contract, tested for each model (`tests/test_world_models.py`):

    - states from `observe` on a sequence equal the states from observing step by step, across resets;
    - nothing of an earlier episode leaks past a reset (`is_first`), not even the action that ended it.
    """

    @property
    def discount(self) -> float:
        """The discount per step, which `continues` contains."""
        ...

    def initial(self, batch: int) -> ModelState:
        """The state before anything was seen."""
        ...

    def observe(
        self,
        state: ModelState,
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        key: Key[Array, ""],
    ) -> ModelState:
        """Posterior states [B, T, ...] of a sequence that begins right after `state` [B, ...]. Acting is T = 1."""
        ...

    def imagine(self, state: ModelState, action: Float[Array, "B A"], key: Key[Array, ""]) -> ModelState:
        """One step of the prior: what comes after doing `action` in `state`, unseen."""
        ...

    def features(self, state: ModelState) -> Features: ...

    def reward(self, features: Features) -> Float[Array, "*B"]:
        """Expected reward of arriving in a state."""
        ...

    def continues(self, features: Features) -> Float[Array, "*B"]:
        """Discount times the probability that the episode goes on (the discount is folded in)."""
        ...

    def loss(
        self, state: ModelState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Float[Array, ""]]]]:
        """The model's training loss on a sequence, its posterior states [B, T, ...] and metrics with fixed names."""
        ...

    def compress(self, state: ModelState) -> PyTree[Array]:
        """The state as replay keeps it, in fewer bytes."""
        ...

    def expand(self, stored: PyTree[Array]) -> ModelState:
        """Undo `compress`, up to rounding."""
        ...
