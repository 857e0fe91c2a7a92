"""Agents that learn a suite of fleets, judged on each of its tasks beside the rules, in training and after it.

The score of a task is (random - agent) / (random - best rule), of mean response times on the same jobs: 0 is to choose
at random, 1 the strongest rule. Where random choice overloads a server it is close to 1 for all that is not foolish;
the ratio to the best rule beside it tells those apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from reverie.agents.dreamer import DreamerConfig
from reverie.envs.core import ArraySpec, TimeStep
from reverie.envs.fleet.env import FleetEnv, Task, View
from reverie.envs.fleet.schemas import fitted
from reverie.envs.fleet.suites import suite_fleets
from reverie.evaluate.agents import load_trained
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.dreams import dream_rows, likeness_rows
from reverie.evaluate.examination import Exam
from reverie.evaluate.kept import kept, training_of
from reverie.evaluate.opponents import opponents
from reverie.evaluate.statistics import Estimate, Values, decided, is_claim, over_episodes, ratio
from reverie.evaluate.trials import play
from reverie.files import is_sealed
from reverie.models.mixture import MixtureConfig
from reverie.policies.core import Policy, PolicyState
from reverie.runs.build import stored
from reverie.runs.folder import RunFolder
from reverie.settings.config import SuiteConfig, TrainConfig, stream_seed
from reverie.tables import Row
from reverie.train.trainers import WorldTrainer

SCORES = "scores.csv"
"""In `tables/` of a run: a row for each task."""
LIKENESS, DREAMS = "likeness.csv", "dreams.csv"
"""Of a mixture: how like the embeddings of its tasks are, and what it foretells where the view shows the work that
waits."""
RIVALS = (
    "random",
    "round-robin",
    "weighted-round-robin",
    "jsq",
    "sed",
    "p2c-speed",
    "late-binding",
    "late-binding-fastest",
    "least-work",
    "shortest-wait",
    "wait-plus-service",
    "least-completion",
    "fpi",
)
"""The rules that agents are judged beside: those without a constant of their own, which would have to be set for each
task. On 5 of the 16 tasks of `fleets` all 26 were played, and the best was one of them."""


class Informed(NamedTuple):
    """A policy that is told which task of a suite it plays, by number and descriptor."""

    policy: Policy
    task: Int[Array, ""]
    descriptor: Float[Array, "E D"]
    """Of each trial: draws of one task differ."""
    specs: Mapping[str, ArraySpec]
    """What the suite has room for in an observation."""

    def initial_state(self, batch: int) -> PolicyState:
        return self.policy.initial_state(batch)

    def act(self, state: PolicyState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PolicyState]:
        batch = timestep.reward.shape
        told = {"task": jnp.broadcast_to(self.task, batch)}
        told["descriptor"] = self.descriptor
        seen = fitted(timestep.observation, self.specs)
        return self.policy.act(state, timestep._replace(observation=seen | told), key)


@dataclass(frozen=True)
class SuiteTrials:
    """The same trials of each task of a suite, for all who are judged on them. Make them with `suite_trials`."""

    suite: SuiteConfig
    jobs: int
    tasks: dict[str, Task]
    """By name; leaves [1, E, ...]."""
    specs: Mapping[str, ArraySpec]
    """What the suite has room for in an observation."""
    descriptors: Float[Array, "K E D"]
    key: Key[Array, ""]
    rules: dict[str, dict[str, Float[np.ndarray, " E"]]]
    """By task, the mean response time of each rule in each episode."""

    def best(self, task: str) -> str:
        """The rule of the lowest mean response time in a task."""
        of_task = self.rules[task]
        return min(of_task, key=lambda name: of_task[name].mean())

    def responses(self, policy: Policy, only: Sequence[str] = ()) -> dict[str, Float[np.ndarray, " E"]]:
        """By task, all or those named, the mean response time of each episode of a policy, told the task."""
        found = {}
        for number, (name, task) in enumerate(self.tasks.items()):
            if only and name not in only:
                continue
            world = FleetEnv(view=self.suite.views[number], reward=self.suite.reward)
            informed = Informed(policy, jnp.int32(number), self.descriptors[number], self.specs)
            agent = Contestant("agent", informed, world, training_seed=0)
            found[name] = play([agent], task, self.key, self.jobs)[0].response[0].mean(0)
        return found

    def score(self, task: str, response: Values) -> Estimate:
        """Of mean response times [S, E] (training seeds x episodes) in a task, with an interval of 95 % by the delta
        method; that the best rule was chosen on these episodes errs against the agent."""
        return over_episodes(self.scores(task, response))

    def scores(self, task: str, response: Values) -> Values:
        """Numbers whose mean is the score, and whose spread is, to first order, that of the score."""
        chance, best = self.rules[task]["random"], self.rules[task][self.best(task)]
        room = (chance - best).mean()
        value = (chance - response).mean() / room
        return value + ((chance - response) - value * (chance - best)) / room


def suite_trials(suite: SuiteConfig, episodes: int, jobs: int, seed: int) -> SuiteTrials:
    """Draw the trials, and let the rules play them. They are the same for all training seeds and agents."""
    fleets = suite_fleets(suite.suite, episodes, seed)
    world, _ = suite.seen(fleets)
    of_task = [np.flatnonzero(np.asarray(fleets.index) == k) for k in range(len(suite.names))]
    tasks = {
        name: jax.tree.map(lambda leaf, of=of: leaf[None, of], fleets.task)
        for name, of in zip(suite.names, of_task, strict=True)
    }
    described = jnp.stack([fleets.descriptor[of] for of in of_task])
    key, rules = jax.random.key(seed), {}
    for (name, task), view in zip(tasks.items(), suite.views, strict=True):
        playing = _rivals(jax.tree.map(lambda leaf: leaf[0], task), view)
        played = play(playing, task, key, jobs)
        rules[name] = {c.name: done.response[0].mean(0) for c, done in zip(playing, played, strict=True)}
    return SuiteTrials(suite, jobs, tasks, world.world.observation_spec, described, key, rules)


def _rivals(tasks: Task, view: View) -> Sequence[Contestant]:
    """The rules that see no more than an agent that sees `view`."""
    return [c for c in opponents(tasks, view, RIVALS) if c.role == "rule"]


@dataclass(frozen=True)
class SuiteCurve:
    """Judges policies in training. Make one with `suite_curve`."""

    trials: SuiteTrials

    def __call__(self, policy: Policy) -> dict[str, float]:
        """`evaluation/score`, the mean over the tasks that are trained on; `evaluation/score_new`, that over the
        others; `evaluation/score/TASK` of each."""
        played, suite = self.trials.responses(policy), self.trials.suite
        scores = {name: self.trials.score(name, response[None]).value for name, response in played.items()}
        learned = [scores[name] for name in suite.learned]
        new = [score for name, score in scores.items() if name not in suite.learned]
        means = {"evaluation/score": float(np.mean(learned))}
        means |= {"evaluation/score_new": float(np.mean(new))} if new else {}
        return means | {f"evaluation/score/{name}": score for name, score in scores.items()}


def suite_curve(config: TrainConfig, suite: SuiteConfig) -> SuiteCurve:
    """The trials of the learning curve."""
    curve = config.curve
    return SuiteCurve(suite_trials(suite, curve.episodes, curve.jobs, stream_seed(0, "learning curve")))


def evaluate_suite(run: RunFolder, suite: SuiteConfig, exam: Exam) -> list[Row]:
    """Judge the agent of a run, as its newest checkpoint has it, on each task of its suite, and keep the table.

    Errors: those of `kept`.
    """

    def tables(config: TrainConfig, trainer: WorldTrainer, step: int, state: PyTree) -> dict[str, list[Row]]:
        trials, policy = suite_trials(suite, exam.episodes, exam.jobs, exam.stream), trainer.policy(state)
        of: Row = {"agent": config.name, "training_seed": config.seed, "steps": step}
        responses = trials.responses(policy).items()
        found = {SCORES: [of | score_row(trials, name, response[None]) for name, response in responses]}
        asked = tables_of(config)
        if LIKENESS in asked:
            found[LIKENESS] = likeness_rows(state.averaged.model, suite)
        if DREAMS in asked:
            found[DREAMS] = dream_rows(state.averaged.model, policy, suite, exam.stream)
        return found

    return kept(run, False, tables)[SCORES]


def compare_in_suite(paths: Sequence[Path], exam: Exam, trust: bool = False) -> list[Row]:
    """Agents of runs that learned one suite, on the same jobs: for each of its tasks, and for all of them together
    (`task` is None), a row for each agent, the best first.

    Returns `score` and, beside the best rule of each task, `ratio`, each with its interval of 95 %; `beside`, the
    geometric mean of the ratios of response times to the first agent (`against`), with `p`, `verdict` and `claim`
    as in `statistics.verdict`; `seeds`, `episodes`; `learned`, whether it was trained on the task.

    Raises:
        ValueError: a run did not learn this suite in this view; as for `load_trained` besides.
    """
    agents = load_trained(paths, trust)
    suites = [agent.config.suite for agent in agents]
    seen = {None if suite is None else (suite.suite, suite.views) for suite in suites}
    if (suite := suites[0]) is None or len(seen) > 1:
        raise ValueError(f"{', '.join(agent.name for agent in agents)} did not learn one suite, seen in one way")
    trials = suite_trials(suite, exam.episodes, exam.jobs, exam.stream)
    played: dict[str, list[Float[np.ndarray, "K E"]]] = {}
    learned: dict[str, tuple[str, ...]] = {}
    for agent, own in zip(agents, suites, strict=True):
        judged = replace(trials, suite=own or suite)  # paid as it was in training
        played.setdefault(agent.name, []).append(np.stack([*judged.responses(agent.policy).values()]))
        learned[agent.name] = judged.suite.learned
    responses = {name: np.stack(each, 1) for name, each in played.items()}  # [K, S, E]
    rows = _beside(trials, responses, suite.names, None, learned)
    for k, task in enumerate(suite.names):
        rows += _beside(trials, {name: each[k : k + 1] for name, each in responses.items()}, (task,), task, learned)
    return rows


def _beside(
    trials: SuiteTrials,
    responses: Mapping[str, Float[np.ndarray, "K S E"]],
    tasks: Sequence[str],
    task: str | None,
    learned: Mapping[str, Sequence[str]],
) -> list[Row]:
    """How agents stand in some tasks together."""
    against = next(iter(responses))
    times = {name: np.exp(np.log(each).mean(0)) for name, each in responses.items()}  # [S, E]
    rules = np.exp(np.mean([np.log(trials.rules[each][trials.best(each)]) for each in tasks], 0))[None]
    words = decided({name: np.log(each) for name, each in times.items()}, against)
    rows: list[Row] = []
    for name in sorted(times, key=lambda name: np.log(times[name]).mean()):
        scores = np.mean([trials.scores(each, responses[name][k]) for k, each in enumerate(tasks)], 0)
        row: Row = {"task": task, "learned": set(tasks) <= set(learned[name]), "agent": name, "against": against}
        row |= {"seeds": times[name].shape[0], "episodes": times[name].shape[1]}
        row |= dict(zip(("score", "score_low", "score_high"), over_episodes(scores), strict=True))
        row |= dict(zip(("ratio", "low", "high"), ratio(times[name], rules), strict=True))
        compared = (None,) * 3 if name == against else ratio(times[name], times[against])
        row |= dict(zip(("beside", "beside_low", "beside_high"), compared, strict=True))
        row["p"], row["verdict"] = words[name]
        row["claim"] = is_claim(times[name], times[against])
        rows.append(row)
    return rows


def tables_of(config: TrainConfig) -> list[str]:
    """The tables that `evaluate_suite` makes of a run."""
    match config.agent.algorithm, config.suite:
        case DreamerConfig(model=MixtureConfig()), SuiteConfig(views=views) if set(views) == {"full"}:
            return [SCORES, LIKENESS, DREAMS]
        case DreamerConfig(model=MixtureConfig()), _:
            return [SCORES, LIKENESS]
    return [SCORES]


def score_row(trials: SuiteTrials, task: str, response: Values) -> Row:
    """What mean response times [S, E] are worth in a task, beside the rules."""
    rules, best = trials.rules[task], trials.best(task)
    row: Row = {"task": task, "learned": task in trials.suite.learned, "episodes": response.shape[1]}
    row |= {"response": float(response.mean()), "rule": best, "rule_response": float(rules[best].mean())}
    row |= {"random_response": float(rules["random"].mean())}
    row |= dict(zip(("score", "score_low", "score_high"), trials.score(task, response), strict=True))
    return row | dict(zip(("ratio", "low", "high"), ratio(response, rules[best][None]), strict=True))


def suite_of(run: RunFolder) -> SuiteConfig | None:
    """The suite that a run trains in; None where it trains in something else, or is no training run."""
    return None if (config := training_of(run)) is None else config.suite


def was_scored(run: RunFolder) -> bool:
    """Whether the tables are there, as they were written."""
    return all(is_sealed(run.tables, name) for name in tables_of(stored(run)))
