"""What an agent is: the contract between an algorithm and the training that feeds it (`train/`).

An agent is a frozen dataclass, made for one kind of world; what it learns is in a `Learner`, whose `networks` act. It
knows nothing of how experience is gathered: `train/off_policy.py` keeps it and hands out rows, `train/on_policy.py`
hands out what has just happened. Which configuration belongs to which agent is said in `runs/build.py`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Int, Key, PyTree

from reverie.envs.core import TimeStep
from reverie.policies.core import Policy, PolicyState


class Row(NamedTuple):
    """What replay keeps of one step. Agents are given rows [S, lent + T, ...], S sequences of T steps."""

    timestep: TimeStep
    is_trial_first: Bool[Array, "*B"]
    task: Int[Array, "*B"]
    """Which task of the pool it happened in."""
    action: Array
    """Done after the timestep was seen; means nothing where that closed an episode."""
    kept: PyTree
    """What the agent asked to `keep` of the policy's state, right after it saw the timestep."""


@dataclass(frozen=True)
class Evidence:
    """What an agent that has to infer its task is given to do so at each update, apart from what it learns from.

    Each stream of such an agent plays one task for good, and what the agent `keep`s of a step is whether that may serve
    as evidence.
    """

    tasks: int
    """Tasks of an update (M)."""
    stretches: int
    """Stretches of evidence on each (n)."""
    length: int
    """Rows of a stretch (L)."""
    recent: int
    """How many of the newest rows that may serve a stretch may begin in."""


class Studied(NamedTuple):
    """What an agent with `Evidence` is given for an update."""

    rows: Row
    """To learn from [M, S, lent + T, ...]."""
    evidence: Row
    """On what the tasks are [M, n, L, ...]."""


class Rollout(NamedTuple):
    """A stretch of experience of the policy that learns from it: T steps, seen at G = T + 1 moments."""

    timestep: TimeStep
    """Leaves [G, B, ...]; rewards belong to arriving at a moment."""
    is_trial_first: Bool[Array, "G B"]
    action: Array
    """[T, B] (of a continuous action [T, B, A]), done at each moment but the last; means nothing where an episode is
    over (`is_last`)."""
    before: Any
    """What the policy carried before the first moment."""


class Learner(Protocol):
    """All that training changes, a pytree."""

    @property
    def networks(self) -> Any:
        """What acts, and what is averaged for the policy that is judged."""
        ...


@runtime_checkable
class Agent(Protocol):
    """What every agent has."""

    def init(self, key: Key[Array, ""]) -> Any:
        """A fresh `Learner`."""
        ...

    def policy(self, networks: Any, greedy: bool = False) -> Policy:
        """The agent as a policy; `greedy` takes the likeliest action instead of drawing one."""
        ...


@runtime_checkable
class OffPolicyAgent(Agent, Protocol):
    """An agent that learns from replay."""

    @property
    def rows_lent(self) -> int:
        """How many rows before a sequence it has to be lent: to say what led there, and what was remembered."""
        ...

    @property
    def evidence(self) -> Evidence | None:
        """What it is to be given to infer tasks from; None where it does not, and streams play any task."""
        ...

    def keep(self, networks: Any, state: PolicyState) -> PyTree:
        """What replay stores of the policy's state [B, ...] at each step; None for nothing."""
        ...

    def update(self, learner: Any, rows: Any, key: Key[Array, ""]) -> tuple[Any, PyTree | None, dict[str, Array]]:
        """One update on a `Row` [S, lent + T, ...], or on what was `Studied` where it asks for evidence.

        Returns the learner, what replay is to keep of the last T rows from now on (like `keep`, leaves [S, T, ...];
        None leaves it as it is), and metrics with fixed names.
        """
        ...


@runtime_checkable
class OnPolicyAgent(Agent, Protocol):
    """An agent that learns from what its present policy has just done, once."""

    def update(self, learner: Any, rollout: Rollout, key: Key[Array, ""]) -> tuple[Any, dict[str, Array]]:
        """One update on a rollout; also returns metrics with fixed names."""
        ...
