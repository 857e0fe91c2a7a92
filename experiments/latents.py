"""Latent space: do the discrete codes of a world model tell workloads apart, of which some were never seen?

Two world models with discrete codes, the flat RSSM and the one that keeps servers apart, are trained on the mixture of
easy, medium and hard load. Codes are recorded on these three, on overload and on bursts, and judged by silhouette and
the purity of nearest neighbours from other trials. Controls: the observation itself, and the deterministic state h.

    python experiments/latents.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from study import Study, agent, study

from reverie.envs.fleet.env import FleetEnv
from reverie.envs.fleet.families import draw_tasks, family
from reverie.evaluate.examination import Exam
from reverie.evaluate.probes import numbers, purity, record, silhouette, standardised
from reverie.evaluate.statistics import over_seeds
from reverie.models.latent import LatentState
from reverie.models.rssm import RSSMConfig
from reverie.models.set_rssm import SetState
from reverie.report.figures import WIDTH
from reverie.report.style import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, setting
from reverie.runs.folder import RunFolder
from reverie.settings.config import OffPolicyRun, TrainConfig
from reverie.settings.presets import preset
from reverie.tables import Row

WORKLOADS = {"easy": BLUE, "medium": GREEN, "hard": ORANGE, "overload": VERMILLION, "burst": PURPLE}
"""The last two are not in the mixture."""
TRIALS, JOBS, FIRST, EVERY = 24, 1000, 100, 50
"""Trials of each workload, their length, and the moments that are taken: after some jobs, then every so many."""
SOURCES = ("codes", "h", "observation")
FLAT = RSSMConfig(units=64, deter=256, stoch=8, classes=8)


@dataclass(frozen=True)
class Latents(Study):
    """The options of this experiment."""

    seeds: int = 2
    """Training seeds of each model."""
    steps: int = 40_000
    """Environment steps of training at the scale `cpu`."""


def plans(asked: Latents) -> dict[str, list[TrainConfig]]:
    """By world model, what is trained for each seed."""
    plan = preset("dreamer", "learned")
    plan = replace(
        plan,
        world=replace(plan.fleet, family="mixed"),
        loop=replace(plan.loop, steps=asked.steps, evaluate_every=asked.steps),
    )
    assert isinstance(plan.agent, OffPolicyRun)
    flat = replace(plan.agent, algorithm=replace(plan.agent.algorithm, model=FLAT))
    named = {"set-rssm": plan, "rssm": replace(plan, agent=flat)}
    return {
        name: [asked.larger(replace(of, label=f"latents-{name}", seed=seed)) for seed in range(asked.seeds)]
        for name, of in named.items()
    }


def states(run: RunFolder, stream: int) -> dict[str, np.ndarray]:
    """Of all moments taken, a row each: the three sources, and `workload` and `trial` as numbers."""
    world, policy = run.config(TrainConfig).fleet, agent(run).policy
    moments = []
    for number, workload in enumerate(WORKLOADS):
        tasks = draw_tasks(family(workload), TRIALS, stream)
        env = FleetEnv(tasks.mask.shape[-1], JOBS, world.view, world.reward)
        recorded = record(env, policy, tasks, jax.random.key(stream))
        seen: Any = jax.tree.map(lambda leaf: leaf[0, FIRST::EVERY], recorded)  # [Q, E, ...]
        codes, h = parts(seen.state.model)
        observation = {name: leaf for name, leaf in seen.observation.items() if name != "mask"}
        rows = {"codes": numbers(codes, 2), "h": numbers(h, 2), "observation": numbers(observation, 2)}
        rows = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in rows.items()}
        count = len(rows["codes"])
        trial = number * TRIALS + np.arange(count) % TRIALS
        moments.append(rows | {"workload": np.full(count, number), "trial": trial})
    together = {name: np.concatenate([of[name] for of in moments]) for name in moments[0]}
    # Codes are 0 or 1 and lie apart by how many differ; other numbers have units, which should not count.
    return together | {name: standardised(together[name]) for name in ("h", "observation")}


def parts(state: LatentState | SetState) -> tuple[Any, Any]:
    """The discrete codes of a model state, and its deterministic part h."""
    if isinstance(state, SetState):
        return (state.world_stoch, state.stoch), (state.world_deter, state.deter)
    return state.stoch, state.deter


def measured(model: str, seed: int, seen: dict[str, np.ndarray]) -> list[Row]:
    """Silhouette and purity of each source."""
    label, trial = seen["workload"], seen["trial"]
    return [
        {"model": model, "training_seed": seed, "source": source, "points": len(label)}
        | {"silhouette": silhouette(seen[source], label), "purity": purity(seen[source], label, trial)}
        for source in SOURCES
    ]


def mapped(model: str, seen: dict[str, np.ndarray]) -> list[Row]:
    """Each source in two dimensions by t-SNE (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE

    names, rows = list(WORKLOADS), []
    for source in SOURCES:
        points = TSNE(init="pca", random_state=0).fit_transform(seen[source])
        rows += [
            {"model": model, "source": source, "workload": names[label], "x": float(x), "y": float(y)}
            for (x, y), label in zip(points, seen["workload"], strict=True)
        ]
    return rows


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Over seeds, with intervals."""
    found: list[Row] = []
    for model, source in dict.fromkeys((row["model"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["source"]) == (model, source)]
        row: Row = {"model": model, "source": source, "seeds": len(mine), "points": mine[0]["points"]}
        for measure in ("silhouette", "purity"):
            estimate = over_seeds(np.array([row[measure] for row in mine], float))
            row |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))
        found.append(row)
    return found


def picture(points: Sequence[Row]) -> Figure:
    """The maps, a line a model and a column a source."""
    models = list(dict.fromkeys(str(row["model"]) for row in points))
    with setting():
        figure = Figure(figsize=(WIDTH, 0.3 + 2.7 * len(models)))
        axes = figure.subplots(len(models), len(SOURCES), squeeze=False)
        for (line, column), axis in np.ndenumerate(axes):
            for workload, colour in WORKLOADS.items():
                key = {"model": models[line], "source": SOURCES[column], "workload": workload}
                mine = [(row["x"], row["y"]) for row in points if key.items() <= row.items()]
                axis.plot(*np.array(mine, float).T, ".", color=colour, markersize=2.5, label=workload)
            axis.set_title(f"{models[line]}: {SOURCES[column]}")
            axis.set_xticks([])
            axis.set_yticks([])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", markerscale=4)
    return figure


def main() -> None:
    asked = study(Latents, __doc__)
    wanted = plans(asked)
    runs = asked.train([plan for of_model in wanted.values() for plan in of_model])
    rows: list[Row] = []
    points: list[Row] = []
    stream = Exam().stream
    for run in runs:
        model, seed = run.path.name.removeprefix("latents-").rsplit("-", 1)
        rows += asked.kept(
            f"latents-{model}-{seed}",
            lambda run=run, model=model, seed=seed: measured(model, int(seed), states(run, stream)),
        )
        if seed == "0":
            points += asked.kept(
                f"latents-map-{model}", lambda run=run, model=model: mapped(model, states(run, stream))
            )
    asked.publish("latents", averaged(rows))
    asked.draw("latents", picture(points))


if __name__ == "__main__":
    main()
