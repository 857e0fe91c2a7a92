"""Settings for suites of fleets: what `reverie train --suite NAME` begins with.

Unless asked otherwise the agent is that of the preset `cpu`: it sees each server and each job, knows what a queue is,
and tells tasks apart by what it sees. `mixture` is told which task it plays and has parts for each; `shared` is told
too and is the same in all of them; `storm` is not told. These learn a queue from nothing, at the setting at which a
STORM of its own learned each of four fleets (docs/mixture.md says how it was found, and what was measured).
"""

from dataclasses import replace

from reverie.envs.fleet.suites import VIEWS
from reverie.models.storm import StormConfig
from reverie.nn.optimiser import OptimiserConfig
from reverie.settings.config import LoopConfig, SuiteConfig, TrainConfig
from reverie.settings.presets import ALONE, MIXTURE, SHARED, ModelKind, Preset, preset, with_model, with_steps

STORMS = {"storm": ALONE, "mixture": MIXTURE, "shared": SHARED}


def suite_plan(name: str, model: ModelKind | None = None, tasks: tuple[str, ...] = ()) -> TrainConfig:
    """The settings for a suite, with a world model of that kind, unless given that of the preset `cpu`, or the mixture
    where tasks have views of their own, of which that model reads one; `tasks` are those that are learned, all of them
    unless given.

    Raises:
        ValueError: there is no such suite, or no such task in it.
    """
    world = SuiteConfig(name, tasks=tasks)
    model = model or ("mixture" if name in VIEWS else "queue")
    if model in STORMS:
        label = "dreamer-shared" if model == "shared" else None  # the shared model is a mixture of one part
        return of_storms(world, STORMS[model], label)
    begin: dict[ModelKind, Preset] = {"queue": "cpu", "counts": "hidden"}
    plan = with_model(preset("dreamer", begin.get(model, "learned")), model)
    if model == "counts":
        world = replace(world, view="counts", reward="elapsed")
    steps = len(world.learned) * (20_000 if model in begin else 40_000)
    run = replace(plan.agent, experience=replace(plan.agent.experience, by_task=True))
    return replace(with_steps(replace(plan, agent=run, world=world), steps), loop=paced(steps))


def of_storms(world: SuiteConfig, model: StormConfig, label: str | None = None) -> TrainConfig:
    """The settings for any model of STORM's kind: each task has as many streams, sequences and dreams in an update, and
    as many updates, whether it is learned alone or with others."""
    tasks, begun = len(world.learned), preset("dreamer", "learned").agent
    algorithm = replace(
        begun.algorithm,
        model=model,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=20, decay=0),
        memory=0,
        units=48,
        dream_length=5,
        starts=12 * tasks,
        siblings=8,
    )
    experience = replace(
        begun.experience,
        streams=16 * tasks,
        batch=16 * tasks,
        length=12,
        ratio=12.0,
        capacity=12_000 * tasks,
        by_task=tasks > 1,
    )
    run = replace(begun, algorithm=algorithm, experience=experience, averaging=0.04)
    steps = 8_000 * tasks
    return replace(with_steps(TrainConfig(run, world, label=label), steps), loop=paced(steps))


def paced(steps: int) -> LoopConfig:
    return LoopConfig(steps=steps, evaluate_every=steps // 10)
