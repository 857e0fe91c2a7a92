"""Tables in a run: damaged ones are made anew, new ones replace old ones when whole, and names are but names."""

import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reverie.commands import evaluate, report, train
from reverie.envs.fleet.env import FleetEnv
from reverie.evaluate import results as results_module
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import Exam
from reverie.evaluate.results import Examination, Results, examine_agent
from reverie.files import is_sealed, locked, seal
from reverie.policies.rules import LeastWork
from reverie.report import judged
from reverie.report.output import print_table
from reverie.report.page import Section, page
from reverie.report.style import setting, to_svg
from reverie.report.tables import TextTable, rich_table
from reverie.runs.build import build, stored
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig
from reverie.settings.games import game_plan
from reverie.settings.presets import preset
from reverie.tables import write_csv

NAMES = ("results-rules-full.csv", "responses-rules-full.csv", "results-a2c-0.csv", "responses-a2c-0.csv")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with tables that pass for an examination."""
    run = RunFolder.create(tmp_path / "run", preset("a2c", "cpu"))
    results = Results(run.tables, Examination())
    for name in (*NAMES, "jobs.csv", "servers.csv"):
        results._write(name, [{"agent": "a2c", "mean": 1.5}, {"agent": "jsq", "mean": 2.0}])
    assert Results.are_in(run.tables)
    return run


def contents(run: RunFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.tables.iterdir() if file.is_file() and file.name != "lock"}


def test_a_report_says_that_damaged_tables_are_made_anew(run, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    (run.tables / "jobs.csv").write_text("cut")
    monkeypatch.setattr(judged, "examine_agent", stopped)
    with pytest.raises(KeyboardInterrupt):
        report.main([str(run.path)])
    assert f"tables in {run.tables} are damaged or missing and made anew" in capsys.readouterr().err


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*NAMES, "jobs.csv", "servers.csv", "examination.json", "SHA256SUMS"]), data=st.data())
def test_no_damaged_cut_or_missing_table_passes_for_whole(run, name, data):
    path = run.tables / name
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 2)), data.draw(st.integers(0, 7))
    kind = data.draw(st.sampled_from(["flip", "cut", "gone", "header"]))
    flipped = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    changed = {"flip": flipped, "cut": whole[:at], "header": whole.partition(b"\n")[0] + b"\n", "gone": None}[kind]
    try:
        path.unlink() if changed is None else path.write_bytes(changed)
        assert changed == whole or not Results.are_in(run.tables)
    finally:
        path.write_bytes(whole)
    assert Results.are_in(run.tables)


def test_seals_are_what_sha256sum_reads(tmp_path):
    write_csv(tmp_path / "a.csv", [{"x": 1}])
    seal(tmp_path, ["a.csv"])
    digest = "9d1bd13ad2df63f3c6ef2d1a1cdbb4fb6f3fd01b8d5a4a7f"  # of another file
    line = (tmp_path / "SHA256SUMS").read_text()
    assert line.endswith("  a.csv\n")
    assert len(line.split()[0]) == 64
    assert is_sealed(tmp_path, "a.csv")
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  a.csv\n")
    assert not is_sealed(tmp_path, "a.csv")


@pytest.fixture
def examined(monkeypatch):
    """Examining takes no time, and writes what it is told to."""
    agent = Contestant("a2c", LeastWork(), FleetEnv(), training_seed=0)
    monkeypatch.setattr(results_module, "load_agents", lambda folders: [agent])

    def play(self, *_):
        for name in (*NAMES, "jobs.csv", "servers.csv"):
            self._write(name, [{"agent": "new", "mean": 3.0}])

    for name in ("examine_rules", "examine_agent", "watch"):
        monkeypatch.setattr(Results, name, play)
    return monkeypatch


OTHER = Examination(load=0.5)


def test_new_tables_replace_old_ones_when_they_are_whole(run, examined):
    (run.tables / "results-older-1.csv").write_text("agent\nx\n")
    results = examine_agent(run.path, run.tables, OTHER, lambda _: None)
    assert Results.are_in(run.tables)
    assert Results.of(run.tables).examination == OTHER
    assert {row["agent"] for row in results.tables().results} == {"new"}
    assert not (run.tables / "results-older-1.csv").exists()
    assert not (run.tables / "new").exists()


@pytest.mark.parametrize(("episodes", "first"), [(199, "--episodes 199: fewer than 200"), (200, "examining the rules")])
def test_too_few_episodes_for_a_claim_are_said_before_the_work(run, examined, episodes, first):
    def tell(line: str) -> None:
        raise InterruptedError(line)

    with pytest.raises(InterruptedError, match=first):
        examine_agent(run.path, run.tables, Examination(exam=Exam(episodes=episodes)), tell)


def test_a_full_disk_leaves_the_tables_of_before(run, examined):
    before = contents(run)

    def full(self, *_):
        raise OSError(28, "the disk is full")

    examined.setattr(Results, "watch", full)
    with pytest.raises(OSError, match="disk is full"):
        examine_agent(run.path, run.tables, OTHER, lambda _: None)
    assert contents(run) == before
    assert not (run.tables / "new").exists()


def test_the_second_of_two_evaluations_at_once_is_refused(run, examined):
    before = contents(run)
    with (
        locked(run.tables / "lock", "tables"),
        pytest.raises(BlockingIOError, match=r"tables is being written by proc"),
    ):
        examine_agent(run.path, run.tables, OTHER, lambda _: None)
    assert contents(run) == before


def test_tables_of_a_sweep_are_remade_by_its_command(tmp_path):
    run = RunFolder.create(tmp_path / "sweep", Examination())
    RunFolder.create(run.path / "a2c-0", preset("a2c", "cpu"))
    with run.writer(["reverie", "sweep", "--seeds", "2"]):
        pass
    with pytest.raises(ValueError, match="are damaged or missing; reverie sweep --seeds 2 makes them anew"):
        report.main([str(run.path)])


def test_the_folder_of_a_stranger_imports_no_module_unless_told_to(tmp_path, monkeypatch):
    """The module lies in the working directory, as when started by `python -m reverie`."""
    (tmp_path / "strangers_module.py").write_text("raise SystemError('executed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = game_plan("repeat_previous/easy")
    plan = replace(plan, world=GameConfig("gym:strangers_module:X-v0"))
    run = RunFolder.create(tmp_path / "run", plan)
    folder = str(run.path)
    for command in (
        lambda: evaluate.main([folder]),
        lambda: report.main([folder]),
        lambda: train.parse(["--resume", "--out", folder]),
    ):
        with pytest.raises(ValueError, match=r"of the module 'strangers_module', .* give --trust"):
            command()
    assert "strangers_module" not in sys.modules
    assert stored(run, trust=True) == plan
    assert train.parse(["--resume", "--out", folder, "--trust"]).config == plan
    with pytest.raises(SystemError, match="executed"):
        build(plan)


HOSTILE = "$x_{1$ [bold red]a[/bold red] [/x] <script>alert('&\")</script> \N{GRINNING FACE}"


def test_names_are_shown_as_text_in_terminal_page_and_picture(capsys):
    table = TextTable(HOSTILE, ["name", HOSTILE], [[HOSTILE, "1"]], HOSTILE, ["agent"])
    print_table(rich_table(table))
    assert capsys.readouterr().out.count("[bold red]a[/bold red] [/x] <script>") >= 3
    text = page(HOSTILE, HOSTILE, [Section(HOSTILE, text=[HOSTILE], tables=[table], facts={HOSTILE: HOSTILE})])
    assert "<script>" not in text
    with setting():
        from matplotlib.figure import Figure

        figure = Figure()
        axis = figure.subplots()
        axis.plot([1, 2], label=HOSTILE)
        axis.set_title(HOSTILE)
        axis.legend()
        svg = to_svg(figure, "salt", HOSTILE)
    assert "<script>" not in svg
    assert svg.count("$x_{1$ [bold red]") >= 2
