"""How few real steps does it take to merge among drivers who yield as none before did, if tasks are imagined too?

Five degrees of yielding to learn from; judged on others between them, and outside, in the third episode on a task. All
have networks of the same sizes and as many updates, of which more or fewer fall to a real step. Beside MetaDreamer
(arXiv 2311.06673) stand PEARL with as many real steps and with 14 times as many; PEARL with as many real tasks as
MetaDreamer has real and imagined ones; SAC in these tasks, which does not ask which it is (domain randomisation); and
SAC that is told.

    python experiments/metadreamer.py
    python experiments/metadreamer.py --seeds 5
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from study import Study, study

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.agents.pearl import PEARLPolicy
from reverie.evaluate.contexts import codes_of, foretelling_error, midpoints
from reverie.evaluate.disentanglement import dci, mig, sap, scatter
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.models.tasks import find_dimensions
from reverie.report.output import say
from reverie.report.style import BLUE, GREY, MUTED, ORANGE, setting
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, LoopConfig, OffPolicyRun, TrainConfig
from reverie.settings.games import Player, game_plan
from reverie.tables import Row

UPDATES = 4_000
TRIALS = 1_000
"""Of each set of tasks, and tasks that codes are measured on."""
KEY = jax.random.key(1)
AHEAD = 10
"""Steps after which the generative model is judged, besides one."""


def learner(label: str, game: str, agent: Player, repeats: int, **changes: object) -> TrainConfig:
    """An agent with `repeats` updates for each step of all streams; `changes` are of MetaDreamer."""
    plan = game_plan(game, agent)
    assert isinstance(plan.agent, OffPolicyRun)
    before, algorithm = plan.agent.experience, plan.agent.algorithm
    if isinstance(algorithm, MetaDreamerConfig):
        algorithm = replace(algorithm, **changes)
    ratio, prefill = before.batch * repeats / before.streams, 100 * before.streams
    experience = replace(before, repeats=repeats, ratio=ratio, prefill=prefill)
    rounds = UPDATES // repeats
    steps = experience.first_steps + rounds * experience.env_steps
    run = replace(plan.agent, algorithm=algorithm, experience=experience, chunk=rounds // 4)
    return replace(plan, label=label, agent=run, loop=LoopConfig(steps=steps, evaluate_every=steps // 4))


@dataclass(frozen=True)
class Merging(Study):
    """The options of this experiment."""

    seeds: int = 3
    """Training seeds."""

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """A plan at the scale of this study; what MetaDreamer shares with PEARL grows as PEARL does."""
        match plan.agent.algorithm:
            case MetaDreamerConfig() as ours if self.scale == "gpu":
                pearl = super().larger(replace(plan, agent=replace(plan.agent, algorithm=ours.pearl)))
                algorithm = replace(ours, pearl=pearl.agent.algorithm)
                return replace(pearl, agent=replace(pearl.agent, algorithm=algorithm))
        return super().larger(plan)

    def plans(self) -> list[TrainConfig]:
        """What the claim is about for all seeds, then what it is held to."""
        sac = game_plan("merging", "sac")
        assert isinstance(sac.agent, OffPolicyRun)
        sac = replace(sac, agent=replace(sac.agent, algorithm=replace(sac.agent.algorithm, units=64)))
        told = replace(sac, label="sac-told", world=GameConfig("merging/told"), loop=replace(sac.loop, steps=60_000))
        random = replace(sac, label="sac-dense", world=GameConfig("merging/dense"), loop=told.loop)
        claim = [
            learner("metadreamer", "merging", "metadreamer", 20, structure=1.0, apart=0.5),
            learner("pearl", "merging", "pearl", 20),
            learner("pearl-14-times", "merging", "pearl", 1),
        ]
        controls = [
            learner("metadreamer-plain", "merging", "metadreamer", 20),
            learner("metadreamer-free", "merging", "metadreamer", 20, decoder="free", structure=1.0, apart=0.5),
            learner("pearl-dense", "merging/dense", "pearl", 20),
            random,
            told,
        ]
        return [
            self.larger(replace(plan, seed=seed))
            for group in (claim, controls)
            for seed in range(self.seeds)
            for plan in group
        ]


def judged(run: RunFolder) -> Row:
    """What one agent brings home, and what its codes and its model are worth."""
    config = run.config(TrainConfig)
    assert isinstance(config.world, GameConfig)
    trainer = build(config)
    _, state = loop.newest_state(trainer, run)
    policy, found = trainer.policy(state), {}
    for name in ("interpolated", "extrapolated"):
        world, tasks = config.world.open(TRIALS, name)
        found[name] = float(returns(world, policy, tasks, KEY, 3)[:, -1].mean())
    match trainer.agent:
        case MetaDreamer() as agent:
            found |= imagination(agent, trainer.env, state.averaged, policy)
            updates = int(run.metrics()[-1]["updates"]) * trainer.config.repeats
            lines = [line["imagined/steps"] for line in run.metrics() if "imagined/steps" in line]
            renew, before = agent.config.renew, max(agent.config.warmup, 1) - 1
            renewals = updates // renew - before // renew
            found["imagined_steps"] = float(np.mean(lines[1:])) * renewals * agent.config.rollouts
    return found


def imagination(agent: MetaDreamer, world, networks, policy: PEARLPolicy) -> Mapping[str, float]:
    """Codes of tasks that were not learned from, and how far the model is off half way between two that were."""
    low, high = np.min(agent.tasks, 0), np.max(agent.tasks, 0)
    dense = np.random.default_rng(2).uniform(low, high, (TRIALS, len(low))).astype(np.float32)
    steps = agent.config.pearl.evidence
    codes = np.asarray(codes_of(world, policy, jnp.asarray(dense), 4, steps, KEY))
    mean = codes[:, 0]
    known = np.asarray(agent.tasks, np.float32)
    of_known = np.asarray(codes_of(world, policy, jnp.asarray(known), 64, steps, KEY)).mean(1)
    pairs = midpoints(known)[1]
    between = jnp.asarray(np.repeat([known[[a, b]].mean(0) for a, b in pairs], 64, 0))
    z = np.repeat([of_known[[a, b]].mean(0) for a, b in pairs], 64, 0)
    off = np.asarray(foretelling_error(world, networks.model, between, jnp.asarray(z), AHEAD, KEY))
    wrong = np.asarray(foretelling_error(world, networks.model, between, jnp.zeros_like(z), AHEAD, KEY))
    return {
        "scatter": scatter(codes),
        "informativeness": dci(mean, dense).informativeness,
        "sap": sap(mean, dense),
        "mig": mig(mean, dense),
        "off_1": float(off[0]),
        "off_10": float(off[-1]),
        "unknowing_1": float(wrong[0]),
        "unknowing_10": float(wrong[-1]),
    }


def picture(run: RunFolder) -> Figure:
    """Codes of tasks that were not learned from, with those that are imagined; and how speeds go on, in the world and
    in the model, which was told the code of a context."""
    trainer = build(run.config(TrainConfig))
    _, state = loop.newest_state(trainer, run)
    agent, world, policy = trainer.agent, trainer.env, trainer.policy(state)
    learner, known = state.learning.learner, np.asarray(agent.tasks, np.float32)
    found, explained = find_dimensions(learner.codes, jnp.asarray(known), learner.known)
    steps, shown = agent.config.pearl.evidence, np.array([[-0.8], [0.0], [0.8]], np.float32)
    dense = np.random.default_rng(2).uniform(known.min(), known.max(), (300, 1)).astype(np.float32)
    codes = np.asarray(codes_of(world, policy, jnp.asarray(dense), 1, steps, KEY))[:, 0]
    imagined = np.asarray(agent.interpolation.codes(learner.codes, found, 0.0, 200, KEY))
    others = int(np.argmax(np.where(np.arange(codes.shape[1]) == int(found[0]), -1, codes.std(0))))
    of_shown = np.asarray(codes_of(world, policy, jnp.asarray(shown), 16, steps, KEY)).mean(1)
    with setting():
        figure = Figure(figsize=(8.8, 3.4))
        left, *right = figure.subplots(1, 4, width_ratios=(2, 1, 1, 1))
        dots = left.scatter(codes[:, int(found[0])], codes[:, others], c=dense[:, 0], s=8, cmap="viridis")
        left.plot(imagined[:, int(found[0])], imagined[:, others], "x", color=MUTED, markersize=4)
        left.set(xlabel=f"z {int(found[0])}: yielding, R² {float(explained[0]):.2f}", ylabel=f"z {others}")
        figure.colorbar(dots, ax=left, label="yielding")
        for axis, task, z in zip(right, shown, of_shown, strict=True):
            real, foretold = speeds(world, state.averaged.model, jnp.asarray(task), jnp.asarray(z))
            for car, colour in enumerate((BLUE, ORANGE, GREY)):
                axis.plot(real[:, car], color=colour)
                axis.plot(foretold[:, car], "--", color=colour)
            axis.set(title=f"yielding {task[0]:.1f}", xlabel="steps")
        right[0].set_ylabel("speed of the others, in 25 m/s")
    return figure


def speeds(world, model, task: jax.Array, z: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Of the other cars, while one coasts along the ramp: in the world and in the model [25, 3]."""
    state, timestep = world.reset(task, KEY)
    numbers, real, foretold = timestep.observation["road"], [], []
    for _ in range(25):
        real.append(timestep.observation["road"][5:])
        foretold.append(numbers[5:])
        state, timestep = world.step(task, state, jnp.zeros(1), KEY)
        numbers = model(numbers, jnp.zeros(1), z, timestep.observation["road"])[0].observation
    return np.stack(real), np.stack(foretold)


def rows(runs: list[RunFolder]) -> list[Row]:
    """Means over seeds."""
    found: dict[str, list[tuple[RunFolder, Row]]] = {}
    for run in runs:
        say(run.path.name)
        found.setdefault(run.config(TrainConfig).name, []).append((run, judged(run)))
    made = []
    for name, each in found.items():
        config, last = each[0][0].config(TrainConfig), [run.metrics()[-1] for run, _ in each]
        row: Row = {
            "agent": name,
            "tasks": config.world.variants,
            "seeds": len(each),
            "real_steps": int(last[0]["step"]),
        }
        row["cpu_seconds"] = float(np.mean([line["cpu_seconds"] for line in last]))
        for tasks in ("interpolated", "extrapolated"):
            mean, low, high = over_seeds(np.array([measured[tasks] for _, measured in each]))
            row |= {tasks: mean, f"{tasks}_low": None if np.isnan(low) else low}
            row[f"{tasks}_high"] = None if np.isnan(high) else high
        for measure in MEASURES:
            values = [measured[measure] for _, measured in each if measure in measured]
            row[measure] = float(np.mean(values)) if values else None
        made.append(row)
    return made


MEASURES = (
    "imagined_steps",
    "scatter",
    "informativeness",
    "sap",
    "mig",
    "off_1",
    "off_10",
    "unknowing_1",
    "unknowing_10",
)
"""Of MetaDreamer alone."""


def main() -> None:
    asked = study(Merging, __doc__)
    runs = asked.train(asked.plans(), "merging")
    asked.draw("metadreamer", picture(runs[0]))
    asked.publish("metadreamer", rows(runs))


if __name__ == "__main__":
    main()
