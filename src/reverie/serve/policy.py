"""An exported policy decides from plain numbers, without JAX: `load_policy("policy.safetensors").act({...})`.

The file is what `reverie export` wrote; nothing in it is executed. Beside numpy and safetensors nothing is imported.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open

from reverie.serve.actor_critic import ActorCriticTwin
from reverie.serve.dreamer import DreamerTwin
from reverie.serve.layers import Array, Weights


class Twin(Protocol):
    """What the networks of an algorithm give."""

    def reset(self) -> None: ...

    def logits(self, observation: Mapping[str, Array], mask: Array | None, reward: float | None) -> Array: ...

    def done(self, action: int) -> None: ...


TWINS: Mapping[str, Callable[[Mapping[str, Any], Weights, int], Twin]] = {
    "DreamerConfig": DreamerTwin,
    "A2CConfig": ActorCriticTwin,
    "PPOConfig": ActorCriticTwin,
}


class ServedPolicy:
    """A policy with its memory, for one stream of decisions. Make one with `load_policy`."""

    def __init__(self, described: Mapping[str, Any], arrays: Mapping[str, Array]):
        self.described = described
        """What the file says of itself: config, observation, actions, units, provenance."""
        algorithm = described["config"]["agent"]["algorithm"]
        reads = ", ".join(described["observation"])
        if "proxy" in described["observation"]:
            raise ValueError(f"a policy that reads {reads} sets weights and sends no job: `reverie serve` takes it")
        if algorithm["class"] not in TWINS:
            raise ValueError(
                f"a policy of {algorithm['class']} that reads {reads} decides by JAX alone (`reverie compare`); those "
                f"of {', '.join(TWINS)} decide without"
            )
        self._shapes = {name: tuple(spec["shape"]) for name, spec in described["observation"].items() if name != "mask"}
        self._servers = int(described["actions"])
        self._twin = TWINS[algorithm["class"]](algorithm, Weights(arrays), self._servers)

    @property
    def units(self) -> Mapping[str, str]:
        """What the numbers of each entry of an observation are."""
        return self.described["units"]

    def reset(self) -> None:
        """Forget everything: what comes next has nothing to do with what was before."""
        self._twin.reset()

    def act(
        self,
        observation: Mapping[str, ArrayLike],
        reward: float | None = None,
        allowed: ArrayLike | None = None,
    ) -> int:
        """The server (from 0) that the waiting job goes to.

        Arguments: `observation`, the entries that `units` describes, such as `servers` [N, F] and `job` [D]; `reward`
        of the decision before (minus a response time, say), where it was measured: unless given, a policy that knows
        queues reckons it; `allowed` [N], which servers may be chosen, all unless given.

        Raises:
            ValueError: an entry is missing, has another shape or is not finite, or no server is allowed, or a reward
                is needed and none is given.
        """
        logits, mask = self._logits(observation, reward, allowed)
        action = int((logits if mask is None else np.where(mask, logits, -np.inf)).argmax())
        self._twin.done(action)
        return action

    def _logits(
        self, observation: Mapping[str, ArrayLike], reward: float | None, allowed: ArrayLike | None
    ) -> tuple[Array, Array | None]:
        mask = None if allowed is None else np.asarray(allowed, bool)
        if mask is not None and (mask.shape != (self._servers,) or not mask.any()):
            raise ValueError(f"allowed must be {self._servers} truth values, one for each server, and allow one")
        seen = {name: self._entry(name, shape, observation) for name, shape in self._shapes.items()}
        return self._twin.logits(seen, mask, reward), mask

    def _entry(self, name: str, shape: tuple[int, ...], observation: Mapping[str, ArrayLike]) -> Array:
        """One entry with its last axis first; a copy, for it is remembered, and whoever gave it may go on writing."""
        if name not in observation:
            raise ValueError(f"the policy reads {name!r} ({self.units[name]}); the observation has {[*observation]}")
        value = np.array(observation[name], np.float32, order="F")
        if value.shape != shape or 0 in np.isfinite(value).tobytes():  # half the time of `all`
            raise ValueError(
                f"{name!r} must be finite numbers of shape {list(shape)} ({self.units[name]}), got {value.tolist()}"
            )
        return value.T


def load_policy(path: Path | str) -> ServedPolicy:
    """Read a policy that `reverie export` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no policy, or one that decides by JAX alone.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no policy at {path}")
    described, arrays = read_described(path)
    if described.get("kind") != "policy":
        raise ValueError(f"{path} is no exported policy; make one with `reverie export RUN {path}`")
    return ServedPolicy(described, arrays)


def read_described(path: Path | str) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
    """What a file of this project says of itself, and its arrays.

    Errors: ValueError where it is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get("reverie", "{}")).get("metadata", {})
            return described, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); write it again") from error
