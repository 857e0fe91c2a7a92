"""The learning curve: a policy in training plays the same few episodes again and again, beside the classical rules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from reverie.envs.fleet.env import Task
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.opponents import opponents
from reverie.evaluate.trials import play
from reverie.policies.core import Policy
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig, stream_seed
from reverie.tables import read_csv, write_csv

CURVE_RULES = "curve_rules.csv"
"""In `tables/` of a run: mean response time of each rule on the episodes of the learning curve."""


@dataclass(frozen=True)
class LearningCurve:
    """Judges policies on fixed episodes. Make one with `learning_curve`."""

    config: TrainConfig
    tasks: Task
    """Leaves [1, E, ...]."""
    key: Key[Array, ""]
    rules: dict[str, Float[np.ndarray, " E"]]
    """Mean response time of each rule in each episode; of those that see no more than the agent."""

    @property
    def best_rule(self) -> str:
        """The rule of the lowest geometric mean on these episodes."""
        return min(self.rules, key=lambda name: np.log(self.rules[name]).mean())

    def __call__(self, policy: Policy) -> dict[str, float]:
        """`evaluation/response`, the mean response time in time units, and `evaluation/ratio`, the geometric mean of
        the per-episode ratios to the best rule."""
        contestant = Contestant("agent", policy, self.config.fleet.env, training_seed=self.config.seed)
        (response,) = _responses([contestant], self.tasks, self.key, self.config.curve.jobs).values()
        ratio = np.exp(np.log(response / self.rules[self.best_rule]).mean())
        return {"evaluation/response": float(response.mean()), "evaluation/ratio": float(ratio)}


def learning_curve(config: TrainConfig) -> LearningCurve:
    """Draw the episodes from the family or trace that the agent is trained on, and let the rules play them.

    They are the same for all training seeds and algorithms, so that their curves can be compared.
    """
    seed = stream_seed(0, "learning curve")
    tasks = replace(config.fleet, jobs=config.curve.jobs).draw(config.curve.episodes, seed)
    batch = jax.tree.map(lambda leaf: leaf[None], tasks)
    rules = [c for c in opponents(tasks, config.fleet.view, proxy=config.fleet.proxy) if c.role == "rule"]
    key = jax.random.key(seed)
    return LearningCurve(config, batch, key, _responses(rules, batch, key, config.curve.jobs))


def curve_rules(run: RunFolder) -> dict[str, float]:
    """Mean response time of each rule on the episodes of a run's learning curve, the best first; they play again where
    the table is gone or damaged."""
    try:
        rows = read_csv(run.tables / CURVE_RULES)
        means = {str(row["agent"]): float(str(row["response"])) for row in rows}
    except (OSError, ValueError, KeyError):
        means = {}
    if not means:
        means = write_curve_rules(learning_curve(run.config(TrainConfig)), [run])
    return dict(sorted(means.items(), key=lambda item: item[1]))


def write_curve_rules(judged: LearningCurve, runs: Sequence[RunFolder]) -> dict[str, float]:
    """Put the rules' mean response times down in runs, and return them."""
    means = {name: float(response.mean()) for name, response in judged.rules.items()}
    for run in runs:
        write_csv(run.tables / CURVE_RULES, [{"agent": name, "response": mean} for name, mean in means.items()])
    return means


def _responses(
    contestants: list[Contestant], tasks: Task, key: Key[Array, ""], jobs: int
) -> dict[str, Float[np.ndarray, " E"]]:
    played = play(contestants, tasks, key, jobs)
    return {c.name: outcome.response[0].mean(0) for c, outcome in zip(contestants, played, strict=True)}
