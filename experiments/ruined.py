"""What ruins a STORM of a fleet, and what mends it: is the model at fault, the critic or the actor (docs/mixture.md)?

`proxy` is the task of the suite `schemas` that all runs of an ensemble fail at, one fast server seen as a proxy sees
it; in `wide` a server has four variables of z in place of two. `horizon-333` is the first stage of `stream.py` on other
seeds; in `horizon-33` the agent looks a tenth as far ahead. Measured are how much z says of what waits at a server,
and, at each state of the agent's own play, how well servers are put in order by the reward that the model foretells, by
the critic's word on the state that it foretells, and by the policy: beside what comes if each action is tried once in
reality, with the same luck.

    python experiments/ruined.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import stream
from jaxtyping import Array, Float, Key
from mixture import Mixtures, measured, plan, trained
from scipy.stats import rankdata
from study import ExamOptions, Study, study

from reverie.envs.core import batch_step
from reverie.envs.fleet.env import FleetEnv, Task
from reverie.evaluate.examination import Exam
from reverie.evaluate.suites import Informed, SuiteTrials, suite_trials
from reverie.policies.rollout import Play, advance, begin
from reverie.report.output import say
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE
from reverie.tables import Row

PROXY = "one-fast/bursty"
EPISODES, JOBS, WARM, DREAMS = 30, 120, 20, 8
"""Of the states that are looked at: episodes, jobs of each, those at the beginning that do not count, as servers are
empty then; and dreams of each action."""


Arm = Literal["proxy", "wide", "horizon-333", "horizon-33"]


class Case(NamedTuple):
    suite: Literal["schemas", "corners"]
    task: str
    seeds: range
    changes: Mapping[str, Any]
    """Of the world model."""


CASES: Mapping[Arm, Case] = {
    "proxy": Case("schemas", PROXY, range(3), {}),
    "wide": Case("schemas", PROXY, range(3), {"of_server": 4}),
    "horizon-333": Case("corners", stream.FIRST, range(3, 11), {}),
    "horizon-33": Case("corners", stream.FIRST, range(3, 11), {"horizon": 33.0}),
}


@dataclass(frozen=True)
class Ruined(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=100, jobs=250))
    seeds: int = 8
    """Training seeds at most: three runs are all that an ensemble of `schemas` has of the task."""
    steps: int = 8_000
    """Environment steps."""
    arms: tuple[Arm, ...] = tuple(CASES)
    """What is trained."""


def of_case(arm: Arm, seed: int, steps: int) -> TrainConfig:
    """One task alone; that of the stream as it is learned there."""
    case = CASES[arm]
    streamed = case.suite == stream.SUITE
    model = replace(stream.model_of("shared") if streamed else ALONE, **case.changes)
    begun = plan(Mixtures(suite=case.suite, steps=steps), model, arm, seed, (case.task,))
    return replace(begun, agent=replace(begun.agent, chunk=5)) if streamed else begun


class Said(NamedTuple):
    """Of each server in each state, [T, B, N]: what was seen of it and what z says was; and of it as the one that gets
    the job what came and what is foretold."""

    seen: Float[Array, "T B N"]
    """The first number of its row: its jobs in progress, or the work that waits."""
    decoded: Float[Array, "T B N"]
    came: Float[Array, "T B N"]
    reward: Float[Array, "T B N"]
    critic: Float[Array, "T B N"]
    policy: Float[Array, "T B N"]


@eqx.filter_jit
def said(world: FleetEnv, policy: Informed, networks: Any, tasks: Task, key: Key[Array, ""]) -> Said:
    """What reality, model, critic and actor say of the states that a policy of these `networks` meets."""
    model, critic = networks.model, networks.critic
    batch, rows = tasks.mask.shape

    def step(play: Play, key: Key[Array, ""]) -> tuple[Play, Said]:
        act_key, step_key, dream_key = jax.random.split(key, 3)
        after, _ = advance(world, policy, tasks, play, act_key, step_key)
        now = after.policy_state  # right after the policy saw where `play` stands
        likely = networks.actor(model.features(now.model), now.recurrent)

        def tried(action: Array) -> Array:
            actions = jnp.full((batch,), action)
            return batch_step(world, tasks, play.states, play.timesteps, actions, step_key)[1].reward

        def dreamt(action: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
            encoded = jnp.broadcast_to(jax.nn.one_hot(action, rows), (batch, rows))
            state = model.imagine(now.model, encoded, key)
            return model.reward(state), critic(model.features(state), now.recurrent).mean()

        def of_action(action: Array) -> tuple[Array, ...]:
            dreams = jax.vmap(dreamt, (None, 0))(action, jax.random.split(dream_key, DREAMS))
            return tried(action), *(x.mean(0) for x in dreams), likely.log_prob(jnp.full((batch,), action))

        decoded = model.decoded(now.model)["servers"].mode().reshape(batch, rows, -1)[..., 0]
        judged = (x.T for x in jax.vmap(of_action)(jnp.arange(rows)))
        return after, Said(play.timesteps.observation["servers"][..., 0], decoded, *judged)

    start_key, play_key = jax.random.split(key)
    return jax.lax.scan(step, begin(world, policy, tasks, start_key), jax.random.split(play_key, JOBS))[1]


def explained(seen: Float[np.ndarray, "S N"], decoded: Float[np.ndarray, "S N"]) -> float:
    """The share of the variance of what is seen that z accounts for, both as symlogs."""
    seen, decoded = (np.sign(x) * np.log1p(np.abs(x)) for x in (seen, decoded))
    return float(1 - np.square(seen - decoded).mean() / seen.var())


def agreement(came: Float[np.ndarray, "S N"], foretold: Float[np.ndarray, "S N"]) -> float:
    """The mean correlation of ranks over states in which what came depends on the server; 0 where all are said to be
    alike."""
    states = [(rankdata(a), rankdata(b)) for a, b in zip(came, foretold, strict=True) if np.ptp(a) > 0]
    return float(np.mean([np.corrcoef(a, b)[0, 1] if np.ptp(b) > 0 else 0.0 for a, b in states]))


def looked_into(trials: SuiteTrials, run: RunFolder, task: str) -> Row:
    """The score where actions are drawn, as in training, and what the parts of a run know of servers in that play."""
    trainer = build(run.config(TrainConfig))
    _, state = loop.newest_state(trainer, run)
    number = trials.suite.names.index(task)
    world = FleetEnv(view=trials.suite.views[number], reward=trials.suite.reward)
    tasks = jax.tree.map(lambda leaf: leaf[0, :EPISODES], trials.tasks[task])
    told = jnp.int32(number), trials.descriptors[number, :EPISODES], trials.specs
    drawing = trainer.policy(state, greedy=False)
    drawn = trials.responses(drawing, (task,))[task]
    there = np.flatnonzero(np.asarray(tasks.mask[0]))
    found = jax.tree.map(
        lambda x: np.asarray(x, float)[WARM:, :, there].reshape(-1, len(there)),
        said(world, Informed(drawing, *told), state.averaged, tasks, trials.key),
    )
    row: Row = {"drawn": trials.score(task, drawn[None]).value, "seen": explained(found.seen, found.decoded)}
    return row | {name: agreement(found.came, getattr(found, name)) for name in ("reward", "critic", "policy")}


def main() -> None:
    asked = study(Ruined, __doc__)
    asked.only_here()
    exam, folder = asked.exam, asked.runs / asked.scale / "ruin"

    @cache
    def trials(suite: str) -> SuiteTrials:
        return suite_trials(SuiteConfig(suite), exam.episodes, exam.jobs, exam.stream)

    for arm in asked.arms:
        say(arm)
        case = CASES[arm]
        seeds = case.seeds[: asked.seeds]
        runs = trained(folder, [of_case(arm, seed, asked.steps) for seed in seeds])

        def row(run: RunFolder, seed: int, arm: Arm = arm, case: Case = case) -> list[Row]:
            (score,) = measured(trials(case.suite), run, (case.task,))
            known: Row = {"arm": arm, "seed": seed, "task": case.task, "score": score["score"]}
            known["entropy"] = run.metrics()[-1]["actor/entropy"]
            return [known | looked_into(trials(case.suite), run, case.task)]

        rows = [
            asked.kept(f"ruined-{run.path.name}", lambda run=run, seed=seed: row(run, seed), exam)[0]
            for run, seed in zip(runs, seeds, strict=True)
        ]
        asked.publish_games("ruined", rows, "arm", "seed")


if __name__ == "__main__":
    main()
