"""Does a model that reconstructs better give its actor a gradient of less variance? (Open in the paper on mixtures.)

STORMs of four widths learn one fleet each, for three lengths of training. Then, nothing being learned any more, the
gradient of the actor is computed on many batches of their own replay, each with dreams of its own: `noise` is the trace
of its covariance over the squared length of its mean, how many updates have to be averaged until the mean shows;
`reconstruction` is that loss on the same batches. Actors differ, as each learned in its own model; `entropy` says how
far.

    python experiments/fidelity.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from matplotlib.figure import Figure
from mixture import trained
from scipy.stats import spearmanr
from study import Study, study

from reverie.report.figures import WIDTH
from reverie.report.output import say
from reverie.report.style import BLUE, GREEN, SKY, VERMILLION, setting
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import LoopConfig, SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE
from reverie.settings.suites import of_storms
from reverie.tables import Row
from reverie.train import replay as replays
from reverie.train.off_policy import OffPolicy, fresh

TASKS = ("two-speeds/heavy", "failing/daily")
WIDTHS = {16: SKY, 32: BLUE, 48: GREEN, 96: VERMILLION}
"""Of h, in numbers; 48 is what suites begin with."""
STEPS = (2_000, 4_000, 8_000)
"""Environment steps of a training."""
CHUNK = 5
"""Updates between two looks at the limits, the same for all lengths: they share a program."""
DRAWS = 256
"""Gradients that are compared."""


@dataclass(frozen=True)
class Fidelity(Study):
    """The options of this experiment."""

    seeds: int = 1
    """Training seeds."""


def plan(task: str, width: int, steps: int, seed: int) -> TrainConfig:
    label = f"{task.replace('/', '-')}-{width}-{steps}"
    config = of_storms(SuiteConfig("fleets", tasks=(task,)), replace(ALONE, deter=width), label)
    agent = replace(config.agent, chunk=CHUNK)
    return replace(config, agent=agent, loop=LoopConfig(steps=steps, save_every=200.0), seed=seed)


def measured(run: RunFolder) -> Row:
    """How well the model of a run reconstructs, and how its actor's gradient varies."""
    trainer = build(run.config(TrainConfig))
    _, state = loop.newest_state(trainer, run)
    agent, config, learning = trainer.agent, trainer.config, state.learning
    length = agent.rows_lent + config.length

    @jax.jit  # given all that differs between runs, so that those of one width share it
    def once(learning: OffPolicy, key: Key[Array, ""]) -> tuple[Float[Array, " P"], dict[str, Array]]:
        place_key, loss_key = jax.random.split(key)
        newest = fresh(config, learning.updates)
        place = replays.sample(learning.replay, config.batch, length, newest, place_key)
        batch = agent.batch(replays.read(learning.replay, place))
        networks = learning.learner.networks
        gradient, (_, _, metrics) = eqx.filter_grad(agent.loss, has_aux=True)(
            networks, learning.learner, batch, loss_key
        )
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient.actor)]), metrics

    found = [once(learning, key) for key in jax.random.split(jax.random.key(1), DRAWS)]
    gradients = np.stack([np.asarray(gradient, float) for gradient, _ in found])
    mean = {name: float(np.mean([metrics[name] for _, metrics in found])) for name in found[0][1]}
    spread = gradients.var(0, ddof=1).sum()
    signal = max(0.0, np.square(gradients.mean(0)).sum() - spread / DRAWS)  # without what chance adds to it
    row: Row = {"reconstruction": mean["model/reconstruction"], "kl": mean["model/kl"], "variance": float(spread)}
    return row | {"noise": float(spread / signal) if signal else None, "entropy": mean["actor/entropy"]}


def picture(rows: Sequence[Row]) -> Figure:
    """One dot for each run."""
    with setting():
        figure = Figure(figsize=(WIDTH, 3.0))
        for axis, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
            for width, colour in WIDTHS.items():
                for steps, marker in zip(STEPS, "vo^", strict=True):
                    at = [r for r in rows if (r["task"], r["width"], r["steps"]) == (task, width, steps) and r["noise"]]
                    label = f"width {width}, {steps:,} jobs"
                    xy = [(float(str(r["reconstruction"])), float(str(r["noise"]))) for r in at]
                    axis.plot(*np.array(xy).reshape(-1, 2).T, marker, color=colour, markersize=4, label=label)
            axis.set(title=task, xlabel="reconstruction loss", yscale="log")
        figure.axes[0].set_ylabel("noise of the actor's gradient")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=6)
    return figure


def main() -> None:
    asked = study(Fidelity, __doc__)
    asked.only_here()
    rows: list[Row] = []
    for task in TASKS:
        for width in WIDTHS:
            for steps in STEPS:
                say(f"{task}, width {width}, {steps:,} jobs")
                plans = [plan(task, width, steps, seed) for seed in range(asked.seeds)]
                runs = trained(asked.runs / asked.scale / "fidelity", plans)
                for seed, run in enumerate(runs):
                    of: Row = {"task": task, "width": width, "steps": steps, "seed": seed}
                    rows += [of | asked.kept(f"fidelity-{run.path.name}", lambda run=run: [measured(run)])[0]]
    asked.publish("fidelity", rows)
    asked.draw("fidelity", picture(rows))
    for task in TASKS:
        known = [(row["reconstruction"], row["noise"]) for row in rows if row["task"] == task and row["noise"]]
        rank = spearmanr(*zip(*known, strict=True))
        say(f"{task}: correlation of ranks {rank.statistic:.2f}, {len(known)} runs")


if __name__ == "__main__":
    main()
