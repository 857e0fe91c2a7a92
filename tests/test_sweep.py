"""Runs trained side by side end with the numbers of runs trained alone, whatever is killed, stopped or failing."""

import importlib.util
import io
import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from plans import A2C, CURVE, WORLD
from safetensors import safe_open

from reverie import cli
from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.ppo import PPOConfig
from reverie.commands import sweep as sweep_command
from reverie.commands.sweep import parse as parse_sweep
from reverie.commands.verdict import parse as parse_verdict
from reverie.envs.fleet.own import Own
from reverie.evaluate.results import Examination
from reverie.runs import checkpoint
from reverie.runs.build import build
from reverie.runs.config_json import config_to_json
from reverie.runs.folder import RunFolder
from reverie.runs.progress import Terminal
from reverie.settings import presets
from reverie.settings.config import CurveConfig, GameConfig, LoopConfig, TrainConfig
from reverie.settings.presets import preset
from reverie.sweep.board import Board, standing
from reverie.sweep.engines import Ending, Engine, Here, Local, Ray
from reverie.sweep.plans import SweepConfig, VerdictConfig
from reverie.sweep.side_by_side import RunsFailedError, train_all
from reverie.sweep.sweep import open_sweep, sweep
from reverie.sweep.training import train_run

CHUNK = 64  # environment steps
TINY = TrainConfig(A2C, WORLD, LoopConfig(steps=8 * CHUNK, evaluate_every=4 * CHUNK), CURVE)
# For workers a game, whose learning curve needs no rules: every process would compile them all.
GAME = replace(TINY, world=GameConfig("memory_length/1"))
LONG = replace(GAME, loop=LoopConfig(steps=100 * CHUNK, evaluate_every=100 * CHUNK, save_every=0.0))
ENDLESS = replace(LONG, loop=replace(LONG.loop, steps=10_000 * CHUNK, evaluate_every=10_000 * CHUNK))
DIVERGING = replace(TINY.agent, algorithm=replace(TINY.agent.algorithm, learning_rate=1e30))
EXAM = ["--episodes", "6", "--jobs", "30"]
COMMAND = ["test"]


def skip_without_ray() -> None:
    """Without importing it: that is for the engine, which says first how."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: it is part of the dev group and of reverie[ray]")


def plans(folder: Path, config: TrainConfig = TINY, seeds: int = 2) -> dict[Path, TrainConfig]:
    return {folder / f"a2c-{seed}": replace(config, seed=seed) for seed in range(seeds)}


def alone(folder: Path, config: TrainConfig) -> RunFolder:
    """The same run in this process, as `reverie train` does it."""
    run = RunFolder.create(folder, config)
    train_run(config, build(config), run, COMMAND, quiet=True)
    return run


def ended_with(run: RunFolder) -> tuple[str, dict[str, bytes]]:
    """Name and arrays of the newest checkpoint."""
    path = checkpoint.latest(run.checkpoints)
    assert path is not None
    with safe_open(path, "numpy") as file:
        return path.name, {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def logged(run: RunFolder) -> list[dict]:
    """The metrics without the clocks."""
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in run.metrics()]


def same(one: RunFolder, other: RunFolder) -> bool:
    return ended_with(one) == ended_with(other) and json.dumps(logged(one)) == json.dumps(logged(other))


def once_saved(folder: Path, act) -> threading.Thread:
    """Call `act` with the worker's process number as soon as a run has a checkpoint, and is far from its end."""

    def wait() -> None:
        while not any((folder / "checkpoints").glob("step-*")):
            time.sleep(0.01)
        act(int((folder / "lock").read_text().split()[1]))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


class Scripted:
    """An engine without processes: each start of a run ends as its script says, in turn."""

    def __init__(self, workers: int, **scripts: list[Ending]):
        self.workers, self._scripts = workers, scripts
        self.started: list[str] = []
        self.at_work = self.most = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def launch(self, folder, command):
        self.started.append(folder.name)
        self.at_work += 1
        self.most = max(self.most, self.at_work)

        def poll():
            self.at_work -= 1
            return self._scripts[folder.name].pop(0)

        return poll


DONE, KILLED = Ending("done"), Ending("killed", "its worker was ended by SIGKILL")

# --- with processes --------------------------------------------------------------------------------------------------


class SideBySide(NamedTuple):
    plans: dict[Path, TrainConfig]
    shown: str
    failed: RunsFailedError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, RunFolder]:
    """The two runs that do not fail, each of this process, which nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return {"long": alone(folder / "long", LONG), "short": alone(folder / "short", replace(GAME, seed=1))}


def train_on(engine: Engine, folder: Path) -> SideBySide:
    """Three runs side by side: the worker of the first is killed on its way, the last must fail."""
    plans = {
        folder / "long": LONG,
        folder / "short": replace(GAME, seed=1),
        folder / "diverging": replace(GAME, agent=DIVERGING),
    }
    killer = once_saved(folder / "long", lambda process: os.kill(process, signal.SIGKILL))
    with redirect_stderr(io.StringIO()) as shown, pytest.raises(RunsFailedError) as failed:
        train_all(plans, engine, command=COMMAND)
    killer.join()
    return SideBySide(plans, shown.getvalue(), failed.value)


@pytest.fixture(scope="module")
def on_this_machine(tmp_path_factory) -> SideBySide:
    return train_on(Local(2), tmp_path_factory.mktemp("side by side"))


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory) -> SideBySide:
    skip_without_ray()
    return train_on(Ray(workers=2), tmp_path_factory.mktemp("on ray"))


@pytest.fixture(scope="module")
def trained(on_this_machine) -> dict[Path, TrainConfig]:
    """The runs that are finished."""
    return {folder: plan for folder, plan in on_this_machine.plans.items() if folder.name != "diverging"}


@pytest.mark.parametrize("engine", ["on_this_machine", "on_ray"])
def test_runs_side_by_side_end_with_the_bits_of_runs_alone_though_a_worker_was_killed(engine, request, whole):
    side_by_side: SideBySide = request.getfixturevalue(engine)
    assert re.search(
        r"long: waiting, its worker was (ended by SIGKILL|lost: .*); it is taken up again", side_by_side.shown
    )
    runs = {folder.name: RunFolder(folder) for folder in side_by_side.plans}
    assert len(runs["long"].versions()) == 2
    assert same(runs["long"], whole["long"])
    assert same(runs["short"], whole["short"])


@pytest.mark.parametrize("engine", ["on_this_machine", "on_ray"])
def test_a_run_that_fails_says_why_and_stops_no_other(engine, request):
    side_by_side: SideBySide = request.getfixturevalue(engine)
    *_, diverging = side_by_side.plans
    ((folder, words),) = side_by_side.failed.failures.items()
    assert folder == diverging
    assert "became infinite or NaN" in words
    assert str(side_by_side.failed).startswith("1 of 3 runs failed, the others are finished")
    assert "diverging: failed" in side_by_side.shown
    assert "2 of 3 runs done, 1 failed" in side_by_side.shown
    assert "DivergedError" in (folder / "worker.log").read_text()


def test_a_second_start_does_no_work(trained):
    paths = [path for folder in trained for path in folder.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    idle = Scripted(1)
    assert [run.path for run in train_all(trained, idle, command=COMMAND)] == list(trained)
    assert idle.started == []
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    assert {path for folder in trained for path in folder.rglob("*")} == set(paths)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_an_interrupt_stops_the_workers_which_are_bound_to_cores_and_save(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background processes ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    bound = []
    mine = os.sched_getaffinity(0)

    def interrupt(process: int) -> None:
        bound.append((process, os.sched_getaffinity(process)))
        os.kill(os.getpid(), signal.SIGINT)

    once_saved(tmp_path / "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_all({tmp_path / "run": ENDLESS}, Local(len(mine)), command=COMMAND, quiet=True)
    ((process, cores),) = bound
    assert len(cores) == 1
    assert os.sched_getaffinity(0) == mine
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    run = RunFolder(tmp_path / "run")
    name, _ = ended_with(run)
    assert name == f"step-{logged(run)[-1]['step']:012d}.safetensors"  # saved where it stood
    assert logged(run)[-1]["step"] < ENDLESS.loop.steps


# --- what is next, without processes ---------------------------------------------------------------------------------


def test_no_more_runs_at_a_time_than_workers(tmp_path):
    engine = Scripted(2, **{f"a2c-{seed}": [DONE] for seed in range(5)})
    train_all(plans(tmp_path, seeds=5), engine, command=COMMAND, quiet=True)
    assert engine.started == [f"a2c-{seed}" for seed in range(5)]
    assert engine.most == 2


def test_a_run_whose_worker_is_killed_too_often_has_failed(tmp_path):
    engine = Scripted(1, **{"a2c-0": [KILLED] * 3, "a2c-1": [KILLED, KILLED, DONE]})
    with pytest.raises(RunsFailedError, match=r"ended by SIGKILL, 3 times") as failed:
        train_all(plans(tmp_path), engine, command=COMMAND, retries=2, quiet=True)
    assert engine.started == ["a2c-0"] * 3 + ["a2c-1"] * 3
    assert list(failed.value.failures) == [tmp_path / "a2c-0"]


def test_a_failure_is_not_tried_again(tmp_path):
    engine = Scripted(1, **{"a2c-0": [Ending("failed", "the disk is full")], "a2c-1": [DONE]})
    with pytest.raises(RunsFailedError, match=r"a2c-0: the disk is full"):
        train_all(plans(tmp_path), engine, command=COMMAND, quiet=True)
    assert engine.started == ["a2c-0", "a2c-1"]


def test_a_run_of_another_configuration_is_refused_before_any_work(trained):
    _, (folder, config) = trained.items()
    new = folder.parent / "new"
    other = {new: TINY, folder: replace(config, curve=CurveConfig(episodes=3, jobs=10))}
    with pytest.raises(ValueError, match=r"curve.episodes: 2, now 3"):
        train_all(other, Local(1), command=COMMAND)
    assert not new.exists()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    twice = {tmp_path / "run": TINY, tmp_path / "x" / ".." / "run": replace(TINY, seed=1)}
    with pytest.raises(ValueError, match=r"a folder of its own"):
        train_all(twice, Local(1), command=COMMAND)


# --- what is shown ---------------------------------------------------------------------------------------------------


def line(step: int, wall: float, **more: float) -> dict[str, float]:
    return {"step": step, "wall_seconds": wall, "cpu_seconds": wall, **more}


def test_rate_and_time_left_are_those_of_the_last_minute_of_training():
    config = replace(TINY, loop=LoopConfig(steps=10_000))
    assert standing(config, []).step == 0
    metrics = [line(0, 0.0, **{"evaluation/ratio": 2.0}), line(10, 100.0), line(1_000, 150.0), line(2_500, 160.0)]
    now = standing(config, metrics)
    assert (now.step, now.share, now.ratio) == (2_500, 0.25, 2.0)
    assert now.rate == pytest.approx(2_490 / 60)
    assert now.left == pytest.approx(7_500 / (2_490 / 60))


def test_the_nearest_limit_decides_how_much_is_left():
    config = replace(TINY, loop=LoopConfig(steps=1_000_000, minutes=10.0))
    now = standing(config, [line(0, 0.0), line(10, 60.0)])
    assert now.share == pytest.approx(0.1)
    assert now.left == pytest.approx(540.0)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_board_shows_all_runs_and_a_failure_with_its_reason(tmp_path, terminal):
    file, now = io.StringIO(), 0.0
    console = Terminal(file=file, force_terminal=terminal, width=150)
    folders = plans(tmp_path)
    first, second = folders
    second.mkdir()
    with Board(folders, [second], console=console, clock=lambda: now) as board:
        board.tell(second, "running")
        metrics = [line(64, 1.0, **{"evaluation/ratio": 1.5}), line(256, 3.0)]
        (second / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
        now = 40.0
        board.refresh()
        board.tell(second, "failed", "the disk is full")
    shown = file.getvalue()
    if terminal:
        assert first.name in shown
        assert "1.500" in shown
        assert " 96 " in shown  # steps per second
    else:
        assert shown.splitlines() == [
            "1 of 2 runs done, 1 waiting, 0:00:00 elapsed",
            "a2c-1: running",
            "1 of 2 runs done, 1 running, 0:00:40 elapsed (a2c-1 50 %)",
            "a2c-1: failed, the disk is full",
            "1 of 2 runs done, 1 failed, 0:00:40 elapsed",
        ]
    assert "a2c-1" in shown
    assert "the disk is full" in shown


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _tiny(monkeypatch, tmp_path, few_rules):
    ppo = replace(TINY, agent=replace(TINY.agent, algorithm=PPOConfig(NetworkConfig(units=8), minibatches=2)))
    monkeypatch.setattr(presets, "PRESETS", {"a2c": {"cpu": TINY}, "ppo": {"cpu": ppo}})
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seeds 0", "seeds must be at least 1"),
        ("--workers 0", "workers must be at least 1"),
        ("--engine ray --workers 0", "workers must be at least 1"),
        ("--address auto", "add --engine ray"),
        ("--agent a2c --agent a2c", "each agent can be given once"),
        ("--agent a2c --preset paper", "a2c has no preset 'paper'"),
        ("--family hrad", "did you mean 'hard'?"),
        ("--steps 0", "steps must be at least 1"),
        ("--trace missing.csv", "missing.csv"),
    ],
)
def test_a_mistake_is_answered_in_plain_words(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *words.split()]) == 1
    assert said in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("words", "said"), [("--agent sarsa", "dreamer"), ("--engine slurm", "local")])
def test_an_unknown_agent_or_engine_names_those_that_there_are(capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sweep", *words.split()])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_without_ray_its_engine_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["sweep", "--engine", "ray"]) == 1
    assert "pip install 'reverie[ray]'" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_agents_families_and_seeds_are_all_planned_and_told_apart():
    config = SweepConfig(agent=("dreamer", "a2c-rl2"), family=("hard", "levels"), seeds=2, steps=1_000)
    found = config.plans()
    assert [(plan.name, plan.world.family, plan.seed) for plan in found] == [
        (f"{agent}-{family}", family, seed)
        for seed in (0, 1)
        for agent in ("dreamer-queue-rl2", "a2c-rl2")
        for family in ("hard", "levels")
    ]
    assert {plan.loop.steps for plan in found} == {1_000}
    dreamer, with_memory = found[0].agent.algorithm, found[2].agent.algorithm
    assert with_memory.network.memory == dreamer.memory > 0
    assert [plan.name for plan in SweepConfig(seeds=1).plans()] == ["dreamer-queue-rl2", "a2c"]


@pytest.mark.parametrize(
    ("asked", "view", "model"),
    [
        ({}, "full", "QueueConfig"),
        ({"view": "counts"}, "counts", "CountsConfig"),
        ({"view": "latency"}, "latency", "SetRSSMConfig"),
        ({"preset": "hidden"}, "counts", "CountsConfig"),
        ({"preset": "learned", "view": "counts"}, "counts", "SetRSSMConfig"),
    ],
)
def test_a_verdict_trains_in_the_view_asked_for_on_the_servers_asked_for(asked, view, model):
    own = Own(speeds="1,0.5,0.25")
    *others, dreamer = VerdictConfig(Examination(own=own), seeds=1, **asked).plans()
    for plan in (*others, dreamer):
        assert (plan.world.view, plan.world.own) == (view, own)
        assert build(replace(plan, world=replace(plan.world, tasks=2))).env.servers == 3
    assert type(dreamer.agent.algorithm.model).__name__ == model
    # What Dreamer is paid, it remembers: where the view hides how long a job will take, so must the reward.
    assert dreamer.world.reward == ("admission" if view == "full" else "elapsed")
    assert not any(plan.agent.algorithm.network.memory for plan in others)


def tables(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder, "tables").glob("*.csv")}


SWEEP = ["sweep", "--agent", "a2c", "--agent", "ppo", "--workers", "2", *EXAM]


@pytest.mark.usefixtures("_tiny")
def test_a_sweep_judges_agents_over_their_seeds_and_goes_on_where_it_was(capsys, monkeypatch):
    """Trained in this process: what engines do is tested above and below."""
    monkeypatch.setattr(sweep_command, "Local", lambda workers: Here(quiet=True))
    words = [*SWEEP, "--seeds", "2", "--quiet", "--output", "json"]
    assert cli.main([*words, "--out", "here"]) == 0
    first = json.loads(capsys.readouterr().out)
    agents = [row for row in first["rows"] if row["role"] == "agent" and row["task"] == "hard"]
    assert {(row["agent"], row["seeds"]) for row in agents} == {("a2c", 2), ("ppo", 2)}
    assert "ppo" in Path(first["report"]).read_text()
    assert {"results-a2c-0.csv", "results-a2c-1.csv", "results-ppo-0.csv", "results-ppo-1.csv"} < tables("here").keys()

    before = tables("here")
    monkeypatch.setattr(sweep_command, "Local", Scripted)  # would fail if it were asked to train
    assert cli.main([*words, "--out", "here"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert tables("here") == before
    assert cli.main([*words, "--out", "here", "--steps", "64"]) == 1
    assert "steps: None, now 64" in capsys.readouterr().err


@pytest.mark.usefixtures("_tiny")
def test_a_sweep_with_a_failed_run_shows_the_others_and_is_no_success(capsys, monkeypatch):
    """In this process, whatever engine is asked for: what engines do is tested above."""
    presets.PRESETS["ppo"]["cpu"] = replace(TINY, agent=DIVERGING, label="diverging")
    asked = []

    def engine(*where: str | int | None) -> Here:
        asked.append(where)
        return Here(quiet=True)

    monkeypatch.setattr(sweep_command, "Ray", engine)
    words = [*SWEEP, "--seeds", "1", "--engine", "ray", "--address", "auto"]
    assert cli.main([*words, "--out", "there"]) == 1
    assert asked == [("auto", 2)]
    captured = capsys.readouterr()
    assert "agent / best rule" in captured.out
    assert "a2c" in captured.out
    assert "1 of 2 runs failed, the others are finished" in captured.err
    assert "diverging-0: failed" in captured.err
    assert "1 of 2 runs done, 1 failed" in captured.err
    assert "became infinite or NaN" in captured.err.rpartition("there/diverging-0")[2]
    assert ended_with(RunFolder(Path("there/a2c-0")))[0] == "step-000000000512.safetensors"


@pytest.mark.parametrize("kind", [SweepConfig, VerdictConfig])
def test_more_seeds_keep_what_is_there_and_add_what_is_missing(tmp_path, kind):
    few, many = kind(seeds=1), kind(seeds=3)
    assert few.plans() == [plan for plan in many.plans() if plan.seed == 0]  # so that their runs are recognised
    run = open_sweep(tmp_path / "sweep", few)
    assert open_sweep(run.path, many).config(kind) == many
    with pytest.raises(ValueError, match="seeds: 3, now 1"):
        open_sweep(run.path, few)
    with pytest.raises(ValueError, match="minutes"):
        open_sweep(run.path, kind(seeds=4, minutes=1.0))
    assert run.config(kind) == many


def test_a_sweep_whose_agents_have_other_names_now_is_refused(tmp_path):
    run = open_sweep(tmp_path / "sweep", VerdictConfig())
    plan = preset("dreamer", "cpu")
    RunFolder.create(run.path / "dreamer-rl2-0", plan)
    with pytest.raises(ValueError, match=r"dreamer-rl2-0 is of an older version, .* is called dreamer-queue-rl2 now"):
        sweep(run, [plan], Examination(), Local(), title="", command=[])


# --- settings from a file --------------------------------------------------------------------------------------------


def test_a_sweep_begins_with_what_stands_in_a_file_and_options_come_after_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('agent = ["a2c"]\nseeds = 2\nsteps = 5000\njobs = 30\nspeeds = "1,0.5"\n')
    asked = parse_sweep(["--config", str(path), "--seeds", "3"]).config
    assert (asked.agent, asked.seeds, asked.steps) == (("a2c",), 3, 5000)
    assert (asked.examination.exam.jobs, asked.examination.own.speeds) == (30, "1,0.5")
    (whole := tmp_path / "config.json").write_text(json.dumps(config_to_json(asked)))
    assert parse_sweep(["--config", str(whole)]).config == asked


def test_a_verdict_is_repeated_by_its_own_configuration_and_refuses_that_of_a_sweep(tmp_path):
    path = tmp_path / "config.json"
    config = VerdictConfig(view="counts", minutes=3.0)
    path.write_text(json.dumps(config_to_json(config)))
    assert parse_verdict(["--config", str(path)]).config == config
    path.write_text(json.dumps(config_to_json(SweepConfig())))
    with pytest.raises(ValueError, match=r"config\.json: the configuration: expected .*VerdictConfig.*SweepConfig"):
        parse_verdict(["--config", str(path)])
