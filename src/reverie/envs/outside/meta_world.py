"""Tasks of Meta-World (Yu et al. 2019, version 3): a robot's arm that sees 39 numbers of where things are and does 4.

Each task has 50 places of its goal, those of Meta-World's seed 1, of which an episode has one by chance. Rewards are
those of version 2, from 0 to 10 a step, and an episode has 500 steps.
"""

from importlib import import_module
from typing import Any, Literal

import gymnasium

from reverie.envs.outside.spaces import Seen

GOALS = 1
"""Seed of the places of the goal."""


def names() -> tuple[str, ...]:
    """Of the tasks, such as reach-v3.

    Raises:
        ModuleNotFoundError: `metaworld` is not installed.
    """
    return tuple(import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS)


class MetaWorld:
    """One task."""

    masks = False

    def __init__(self, name: str, *, pays: Literal["reward", "success"] = "reward"):
        """`pays`, whether an episode brings Meta-World's rewards, or 1 when the task is done, which ends it: the
        returns are a success rate then."""
        if pays not in ("reward", "success"):
            raise TypeError(f"pays is 'reward' or 'success', got {pays!r}")
        import_module("metaworld")  # registers its environments
        self._env = gymnasium.make("Meta-World/MT1", env_name=name, seed=GOALS, disable_env_checker=True)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self._by_success = pays == "success"

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        if seed is not None:
            self._env.reset(seed=seed)  # which chooses a goal before it takes the seed
        observation, _ = self._env.reset()
        return Seen(observation)

    def step(self, action: Any) -> Seen:
        observation, reward, terminated, truncated, info = self._env.step(action)
        if not self._by_success:
            return Seen(observation, float(reward), terminated or truncated, terminated)
        done = bool(info["success"])
        return Seen(observation, float(done), terminated or truncated or done, terminated or done)
