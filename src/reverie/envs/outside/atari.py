"""Games of the Atari 2600 (ALE, Bellemare et al. 2013) under the protocol of Atari-100k.

It is that of STORM, which opens every episode alike where we have no-ops.

Each action is done for four frames, of which the last two are seen as one, each pixel the brighter of both, in colour
at 64 x 64; the actions are those that a game knows. At each frame the action before is done instead with probability
`sticky`. An episode opens with 1 to `no_ops` frames in which nothing is done, and is cut off after 108,000 frames.
Where a life is lost a timestep is terminal, and the game goes on: what is learned ends there, and returns do not.

What others do differently: `sticky` 0 (IRIS, DIAMOND and DreamerV3), `no_ops` 0, no signal of lost lives (DreamerV3).
"""

from importlib import import_module
from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing

from reverie.envs.outside.spaces import Seen

FRAMES, SIDE = 4, 64
LONGEST = 108_000 // FRAMES
"""Steps of an episode, which the emulator itself counts."""


def games() -> dict[str, str]:
    """Gymnasium's names of the games, by those used in tables of scores, such as `Pong`.

    Raises:
        ModuleNotFoundError: `ale-py` or OpenCV is not installed.
    """
    import_module("cv2")
    ale = import_module("ale_py")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    gymnasium.register_envs(ale)
    names = [name for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5")]
    return {name.removeprefix("ALE/").removesuffix("-v5"): name for name in names}


class Atari:
    """One game."""

    masks = False

    def __init__(self, name: str, *, sticky: float = 0.25, no_ops: int = 30, lives: bool = True, whole: bool = False):
        """`name` is Gymnasium's; `lives`, whether a lost life is terminal; `whole`, whether all actions are there."""
        emulator = gymnasium.make(
            name,
            frameskip=1,
            repeat_action_probability=sticky,
            full_action_space=whole,
            max_num_frames_per_episode=LONGEST * FRAMES,
            disable_env_checker=True,
        )
        self._env = AtariPreprocessing(emulator, no_ops, FRAMES, SIDE, grayscale_obs=False)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self._lives, self._count = 0, lives

    def reset(self, seed: int | None = None, task: Any = None) -> Seen:
        observation, _ = self._env.reset(seed=seed)
        self._lives = self._env.ale.lives()
        return Seen(observation)

    def step(self, action: Any) -> Seen:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        before, self._lives = self._lives, self._env.ale.lives()
        lost = self._count and self._lives < before
        return Seen(observation, float(reward), terminated or truncated, terminated or lost)
