"""Named settings, one for each algorithm and purpose; every value that is not a default of its dataclass stands here.

`cpu` is small and fast on two cores; its Dreamer knows what a queue is (`models/queue.py`) and sees the fleet in full.
`hidden` sees how many jobs each server holds and nothing else: neither sizes nor speeds (`models/counts.py`).
`learned` is told nothing of queues and learns the servers too (`models/set_rssm.py`), from any view that shows them one
by one: slower, and needed where work and speeds are hidden. `weights` sends no job: it sets the weights of a proxy
every 2,000 time units (`envs/fleet/weights.py`). `paper` is Redovian's (2025, arXiv 2503.08872) as far as it
is public: DreamerV3's published values at its smallest size, and a recurrent policy of 256 units. `storm` is STORM's
recipe in full size (Zhang et al. 2023, arXiv 2310.09615; docs/storm.md), for a GPU. Games have settings of their own
(`settings/games.py`).

`with_model` exchanges the world model of a preset for one of another kind, of a size for two cores (`MODELS`);
`with_optimiser`, the optimiser for R2I's, which has a learning rate and a clip for each part of the agent, or back;
`with_steps`, how long it trains.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from reverie.agents.a2c import A2CConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.agents.optimisers import GroupsConfig
from reverie.agents.ppo import PPOConfig
from reverie.agents.sac import SACConfig
from reverie.envs.fleet.env import View
from reverie.envs.fleet.families import PARK_MEAN_SIZE
from reverie.envs.fleet.weights import Proxy
from reverie.models import rssm
from reverie.models.build import ModelConfig
from reverie.models.counts import CountsConfig
from reverie.models.mixture import MixtureConfig
from reverie.models.queue import QueueConfig
from reverie.models.rssm import RSSMConfig
from reverie.models.s3m import S3MConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.models.storm import StormConfig
from reverie.nn.optimiser import OptimiserConfig
from reverie.settings.config import (
    GameConfig,
    LoopConfig,
    OffPolicyRun,
    OnPolicyRun,
    SuiteConfig,
    TrainConfig,
    WorldConfig,
)
from reverie.train.off_policy import OffPolicyConfig

Algorithm = Literal["dreamer", "a2c", "ppo", "sac", "rsac", "maml", "pearl", "metadreamer"]
Preset = Literal["cpu", "hidden", "learned", "weights", "paper", "storm"]
ModelKind = Literal["queue", "counts", "set_rssm", "rssm", "s3m", "storm", "mixture", "shared"]
OptimiserKind = Literal["single", "groups"]

_SMALL_STORM: Mapping[str, Any] = MappingProxyType(
    {"units": 64, "deter": 128, "heads": 4, "dropout": 0.0, "stoch": 8, "classes": 8, "horizon": 333.0}
)
STORM_OF_SETS: Mapping[str, Any] = MappingProxyType(
    {
        "servers": "set",
        "units": 32,
        "heads": 4,
        "window": 3,
        "dropout": 0.0,
        "stoch": 4,
        "of_server": 2,
        "classes": 8,
        "carried": 16,
        "rep_scale": 0.05,
        "horizon": 333.0,
    }
)
"""What all of STORM's kind have in common in suites of fleets (docs/mixture.md says how it was found)."""
ALONE = StormConfig(**STORM_OF_SETS, deter=48)
MIXTURE = MixtureConfig(
    **STORM_OF_SETS, deter=40, layers=1, trunk=1, modules=2, experts=4, active=2, embedding=8, settle=200
)
SHARED = MixtureConfig(**STORM_OF_SETS, deter=80, layers=2, trunk=0, embedding=8)
"""For one task; for several, with parts for each; and the same for all, as large as the mixture."""

_OF_VECTORS: Mapping[str, Any] = MappingProxyType(_SMALL_STORM | {"stoch": 16, "window": 8})
_OF_PICTURES: Mapping[str, Any] = MappingProxyType({"window": 64, "lent": 0, "acts": "prior"})
TOGETHER: Mapping[ModelKind, ModelConfig] = MappingProxyType(
    {
        "storm": StormConfig(**_OF_VECTORS),
        "mixture": MixtureConfig(
            **_OF_VECTORS, layers=1, trunk=1, modules=3, experts=4, active=2, embedding=8, settle=2_000
        ),
        "shared": MixtureConfig(**_OF_VECTORS, layers=2, trunk=0, embedding=8),
    }
)
TOGETHER_IN_PICTURES: Mapping[ModelKind, ModelConfig] = MappingProxyType(
    {
        "storm": StormConfig(**_OF_PICTURES),
        "mixture": MixtureConfig(**_OF_PICTURES, modules=12, experts=12, active=2, embedding=200),
        "shared": MixtureConfig(**_OF_PICTURES, trunk=0, embedding=200),
    }
)
"""For several worlds outside at once: those that show numbers, at a size for two cores, and games of Atari, where parts
are as large as STORM's and as many as the paper's (its embedding and its experts at a time are not public)."""

MODELS: Mapping[ModelKind, ModelConfig] = MappingProxyType(
    {
        "queue": QueueConfig(unit=PARK_MEAN_SIZE, horizon=150.0),
        "counts": CountsConfig(),
        "set_rssm": SetRSSMConfig(),
        "rssm": RSSMConfig(units=64, deter=256, stoch=8, classes=8, servers="set"),
        "s3m": S3MConfig(
            units=128,
            layers=2,
            state=64,
            blocks=4,
            deter=128,
            stoch=8,
            classes=8,
            reward_layers=1,
            continue_layers=1,
            servers="set",
        ),
        "storm": StormConfig(**_SMALL_STORM),
        "mixture": MIXTURE,
        "shared": SHARED,
    }
)
"""World models of each kind, of a size for two cores. All but the first three read anything; the last two are STORM's
for suites of tasks: with parts for each, and one for all that is told which task it is."""

_CPU_WORLD = WorldConfig(family="calm", jobs=250)  # without giants, less of what happens is luck
_CPU_LOOP = LoopConfig(steps=160_000, evaluate_every=20_000)
_CPU_EXPERIENCE = OffPolicyConfig(length=32, ratio=4.0, capacity=50_000)
_CPU_DREAMER = DreamerConfig(
    model=QueueConfig(unit=PARK_MEAN_SIZE, horizon=150.0),
    optimiser=OptimiserConfig(learning_rate=1e-3, warmup=200, decay=1_050),  # as many updates as the steps allow
    layers=2,
    dream_length=64,
    starts=2,
    siblings=8,
    discount_lambda=1.0,
    entropy=3e-3,
    reward_scale=1 / PARK_MEAN_SIZE,
)
_WEIGHTS_WORLD = WorldConfig(
    family="workers",
    jobs=1000,
    view="weights",
    reward="elapsed",
    proxy=Proxy(hold=2_000.0, span=5.0),
    correction=2.0,
)  # as long as a job is there on average: of shorter intervals each decides less, and chance hides what it did
_WEIGHTS_SCALE = 3e-5  # some 20 jobs for that time are of the order of 1
_CPU_ON_POLICY_LOOP = LoopConfig(steps=50_000_000, evaluate_every=5_000_000)

PRESETS: Mapping[Algorithm, Mapping[Preset, TrainConfig]] = MappingProxyType(
    {
        "dreamer": MappingProxyType(
            {
                "cpu": TrainConfig(
                    agent=OffPolicyRun(algorithm=_CPU_DREAMER, experience=_CPU_EXPERIENCE, averaging=0.0111),
                    world=_CPU_WORLD,
                    loop=_CPU_LOOP,
                ),
                "hidden": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=replace(
                            _CPU_DREAMER,
                            model=CountsConfig(),
                            optimiser=replace(_CPU_DREAMER.optimiser, decay=1_700),
                            reward_scale=1 / CountsConfig.unit,
                        ),
                        experience=_CPU_EXPERIENCE,
                        averaging=0.0111,
                    ),
                    world=WorldConfig(family="shifting", jobs=500, view="counts", reward="elapsed"),
                    loop=replace(_CPU_LOOP, steps=240_000),
                ),
                "learned": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=replace(_CPU_DREAMER, model=SetRSSMConfig(), dream_length=15, discount_lambda=0.95),
                        experience=_CPU_EXPERIENCE,
                        averaging=0.0111,
                    ),
                    world=_CPU_WORLD,
                    loop=_CPU_LOOP,
                ),
                "weights": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=replace(
                            _CPU_DREAMER,
                            model=SetRSSMConfig(horizon=5.0),
                            dream_length=15,
                            discount_lambda=0.95,
                            reward_scale=_WEIGHTS_SCALE,
                        ),
                        experience=_CPU_EXPERIENCE,
                        averaging=0.0111,
                    ),
                    world=_WEIGHTS_WORLD,
                    loop=_CPU_LOOP,
                ),
                "paper": TrainConfig(
                    agent=OffPolicyRun(algorithm=DreamerConfig(model=rssm.PRESETS["size1m"], memory=256)),
                    world=WorldConfig(family="hard", jobs=1000, view="park", reward="elapsed"),
                ),
                "storm": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=DreamerConfig(
                            model=StormConfig(),
                            optimiser=GroupsConfig(),
                            memory=0,
                            units=512,
                            layers=2,
                            dream_length=16,
                            unimix=0.0,
                            replay_critic=0.0,
                            reward_scale=1 / PARK_MEAN_SIZE,
                        ),
                        experience=OffPolicyConfig(streams=1, ratio=1024.0, prefill=1_024),
                    ),
                    loop=LoopConfig(steps=102_000, evaluate_every=10_200),
                ),
            }
        ),
        "a2c": MappingProxyType(
            {
                "cpu": TrainConfig(
                    agent=OnPolicyRun(algorithm=A2CConfig(), averaging=4.5e-4),
                    world=_CPU_WORLD,
                    loop=_CPU_ON_POLICY_LOOP,
                ),
            }
        ),
        "ppo": MappingProxyType(
            {
                "cpu": TrainConfig(
                    agent=OnPolicyRun(algorithm=PPOConfig(), averaging=4.5e-4),
                    world=_CPU_WORLD,
                    loop=_CPU_ON_POLICY_LOOP,
                ),
            }
        ),
        "sac": MappingProxyType(
            {
                "cpu": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=SACConfig(
                            units=64,
                            servers="set",
                            learning_rate=1e-3,
                            discount=0.97,
                            temperature=0.1,
                            target_entropy=0.3,  # of 2.3 with ten servers: 0.98 of it would be to choose at random
                            reward_scale=1 / PARK_MEAN_SIZE,
                        ),
                        experience=OffPolicyConfig(batch=256, length=1, ratio=8.0, capacity=160_000, prefill=2_000),
                        chunk=200,
                        averaging=2e-3,
                    ),
                    world=_CPU_WORLD,
                    loop=_CPU_LOOP,
                ),
                "weights": TrainConfig(
                    agent=OffPolicyRun(
                        algorithm=SACConfig(
                            units=32,
                            servers="set",
                            learning_rate=1e-3,
                            discount=0.8,
                            slow_rate=0.02,
                            temperature=0.01,
                            reward_scale=_WEIGHTS_SCALE,
                        ),
                        experience=OffPolicyConfig(
                            streams=64,
                            batch=256,
                            length=1,
                            ratio=16.0,
                            repeats=4,
                            capacity=160_000,
                            prefill=6_400,
                        ),
                        chunk=50,
                        averaging=2e-3,
                    ),
                    world=_WEIGHTS_WORLD,
                    loop=_CPU_LOOP,
                ),
            }
        ),
    }
)
"""By algorithm, then by name."""


FOR_VIEW: Mapping[View, Preset] = MappingProxyType(
    {"full": "cpu", "counts": "hidden", "latency": "learned", "park": "paper"}
)
"""Dreamer's settings that can read a view."""


def with_model(plan: TrainConfig, kind: ModelKind) -> TrainConfig:
    """The plan with a world model of another kind.

    Raises:
        ValueError: the algorithm has no world model.
    """
    refusal = f"no world model, and model is {kind!r}; dreamer has one"
    return _of_dreamer(plan, refusal, model=_models_for(plan.world).get(kind, MODELS[kind]))


def _models_for(world: WorldConfig | GameConfig | SuiteConfig) -> Mapping[ModelKind, ModelConfig]:
    """Those of other sizes than in `MODELS`."""
    match world:
        case GameConfig(game=game, names=names) if names:
            return TOGETHER_IN_PICTURES if game.startswith("atari:") else TOGETHER
    return {}


def with_optimiser(plan: TrainConfig, kind: OptimiserKind) -> TrainConfig:
    """The plan with an optimiser of another kind, at the published values of that kind.

    Raises:
        ValueError: the algorithm has one kind of optimiser.
    """
    refusal = f"one kind of optimiser, and optimiser is {kind!r}; dreamer has two"
    return _of_dreamer(plan, refusal, optimiser={"single": OptimiserConfig, "groups": GroupsConfig}[kind]())


def _of_dreamer(plan: TrainConfig, refusal: str, **changes: Any) -> TrainConfig:
    """The plan with these fields of Dreamer's; of another algorithm it is said what that has."""
    if not isinstance(plan.agent.algorithm, DreamerConfig):
        raise ValueError(f"{plan.agent.name} has {refusal}")
    return replace(plan, agent=replace(plan.agent, algorithm=replace(plan.agent.algorithm, **changes)))


def with_steps(plan: TrainConfig, steps: int) -> TrainConfig:
    """The plan for so many environment steps, in even chunks that do not overshoot; a step size that falls to 0 does so
    over as large a part of them."""
    agent, before = plan.agent, plan.loop.steps
    rounds = math.ceil(max(1, steps - agent.experience.first_steps) / agent.experience.env_steps)
    agent = replace(agent, chunk=math.ceil(rounds / math.ceil(rounds / agent.chunk)))
    match agent.algorithm:
        case DreamerConfig(optimiser=OptimiserConfig(warmup=warmup, decay=decay) as falls) if before and decay:
            last = math.ceil((warmup + decay) * steps / before)
            falls = replace(falls, decay=max(1, last - warmup))
            agent = replace(agent, algorithm=replace(agent.algorithm, optimiser=falls))
    return replace(plan, agent=agent, loop=replace(plan.loop, steps=steps))


def preset(algorithm: Algorithm, name: Preset) -> TrainConfig:
    """The settings of that name for an algorithm.

    Raises:
        ValueError: the algorithm has no settings of that name, or none at all for fleets.
    """
    if algorithm not in PRESETS:
        raise ValueError(
            f"{algorithm} has no settings for fleets yet, only for games of many tasks, such as --game point_robot"
        )
    named = PRESETS[algorithm]
    if name not in named:
        raise ValueError(f"{algorithm} has no preset {name!r}; it has {', '.join(named)}")
    return named[name]
