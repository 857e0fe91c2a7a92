"""From a configuration to a trainer: which configuration belongs to which algorithm is said here alone."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from reverie.agents.a2c import A2C, A2CConfig
from reverie.agents.dreamer import Dreamer, DreamerConfig
from reverie.agents.maml import MAML, MAMLConfig
from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.agents.pearl import PEARL, PEARLConfig
from reverie.agents.ppo import PPO, PPOConfig
from reverie.agents.rsac import RSAC, RSACConfig
from reverie.agents.sac import SAC, SACConfig
from reverie.envs.core import Task, World
from reverie.runs.folder import RunFolder
from reverie.settings.config import (
    GameConfig,
    OffPolicyRun,
    OnPolicyRun,
    SuiteConfig,
    TrainConfig,
    WorldConfig,
    stream_seed,
)
from reverie.train.collect import pool_size
from reverie.train.trainers import WorldTrainer


def _of_specs(kind: Callable[..., Any]) -> Callable[[Any, World, Task], Any]:
    """What makes an agent that has to know nothing of a world but what is seen and done in it."""
    return lambda config, env, pool: kind(config, env.observation_spec, env.action_spec)


AGENTS: Mapping[type, Callable[[Any, World, Task], Any]] = MappingProxyType(
    {
        DreamerConfig: _of_specs(Dreamer),
        SACConfig: _of_specs(SAC),
        RSACConfig: _of_specs(RSAC),
        PEARLConfig: _of_specs(PEARL),
        MetaDreamerConfig: MetaDreamer.of,
        A2CConfig: _of_specs(A2C),
        PPOConfig: _of_specs(PPO),
        MAMLConfig: _of_specs(MAML),
    }
)
"""Which agent a configuration describes; each is made of it, a world, and the tasks [K, ...] to learn from."""


def stored(run: RunFolder, trust: bool = False) -> TrainConfig:
    """The configuration of a training run, to be built.

    Raises:
        ValueError: its game names a module, which building would import, and there is no `trust`: whoever wrote the
            folder would say what this process executes.
    """
    config = run.config(TrainConfig)
    if not trust:
        refuse_module(config, run.path)
    return config


def refuse_module(config: TrainConfig, path: Path) -> None:
    """Errors: ValueError where a configuration from a file names a module that building it would import."""
    if (module := module_of(config)) is not None:
        raise ValueError(
            f"{path} names a world of the module {module!r}, and to import that executes what is in it: "
            "give --trust if you know whose it is"
        )


def module_of(config: TrainConfig) -> str | None:
    """The module that a world outside is imported from by name: MODULE in gym:MODULE:X-v0."""
    match config.world:
        case GameConfig(game=game) if game.count(":") > 1:
            return game.split(":")[1]
    return None


def build(config: TrainConfig) -> WorldTrainer:
    """The trainer that a configuration describes, with its tasks drawn.

    Raises:
        ValueError: the agent cannot read what the view shows, or make nothing of the rewards, or is not for worlds
            outside JAX.
        ModuleNotFoundError: a world outside needs a package that is not installed.
    """
    world, run = config.world, config.agent
    match world:
        case WorldConfig():
            env, pool = world.open(stream_seed(config.seed, "training tasks"))
        case SuiteConfig():
            env, pool = world.open(world.draws, stream_seed(config.seed, "training tasks"), world.learned)
        case GameConfig():
            if module_of(config) is not None and (here := os.getcwd()) not in sys.path:
                sys.path.append(here)  # whoever names a module means one here, if there is no other of that name
            env, pool = world.world(run.experience.streams), jnp.asarray(world.tasks)
            if world.is_outside and not run.experience.outside:
                raise ValueError(
                    f"{run.name} does not train in worlds outside JAX, such as {world.game}; dreamer, sac and rsac do"
                )
    agent = AGENTS[type(run.algorithm)](run.algorithm, env, pool)
    trainer = WorldTrainer(agent, run.experience, env, pool, run.chunk, run.averaging)
    jax.eval_shape(trainer.init, jax.random.key(0))  # networks that do not fit the world say so here
    _check(config, pool)
    return trainer


def _check(config: TrainConfig, pool: Task) -> None:
    """Errors: ValueError where an agent would make nothing of the world, or not be ready when it is judged."""
    match config.agent, config.world:
        case (
            OffPolicyRun(algorithm=DreamerConfig(model=model)),
            WorldConfig(reward=reward) | SuiteConfig(reward=reward),
        ) if (needs := model.needs) is not None and reward != needs.reward:
            raise ValueError(
                f"{needs.why}, and reward is {reward!r}: give the world that one (--world.reward {needs.reward})"
            )
        case OffPolicyRun(algorithm=DreamerConfig(scales=scales)), world if scales not in (
            1,
            several := _several(world, pool),
        ):
            raise ValueError(f"scales must be 1 or the number of tasks, {several}; got {scales}")
        case OffPolicyRun(algorithm=PEARLConfig() | MetaDreamerConfig() as inferring), _ if (
            config.curve.trial <= inferring.test_episodes
        ):
            raise ValueError(
                f"who infers tasks is judged after {inferring.test_episodes} episodes with the prior (test_episodes), "
                f"and a trial has {config.curve.trial}: give --curve.trial {inferring.test_episodes + 1} or more"
            )
        case OnPolicyRun(algorithm=MAMLConfig(inner_steps=inner), experience=rollout), _:
            judged = config.curve.trial * rollout.steps / rollout.episodes  # where all episodes have one length
            if rollout.steps <= inner:
                raise ValueError(
                    f"maml adapts after {inner} steps (inner_steps), and a rollout, which is a whole trial, has "
                    f"{rollout.steps} (steps): give --agent.inner-steps less"
                )
            if judged <= inner:
                raise ValueError(
                    f"maml adapts after {inner} steps (inner_steps), and a trial that it is judged in has "
                    f"{judged:g} (curve.trial {config.curve.trial}): give --curve.trial more"
                )


def _several(world: WorldConfig | GameConfig | SuiteConfig, pool: Task) -> int:
    """How many tasks have returns of their own scale: those of a suite, however often each is drawn."""
    match world:
        case SuiteConfig(names=names):
            return len(names)
    return pool_size(pool)
