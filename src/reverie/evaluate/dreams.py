"""What a mixture foretells of each task beside what came: dreams of 64 jobs, with the actions that were taken.

The model sees the first 64 jobs of an episode, then nothing more. What is compared is the work that waits in the whole
fleet, as its decoder reads it off z; an error is a root mean square over episodes, beside that of taking the work to
stay as it was when the model saw it last.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from reverie.envs.core import Numbered, Suite
from reverie.models.core import Sequence
from reverie.models.mixture import Mixture
from reverie.policies.core import Policy
from reverie.policies.rollout import Play, advance, begin
from reverie.settings.config import SuiteConfig
from reverie.tables import Row

BEFORE, AHEAD = 64, 64
"""Jobs that the model sees, and jobs that it dreams of."""


@runtime_checkable
class Foretells(Protocol):
    """A world model that says what it takes to be seen, as a mixture does."""

    def initial(self, batch: int) -> Any: ...

    def observe(self, state: Any, sequence: Sequence, key: Key[Array, ""]) -> tuple[Any, Any]: ...

    def imagine(self, state: Any, action: Float[Array, "B A"], key: Key[Array, ""]) -> Any: ...

    def decoded(self, state: Any) -> Mapping[str, Any]: ...


def dream_rows(
    model: Foretells, policy: Policy, suite: SuiteConfig, seed: int, episodes: int = 8, dreams: int = 16
) -> list[Row]:
    """For each task and each step ahead: the truth of the first episode (`truth`), the mean of its dreams and between
    what 80 % of them lie (`mean`, `low`, `high`), and over all episodes the error of that mean and of no change
    (`error`, `still`), in work units.

    Arguments: `episodes` (E) of each task and `dreams` (D) of each episode.
    """
    world, drawn = replace(suite, jobs=BEFORE + AHEAD + 1).open(episodes, seed)
    truth, dreamed = map(np.asarray, _foretold(model, policy, world, drawn, dreams, jax.random.key(seed)))
    rows: list[Row] = []
    for number, name in enumerate(suite.names):
        mine = np.asarray(drawn.index) == number
        came, last, said = truth[mine, 1:], truth[mine, :1], dreamed[mine]
        errors = [np.sqrt(np.square(guess - came).mean(0)) for guess in (said.mean(1), last)]
        low, high = np.quantile(said[0], (0.1, 0.9), axis=0)
        columns = [came[0], said[0].mean(0), low, high, *errors]
        names = ("truth", "mean", "low", "high", "error", "still")
        for ahead in range(AHEAD):
            row: Row = {"task": name, "ahead": ahead + 1}
            rows.append(row | {column: float(values[ahead]) for column, values in zip(names, columns, strict=True)})
    return rows


def likeness_rows(model: Mixture, suite: SuiteConfig) -> list[Row]:
    """The cosine of the embeddings of each two tasks."""
    embedded = np.asarray(model.embedded(), float)
    cosines = np.clip(embedded @ embedded.T, -1, 1)
    return [
        {"task": name} | dict(zip(suite.names, map(float, row), strict=True))
        for name, row in zip(suite.names, cosines, strict=True)
    ]


@eqx.filter_jit
def _foretold(
    model: Foretells, policy: Policy, world: Suite, tasks: Numbered, dreams: int, key: Key[Array, ""]
) -> tuple[Float[Array, "B H1"], Float[Array, "B D H"]]:
    """The work that waits, from when the model saw it last on, and what D dreams say of it from then on."""
    open_key, play_key, see_key, dream_key = jax.random.split(key, 4)
    batch = tasks.index.shape[0]

    def step(play: Play, key: Key[Array, ""]) -> tuple[Play, Any]:
        after, action = advance(world, policy, tasks, play, *jax.random.split(key))
        return after, (play.timesteps, world.action_spec.encode(action))

    played = jax.lax.scan(step, begin(world, policy, tasks, open_key), jax.random.split(play_key, BEFORE + AHEAD))[1]
    seen, done = jax.tree.map(lambda x: x.swapaxes(0, 1), played)  # [B, T, ...]
    before = jnp.concatenate([jnp.zeros_like(done[:, :1]), done[:, :-1]], 1)
    flags = seen.is_first, seen.is_last, seen.is_terminal, seen.is_first
    whole = Sequence(seen.observation, before, seen.reward, *flags, seen.observation["task"])
    state, _ = model.observe(model.initial(batch), jax.tree.map(lambda x: x[:, :BEFORE], whole), see_key)

    mask = seen.observation["mask"][:, 0]

    def waiting(servers: Float[Array, "*B N F"]) -> Float[Array, "*B"]:
        return jnp.where(mask, jnp.maximum(servers[..., 0], 0), 0).sum(-1)

    def dream(state: Any, now: tuple[Array, Array]) -> tuple[Any, Array]:
        action, key = now
        state = model.imagine(state, action, key)
        servers = model.decoded(state)["servers"].mode()
        return state, waiting(servers.reshape(*mask.shape, -1))

    def one(key: Key[Array, ""]) -> Float[Array, "H B"]:
        ahead = whole.action[:, BEFORE:].swapaxes(0, 1), jax.random.split(key, AHEAD)
        return jax.lax.scan(dream, state, ahead)[1]

    dreamed = jax.lax.map(one, jax.random.split(dream_key, dreams))  # [D, H, B]
    servers = seen.observation["servers"][:, BEFORE - 1 :].swapaxes(0, 1)
    return waiting(servers).swapaxes(0, 1), dreamed.transpose(2, 0, 1)
