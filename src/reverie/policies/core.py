"""The `Policy` protocol: classical rules, trained agents and served models alike."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Key

from reverie.envs.core import TimeStep

PolicyState = Any


@runtime_checkable
class Policy(Protocol):
    """Chooses actions for a batch of B environments and carries whatever it remembers in an explicit state.

    The caller resets the memory at the border of a trial, by `initial_state`. Within a trial the policy sees the
    borders of episodes as `timestep.is_first`, and decides itself what to forget there.
    """

    def initial_state(self, batch: int) -> PolicyState: ...

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PolicyState]: ...
