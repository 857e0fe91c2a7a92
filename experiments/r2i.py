"""What of R2I's world model matters for remembering: one change at a time, in RepeatPrevious.

Variants of the settings of `reverie train --game repeat_previous/LEVEL`: the paper's ablations (posterior with and
without recurrence, what actor and critic see, how long replayed sequences are), dreams from fewer and from all replayed
states (64 otherwise), and, one by one, what is ours (modes on a ring, recall, the product of memory and action). Then
the paper's question whether it is the changing world model that makes policies fail: learned from a data set of random
play that never grows, along with the policy (`data`) or before it (`model`), for what actor and critic may see.

    python experiments/r2i.py
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from matplotlib.figure import Figure
from study import Study, study

from reverie.agents.dreamer import Dreamer
from reverie.evaluate.returns import return_curve
from reverie.evaluate.statistics import over_seeds
from reverie.models.s3m import S3MConfig
from reverie.report.figures import WIDTH
from reverie.report.output import say
from reverie.report.style import BLUE, GREEN, VERMILLION, setting
from reverie.runs.build import build
from reverie.settings.config import OffPolicyRun, TrainConfig
from reverie.settings.games import game_plan
from reverie.tables import Row
from reverie.train import off_policy
from reverie.train import replay as replays
from reverie.train.off_policy import OffPolicy, OffPolicyConfig

Fixed = Literal["data", "model"]


@dataclass(frozen=True)
class R2I(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds of each variant."""
    game: str = "repeat_previous/medium"
    """The game that variants are compared in."""
    steps: int = 50_000
    """Environment steps of each training."""
    fixed_game: str = "repeat_previous/easy"
    """The game for fixed data sets and models."""
    fixed_updates: int = 450
    """Updates of each policy there."""

    def plans(self) -> list[TrainConfig]:
        """Of all variants, one for each seed.

        Errors: ValueError where there are more steps than the step size falls over.
        """
        most = game_plan(self.game).loop.steps
        if most is not None and self.steps > most:
            raise ValueError(f"--steps must be at most {most} in {self.game}, whose step size ends there: {self.steps}")
        return [replace(plan, seed=seed) for seed in range(self.seeds) for plan in self.variants()]

    def variants(self) -> Iterator[TrainConfig]:
        models: dict[str, dict[str, Any]] = {
            "base": {},
            "recurrent-posterior": {"posterior": "recurrent"},
            "policy-output": {"policy": "output"},
            "policy-full": {"policy": "full"},
            "legs": {"modes": "legs"},
            "no-recall": {"recall": 0},
            "no-product": {"product": False},
        }
        for name, changes in models.items():
            yield self._variant(name, model=changes)
        for starts in (16, 0):
            name = f"starts-{starts}" if starts else "starts-all"
            plan = self._variant(name)
            agent = replace(plan.agent, algorithm=replace(plan.agent.algorithm, starts=starts))
            yield replace(plan, agent=agent)
        for length in (64, 256, 512, 1024):
            yield self._variant(f"length-{length}", experience={"length": length, "batch": 1024 // length})

    def _variant(
        self, name: str, model: Mapping[str, Any] | None = None, experience: Mapping[str, Any] | None = None
    ) -> TrainConfig:
        plan = with_model_changes(game_plan(self.game), **(model or {}))
        agent = replace(plan.agent, experience=replace(plan.agent.experience, **(experience or {})))
        loop = replace(plan.loop, steps=self.steps, evaluate_every=self.steps // 10)
        return self.larger(replace(plan, agent=agent, loop=loop, label=f"r2i-{name}"))


def with_model_changes(plan: TrainConfig, **changes: Any) -> TrainConfig:
    """The plan with other options of its S3M."""
    assert isinstance(plan.agent, OffPolicyRun)
    algorithm = plan.agent.algorithm
    assert isinstance(algorithm.model, S3MConfig)
    return replace(
        plan, agent=replace(plan.agent, algorithm=replace(algorithm, model=replace(algorithm.model, **changes)))
    )


# --- fixed data and fixed models --------------------------------------------------------------------------------------


def random_play(agent: Dreamer, plan: TrainConfig, seed: int) -> OffPolicy:
    """Fresh networks, and a replay full of what the untrained policy, which is near uniform, has done."""
    trainer = build(plan)
    config = trainer.config
    assert isinstance(config, OffPolicyConfig)
    state = off_policy.init(agent, config, trainer.env, trainer.pool, jax.random.key(seed))
    rows = config.capacity // config.streams - (config.length + 1)
    gathered = partial(off_policy.gather, agent, config, trainer.env, trainer.pool)
    collector, more, _ = jax.jit(gathered, static_argnums=2)(state.learner, state.collector, rows)
    return state._replace(collector=collector, replay=replays.add(state.replay, more))


def learn(agent: Dreamer, config: OffPolicyConfig, state: OffPolicy, updates: int, frozen: bool) -> OffPolicy:
    """Updates on the replay as it is. With `frozen`, the world model stays what it was."""

    def one_update(state: OffPolicy, _: None) -> tuple[OffPolicy, None]:
        key, place_key, update_key = jax.random.split(state.key, 3)
        none = jax.numpy.zeros(0, int)
        place = replays.sample(state.replay, config.batch, config.length + 1, none, place_key)
        learner, kept, _ = agent.update(state.learner, replays.read(state.replay, place), update_key)
        if frozen:
            networks = replace_model(learner.networks, state.learner.networks.model)
            learner = learner._replace(networks=networks)
        newer = jax.tree.map(lambda x: x[:, agent.rows_lent :], place)
        replay = replays.write(state.replay, newer, kept=kept)
        return state._replace(learner=learner, replay=replay, key=key), None

    return jax.lax.scan(one_update, state, None, length=updates)[0]


def replace_model(networks: Any, model: Any) -> Any:
    return eqx.tree_at(lambda networks: networks.model, networks, model)


def of_fixed(asked: R2I, fixed: Fixed, policy: str, seed: int, parts: int = 6) -> list[Row]:
    """The learning curve of a policy on a data set that never grows."""
    plan = with_model_changes(game_plan(asked.fixed_game), policy=policy)
    trainer = build(plan)
    agent, config, curve = trainer.agent, trainer.config, return_curve(plan.world, plan.curve)
    assert isinstance(agent, Dreamer)
    assert isinstance(config, OffPolicyConfig)
    state = random_play(agent, plan, seed)
    chunk = asked.fixed_updates // parts
    step = jax.jit(partial(learn, agent, config, updates=chunk, frozen=False), donate_argnums=0)
    if fixed == "model":
        for _ in range(parts):
            state = step(state)
        # Actor, critic and optimiser begin anew; the model, and what replay remembers of it, stay.
        fresh = agent.init(jax.random.key(seed + 1000))
        networks = replace_model(fresh.networks, jax.tree.map(jax.numpy.copy, state.learner.networks.model))
        state = state._replace(learner=fresh._replace(networks=networks))
        step = jax.jit(partial(learn, agent, config, updates=chunk, frozen=True), donate_argnums=0)
    rows: list[Row] = []
    for part in range(parts):
        state = step(state)
        score = curve(agent.policy(state.learner.networks, greedy=True))["evaluation/return"]
        rows.append({"fixed": fixed, "policy": policy, "seed": seed, "updates": (part + 1) * chunk, "return": score})
    say(f"fixed {fixed}, policy sees {policy}, seed {seed}: {rows[-1]['return']:.3f}")
    return rows


def of_growing(asked: R2I, policy: str) -> list[TrainConfig]:
    """The same with data that grow as usual."""
    plan = with_model_changes(game_plan(asked.fixed_game), policy=policy)
    steps = asked.fixed_updates * dreaming_of(plan).env_steps + dreaming_of(plan).first_steps
    loop = replace(plan.loop, steps=steps, evaluate_every=max(1, steps // 6))
    return [replace(plan, loop=loop, label=f"r2i-growing-{policy}", seed=seed) for seed in range(asked.seeds)]


def dreaming_of(plan: TrainConfig) -> OffPolicyConfig:
    assert isinstance(plan.agent, OffPolicyRun)
    return plan.agent.experience


# --- tables and pictures ----------------------------------------------------------------------------------------------


def summary(name: str, scores: list[float], **more: Any) -> Row:
    mean, low, high = over_seeds(np.array(scores))
    return {"variant": name, "seeds": len(scores), "return": mean, "low": low, "high": high} | more


PANELS: Mapping[str, tuple[str, ...]] = {
    "R2I's ablations": ("base", "recurrent-posterior", "policy-output", "policy-full"),
    "without what is ours": ("base", "legs", "no-recall", "no-product"),
    "steps of a replayed sequence": ("length-64", "base", "length-256", "length-512", "length-1024"),
}
"""Variants that are shown side by side."""


def picture(
    curves: Mapping[str, list[list[tuple[float, float]]]], panels: Mapping[str, tuple[str, ...]] = PANELS
) -> Figure:
    """Learning curves of the variants, all seeds."""
    colours = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00")
    with setting():
        figure = Figure(figsize=(WIDTH * (0.4 * len(panels) + 0.1), 3.0))
        for axis, (title, names) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            for colour, name in zip(colours, names, strict=False):
                words = "length-128" if name == "base" and "length" in names[0] else name
                for i, points in enumerate(curves[name]):
                    axis.plot(*np.array(points).T, color=colour, linewidth=1.2, label=None if i else words)
            axis.set_title(title)
            axis.set_xlabel("thousand environment steps")
            axis.legend(loc="upper left", fontsize=7)
        figure.axes[0].set_ylabel("mean return")
    return figure


def main() -> None:
    asked = study(R2I, __doc__)
    runs = asked.train(asked.plans(), "r2i")
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    seconds: dict[str, list[float]] = {}
    for run in runs:
        name, metrics = run.path.name.rsplit("-", 1)[0].removeprefix("r2i-"), list(run.metrics())
        points = [(m["step"] / 1000, m["evaluation/return"]) for m in metrics if "evaluation/return" in m]
        curves.setdefault(name, []).append(points)
        seconds.setdefault(name, []).append(metrics[-1]["cpu_seconds"])
    asked.publish(
        "r2i",
        [
            summary(name, [points[-1][1] for points in mine], cpu_seconds=float(np.mean(seconds[name])))
            for name, mine in curves.items()
        ],
    )
    asked.draw("r2i", picture(curves))

    rows: list[Row] = []
    for policy in ("output", "hidden"):
        grown = asked.train(of_growing(asked, policy), "r2i")
        last = [
            next(m["evaluation/return"] for m in reversed(list(run.metrics())) if "evaluation/return" in m)
            for run in grown
        ]
        rows.append(summary("growing data", last, policy=policy))
        for fixed in ("data", "model"):
            curves_of = [
                asked.kept(
                    f"r2i-fixed-{fixed}-{policy}-{asked.fixed_game.replace('/', '-')}-{asked.fixed_updates}-{seed}",
                    partial(of_fixed, asked, fixed, policy, seed),
                )
                for seed in range(asked.seeds)
            ]
            rows.append(summary(f"fixed {fixed}", [float(curve[-1]["return"]) for curve in curves_of], policy=policy))
    asked.publish("r2i_fixed", rows)


if __name__ == "__main__":
    main()
