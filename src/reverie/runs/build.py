"""From a configuration to a trainer: which configuration belongs to which algorithm is said here alone."""

import jax

from reverie.agents.a2c import A2C, A2CConfig
from reverie.agents.dreamer import Dreamer
from reverie.agents.ppo import PPO
from reverie.envs.outside import OutsideWorlds
from reverie.models.counts import CountsConfig
from reverie.models.queue import QueueConfig
from reverie.settings.config import DreamerRun, TrainConfig, WorldConfig, stream_seed
from reverie.train.trainers import WorldTrainer


def build(config: TrainConfig) -> WorldTrainer:
    """The trainer that a configuration describes, with its tasks drawn.

    Raises:
        ValueError: the agent cannot read what the view shows, or make nothing of the rewards, or is not for worlds
            outside JAX.
        ModuleNotFoundError: a world outside needs a package that is not installed.
    """
    world, run = config.world, config.agent
    if isinstance(world, WorldConfig):
        env, pool = world.open(stream_seed(config.seed, "training tasks"))
    else:
        env, tasks = world.open(max(run.experience.streams, world.variants))
        pool = tasks[: world.variants]
        if isinstance(env, OutsideWorlds) and not isinstance(run, DreamerRun):
            raise ValueError(f"{run.name} does not train in worlds outside JAX, such as {world.game}; dreamer does")
    specs = env.observation_spec, env.action_spec
    if isinstance(run, DreamerRun):
        model = run.algorithm.model
        reward = world.reward if isinstance(world, WorldConfig) else None
        if isinstance(model, QueueConfig) and model.rewards == "response" and reward not in ("admission", None):
            raise ValueError(
                f"the queue model takes rewards for response times, and reward is {reward!r}: "
                "give the model rewards `any`, or the world reward `admission`"
            )
        if isinstance(model, CountsConfig) and reward not in ("elapsed", None):
            raise ValueError(
                f"the counts model takes rewards for time in the system, and reward is {reward!r}: "
                "give the world reward `elapsed`"
            )
        agent = Dreamer(run.algorithm, *specs)
    else:
        agent = A2C(run.algorithm, *specs) if isinstance(run.algorithm, A2CConfig) else PPO(run.algorithm, *specs)
    trainer = WorldTrainer(agent, run.experience, env, pool, run.chunk, run.averaging)
    jax.eval_shape(trainer.init, jax.random.key(0))  # networks that do not fit the world say so here
    return trainer
