"""Settings for suites of fleets: what `reverie train --suite NAME` begins with.

Unless asked otherwise the agent is that of the preset `cpu`: it sees each server and each job, knows what a queue is,
and tells tasks apart by what it sees (docs/mixture.md says what was measured). `mixture` is told which task it plays
and has parts for each; `shared` is told too and is the same in all of them; `storm` is not told. These learn a queue
from nothing, and take long.
"""

from dataclasses import replace

from reverie.settings.config import LoopConfig, SuiteConfig, TrainConfig
from reverie.settings.presets import ModelKind, Preset, preset, with_model, with_steps

KNOWS_QUEUES = ("queue", "counts")
"""Models that need less to learn from."""


def suite_plan(name: str, model: ModelKind = "queue") -> TrainConfig:
    """The settings for a suite, with a world model of that kind.

    Raises:
        ValueError: there is no such suite.
    """
    world = SuiteConfig(name)
    begin: dict[ModelKind, Preset] = {"queue": "cpu", "counts": "hidden"}
    plan = with_model(preset("dreamer", begin.get(model, "learned")), model)
    if model == "counts":
        world = replace(world, view="counts", reward="elapsed")
    experience = replace(plan.agent.experience, by_task=True)
    algorithm = plan.agent.algorithm
    if model in ("mixture", "shared"):  # they are told the task, so that each may have returns of its own scale
        algorithm = replace(algorithm, siblings=1, starts=128, scales=len(world.names), memory=0)
        label = "dreamer-shared" if model == "shared" else None  # the shared model is a mixture of one part
        plan = replace(plan, label=label)
    steps = len(world.names) * (20_000 if model in KNOWS_QUEUES else 40_000)
    plan = replace(plan, agent=replace(plan.agent, algorithm=algorithm, experience=experience), world=world)
    return replace(with_steps(plan, steps), loop=LoopConfig(steps=steps, evaluate_every=steps // 10))
