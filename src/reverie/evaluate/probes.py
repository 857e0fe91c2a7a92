"""What an agent's inner state knows: states recorded beside the hidden truth, and measures of what they tell of it.

`record` lets a policy play and keeps what it saw, what it remembered and what was true but hidden. `decode` reads a
number from states by ridge regression, `silhouette` and `purity` ask whether states of one kind lie together. All are
judged on trials that were not fitted, as moments of one trial resemble one another. Linear probes: Alain and Bengio
2016 (arXiv 1610.01644). Axes: K episodes of a trial, J jobs, E trials, N servers, Q moments of a trial, D numbers.
The measures need scikit-learn: `pip install 'reverie[experiments]'`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import TimeStep, select
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet.env import FleetEnv, Task
from reverie.evaluate.capacity import changes, load_at
from reverie.policies.core import Policy, PolicyState
from reverie.policies.rollout import Play, trials


class Recorded(NamedTuple):
    """The moments of E trials at which a job waited to be dispatched, on the host."""

    observation: dict[str, np.ndarray]
    """What the policy saw: leaves [K, J, E, ...]."""
    state: Any
    """The policy's state once it had seen that: leaves [K, J, E, ...]."""
    load: Float[np.ndarray, "K J E"]
    """The offered load in force."""
    speed: Float[np.ndarray, "K J E N"]
    """True speed of each server (work per time unit); 0 for one that stands still, and for padding."""
    jobs_since: Int[np.ndarray, "K J E"]
    """Jobs that had arrived since load or speeds changed last, or since the episode began."""
    time_since: Float[np.ndarray, "K J E"]
    """Time units since then."""


class Wiped(eqx.Module):
    """A policy that forgets everything where an episode begins."""

    policy: Policy

    def initial_state(self, batch: int) -> PolicyState:
        return self.policy.initial_state(batch)

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PolicyState]:
        empty = self.policy.initial_state(timestep.is_first.shape[0])
        return self.policy.act(select(timestep.is_first, empty, state), timestep, key)


class Swapped(eqx.Module):
    """A policy that is given the memory of the next trial in line where an episode begins, made of as many trials as
    episodes have gone by: as good as its own where it only has learned to play well, worse where it has adapted."""

    policy: Policy

    def initial_state(self, batch: int) -> PolicyState:
        return self.policy.initial_state(batch)

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PolicyState]:
        others = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), state)
        return self.policy.act(select(timestep.is_first, others, state), timestep, key)


def record(env: FleetEnv, policy: Policy, task: Task, key: Key[Array, ""], episodes: int = 1) -> Recorded:
    """Play trials of `episodes` (K) episodes, the policy's state kept from one to the next, and keep every moment.

    Arguments: `task`, one for each trial, leaves [E, ...]. The jobs are those of `trials.play` with the same key.
    """
    (observation, state), (clock, speed) = jax.tree.map(np.asarray, _play(env, policy, task, key, episodes))
    load, time_since = (np.empty(clock.shape) for _ in range(2))
    jobs_since = np.empty(clock.shape, int)
    for trial in range(clock.shape[-1]):
        mine = jax.tree.map(lambda leaf, e=trial: np.asarray(leaf[e]), task)
        changed = changes(mine, float(clock[..., trial].max()))
        for episode in range(episodes):
            at = clock[episode, :, trial].astype(float)
            load[episode, :, trial] = load_at(mine, at)
            before = np.searchsorted(changed, at, side="right")
            time_since[episode, :, trial] = at - np.append(0.0, changed)[before]
            first = np.searchsorted(before, before)  # the first job since then
            jobs_since[episode, :, trial] = np.arange(len(at)) - first
    return Recorded(observation, state, load, speed.astype(float), jobs_since, time_since)


@eqx.filter_jit
def _play(env: FleetEnv, policy: Policy, task: Task, key: Key[Array, ""], episodes: int):
    def keep(before: Play, after: Play):
        clock = before.states.clock
        speed = jax.vmap(jax.vmap(schedules.at, (0, None)))(task.speed, clock) * task.mask
        return (before.timesteps.observation, after.policy_state), (clock.coarse, speed)

    tasks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (episodes, *leaf.shape)), task)
    return trials(env, policy, tasks, key, env.jobs, keep)[0]


def numbers(tree: Any, leading: int) -> Float[np.ndarray, "*B D"]:
    """All leaves of a state behind `leading` common axes as one vector, each number as networks read it (symlog)."""
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(tree)]
    flat = np.concatenate([leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves], -1)
    return np.sign(flat) * np.log1p(np.abs(flat))


def decode(inputs: Float[np.ndarray, "E Q D"], target: Float[np.ndarray, "E Q"], folds: int = 5) -> float:
    """R^2 of reading `target` from `inputs` by ridge regression, each trial by a fit to the trials of other folds.

    R^2 = 1 - squared errors / squared deviations from the mean, over all trials: 0 is as good as the mean, and less is
    possible. The ridge's weight is chosen within what is fitted.
    Errors: ValueError where there are fewer trials than folds, or the target is always the same.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trials = len(inputs)
    if not 2 <= folds <= trials:
        raise ValueError(f"decode: {folds} folds need as many trials, and two at least; got {trials} trials")
    total = np.square(target - target.mean()).sum()
    if not total > 0:
        raise ValueError("decode: the target is the same everywhere, so there is nothing to tell")
    error = 0.0
    for fold in range(folds):
        held = np.arange(trials) % folds == fold
        probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
        probe.fit(np.concatenate(inputs[~held]), np.concatenate(target[~held]))
        error += np.square(probe.predict(np.concatenate(inputs[held])) - np.concatenate(target[held])).sum()
    return float(1 - error / total)


def standardised(inputs: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Each column with mean 0 and variance 1; a column that never changes becomes 0."""
    spread = inputs.std(0)
    return (inputs - inputs.mean(0)) / np.where(spread > 0, spread, 1)


def silhouette(inputs: Float[np.ndarray, "n D"], label: Int[np.ndarray, " n"]) -> float:
    """The mean over points of (b - a) / max(a, b): a, the mean distance to points of the same label; b, that to points
    of the nearest other one. 1 is far apart, 0 on top of one another, -1 among the others (Rousseeuw 1987, Journal of
    Computational and Applied Mathematics 20)."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(inputs, label))


def purity(
    inputs: Float[np.ndarray, "n D"], label: Int[np.ndarray, " n"], trial: Int[np.ndarray, " n"], neighbours: int = 10
) -> float:
    """The share of a point's nearest neighbours from other trials that have its label, on average.

    Where several points are as far away as the last neighbour, as discrete codes often are, each counts in part.
    Errors: ValueError where a point has fewer than `neighbours` in other trials.
    """
    from sklearn.metrics import pairwise_distances

    distance = pairwise_distances(inputs)
    distance[trial[:, None] == trial] = np.inf
    last = np.partition(distance, neighbours - 1, 1)[:, neighbours - 1, None] if neighbours <= len(label) else np.inf
    if not np.isfinite(last).all():
        raise ValueError(f"purity: each point needs {neighbours} points in other trials")
    tolerance = 1e-6 * (1 + last)  # distances that rounding alone tells apart
    closer, tied = distance < last - tolerance, np.abs(distance - last) <= tolerance
    same = label[:, None] == label
    missing = neighbours - closer.sum(1)
    share = (closer & same).sum(1) + missing * (tied & same).sum(1) / tied.sum(1)
    return float((share / neighbours).mean())
