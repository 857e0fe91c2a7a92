"""What `test_devices.py` runs in a process of its own, whose CPU plays two devices: the checks are assertions."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from reverie import runtime
from reverie.agents.a2c import A2CConfig
from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.agents.ppo import PPOConfig
from reverie.models.rssm import PRESETS
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import DreamerRun, LoopConfig, OnPolicyRun, TrainConfig, WorldConfig
from reverie.train.devices import first_devices, spread
from reverie.train.dreaming import DreamingConfig
from reverie.train.on_policy import OnPolicyConfig
from reverie.train.trainers import InWorld

WORLD = WorldConfig(family="easy", tasks=4, jobs=10)
CAPACITY = 26
STREAMS = 4
AGENTS = {
    "dreamer": DreamerRun(
        DreamerConfig(model=PRESETS["tiny"], memory=8, units=16, layers=1, horizon=3, starts=6, siblings=2),
        DreamingConfig(streams=STREAMS, capacity=STREAMS * CAPACITY, batch=4, length=6, ratio=3.0),
        chunk=2,
    ),
    "a2c": OnPolicyRun(
        A2CConfig(network=NetworkConfig(units=16, memory=4)), OnPolicyConfig(streams=8, steps=4), chunk=2
    ),
    "ppo": OnPolicyRun(
        PPOConfig(network=NetworkConfig(units=16), minibatches=2, epochs=2),
        OnPolicyConfig(streams=8, steps=4),
        chunk=2,
    ),
}


def config(name: str) -> TrainConfig:
    return TrainConfig(AGENTS[name], WORLD, LoopConfig(steps=10**6), seed=1)


def numbers(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    data = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [np.asarray(x, np.float64) for x in data]


def assert_close(left, right) -> None:
    for x, y in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def assert_divided(state: InWorld) -> None:
    """Each device holds its share of streams and replay, and all of the rest."""

    def shares(tree) -> set[tuple[int, ...]]:
        return {
            tuple(np.divide(leaf.shape, leaf.addressable_shards[0].data.shape).astype(int))[:2]
            for leaf in jax.tree.leaves(tree)
            if leaf.ndim and leaf.size
        }

    learning = state.learning
    for collector in getattr(learning, "collectors", None) or [learning.collector]:
        assert {share[0] for share in shares(collector._replace(key=None))} == {2}
    if hasattr(learning, "replay"):
        assert shares(learning.replay.rows) == {(1, 2)}
    assert all(set(share) == {1} for share in shares((learning.learner, state.averaged, state.pool)))


def the_result_is_that_of_one_device(name: str) -> None:
    alone = build(config(name))
    shared = spread(alone, 2)
    one, two = alone.init(jax.random.key(1)), shared.init(jax.random.key(1))
    assert_divided(two)
    shapes = shared.place(jax.eval_shape(shared.init, jax.random.key(1)))
    program = jax.jit(shared.train, donate_argnums=0).lower(shapes).compile()
    if name == "dreamer":
        assert f"[{CAPACITY},{STREAMS // 2}," in program.as_text()
        assert f"[{CAPACITY},{STREAMS}," not in program.as_text(), "the replay is brought together on a device"
    step = jax.jit(alone.train, donate_argnums=0)
    for _ in range(2):
        (one, expected), (two, measured) = step(one), program(two)
        assert_close(expected, measured)
    assert_divided(two)
    assert_close(one, two)


def a_run_goes_on_with_another_number_of_devices(name: str, folder: Path) -> None:
    alone = build(config(name))
    shared, chunk = spread(alone, 2), alone.env_steps

    def train(run: RunFolder, trainer, chunks: int):
        limits = LoopConfig(steps=alone.first_steps + chunks * chunk, evaluate_every=10**6, save_every=0.0)
        return loop.train(trainer, limits, run, ["test"], 1, lambda policy: {}, quiet=True).state

    whole, parts = (RunFolder.create(folder / f"{name}-{way}", config(name)) for way in ("whole", "parts"))
    expected = train(whole, alone, 3)
    assert_divided(train(parts, shared, 1))
    train(parts, alone, 2)
    state = train(parts, shared, 3)
    assert_divided(state)
    assert_close(expected, state)


def impossible_divisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"devices must lie in 1 \.\. 2, as this process sees .*; got 3"):
        first_devices(3)
    odd = replace(AGENTS["dreamer"], experience=replace(AGENTS["dreamer"].experience, batch=5))
    with pytest.raises(ValueError, match=r"batch must be a multiple of the 2 devices .* got 5; 6 would do"):
        spread(build(replace(config("dreamer"), agent=odd)), 2)
    odd = replace(AGENTS["a2c"], experience=replace(AGENTS["a2c"].experience, streams=10))
    with pytest.raises(ValueError, match=r"streams / workers must be a multiple of the 2 devices .* got 5"):
        spread(build(replace(config("a2c"), agent=odd)), 2)


if __name__ == "__main__":
    runtime.configure()
    assert len(jax.devices()) == 2
    for name in AGENTS:
        the_result_is_that_of_one_device(name)
    for name in ("dreamer", "a2c"):
        a_run_goes_on_with_another_number_of_devices(name, Path(sys.argv[1]))
    impossible_divisions_are_refused()
