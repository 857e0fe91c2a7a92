"""Settings for games and for worlds outside, by name: what `reverie train --game NAME` begins with.

A game of memory is played with R2I's state-space model (`models/s3m.py`), at a size for two cores. What has to be set
for each is known before anything is learned: what a right answer pays, how far ahead and how far back one has to look.
Worlds outside have DreamerV3's model, small, and the same settings for all; so have those of many tasks, where Dreamer
has RL2's memory too, which lives through a trial of three episodes. Games of Atari have STORM, whole, for a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.agents.maml import MAMLConfig
from reverie.agents.metadreamer import MetaDreamerConfig
from reverie.agents.pearl import PEARLConfig
from reverie.agents.ppo import PPOConfig
from reverie.agents.rsac import RSACConfig
from reverie.agents.sac import SACConfig
from reverie.envs.dispatch import Dispatch
from reverie.envs.factors import Physics, Told
from reverie.envs.games import find_game
from reverie.envs.outside.atari import LONGEST
from reverie.envs.point_robot import PointRobot
from reverie.models.rssm import RSSMConfig
from reverie.models.s3m import S3MConfig
from reverie.models.storm import PRESETS as STORM
from reverie.nn.optimiser import OptimiserConfig
from reverie.settings.config import CurveConfig, GameConfig, LoopConfig, OffPolicyRun, OnPolicyRun, TrainConfig
from reverie.settings.presets import preset, with_model, with_steps
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.on_policy import OnPolicyConfig

STREAMS, REPLAYED, CAPACITY = 16, 1024, 20_000
"""Of all games of memory: environments side by side, steps of an update, and steps that replay holds, which seldom
matters (docs/r2i.md)."""


@dataclass(frozen=True)
class Demand:
    """What a game of memory demands."""

    pay: float
    """What a right answer earns: the unit of rewards."""
    recall: int
    """How many steps back something that matters was seen."""
    horizon: float = 10.0
    """Steps ahead that the discount looks."""
    dream_length: int = 10
    """Steps of a dream."""
    length: int = 128
    """Steps of a replayed sequence: enough to recall in."""
    state: int = 128
    """Modes of a state-space layer. One mode keeps a number or two, a card takes three, and what is older than has to
    be recalled fades slowly: where the cards to recall filled all modes, answers grew worse throughout an episode."""
    deter: int = 256
    """Width of h."""
    units: int = 128
    """Width of layers."""
    policy: Literal["hidden", "full"] = "hidden"
    """What actor and critic see beside z."""
    entropy: float = 1e-2
    """Weight of the actor's entropy."""
    siblings: int = 1
    """Dreams from each start. Several are judged against each other, in units of how much they differ: for decisions
    that are rare, or matter little beside all that is to come."""
    whole: bool = False
    """Whether the critic learns mostly from real returns of whole episodes: for rewards that come later than dreams."""
    ratio: float = 16.0
    """Replayed steps for each new one."""
    steps: int = 300_000
    """Environment steps of a training."""


DEMANDS: Mapping[str, Demand] = MappingProxyType(
    {
        "repeat_previous/easy": Demand(1 / 48, 4, length=64, state=64, deter=128, steps=30_000),
        "repeat_previous/medium": Demand(1 / 72, 32, steps=60_000),
        "repeat_previous/hard": Demand(1 / 92, 64, state=384, units=192, steps=120_000),
        "autoencode/parts": Demand(1 / 52, 104, state=384, policy="full", steps=640_000),
        "autoencode/easy": Demand(1 / 52, 104, length=128, state=256, units=192),
        "autoencode/medium": Demand(1 / 104, 208, length=256, state=512, deter=512, units=256),
        "autoencode/hard": Demand(1 / 156, 312, length=512, state=768, deter=768, units=384),
        "concentration/easy": Demand(1 / 26, 104, state=256, deter=256, units=192),
        "concentration/medium": Demand(1 / 52, 208, length=256, state=512, deter=512, units=256),
        "concentration/hard": Demand(1 / 26, 104, state=256, deter=512, units=256),
        "memory_length": Demand(1.0, 101, length=101, state=64, deter=128, policy="full", entropy=3e-2, steps=80_000),
        "memory_size": Demand(1.0, 4, length=64, state=64, deter=128, entropy=3e-3, steps=80_000),
        "discounting_chain": Demand(
            1.0,
            1,
            horizon=10_000.0,
            dream_length=2,
            length=202,
            state=64,
            deter=128,
            entropy=1.0,
            siblings=8,
            whole=True,
            ratio=60.0,
            steps=50_000,
        ),
        "maze": Demand(1.0, 128, horizon=333.0, length=256, state=256, deter=512, units=256, steps=10_000_000),
    }
)
"""By game, or by its kind where all levels demand the same. Those of RepeatPrevious, of the chains of memory length and
of discounting are what was found to do (docs/experiments/games.md); that of `autoencode/parts` learns slowly, and the
others are a beginning."""

OUTSIDE = TrainConfig(
    agent=OffPolicyRun(
        algorithm=DreamerConfig(
            model=RSSMConfig(deter=256, stoch=16, classes=8, encoder_layers=2, decoder_layers=2),
            optimiser=OptimiserConfig(learning_rate=7e-4, warmup=200),
            memory=0,
            units=128,
            layers=2,
            starts=256,
        ),
        experience=OffPolicyConfig(streams=4, length=32, ratio=64.0),
        chunk=25,
    ),
    loop=LoopConfig(steps=50_000, evaluate_every=5_000),
    curve=CurveConfig(episodes=8),
)
"""Of all worlds outside."""

ATARI = replace(
    preset("dreamer", "storm"),
    agent=replace(
        preset("dreamer", "storm").agent,
        algorithm=replace(preset("dreamer", "storm").agent.algorithm, model=STORM["atari"], reward_scale=1.0),
    ),
    curve=CurveConfig(episodes=20),
)
"""Of games of Atari: STORM's recipe, which needs a GPU."""

TASKS = replace(
    OUTSIDE,
    agent=replace(
        OUTSIDE.agent,
        algorithm=replace(OUTSIDE.agent.algorithm, memory=128),
        experience=OffPolicyConfig(streams=16, episodes=3, length=64, batch=8, ratio=32.0),
    ),
    loop=LoopConfig(steps=200_000, evaluate_every=20_000),
    curve=CurveConfig(episodes=64, trial=3),
)
"""Of games of many tasks."""

SAC = SACConfig(units=128, learning_rate=1e-3)
"""SAC's algorithm, at a size for two cores."""

OUTSIDE_SAC = TrainConfig(
    agent=OffPolicyRun(
        algorithm=SAC,
        experience=OffPolicyConfig(streams=1, batch=128, length=1, ratio=128.0, prefill=1_000),
        chunk=500,
    ),
    loop=LoopConfig(steps=50_000, evaluate_every=5_000),
    curve=CurveConfig(episodes=8),
)
"""SAC's, of worlds outside and games of memory: one environment, and an update for each of its steps."""

TASKS_SAC = replace(
    OUTSIDE_SAC,
    agent=replace(
        OUTSIDE_SAC.agent, experience=OffPolicyConfig(batch=256, length=1, ratio=16.0, capacity=500_000, prefill=4_000)
    ),
    loop=LoopConfig(steps=200_000, evaluate_every=20_000),
    curve=CurveConfig(episodes=64),
)
"""SAC's, of games of many tasks: an update for every 16 steps."""


TOGETHER_SAC = replace(
    OUTSIDE_SAC,
    agent=replace(
        OUTSIDE_SAC.agent,
        algorithm=SACConfig(units=256),
        experience=OffPolicyConfig(
            streams=1, batch=51, length=1, ratio=51.0, capacity=50_000, prefill=500, by_task=True, settled=True
        ),
    ),
    loop=LoopConfig(steps=500_000, evaluate_every=50_000),
    curve=CurveConfig(episodes=20),
)
"""SAC's, for each of several worlds outside at once: an update for every step of all."""

TASKS_RSAC = replace(
    TASKS_SAC,
    agent=replace(
        TASKS_SAC.agent,
        algorithm=RSACConfig(SAC, memory=64),
        experience=OffPolicyConfig(batch=16, length=64, episodes=3, ratio=32.0, capacity=500_000, prefill=4_000),
        chunk=25,
    ),
    curve=CurveConfig(episodes=64, trial=3),
)
"""The same with a memory that lives through a trial of three episodes, from stretches of it."""

SURE = replace(SAC, discount=0.95, reward_scale=2.0, target_entropy=0.1)
"""The same with little entropy, and PEARL's discount and scale of rewards in `dispatch`: where actions can be counted,
the papers' target is 0.98 of the most it can be, and whoever dispatches all but at random fills the queues of slow
servers, however well it chooses for the rest (docs/metadreamer.md)."""
DISPATCH: Mapping[str, tuple[TrainConfig, SACConfig | RSACConfig]] = MappingProxyType(
    {"sac": (TASKS_SAC, SURE), "rsac": (TASKS_RSAC, RSACConfig(SURE, memory=64))}
)
"""SAC's and recurrent SAC's in `dispatch`: the settings of games of many tasks, and the algorithm."""

TASKS_PPO = TrainConfig(
    agent=OnPolicyRun(
        algorithm=PPOConfig(NetworkConfig(memory=64), learning_rate=1e-3, discount=0.97, minibatches=4, epochs=8),
        experience=OnPolicyConfig(streams=64, steps=64, episodes=3),
        chunk=5,
    ),
    loop=LoopConfig(steps=400_000, evaluate_every=40_000),
    curve=CurveConfig(episodes=64, trial=3),
)
"""PPO's with RL2's memory, which lives through a trial of three episodes, for games of many tasks; those of one have
trials of one episode."""

PEARL = PEARLConfig(
    units=128, layers=2, encoder_units=128, encoder_layers=2, learning_rate=1e-3, recent=200, sees_next=True
)
PEARL_EXPERIENCE = OffPolicyConfig(batch=512, length=1, repeats=20, capacity=500_000, episodes=4)
"""PEARL's, of games of many tasks, at a size for two cores; `inferring_plan` has as many streams as there are tasks."""

Player = Literal["dreamer", "sac", "rsac", "ppo", "maml", "pearl", "metadreamer"]
"""Agents that games have settings for."""


def inferring_plan(world: GameConfig, agent: Literal["pearl", "metadreamer"]) -> TrainConfig:
    """PEARL's settings for a game of many tasks, or MetaDreamer's: networks of the same sizes, on as much experience,
    and physics where the world tells some. For the point robot, where rewards alone differ, they are the authors' but
    for what makes a goal found in few updates (docs/pearl.md): a discount of 0.9 (theirs where rewards are sparse), a
    scale of rewards of 20 for 100 and a KL that weighs as much beside its square, all tasks in each update, and 20
    episodes with the prior when the agent is judged, as a product of Gaussians averages. For worlds outside the
    temperature is what SAC found for the half-cheetah (told its speed, 16,000 updates; docs/metadreamer.md). In
    dispatch trials are half as long, so that of few steps more evidence is of policies that have learned something,
    and contexts are read transition by transition (docs/experiments/metadreamer.md).

    Raises:
        ValueError: the game has one task.
    """
    if not world.tests:
        raise ValueError(
            f"{agent} infers which task it plays, and {world.game} is one: point_robot has many, for example"
        )
    algorithm, experience, averaging = PEARL, PEARL_EXPERIENCE, 1.0
    if world.game.startswith("merging"):  # few tasks
        algorithm = replace(algorithm, tasks=10, units=64, encoder_units=64)
        experience, averaging = replace(experience, batch=320), 0.0025
    if world.game.startswith("dispatch"):
        algorithm = replace(algorithm, tasks=12, units=64, encoder_units=64, discount=0.95, reward_scale=2.0)
        algorithm = replace(algorithm, prior_episodes=1)
        experience, averaging = replace(experience, batch=384, episodes=2), 0.0025
    loop, episodes, pace = LoopConfig(steps=60_000, evaluate_every=10_000), 64, 1
    if world.is_outside:  # each of its steps costs time, and an episode has hundreds
        algorithm = replace(algorithm, tasks=12, reward_scale=1.0, temperature=0.0125, kl=0.004)
        experience, averaging = replace(experience, batch=384), 0.0025
        loop, episodes, pace = LoopConfig(steps=120_000, evaluate_every=12_000), 14, 10
    if world.game.startswith("point_robot"):
        algorithm = replace(algorithm, tasks=80, discount=0.9, reward_scale=20.0, kl=0.004, sees_next=False)
        algorithm = replace(algorithm, recent=400, prior_episodes=5, test_episodes=20)
        experience, averaging = replace(experience, batch=640, episodes=10), 0.0025
        loop, pace = LoopConfig(steps=200_000, evaluate_every=25_000), 2
    streams = len(world.tasks) * -(-algorithm.tasks // len(world.tasks))
    experience = replace(experience, streams=streams, ratio=experience.batch * experience.repeats / (streams * pace))
    if world.is_outside:
        experience = replace(experience, prefill=400 * streams)
    inferring, curve = algorithm, CurveConfig(episodes=episodes, trial=1 + algorithm.test_episodes)
    if agent == "metadreamer":
        algorithm = replace(algorithm, kl=1.0, sees_next=True, recent=1_000)
        experience = replace(experience, prefill=max(experience.prefill, 100 * streams))
        physics = not world.is_outside and isinstance(find_game(world.game).world, Physics)
        inferring = MetaDreamerConfig(pearl=algorithm, decoder="physics" if physics else "free")
        if world.game.startswith("dispatch"):  # gaps and sizes have laws that tasks decide
            inferring = replace(inferring, encoder="product", coarse=0.3)
    return TrainConfig(
        agent=OffPolicyRun(algorithm=inferring, experience=experience, chunk=25, averaging=averaging),
        world=world,
        loop=loop,
        curve=curve,
    )


def maml_plan(world: GameConfig) -> TrainConfig:
    """MAML's settings: half of the episodes of a trial before adaptation.

    Raises:
        ValueError: the game has one task, or its episodes differ in length.
    """
    match find_game(world.game).world if not world.is_outside else None:
        case (
            Dispatch(limit=limit)
            | PointRobot(limit=limit)
            | Told(world=Dispatch(limit=limit) | PointRobot(limit=limit))
        ):
            length = limit + 1  # the moment at which an episode ends is one
        case _:
            raise ValueError(
                "maml adapts after a number of steps that trials of all tasks have: dispatch, point_robot for example; "
                f"{world.game} is one task, or its episodes differ in length"
            )
    algorithm = MAMLConfig(PPOConfig(learning_rate=1e-3, discount=0.95, entropy=0.0), inner_steps=2 * length)
    experience = OnPolicyConfig(streams=48, steps=4 * length, episodes=4)
    return TrainConfig(
        agent=OnPolicyRun(algorithm=algorithm, experience=experience, chunk=2),
        world=world,
        loop=LoopConfig(steps=1_000_000, evaluate_every=200_000),
        curve=CurveConfig(episodes=64, trial=3),
    )


def together_plan(world: GameConfig) -> TrainConfig:
    """The settings for several worlds outside at once: a stream of each, as many sequences and dreams of each in an
    update, and a mixture of world models. Games of Atari have as much of each as one alone has, other worlds less."""
    tasks, pictures = len(world.names), world.game.startswith("atari:")
    plan = replace(ATARI if pictures else OUTSIDE, world=replace(world, limit=LONGEST if pictures else world.limit))
    assert isinstance(plan.agent, OffPolicyRun)
    assert isinstance(plan.agent.algorithm, DreamerConfig)
    each = replace(plan.agent.experience, streams=1) if pictures else OffPolicyConfig(streams=1, batch=4, ratio=16.0)
    algorithm = replace(plan.agent.algorithm, starts=tasks * (1_024 if pictures else 32), scales=tasks)
    experience = replace(each, by_task=True, settled=True)
    plan = _for_each(replace(plan, agent=replace(plan.agent, algorithm=algorithm, experience=experience)), tasks)
    curve = replace(plan.curve, episodes=tasks * (20 if pictures else 2))
    plan = with_model(with_steps(plan, tasks * 100_000), "mixture")
    return replace(plan, curve=curve, loop=replace(plan.loop, evaluate_every=tasks * 5_000))


def _for_each(plan: TrainConfig, tasks: int) -> TrainConfig:
    """With as much experience of each task as the settings have of one."""
    e = plan.agent.experience
    times = {name: tasks * getattr(e, name) for name in ("streams", "batch", "capacity", "prefill")}
    return replace(plan, agent=replace(plan.agent, experience=replace(e, **times)))


def game_plan(game: str, agent: Player = "dreamer") -> TrainConfig:
    """The settings for a game or a world outside.

    Raises:
        ValueError: there is no such game, or it is none for that agent.
    """
    world = GameConfig(game)
    many = bool(world.tests)
    if agent in ("pearl", "metadreamer"):
        return inferring_plan(world, agent)
    if agent in DISPATCH and game.startswith("dispatch"):
        plan, algorithm = DISPATCH[agent]
        return replace(plan, agent=replace(plan.agent, algorithm=algorithm), world=world)
    if agent == "sac" and world.names:
        return _for_each(replace(TOGETHER_SAC, world=world), len(world.names))
    if agent == "sac":
        return replace(TASKS_SAC if many else OUTSIDE_SAC, world=world)
    if agent == "maml":
        return maml_plan(world)
    if agent in ("rsac", "ppo"):
        plan = replace(TASKS_RSAC if agent == "rsac" else TASKS_PPO, world=world)
        experience = replace(plan.agent.experience, episodes=1)
        alone = replace(plan, agent=replace(plan.agent, experience=experience), curve=replace(plan.curve, trial=1))
        return plan if many else alone
    if world.names:
        return together_plan(world)
    if game.startswith("atari:"):
        return replace(ATARI, world=replace(world, limit=LONGEST))
    if world.is_outside or many:
        return replace(TASKS if many else OUTSIDE, world=world)
    demand = DEMANDS.get(game) or DEMANDS[game.split("/")[0]]
    experience = OffPolicyConfig(
        streams=STREAMS,
        capacity=CAPACITY,
        batch=REPLAYED // demand.length,
        length=demand.length,
        ratio=demand.ratio,
    )
    model = S3MConfig(
        units=demand.units,
        layers=2,
        state=demand.state,
        modes="ring",
        deter=demand.deter,
        stoch=8,
        classes=8,
        reward_layers=1,
        continue_layers=1,
        recall=demand.recall,
        product=True,
        policy=demand.policy,
        rep_scale=0.01,  # at 0.1 the posterior stays so vague that 2 % of all cards are misread
        horizon=demand.horizon,
    )
    algorithm = DreamerConfig(
        model=model,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100, decay=round(demand.steps / experience.env_steps)),
        memory=0,
        units=128,
        layers=2,
        dream_length=demand.dream_length,
        starts=64,
        entropy=demand.entropy,
        siblings=demand.siblings,
        discount_lambda=1.0 if demand.whole else 0.95,
        replay_critic=3.0 if demand.whole else 0.3,
        reward_scale=1 / demand.pay,
    )
    return TrainConfig(
        agent=OffPolicyRun(algorithm=algorithm, experience=experience, chunk=50),
        world=world,
        loop=LoopConfig(steps=demand.steps, evaluate_every=demand.steps // 10),
        curve=CurveConfig(episodes=64),
    )
