"""How long one decision of an exported policy takes: `OPENBLAS_NUM_THREADS=1 python benchmarks/policy.py [FILE ...]`.

Without a file, networks of the CPU presets as they are before training: what a decision takes does not depend on what
was learned. Batch 1, plain lists in and an index out; products of this size gain nothing by a second thread.

Needs nothing but Reverie itself. Takes half a minute.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import reverie

PRESETS = ("dreamer-cpu", "dreamer-hidden", "a2c-cpu", "ppo-cpu")


def decisions(path: Path, count: int) -> np.ndarray:
    """Microseconds of each of `count` decisions about made-up fleets."""
    policy, rng = reverie.load_policy(path), np.random.default_rng(0)
    shapes = {name: spec["shape"] for name, spec in policy.described["observation"].items() if name != "mask"}
    seen = [{name: rng.exponential(1, shape).tolist() for name, shape in shapes.items()} for _ in range(200)]
    took = np.empty(count)
    for i in range(-200, count):  # the first are for warming up
        observation = seen[i % len(seen)]
        began = time.perf_counter_ns()
        policy.act(observation)
        if i >= 0:
            took[i] = (time.perf_counter_ns() - began) / 1e3
    return took


def write(name: str, folder: Path) -> Path:
    """The policy of a preset before training, exported."""
    from dataclasses import replace

    import jax

    from reverie.envs.fleet.env import FleetEnv
    from reverie.runs.build import build
    from reverie.runs.export import write_policy
    from reverie.settings.presets import preset

    algorithm, kind = name.split("-")
    plan = preset(algorithm, kind)  # ty: ignore[invalid-argument-type]
    fleet = replace(plan.fleet, tasks=2)
    networks = build(replace(plan, world=fleet)).agent.init(jax.random.key(0)).networks
    env = FleetEnv(jobs=fleet.jobs, view=fleet.view, reward=fleet.reward)
    write_policy(path := folder / f"{name}.safetensors", plan, env, networks, {})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--decisions", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = asked.files or [write(name, Path(folder)) for name in PRESETS]
        print(f"{'policy':<24}{'p50':>8}{'p99':>8}{'p99.9':>8}  us")
        for path in files:
            took = decisions(path, asked.decisions)
            print(f"{path.stem:<24}" + "".join(f"{np.percentile(took, q):8.1f}" for q in (50, 99, 99.9)))


if __name__ == "__main__":
    main()
