"""Seeds side by side are what each would be alone: their numbers, their folders, and how they go on after a kill."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from plans import A2C, DREAMER, WORLD

from reverie.policies.core import Policy
from reverie.runs import checkpoint, loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.runs.folders import RunFolders
from reverie.settings.config import LoopConfig, TrainConfig
from reverie.train.seeds import side_by_side

SEEDS = (3, 4)


def configs(agent) -> list[TrainConfig]:
    limits = LoopConfig(steps=10**6, evaluate_every=10**6)
    return [TrainConfig(agent, WORLD, limits, seed=seed) for seed in SEEDS]


def numbers(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    data = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [np.asarray(x, np.float64) for x in data]


@pytest.mark.parametrize("agent", [DREAMER, A2C], ids=["dreamer", "a2c"])
def test_numbers_are_those_of_training_alone(agent):
    trainers = [build(config) for config in configs(agent)]
    together = side_by_side(trainers)
    keys = jax.numpy.stack([jax.random.key(seed) for seed in SEEDS])
    state = together.init(keys)
    train = jax.jit(together.train, donate_argnums=0)
    for _ in range(2):
        state, metrics = train(state)
    step = jax.jit(trainers[0].train, donate_argnums=0)  # seeds differ in what they are given alone
    for i, (seed, trainer) in enumerate(zip(SEEDS, trainers, strict=True)):
        alone = trainer.init(jax.random.key(seed))
        for _ in range(2):
            alone, measured = step(alone)
        for x, y in zip(numbers(jax.tree.map(lambda x, i=i: x[i], state)), numbers(alone), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
        for name, values in measured.items():
            assert metrics[name].shape == (*values.shape, len(SEEDS))
            np.testing.assert_allclose(metrics[name][:, i], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_different_settings_do_not_go_side_by_side():
    longer = replace(A2C, experience=replace(A2C.experience, steps=5))
    with pytest.raises(ValueError, match="where only their tasks differ"):
        side_by_side([build(config) for agent in (A2C, longer) for config in configs(agent)[:1]])


# --- on disk, with a program that compiles in no time --------------------------------------------------------------


def train(folders: RunFolders | RunFolder, trainer, seed, steps: int, evaluate=None):
    limits = LoopConfig(steps=steps, evaluate_every=10**6, save_every=0.0)
    return loop.train(trainer, limits, folders, ["test"], seed, evaluate, quiet=True)


def begin(path, agent=A2C) -> RunFolders:
    return RunFolders(tuple(RunFolder.create(path / f"run-{c.seed}", c) for c in configs(agent)))


def judge(policies: tuple[Policy, ...]) -> dict[str, np.ndarray]:
    return {"evaluation/weights": np.array([sum(abs(x).sum() for x in numbers(p)) for p in policies])}


@pytest.fixture(scope="module")
def trainer():
    return side_by_side([build(config) for config in configs(A2C)])


def test_each_run_is_an_ordinary_run(tmp_path, trainer):
    chunk = trainer.env_steps
    folders = begin(tmp_path)
    outcome = train(folders, trainer, SEEDS, 2 * chunk, judge)
    assert outcome.env_steps == 2 * chunk
    for i, (run, config) in enumerate(zip(folders.runs, configs(A2C), strict=True)):
        alone = build(config)
        step, state = loop.newest_state(alone, RunFolder.open(run.path, config))
        assert step == 2 * chunk
        for x, y in zip(numbers(state), numbers(jax.tree.map(lambda x, i=i: x[i], outcome.state)), strict=True):
            np.testing.assert_array_equal(x, y)
        weights = [line["evaluation/weights"] for line in run.metrics() if "evaluation/weights" in line]
        assert len(weights) == 2, "one at the beginning, one at the end"
        assert weights[1] == pytest.approx(judge((alone.policy(state),))["evaluation/weights"][0])
        assert train(run, alone, config.seed, 3 * chunk).env_steps == 3 * chunk, "it does not go on alone"
    costs = [[line["cpu_seconds"] for line in run.metrics()[:3]] for run in folders.runs]
    assert costs[0] == costs[1], "the CPU seconds are not shared evenly"


def test_a_kill_between_two_folders_goes_back_to_the_step_of_all(tmp_path, trainer):
    chunk = trainer.env_steps
    whole, killed = begin(tmp_path / "whole"), begin(tmp_path / "killed")
    expected = train(whole, trainer, SEEDS, 3 * chunk)
    train(killed, trainer, SEEDS, 2 * chunk)
    newest = checkpoint.latest(killed.runs[1].checkpoints)
    assert newest is not None
    newest.unlink()  # as if the kill had come after the first folder was saved
    resumed = train(killed, trainer, SEEDS, 3 * chunk)
    for x, y in zip(numbers(resumed.state), numbers(expected.state), strict=True):
        np.testing.assert_array_equal(x, y)
    for one, other in zip(whole.runs, killed.runs, strict=True):
        kept = [
            [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in run.metrics()]
            for run in (one, other)
        ]
        assert repr(kept[0]) == repr(kept[1])


def test_a_kill_before_every_folder_was_saved_begins_anew(tmp_path, trainer):
    chunk = trainer.env_steps
    folders = begin(tmp_path)
    expected = train(folders, trainer, SEEDS, chunk)
    for path in folders.runs[1].checkpoints.iterdir():
        path.unlink()
    again = train(folders, trainer, SEEDS, chunk)
    for x, y in zip(numbers(again.state), numbers(expected.state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_runs_that_went_apart_are_named(tmp_path, trainer):
    chunk = trainer.env_steps
    folders = begin(tmp_path)
    train(folders, trainer, SEEDS, chunk)
    alone = build(configs(A2C)[0])
    for steps in (3, 4):  # the last two checkpoints are kept
        train(folders.runs[0], alone, SEEDS[0], steps * chunk)
    with pytest.raises(ValueError, match=r"none in common.*run-3: 0, .*run-4: \d+.*Resume each of them alone"):
        train(folders, trainer, SEEDS, 5 * chunk)


def test_a_seed_that_diverges_is_named(tmp_path, trainer):
    folders = begin(tmp_path)

    def train_and_break(state):
        state, metrics = trainer.train(state)
        return state, metrics | {"actor/loss": metrics["actor/loss"].at[1, 1].set(np.nan)}

    class Broken(type(trainer)):
        def train(self, state):
            return train_and_break(state)

    broken = Broken(trainer.one, trainer.pools)
    with pytest.raises(loop.DivergedError, match=r"actor/loss of .*run-4 .* at update 2\."):
        train(folders, broken, SEEDS, trainer.env_steps)


@pytest.mark.usefixtures("few_rules")
def test_seeds_get_folders_of_their_own_on_the_command_line(tmp_path, capsys):
    from reverie.commands import train as command

    arguments = ["--agent", "a2c", "--seeds", "2", "--seed", "5", "--out", str(tmp_path / "mine"), "--quiet"]
    tiny = ["--steps", "96", "--world.jobs", "10", "--curve.episodes", "1", "--curve.jobs", "20", "--agent.chunk", "1"]
    small = ["--agent.streams", "8", "--agent.steps", "4", "--world.tasks", "2", "--world.family", "easy"]
    command.main([*arguments, *tiny, *small])
    for seed in (5, 6):
        run = RunFolder.open(tmp_path / f"mine-{seed}")
        assert run.config(TrainConfig).seed == seed
        assert [line["step"] for line in run.metrics()] == [0, 32, 64, 96]
        assert (run.tables / "curve_rules.csv").exists()
    resumed = command.parse(["--seeds", "2", "--seed", "5", "--out", str(tmp_path / "mine"), "--resume"])
    assert resumed.config == RunFolder.open(tmp_path / "mine-5").config(TrainConfig)
    assert replace(resumed.config, seed=6) == RunFolder.open(tmp_path / "mine-6").config(TrainConfig)
    with pytest.raises(SystemExit):
        command.parse(["--seeds", "0"])
    assert "seeds must be at least 1, got 0" in " ".join(capsys.readouterr().err.split())
