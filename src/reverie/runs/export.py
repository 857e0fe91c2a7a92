"""A policy to take with you: its networks, what they read, and where they come from, in one file without trainer or
replay. It is a safetensors file as checkpoints are (`checkpoint.py`), so nothing in it is executed when it is read.

`reverie.serve` decides with it without JAX; `load_policy` here makes it a policy of JAX again, for the simulator.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from reverie.envs.fleet.views import VIEWS
from reverie.envs.fleet.weights import FleetWorld
from reverie.policies.core import Policy
from reverie.runs import checkpoint, loop
from reverie.runs.build import build
from reverie.runs.config_json import config_from_json, config_to_json
from reverie.runs.folder import RunFolder
from reverie.settings.config import TrainConfig, WorldConfig
from reverie.train.trainers import for_fleet, in_fixed_order

KIND = "policy"
"""Under `kind` in the metadata, which tells these files from checkpoints."""


def export_policy(run: RunFolder, path: Path) -> int:
    """Write the policy of a run's newest checkpoint; returns the environment steps that it has learned from.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: it is no agent of a fleet, or the checkpoint does not fit.
    """
    config = run.config(TrainConfig)
    fleet, trainer = config.fleet, build(config)
    step, state = loop.newest_state(trainer, run)
    env = replace(fleet.env, servers=trainer.env.observation_spec["mask"].shape[0])
    provenance = {"run": str(run.path.absolute()), "env_steps": step, "written_by": run.versions()[-1:]}
    write_policy(path, config, env, state.averaged, provenance, fleet.seconds)
    return step


def write_policy(
    path: Path,
    config: TrainConfig,
    env: FleetWorld,
    networks: PyTree,
    provenance: Mapping[str, Any],
    seconds: float | None = None,
) -> None:
    """Write networks that were made for `env` by `config`; a time unit of that world is so many `seconds`, if known."""
    specs = env.observation_spec
    described = {
        "kind": KIND,
        "config": config_to_json(config),
        "observation": {name: asdict(spec) for name, spec in specs.items()},
        "actions": env.servers,
        "units": dict(VIEWS[env.view].units),
        "seconds": seconds,
        "provenance": dict(provenance),
    }
    checkpoint.save(path, networks, described)


def load_policy(path: Path, servers: int | None = None) -> tuple[TrainConfig, Policy]:
    """The configuration that a policy was trained with, and the policy, taking its likeliest actions.

    Arguments: `servers`, the size of the fleet that it is to act for; that of its training unless given.

    Raises:
        ValueError: the file is damaged or holds no policy, or its networks are made for another size of fleet.
    """
    described = checkpoint.read_metadata(path)
    if described.get("kind") != KIND:
        raise ValueError(f"{path} is no exported policy; make one with `reverie export RUN {path}`")
    config = config_from_json(TrainConfig, described["config"])
    fleet, trained_for = config.fleet, described["actions"]
    # Any task will do: what the networks are is decided by the configuration, what they read by view and servers.
    anywhere = WorldConfig(tasks=1, view=fleet.view, proxy=fleet.proxy, reward=fleet.reward, deadline=fleet.deadline)
    agent = build(replace(config, start=None, world=anywhere)).agent
    agent, wanted = for_fleet(agent, fleet.env, trained_for if servers is None else servers)
    try:
        return config, agent.policy(checkpoint.load(path, wanted), greedy=True)
    except ValueError as error:
        if servers in (None, trained_for):
            raise
        raise in_fixed_order(str(path), trained_for, servers) from error
