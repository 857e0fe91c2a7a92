"""What worlds outside show and take, as specs of ours: the spaces of Gymnasium, and the specifications of dm_env."""

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from reverie.envs.core import ActionSpec, ArraySpec, Continuous, Discrete

MASK, MASKS = "mask", ("mask", "action_mask")
"""What we call the entry of an observation that says which actions are allowed, and what others do."""
MAX_ACTIONS = 4096
"""The largest product of separate discrete actions that is offered as one."""
MIN_SIDE = 32
"""Bytes [H, W, C] of a smaller height or width are read as numbers: they are symbols, not a picture."""


class Seen(NamedTuple):
    """What one world says after a step, in its own terms."""

    observation: Any
    reward: float = 0.0
    is_last: bool = False
    is_terminal: bool = False
    mask: Any = None
    """Which actions are allowed, where the world says so beside its observation."""


class ShownError(Exception):
    """What a world shows is not what its spaces say."""


class Entry(NamedTuple):
    """One entry of an observation, and how it is read from what the world shows."""

    spec: ArraySpec
    read: Callable[[Seen], Any]

    def checked(self, name: str, seen: Seen) -> np.ndarray:
        """Errors: ShownError for another shape than the spec's, what float32 cannot hold, and unknown categories."""
        value = np.asarray(self.read(seen))
        if value.shape != self.spec.shape:
            raise ShownError(f"its observation {name!r} has shape {value.shape}, and its space says {self.spec.shape}")
        if self.spec.categories is not None:
            wrong = (value < 0) | (value >= self.spec.categories)
        elif value.dtype.kind == "f":
            wrong = ~(np.abs(value) <= np.finfo(np.float32).max)
        else:
            return value
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ShownError(f"its observation {name!r} is {value.ravel()[at]} at place {at}")
        return value


def entries(space: spaces.Space, actions: ActionSpec) -> dict[str, Entry]:
    """What an observation consists of: numbers, pictures, integers of which all of an entry have one range, and the
    mask of actions, by the usual names."""
    found = _parts(space)
    if given := [name for name in MASKS if name in found and isinstance(space, spaces.Dict)]:
        spec, read = found.pop(given[0])
        if len(given) > 1 or not isinstance(actions, Discrete) or spec.shape != (actions.n,):
            raise ValueError(
                f"an observation's entry {given[0]!r} says which actions are allowed, one bit for each of them; "
                f"here are {actions} and {', '.join(given)} of shape {spec.shape}: wrap the world and rename it"
            )
        found[MASK] = mask_entry(spec.shape, read)
    return found


def mask_entry(shape: tuple[int, ...], read: Callable[[Seen], Any]) -> Entry:
    def allowed(seen: Seen) -> np.ndarray:
        mask = np.asarray(read(seen)).astype(bool)
        if not mask.any():
            if seen.is_last:  # nothing is chosen any more
                return np.ones_like(mask)
            raise ShownError("its mask allows no action")
        return mask

    return Entry(ArraySpec(shape, "mask"), allowed)


def _parts(space: spaces.Space, path: tuple[str, ...] = ()) -> dict[str, Entry]:
    if isinstance(space, spaces.Dict) or (isinstance(space, spaces.Tuple) and _categories(space) is None):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {
            name: Entry(
                entry.spec,
                lambda seen, key=key, read=entry.read: read(seen._replace(observation=seen.observation[key])),
            )
            for key, part in parts
            for name, entry in _parts(part, (*path, str(key))).items()
        }
    name = "/".join(path)
    if (found := _categories(space)) is not None:
        counts, start = found
        spec = ArraySpec(counts.shape, categories=int(counts.max()))
        return {name or "vector": Entry(spec, lambda seen: _flat(seen.observation) - start)}
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3 and min(space.shape[:2]) >= MIN_SIDE:
            return {name or "image": Entry(ArraySpec(space.shape, "image"), lambda seen: seen.observation)}
        return {name or "vector": Entry(ArraySpec((math.prod(space.shape),)), lambda seen: np.ravel(seen.observation))}
    raise ValueError(
        f"observations of the space {space} have no counterpart here: there are Box, Discrete, MultiDiscrete, "
        "MultiBinary, and Dict and Tuple of them"
    )


def _categories(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """How many values each integer of a space has, and the least of them; None where there is more than integers."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel(), space.start.ravel()
    if isinstance(space, spaces.MultiBinary):
        size = math.prod(space.shape)
        return np.full(size, 2), np.zeros(size, int)
    if isinstance(space, spaces.Tuple) and space.spaces:
        found = [each for part in space.spaces if (each := _categories(part)) is not None]
        if len(found) == len(space.spaces):
            counts, starts = zip(*found, strict=True)
            return np.concatenate(counts), np.concatenate(starts)
    return None


def _flat(seen: Any) -> np.ndarray:
    """The integers of an observation in a row, in the order of `_categories`."""
    return np.concatenate([_flat(part) for part in seen]) if isinstance(seen, tuple) else np.ravel(seen)


def actions_of(space: spaces.Space) -> tuple[ActionSpec, Callable[[Any], Any]]:
    """What the agent chooses from, and what the world is told of it."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: int(action + space.start)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        found = _categories(space)
        assert found is not None
        counts, start = found
        if (product := math.prod(counts.tolist())) > MAX_ACTIONS:
            raise ValueError(
                f"separate actions are offered as one, up to {MAX_ACTIONS:,} in all; {space} has {product:,}"
            )

        def separate(action: Any) -> np.ndarray:
            return (np.stack(np.unravel_index(action, counts)) + start).reshape(space.shape).astype(space.dtype)

        return Discrete(product), separate
    if isinstance(space, spaces.Box):
        if not space.is_bounded():
            raise ValueError(f"the actions {space} are not bounded: wrap the world so that they are")
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        middle, reach = (low + high) / 2, (high - low) / 2

        def scaled(action: np.ndarray) -> np.ndarray:
            return (middle + reach * np.clip(action.reshape(space.shape), -1, 1)).astype(space.dtype)

        return Continuous(math.prod(space.shape)), scaled
    raise ValueError(
        f"actions of the space {space} have no counterpart here: there are Box, Discrete, MultiDiscrete and MultiBinary"
    )


def dtype(spec: ArraySpec) -> type[np.generic]:
    if spec.kind == "mask":
        return np.bool_
    if spec.kind == "image":
        return np.uint8
    return np.float32 if spec.categories is None else np.int32


def dm_space(spec: Any) -> spaces.Space:
    """Gymnasium's space for a specification of dm_env."""
    specs = import_module("dm_env.specs")
    if isinstance(spec, Mapping):
        return spaces.Dict({name: dm_space(part) for name, part in spec.items()})
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(spec.num_values)
    dtype = spec.dtype if spec.dtype == np.uint8 or np.issubdtype(spec.dtype, np.floating) else np.float64
    if isinstance(spec, specs.BoundedArray):
        low, high = (np.broadcast_to(bound, spec.shape).astype(dtype) for bound in (spec.minimum, spec.maximum))
        return spaces.Box(low, high, spec.shape, dtype)
    return spaces.Box(-np.inf, np.inf, spec.shape, dtype)
