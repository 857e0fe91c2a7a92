"""A run that was killed goes on to the same numbers, stops when it should, and never loses its last good checkpoint."""

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plans import DREAMER, WORLD

from reverie.envs.core import TimeStep
from reverie.runs import checkpoint, loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.runs.loop import DivergedError, Interrupted
from reverie.settings.config import LoopConfig, TrainConfig

STEPS = 30  # of the walk below, in one chunk


class WalkState(NamedTuple):
    position: jax.Array
    updates: jax.Array
    key: jax.Array


class Constant(NamedTuple):
    """Always does the same."""

    action: jax.Array

    def initial_state(self, batch: int) -> tuple[()]:
        return ()

    def act(self, state: tuple[()], timestep: TimeStep, key: jax.Array) -> tuple[jax.Array, tuple[()]]:
        return jnp.full(timestep.reward.shape, self.action), state


@dataclass(frozen=True)
class Walk:
    """A trainer whose every number depends on all the random numbers before it."""

    breaks_at: int | None = None
    first_steps: int = 7
    env_steps: int = STEPS
    updates: int = 3

    def init(self, key):
        return jax.jit(lambda key: WalkState(jnp.zeros(()), jnp.int32(0), key))(key)

    def place(self, state):
        return state

    def train(self, state):
        def update(state, _):
            key, step_key = jax.random.split(state.key)
            position = state.position + jax.random.normal(step_key)
            broken = False if self.breaks_at is None else state.updates + 1 >= self.breaks_at
            metrics = {
                "walk/position": position,
                "walk/loss": jnp.where(broken, jnp.nan, position**2),
                "episode/return": jnp.nan,
            }
            return WalkState(position, state.updates + 1, key), metrics

        return jax.lax.scan(update, state, None, length=self.updates)

    def check(self):
        pass

    def policy(self, state, greedy=True):
        return Constant(state.position)


@dataclass(frozen=True)
class Settings:
    name: str = "walk"


def position(policy) -> dict[str, float]:
    return {"evaluation/position": float(policy.action)}


def begin(folder: Path) -> RunFolder:
    return RunFolder.create(folder, Settings())


def train(run: RunFolder, trainer: Walk, evaluate=position, **limits) -> loop.Outcome:
    config = LoopConfig(**{"steps": 7 + 4 * STEPS, "evaluate_every": 2 * STEPS, "save_every": 1e9} | limits)
    return loop.train(trainer, config, run, ["test"], seed=5, evaluate=evaluate, quiet=True)


def logged(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def lines(run: RunFolder) -> list[str]:
    """The metrics as they stand in the file, without the clocks."""
    return [json.dumps({k: v for k, v in line.items() if not k.endswith("_seconds")}) for line in logged(run)]


def stop_with(number: int, at: int):
    """An evaluation during which a signal arrives, once the run has got to `at` evaluations."""
    seen = []

    def evaluate(policy):
        seen.append(policy)
        if len(seen) == at:
            os.kill(os.getpid(), number)
        return position(policy)

    return evaluate


def test_a_resumed_run_ends_with_the_same_state_and_the_same_metrics(tmp_path):
    whole, parts = begin(tmp_path / "whole"), begin(tmp_path / "parts")
    expected = train(whole, Walk())
    with pytest.raises(Interrupted, match=r"SIGTERM at 67 environment steps") as stopped:
        train(parts, Walk(), evaluate=stop_with(signal.SIGTERM, at=2))
    assert stopped.value.number == signal.SIGTERM
    assert len(lines(parts)) < len(lines(whole))
    resumed = train(parts, Walk())
    assert resumed.env_steps == expected.env_steps == 7 + 4 * STEPS
    assert resumed.updates == expected.updates == 12
    assert np.asarray(resumed.state.position).tobytes() == np.asarray(expected.state.position).tobytes()
    assert lines(parts) == lines(whole)


def test_work_after_the_last_checkpoint_is_done_again_after_a_kill(tmp_path):
    whole, killed = begin(tmp_path / "whole"), begin(tmp_path / "killed")
    train(whole, Walk())
    train(killed, Walk(), steps=7 + 3 * STEPS, save_every=0.0)
    checkpoint.latest(killed.checkpoints).unlink()  # as if the kill had come between log and save
    train(killed, Walk())
    assert lines(killed)[:3] == lines(whole)[:3]
    assert lines(killed)[-1] == lines(whole)[-1]
    assert len(lines(killed)) == len(lines(whole))


def test_the_learning_curve_has_a_point_at_both_ends_and_each_interval(tmp_path):
    run = begin(tmp_path / "run")
    train(run, Walk(), steps=7 + 5 * STEPS)
    evaluated = [line["step"] for line in logged(run) if "evaluation/position" in line]
    assert evaluated == [7, 67, 127, 157]
    assert [line["step"] for line in logged(run)] == [7, 37, 67, 97, 127, 157]


def test_the_clock_goes_on_where_it_was(tmp_path):
    def slow(policy):
        time.sleep(0.2)
        return position(policy)

    run = begin(tmp_path / "run")
    train(run, Walk(), evaluate=slow, steps=7 + STEPS)
    assert train(run, Walk(), steps=7 + 2 * STEPS).wall_seconds > 0.2


@pytest.mark.parametrize(("steps", "end"), [(8, 37), (60, 67), (64, None), (67, None)])
@pytest.mark.parametrize("quiet", [False, True])
def test_chunks_that_overshoot_by_far_are_said_before(tmp_path, capsys, steps, end, quiet):
    run = begin(tmp_path / "run")
    outcome = loop.train(Walk(), LoopConfig(steps=steps), run, ["test"], seed=5, quiet=quiet)
    said = f"chunks of 30 steps, so that it ends at {end} or before" in capsys.readouterr().err
    assert said == (end is not None)
    assert end in (None, outcome.env_steps)


def test_a_finished_run_returns_at_once_and_changes_nothing(tmp_path):
    run = begin(tmp_path / "run")
    first = train(run, Walk())
    before = lines(run)
    again = train(run, Walk(), evaluate=None)
    assert (again.env_steps, again.updates, again.stopped_by) == (first.env_steps, first.updates, "steps")
    assert again.wall_seconds == pytest.approx(first.wall_seconds, abs=1)
    assert lines(run) == before


@pytest.mark.parametrize("limit", ["minutes", "cpu_minutes"])
def test_a_budget_of_time_ends_the_run_and_says_so(tmp_path, limit):
    run = begin(tmp_path / "run")
    outcome = train(run, Walk(), steps=10**9, **{limit: 1e-9})
    assert outcome.stopped_by == limit
    assert outcome.env_steps < 10**9
    assert checkpoint.latest(run.checkpoints) is not None


def test_time_spent_before_a_kill_counts_for_the_budget(tmp_path):
    run = begin(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, Walk(), evaluate=stop_with(signal.SIGINT, at=2), minutes=5.0)
    spent = [line["wall_seconds"] for line in logged(run) if "wall_seconds" in line]
    outcome = train(run, Walk(), steps=10**9, minutes=(spent[-1] - 1e-6) / 60)
    assert outcome.stopped_by == "minutes"
    assert outcome.env_steps == 67  # nothing more was done


def test_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"one of steps, minutes, cpu_minutes"):
        LoopConfig(steps=None)


def test_a_metric_that_is_not_a_number_stops_the_run_and_keeps_the_checkpoint_before(tmp_path):
    run = begin(tmp_path / "run")
    with pytest.raises(DivergedError, match=r"walk/loss of .*run became infinite or NaN at update 8"):
        train(run, Walk(breaks_at=8), save_every=0.0)
    assert [line["step"] for line in logged(run)] == [7, 37, 67]
    assert checkpoint.latest(run.checkpoints).name == "step-000000000067.safetensors"
    step, state = loop.newest_state(Walk(), run)
    assert step == 67
    assert int(state.updates) == 6


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch):
    run = begin(tmp_path / "run")
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    with pytest.raises(OSError, match=r"not enough room"):
        train(run, Walk())
    assert not (run.path / "metrics.jsonl").exists()


def test_signals_are_handled_as_before_once_training_is_over(tmp_path):
    usual = signal.getsignal(signal.SIGINT)
    train(begin(tmp_path / "run"), Walk())
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint yet"):
        loop.newest_state(Walk(), begin(tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("evaluate_every", 0), ("minutes", 0.0), ("cpu_minutes", -1.0), ("save_every", -1.0)],
)
def test_an_impossible_limit_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        LoopConfig(**{field: value})


def test_a_resumed_dreamer_ends_with_the_same_bits(tmp_path):
    trainer = build(TrainConfig(DREAMER, WORLD))
    first, chunk = trainer.first_steps, trainer.env_steps
    limits = {"steps": first + 3 * chunk, "evaluate_every": chunk, "evaluate": lambda policy: {}}
    whole, parts = begin(tmp_path / "whole"), begin(tmp_path / "parts")
    expected = train(whole, trainer, **limits)
    train(parts, trainer, **limits | {"steps": first + chunk})
    resumed = train(parts, trainer, **limits)
    assert lines(parts) == lines(whole)
    assert expected.updates == int(expected.state.learning.updates) == 3 * trainer.updates
    for one, other in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(expected.state), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
