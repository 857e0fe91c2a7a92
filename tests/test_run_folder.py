"""A run explains itself, refuses what does not fit, and after a kill goes on to the files of an unbroken run."""

import json
import math
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

import reverie
from reverie.cli import _is_plain
from reverie.runs import folder as run_module
from reverie.runs import versions as versions_module
from reverie.runs.config_json import config_differences, config_from_json, config_to_json
from reverie.runs.folder import RunFolder
from reverie.runs.versions import code_revision, versions


@dataclass(frozen=True)
class Poisson:
    rate: float = 1.0


@dataclass(frozen=True)
class Trace:
    file: Path
    load: float | None = None


@dataclass(frozen=True)
class Rule:
    name: Literal["jsq", "random"] = "jsq"


@dataclass(frozen=True)
class Agent:
    units: int = 256
    rates: tuple[float, ...] = (1e-4, 3e-5)
    shape: tuple[int, str] = (3, "x")
    cap: float = math.inf

    def __post_init__(self):
        if self.units <= 0:
            raise ValueError(f"units must be positive, not {self.units}")


type Arrivals = Poisson | Trace


@dataclass(frozen=True)
class Config:
    seed: int = 0
    arrivals: Arrivals = Poisson()
    player: Agent | Rule | None = Agent()
    levels: tuple[Arrivals, ...] = ()
    notes: Mapping[str, int | None] = field(default_factory=dict)
    width: int | Literal["auto"] = "auto"
    fast: bool = False


RICH = Config(
    seed=2**40,
    arrivals=Trace(Path("a/b.csv"), load=0.1),
    player=Rule("random"),
    levels=(Poisson(2), Trace(Path("c"), None)),
    notes={"a": 1, "b": None},
    width=3,
    fast=True,
)


@pytest.mark.parametrize("config", [Config(), RICH, replace(Config(), player=None)])
def test_a_configuration_comes_back_as_it_was(config):
    text = json.dumps(config_to_json(config), allow_nan=False)
    assert config_from_json(Config, json.loads(text)) == config


def test_the_members_of_a_union_are_told_apart_by_name():
    assert config_to_json(RICH)["levels"] == [
        {"class": "Poisson", "rate": 2},
        {"class": "Trace", "file": "c", "load": None},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, r"^the configuration: Config has no field 'sed'; did you mean 'seed'\?"),
        ({"seed": None}, "^seed: expected int, found None"),
        ({"seed": 1.5}, "^seed: expected int, found 1.5"),
        ({"seed": 10**30}, "^seed: expected int of 64 bits, found 1000"),
        ({"seed": True}, "^seed: expected int, found True"),
        ({"fast": 1}, "^fast: expected bool, found 1"),
        ({"width": "wide"}, "^width: expected one of int, typing.Literal"),
        ({"player": {"class": "Agent", "units": 1}}, "^player: Agent lacks rates, shape, cap"),
        ({"player": {"class": "Agant"}}, "^player: expected one of Agent, Rule, None, found Agant"),
        ({"player": {"class": "Rule", "name": "jqs"}}, "^player.name: expected one of 'jsq', 'random', found 'jqs'"),
        ({"arrivals": {"class": "Poisson", "rate": "fast"}}, "^arrivals.rate: expected float, found 'fast'"),
        ({"arrivals": {"class": "Poisson", "rate": True}}, "^arrivals.rate: expected float, found True"),
        ({"arrivals": {"rate": 1}}, "^arrivals: expected one of Poisson, Trace"),
        ({"levels": {}}, r"^levels: expected a list, found \{\}"),
        ({"levels": [{"class": "Trace", "file": 1, "load": 1}]}, r"^levels\[0\].file: expected Path, found 1"),
        ({"notes": {"a": "x"}}, r"^notes\['a'\]: expected int, found 'x'"),
        ({"player": {**config_to_json(Agent()), "shape": [1]}}, "^player.shape: expected a list of 2"),
        ({"player": {**config_to_json(Agent()), "units": -1}}, "^player: units must be positive, not -1"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(Config, {**config_to_json(Config()), **change})


def test_what_cannot_be_stored_is_refused_before_the_run_exists(tmp_path):
    @dataclass(frozen=True)
    class Bad:
        weights: object = None

    with pytest.raises(TypeError, match="weights: a ndarray cannot be part of a stored configuration"):
        RunFolder.create(tmp_path / "run", Bad(weights=np.ones(2)))
    with pytest.raises(ValueError, match="weights: expected object, found 1"):
        RunFolder.create(tmp_path / "run", Bad(weights=1))
    with pytest.raises(TypeError, match="a configuration is a dataclass"):
        RunFolder.create(tmp_path / "run", {"seed": 1})
    assert not (tmp_path / "run").exists()


def test_differences_are_named_field_by_field():
    old = config_to_json(Config())
    assert config_differences(old, config_to_json(Config())) == []
    new = replace(Config(), seed=1, player=replace(Agent(), units=512, rates=(1.0,)), arrivals=Trace(Path("x")))
    assert config_differences(old, config_to_json(new)) == [
        "seed: 0, now 1",
        "arrivals: Poisson, now Trace",
        "player.units: 256, now 512",
        "player.rates: [0.0001, 3e-05], now [1.0]",
    ]


def test_a_run_is_found_again_with_its_configuration_and_no_other(tmp_path):
    path = tmp_path / "runs" / "one"
    RunFolder.create(path, RICH)
    assert RunFolder.open(path).config(Config) == RICH
    assert RunFolder.open(path, RICH).path == path
    with pytest.raises(ValueError, match=r"another configuration(.|\n)*\n  seed: 1099511627776, now 7$"):
        RunFolder.open(path, replace(RICH, seed=7))
    with pytest.raises(ValueError, match=r'config\.json: the configuration: expected an object with "class": "Agent"'):
        RunFolder.open(path).config(Agent)
    with pytest.raises(FileExistsError, match="is not empty; resume the run"):
        RunFolder.create(path, RICH)
    with pytest.raises(FileNotFoundError, match="is not a run"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("making", ["checkpoints", "tables", "config.json"])
def test_a_run_is_made_anew_where_a_process_was_killed_while_making_it(tmp_path, making):
    killed_process = (
        "import os, signal, sys; from pathlib import Path; from reverie.runs.loop import LoopConfig\n"
        "from reverie.runs.folder import RunFolder\n"
        "def kill(event, arguments):\n"
        "    if event in ('os.mkdir', 'os.rename') and Path(arguments[0]).name == sys.argv[2]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
        "RunFolder.create(Path(sys.argv[1]), LoopConfig())"
    )
    path = tmp_path / "run"
    ended = subprocess.run([sys.executable, "-c", killed_process, str(path), making], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.is_dir()
    assert not (path / "config.json").exists()
    train(RunFolder.create(path, Config()), 10)
    unbroken = RunFolder.create(tmp_path / "unbroken", Config())
    train(unbroken, 10)
    assert {file.name for file in path.iterdir()} == {file.name for file in unbroken.path.iterdir()}


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "notes").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        RunFolder.create(tmp_path, Config())
    assert {path.name for path in tmp_path.iterdir()} == {"tables", "notes"}


def test_each_writing_process_is_on_record(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    assert run.versions() == []
    for command in (["reverie", "train"], ["reverie", "evaluate"]):
        with run.writer(command):
            pass
    first, second = run.versions()
    assert (first["command"], second["command"]) == (["reverie", "train"], ["reverie", "evaluate"])
    assert first["versions"] == second["versions"] == versions()
    assert first["versions"]["jax"] == jax.__version__
    assert first["versions"]["reverie"] == reverie.__version__
    assert first["versions"]["cpu"]
    assert first["time"].endswith("+00:00")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_is_that_of_tracked_code_and_changes_show(tmp_path):
    code = tmp_path / "src"
    code.mkdir()
    assert code_revision(code) == (None, None)
    git(tmp_path, "init")
    (code / "a.py").write_text("1")
    assert code_revision(code) == (None, None)
    git(tmp_path, "add", "."), git(tmp_path, "commit", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "elsewhere").touch()
    assert code_revision(code) == (head, False)
    (code / "b.py").touch()
    assert code_revision(code) == (head, True)
    installed = tmp_path / "site-packages"
    installed.mkdir()
    assert code_revision(installed) == (None, None)


def train(run: RunFolder, stop: int, killed: bool = False) -> None:
    """Log every step, from 0, and save every tenth, up to step `stop`; `killed` leaves half a line behind."""
    with run.writer(["train"]) as writer:
        step, state = writer.restore({"key": jax.random.key(0), "total": jnp.zeros(())})
        if step == 0:
            writer.log(0, {"total": state["total"]})
        while step < stop:
            step += 1
            key, draw = jax.random.split(state["key"])
            state = {"key": key, "total": state["total"] + jax.random.normal(draw)}
            writer.log(step, {"total": state["total"], "loss/actor": math.nan if step == 5 else 1.0 / step})
            if step % 10 == 0:
                writer.save(step, state)
    if killed:
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 99, "to')


@pytest.mark.parametrize("kills", [[7], [10], [13], [27, 22, 38]])
def test_a_killed_run_ends_with_the_metrics_and_the_state_of_an_unbroken_one(tmp_path, kills):
    unbroken, broken = (RunFolder.create(tmp_path / name, Config()) for name in ("unbroken", "broken"))
    train(unbroken, 40)
    for stop in kills:
        train(broken, stop, killed=True)
        assert [line["step"] for line in broken.metrics()] == list(range(stop + 1))
    train(broken, 40)
    assert (broken.path / "metrics.jsonl").read_bytes() == (unbroken.path / "metrics.jsonl").read_bytes()
    for name in ("step-000000000030.safetensors", "step-000000000040.safetensors"):
        assert (broken.checkpoints / name).read_bytes() == (unbroken.checkpoints / name).read_bytes()
    assert tensorboard(broken) == tensorboard(unbroken)


def tensorboard(run: RunFolder) -> list[tuple[int, str, str]]:
    """What TensorBoard shows: events in the order of the files; a restart drops those of its step and later."""
    shown: list[tuple[int, str, str]] = []
    for path in sorted((run.path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = [value for value in shown if value[0] < event.step]
            shown += [(event.step, value.tag, str(value.simple_value)) for value in event.summary.value]
    return shown


def test_metrics_are_json_for_everyone_and_nan_comes_back_as_nan(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    with run.writer([]) as writer:
        writer.restore({})
        writer.log(0, {"a": np.float32(0.5), "b": math.inf, "c": jnp.array(2)})
        assert run.metrics()[0]["a"] == 0.5  # readable while the run goes on
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 0, "a": 0.5, "b": null, "c": 2.0}\n'
    assert math.isnan(run.metrics()[0]["b"])
    assert tensorboard(run) == [(0, "a", "0.5"), (0, "b", "inf"), (0, "c", "2.0")]


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_dropped(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 10)
    path = run.path / "metrics.jsonl"
    broken = path.read_text().replace('{"step": 3,', '{"step": 3;').encode()
    path.write_bytes(broken)
    for read in (run.metrics, lambda: train(run, 20)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: line 4 is broken"):
            read()
    assert path.read_bytes() == broken


@pytest.mark.parametrize("tail", [b"{", b'{"step": 11, "loss/actor": 1.0}', b"\0" * 99, b"nonsense\n", b"[11]\n"])
def test_a_broken_last_line_is_dropped(tmp_path, tail):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 10)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert len(run.metrics()) == 11
    train(run, 11)
    assert [line["step"] for line in run.metrics()] == list(range(12))


def test_steps_go_forward_and_restore_comes_first(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    with run.writer([]) as writer:
        for early in (lambda: writer.log(1, {}), lambda: writer.save(1, {})):
            with pytest.raises(RuntimeError, match="`restore` comes before"):
                early()
        writer.restore({})
        writer.log(5, {"a": 1.0})
        for backward in (lambda: writer.log(4, {"a": 1.0}), lambda: writer.save(4, {})):
            with pytest.raises(ValueError, match="step 4 comes after step 5"):
                backward()
        with pytest.raises(ValueError, match="cannot have the name 'step'"):
            writer.log(6, {"step": 1.0})


def test_two_writers_are_one_too_many_in_this_process_and_in_another(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    other = (
        "import sys; from pathlib import Path; from reverie.runs.folder import RunFolder\n"
        "with RunFolder.open(Path(sys.argv[1])).writer([]): pass"
    )
    command = [sys.executable, "-c", other, str(run.path)]
    with run.writer([]):
        with pytest.raises(BlockingIOError, match=r"run is being written by process \d+ on"), run.writer([]):
            pass
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "is being written by process" in refused.stderr
        assert len(run.versions()) == 1
        assert run.metrics() == []  # reading needs no lock
    with run.writer([]):
        pass


def test_going_on_under_other_versions_is_said(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(run, 20)
    monkeypatch.setattr(run_module, "versions", lambda: {**versions_module.versions(), "jax": "9.9"})
    with pytest.warns(UserWarning, match=f"other conditions.*jax: {jax.__version__}, now 9.9"):
        train(run, 30)


def test_another_state_is_refused_before_anything_is_dropped(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 15)
    with run.writer([]) as writer, pytest.raises(ValueError, match=r"\['total'\]: float32 \[\] in the file, absent"):
        writer.restore({"key": jax.random.key(0)})
    assert len(run.metrics()) == 16


def test_a_checkpoint_carries_the_configuration_of_its_run(tmp_path):
    run = RunFolder.create(tmp_path / "run", RICH)
    train(run, 10)
    newest = run_module.checkpoint.latest(run.checkpoints)
    assert newest is not None
    assert config_from_json(Config, run_module.checkpoint.read_metadata(newest)["config"]) == RICH


def swap(run: RunFolder, other: RunFolder) -> None:
    """Put the newest checkpoint of another run in the place of the newest of `run`."""
    mine, theirs = (run_module.checkpoint.latest(each.checkpoints) for each in (run, other))
    assert mine is not None
    assert theirs is not None
    mine.write_bytes(theirs.read_bytes())


def restore(run: RunFolder) -> int:
    with run.writer(["test"]) as writer:
        return writer.restore({"key": jax.random.key(0), "total": jnp.zeros(())})[0]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (replace(RICH, seed=3), "seed: 3, now 1099511627776"),
        (replace(RICH, arrivals=Poisson(0.5)), "arrivals: Poisson, now Trace"),
        (replace(RICH, levels=(Poisson(2.5), Trace(Path("c")))), "levels: "),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_field(tmp_path, other, line):
    """Same shapes, other seed or rate: nothing in the state could tell."""
    mine, theirs = RunFolder.create(tmp_path / "mine", RICH), RunFolder.create(tmp_path / "theirs", other)
    train(mine, 10), train(theirs, 10)
    swap(mine, theirs)
    with pytest.raises(ValueError, match=rf"another configuration than .*config\.json holds(.|\n)*\n  {line}"):
        restore(mine)
    assert len(mine.metrics()) == 11


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 20)
    older, newer = sorted(run.checkpoints.iterdir())
    newer.write_bytes(older.read_bytes())
    with pytest.raises(ValueError, match=r"step-000000000020.* holds step 10: give it back the name"):
        restore(run)


@dataclass(frozen=True)
class Limited:
    loop: Poisson = Poisson(1.0)


def test_a_run_may_go_on_for_longer_than_it_was_meant_to(tmp_path):
    run = RunFolder.create(tmp_path / "run", Limited())
    train(run, 10)
    (run.path / "config.json").write_text(json.dumps(config_to_json(Limited(Poisson(2.0)))))
    assert restore(run) == 10


@pytest.mark.parametrize("kept", [0, 5])
def test_metrics_that_are_gone_are_said_and_training_goes_on(tmp_path, kept):
    run, unbroken = (RunFolder.create(tmp_path / name, Config()) for name in ("run", "unbroken"))
    train(run, 10), train(unbroken, 20)
    path = run.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if kept == 0 else path.write_text("".join(lines[:kept]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl lacks what was logged before .* step 10"):
        train(run, 20)
    assert run.metrics()[kept:] == unbroken.metrics()[11:]
    assert [file.read_bytes() for file in sorted(run.checkpoints.iterdir())] == [
        file.read_bytes() for file in sorted(unbroken.checkpoints.iterdir())
    ]


def test_folders_and_a_record_that_were_tidied_away_come_back(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    train(run, 10)
    run.tables.rmdir()
    (run.path / "versions.json").unlink()
    with pytest.warns(UserWarning, match=r"jax: None, now"):
        train(run, 20)
    assert run.tables.is_dir()
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.unlink()
    run.checkpoints.rmdir()
    assert restore(run) == 0
    assert run.checkpoints.is_dir()


def test_a_lock_that_is_a_folder_is_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    (run.path / "lock").mkdir()
    with pytest.raises(IsADirectoryError, match=r"run/lock should be a file, and is a folder: remove it"):
        restore(run)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("sound") / "run", RICH)
    train(run, 10), train(run, 20)
    return run


damages = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("nest"), st.floats(0, 1), st.integers(1, 100_000)),
    st.tuples(st.just("digits"), st.floats(0, 1), st.integers(1, 5000)),
)


def damaged(data: bytes, kind: str, share: float, amount: int) -> bytes:
    at = int(share * len(data))
    match kind:
        case "flip":
            return data[:at] + bytes([data[at] ^ 1 << amount]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "nest":
            return data[:at] + b"[" * amount + b"]" * amount + data[at:]
    return data[:at] + b"9" * amount + data[at:]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["config.json", "versions.json", "metrics.jsonl", "lock"]), damage=damages)
def test_damage_is_a_plain_sentence_or_does_no_harm(sound, tmp_path, name, damage):
    """Whatever is broken: reading and going on give the right state, or an error that the user can read."""
    copy = RunFolder(tmp_path / "copy")
    shutil.rmtree(copy.path, ignore_errors=True)
    shutil.copytree(sound.path, copy.path)
    path = copy.path / name
    path.write_bytes(damaged(path.read_bytes(), *damage))
    reads = (RunFolder.versions, RunFolder.metrics, restore, lambda run: RunFolder.open(run.path, RICH).config(Config))
    errors = [error for read in reads if (error := error_of(read, copy)) is not None]
    assert all(map(_is_plain, errors)), errors


def error_of(read: Callable[[RunFolder], object], run: RunFolder) -> Exception | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(run)
        except Exception as error:
            return error
    return None


def test_litter_of_killed_processes_is_removed(tmp_path):
    run = RunFolder.create(tmp_path / "run", Config())
    for folder in (run.path, run.tables):
        (folder / ".report.html.1.partial").mkdir()
    with run.writer([]):
        pass
    assert not list(run.path.rglob("*.partial"))


def test_a_full_disk_is_said_when_logging_and_the_lock_is_freed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        run = RunFolder.create(disk / "run", Config())

        def fill():
            with run.writer([]) as writer:
                writer.restore({})
                writer.log(1, {"a": 1.0})
                writer.save(1, {})
                (disk / "ballast").write_bytes(b"x" * (100 << 10))
                for step in range(2, 10_000):
                    writer.log(step, {"a metric with a rather long name": 1.0})

        with pytest.raises(OSError, match=r"the disk is full while writing .*(metrics\.jsonl|tensorboard)"):
            fill()
        (disk / "ballast").unlink()
        with run.writer([]) as writer:
            assert writer.restore({}) == (1, {})
            writer.log(2, {"a": 2.0})
        assert [line["step"] for line in run.metrics()] == [1, 2]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
