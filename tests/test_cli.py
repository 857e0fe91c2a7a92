"""The command line: quick help, plain errors, machine-readable output, and every command on something tiny."""

import json
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from plans import A2C, CURVE, WORLD
from safetensors import safe_open

import reverie
from reverie import cli
from reverie.agents.dreamer import DreamerConfig
from reverie.evaluate import suites
from reverie.models.queue import QueueConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.nn.optimiser import OptimiserConfig
from reverie.runs import loop
from reverie.runs.config_json import config_to_json
from reverie.runs.folder import RunFolder
from reverie.runs.loop import Interrupted
from reverie.settings import presets
from reverie.settings.config import (
    GameConfig,
    LoopConfig,
    OffPolicyRun,
    TrainConfig,
)
from reverie.tables import read_csv
from reverie.train.off_policy import OffPolicyConfig

EXAM = ["--episodes", "6", "--jobs", "30"]
TINY = {
    "dreamer": {
        "cpu": TrainConfig(
            OffPolicyRun(
                DreamerConfig(
                    model=SetRSSMConfig(units=8, deter=8, stoch=2, world_deter=8, world_stoch=2, classes=4),
                    memory=8,
                    units=8,
                    layers=1,
                    dream_length=3,
                    starts=4,
                ),
                OffPolicyConfig(streams=2, capacity=200, batch=2, length=8, ratio=4.0),
                chunk=2,
            ),
            WORLD,
            LoopConfig(steps=40, evaluate_every=8),
            CURVE,
        ),
    },
    "a2c": {"cpu": TrainConfig(A2C, WORLD, LoopConfig(steps=256, evaluate_every=64, save_every=0.0), CURVE)},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path, few_rules):
    import_module("reverie.settings.games")  # reads presets as they are, whichever test is the first
    monkeypatch.setattr(presets, "PRESETS", TINY)
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "reverie", *words], capture_output=True, text=True, check=False)


def fails(capsys, *words: str) -> str:
    """What a call that must fail says on standard error."""
    assert cli.main(list(words)) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def answer(capsys, *words: str):
    """The JSON that a call prints, and nothing else, on standard output."""
    assert cli.main([*words, "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- starting up and going wrong -------------------------------------------------------------------------------------


def test_help_is_quick_and_needs_neither_jax_nor_the_argument_parser():
    code = "import sys; from reverie import cli; cli.main(['--help'])"
    code += "; sys.exit(not {'jax', 'tyro', 'numpy'}.isdisjoint(sys.modules))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, "a heavy module was imported"
    assert "usage: reverie" in done.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.3  # CPU time: what the clock shows depends on what else the machine does


def test_what_only_some_commands_need_is_not_imported_by_all():
    """Each of these takes half a second or more of every start."""
    heavy = ("matplotlib", "scipy.stats", "scipy.optimize", "tensorboardX", "ray")
    code = f"import sys, reverie.commands.train; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", ["/no/such", "serve_race"])
def test_only_commands_have_help(name, capsys, tmp_path):
    (tmp_path / "such.txt").touch()
    assert cli.main([name, "--help"]) == 2
    assert cli.main([f"{tmp_path / 'such'}", "--help"]) == 2
    assert f"there is no command {name!r}" in capsys.readouterr().err


def test_help_after_more_words_than_a_file_name_holds_is_that_of_the_parser(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["simulate", *["--policy", "jsq"] * 20, "--help"])
    assert "usage: reverie simulate" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["train", "train --agent sac", "serve race"])
def test_the_help_of_a_command_is_quick_and_needs_neither_jax_nor_the_argument_parser(words):
    code = f"import sys; from reverie import cli; end = cli.main([*'{words}'.split(), '--help'])"
    code += "; sys.exit(end or not {'jax', 'tyro', 'numpy'}.isdisjoint(sys.modules))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, "a heavy module was imported"
    assert f"Example: reverie {words.split()[0]}" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_the_help_of_each_command_is_what_its_parser_says(monkeypatch):
    monkeypatch.undo()  # with the presets as they are
    monkeypatch.setenv("COLUMNS", "80")
    program = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "help.py"))
    texts = {cli.help_page(words): text for words, text in program["texts"]()}
    assert set(texts) == set(cli.HELP.iterdir()) >= {cli.help_page([name]) for name in cli.COMMANDS}
    for page, text in texts.items():
        assert page.read_text(encoding="utf-8") == text, "run python docs/help.py"


def test_a_shell_completes_commands_options_and_leaves_files_to_itself():
    """The program is asked as a shell would ask it, without an installed `reverie`."""
    ask = 'COMP_WORDS=({words}); COMP_CWORD={at}; _reverie; echo "[${{COMPREPLY[@]}}]"'
    lines = [
        f'reverie() {{ "{sys.executable}" -m reverie "$@"; }}',
        'eval "$(reverie completion)"',
        ask.format(words="reverie comp", at=1),
        ask.format(words="reverie doctor --fold", at=2),
        ask.format(words="reverie doctor fo", at=2),
        "complete -p reverie",
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[compare completion]",
        "[--folder]",
        "[]",
        "complete -o default -F _reverie reverie",
    ]


def test_the_module_and_the_version_answer():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"reverie {reverie.__version__}\n", "")


def test_no_command_is_a_wrong_call():
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: reverie" in done.stderr


def test_an_unknown_command_names_the_nearest(capsys):
    assert "did you mean 'train'?" in fails(capsys, "trian")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("simulate --family hrad", "did you mean 'hard'?"),
        ("simulate --policy jqs", "did you mean 'jsq'?"),
        ("simulate --load -1", "load"),
        ("simulate --load 0 --trace conversation-like", "load must be greater than 0"),
        ("simulate --episodes 1", "episodes must be at least 2"),
        ("simulate --trace missing.csv", "missing.csv"),
        ("simulate --trace conversation-like --family hard", "not both"),
        ("simulate --trace conversation-like --jobs 30000", "20000"),
        ("compare --run nowhere", "nowhere is not a run"),
        ("train --resume", "--resume needs --out"),
        ("train --resume --out nowhere", "nowhere is not a run"),
        ("train --agent a2c --preset paper", "a2c has no preset 'paper'; it has cpu"),
        ("evaluate nowhere", "nowhere is not a run"),
        ("report nowhere", "nowhere is not a run"),
        ("verdict --seeds 0", "seeds must be at least 1"),
        ("verdict --trace missing.csv", "missing.csv"),
        ("trace inspect missing.csv", "missing.csv"),
        ("trace inspect conversation-like --plot picture.doc", "must end in .png"),
        ("trace inspcet conversation-like", "can only `inspect`"),
        ("doctor --folder nowhere", "nowhere is not a folder"),
        ("train --suite floats", "unknown suite 'floats'; there are fleets, corners, schemas, loads"),
        ("train --suite loads --world.tasks x", "the suite loads has no task 'x'; it has load-0.5"),
    ],
)
def test_a_mistake_is_answered_in_plain_words(capsys, words, said):
    assert said in fails(capsys, *words.split())
    assert list(Path().iterdir()) == []  # nothing was begun


def test_a_model_that_cannot_read_the_view_leaves_no_folder_behind(capsys, monkeypatch):
    blind = replace(TINY["dreamer"]["cpu"].agent.algorithm, model=QueueConfig())
    agent = replace(TINY["dreamer"]["cpu"].agent, algorithm=blind)
    monkeypatch.setitem(TINY["dreamer"], "cpu", replace(TINY["dreamer"]["cpu"], agent=agent))
    assert "--preset learned" in fails(capsys, "train", "--world.view", "counts", "--out", "run")
    assert "admission" in fails(capsys, "train", "--world.reward", "elapsed", "--out", "run")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --setps 10", "--steps"),
        ("train --steps many", "many"),
        ("train --suite loads --game maze", "maze was given too"),
        ("train --world.view everything", "full"),
        ("simulate --output xml", "json"),
    ],
)
def test_a_misspelt_option_or_value_names_what_is_right(capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_two_windows_of_a_trace_are_no_claim(capsys):
    rows = "".join(f"{3 * n},{1 + n % 5}\n" for n in range(61))
    Path("short.csv").write_text("arrival,size\n" + rows)
    words = "compare --trace short.csv --jobs 30 --policy jsq --policy random --objective late:2"
    assert cli.main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 independent windows of the trace: no claim" in shown
    assert "share of late jobs" in shown
    assert "better" not in shown.replace("better and worse hold", "")


def test_a_broken_line_of_a_trace_is_named(capsys):
    Path("broken.csv").write_text("arrival,size\n0,1\n1,x\n")
    assert "line 3" in fails(capsys, "trace", "inspect", "broken.csv")


def test_a_mistake_of_ours_keeps_its_traceback(capsys, monkeypatch):
    def broken(arguments):
        raise KeyError("boom")

    monkeypatch.setattr(import_module("reverie.commands.trace"), "main", broken)
    assert cli.main(["trace"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_traceback_of_a_plain_error_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("REVERIE_TRACEBACK", "1")
    assert cli.main(["simulate", "--family", "hrad"]) == 1
    assert "Traceback" in capsys.readouterr().err


# --- help ------------------------------------------------------------------------------------------------------------


def examples(module) -> list[str]:
    """What follows `Example: reverie` in the help of a command."""
    return [
        line for member in vars(module).values() for line in re.findall(r"Example: reverie (.+)", member.__doc__ or "")
    ]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_examples_that_can_be_typed_as_they_stand(name, monkeypatch):
    monkeypatch.undo()  # with the presets as they are
    module = import_module(f"reverie.commands.{name}")
    found = examples(module)
    assert found
    for example in found:
        first, *words = shlex.split(example)
        assert first == name
        if not {"--resume", "--config"} & set(words):  # they need the run of the example before
            module.parse(words)


def test_the_examples_of_the_first_page_can_be_typed_as_they_stand():
    for example in cli.EXAMPLES:
        program, name, *words = shlex.split(example)
        assert program == "reverie"
        import_module(f"reverie.commands.{name}").parse(words)


# --- what does the work ----------------------------------------------------------------------------------------------


def test_a_trace_is_described_and_drawn(capsys):
    found = answer(capsys, "trace", "inspect", "conversation-like", "--plot", "trace.png")
    assert found["count"] == 20_000
    assert found["rate"] == pytest.approx(5.5, rel=0.05)
    assert Path("trace.png").read_bytes().startswith(b"\x89PNG")


def test_rules_are_ranked_by_mean_response(capsys):
    assert (
        cli.main(["simulate", "--family", "easy", "--policy", "random", "--policy", "sed", *EXAM, "--output", "json"])
        == 0
    )
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "0 of 2 have played easy" in captured.err
    assert [row["rule"] for row in found["rows"]] == ["sed", "random"]
    assert found["unit"] == "time units"
    for row in found["rows"]:
        assert row["mean_low"] < row["mean"] < row["mean_high"]


def test_a_trace_is_answered_in_its_own_seconds(capsys):
    """Jobs of 2 seconds, so far apart that the fastest server, of speed 1.05, is always free."""
    Path("calm.csv").write_text("arrival,size\n" + "".join(f"{100 * i},2\n" for i in range(40)))
    words = ["--trace", "calm.csv", "--load", "0.001", "--episodes", "2", "--jobs", "30"]
    found = answer(capsys, "simulate", "--policy", "sed", *words)
    assert found["unit"] == "seconds"
    assert found["rows"][0]["mean"] == pytest.approx(2 / 1.05, rel=1e-4)
    assert found["rows"][0]["mean_slowdown"] == pytest.approx(1 / 1.05, rel=1e-4)


def test_a_comparison_on_a_trace_says_first_what_is_played_on_which_fleet_and_how_fast(capsys):
    """Two jobs of one unit of work per 100 s keep 0.02 servers busy: for load 0.6 on a speed of 6 that is 180 times."""
    name = "a$b$[red]x.csv"
    Path(name).write_text("arrival;size\n" + "".join(f"{50 * i};1\n" for i in range(101)) + "5050;0\n")
    words = ["--trace", name, "--drop", "zero", "--episodes", "2", "--jobs", "60", "--policy", "sed"]
    assert cli.main(["compare", *words, "--load", "0.6", "--policy", "jsq"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "101 of a$b$[red]x in 5,000 s" in first[0]
    assert "0.0202 servers of speed 1 busy" in first[0]
    assert "1 of 102" in first[0]
    assert "Park's ten servers, of speed 0.15 to 1.05, 6 together" in first[1]
    assert "clock: 178 times as fast as recorded, for load 0.6" in first[2]
    assert "load 0.00337" in first[2]
    assert "1 window of 60 jobs that do not overlap: fewer than" in first[3]
    assert "seen (full)" in first[4]
    assert first[5].startswith("a$b$[red]x at load 0.6")
    about = answer(capsys, "simulate", *words, "--load", "recorded", "--view", "counts")["about"]
    assert "as recorded, which is load 0.00337" in about[2]
    assert about[-1].startswith("seen (counts)")


def test_options_of_reading_without_a_trace_are_refused(capsys):
    for words in (["--unit", "ms"], ["--load", "recorded"], ["--load-per-window"], ["--from", "3"]):
        assert "give one with --trace" in fails(capsys, "simulate", *words)


def test_a_higher_load_takes_longer(capsys):
    low, high = (
        answer(capsys, "simulate", "--policy", "sed", "--load", load, *EXAM)["rows"][0]["mean"]
        for load in ("0.1", "1.2")
    )
    assert low < high


def test_train_resume_compare_evaluate_and_report(capsys):
    """One agent through all commands; a resumed run has the metrics of an unbroken one."""
    train = ["train", "--agent", "a2c", "--quiet"]
    assert cli.main([*train, "--out", "whole"]) == 0
    assert cli.main([*train, "--out", "whole"]) == 1  # it is there already
    assert "not empty" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", "whole", "--seed", "1"]) == 1
    assert "seed: 0, now 1" in capsys.readouterr().err

    assert cli.main([*train, "--out", "runs/other", "--seed", "1", "--agent.learning-rate", "0.001"]) == 0
    capsys.readouterr()
    judged = answer(capsys, "compare", "--run", "whole", "--run", "runs/other", "--policy", "sed", *EXAM)["rows"]
    assert {row["agent"] for row in judged} == {"whole", "other", "sed"}  # different settings: told apart by folder
    assert next(row for row in judged if row["agent"] == "sed")["verdict"] == "baseline"

    rows = answer(capsys, "evaluate", "whole", *EXAM)["rows"]
    assert {row["experiment"] for row in rows} == {"standard", "adaptive"}
    assert {"easy", "medium", "hard", "levels", "conversation-like at load 0.8"} == {row["task"] for row in rows}
    assert all("a2c" in {row["agent"] for row in rows if row["task"] == task} for task in ("easy", "levels"))
    assert cli.main(["report", "whole"]) == 0
    page = Path("whole/report.html").read_text()
    lead = page.split('<p class="lead">')[1].split("</p>")[0]
    assert "is played on this fleet: Park&#x27;s ten servers" in lead
    assert "clock: 6.28 times slower than recorded" in lead
    assert "seen (full)" in lead
    assert page.count("<svg") >= 4
    assert "a2c" in page
    assert cli.main(["report", "whole", "--gif", "--policy", "jsq", "--policy", "a2c"]) == 0
    assert Path("whole/fleet.gif").read_bytes().startswith(b"GIF89a")
    assert cli.main(["report", "whole", "--policy", "jsq"]) == 1
    assert cli.main(["report", "whole", "--gif", "--policy", "jqs"]) == 1
    errors = capsys.readouterr().err
    assert "give --gif too" in errors
    assert "jqs" in errors


def test_a_suite_is_trained_judged_on_each_of_its_tasks_and_reported(capsys, monkeypatch):
    monkeypatch.setattr(suites, "RIVALS", ("random", "least-work"))
    episodes, words = ["--curve.episodes", "6", "--curve.jobs", "30"], ["--suite", "loads", "--out", "suite", "--quiet"]
    some = ["--world.tasks", "load-0.5", "load-0.9", "--world.draws", "2", "--world.jobs", "20"]
    cli.main(["train", *words, *some, *episodes, "--steps", "120"])
    lines = RunFolder(Path("suite")).metrics()
    assert {f"evaluation/score/load-{load}" for load in (0.5, 0.65, 0.8, 0.9)} <= lines[-1].keys()
    both = [lines[-1][f"evaluation/score/load-{load}"] for load in (0.5, 0.9)]
    assert lines[-1]["evaluation/score"] == pytest.approx(sum(both) / 2)
    rows = answer(capsys, "evaluate", "suite", *EXAM)["rows"]
    assert [(row["task"], row["learned"]) for row in rows] == [
        ("load-0.5", True),
        ("load-0.65", False),
        ("load-0.8", False),
        ("load-0.9", True),
    ]
    assert [row["task"] for row in read_csv(Path("suite/tables/scores.csv"))] == [row["task"] for row in rows]
    cli.main(["report", "suite"])
    page = Path("suite/report.html").read_text()
    assert page.count("(new)") >= 2
    assert "Mean score" in page
    assert "learned the suite loads" in fails(capsys, "evaluate", "suite", "--load", "0.5")
    cli.main(["train", *words[:3], "second", "--quiet", *episodes, "--world.draws", "2", "--steps", "120"])
    capsys.readouterr()
    compared = answer(capsys, "compare", "--run", "suite", "--run", "second", *EXAM)["rows"]
    assert [row["task"] for row in compared[::2]] == [None, *(row["task"] for row in rows)]
    of_first = {row["task"]: row for row in compared if row["agent"] == "suite"}
    for row in rows:
        assert of_first[row["task"]]["score"] == pytest.approx(row["score"])
        assert of_first[row["task"]]["learned"] == row["learned"]
    assert of_first[None]["score"] == pytest.approx(sum(row["score"] for row in rows) / 4)
    assert of_first[None]["verdict"] == "baseline"
    other = next(row for row in compared if (row["task"], row["agent"]) == (None, "second"))
    assert other["beside"] == pytest.approx(other["ratio"] / of_first[None]["ratio"])
    assert "learned the suite loads" in fails(capsys, "compare", "--run", "suite", "--policy", "sed")
    assert "are the same run" in fails(capsys, "compare", "--run", "suite", "--run", "suite", *EXAM)


@pytest.mark.slow
def test_a_verdict_on_own_servers_is_printed_reported_and_goes_on_where_it_was(capsys):
    words = ["verdict", "--minutes", "0.001", "--quiet", "--trace", "conversation-like", *EXAM]
    words += ["--speeds", "1,0.5,0.25", "--view", "counts", "--preset", "cpu"]
    assert cli.main([*words, "--output", "json"]) == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    judged = [row for row in first["rows"] if row["role"] == "agent" and row["level"] is None]
    tasks = ("easy", "medium", "hard", "conversation-like", "levels")
    tasks = {f"{task} on 1,0.5,0.25" + " at load 0.8" * (task == "conversation-like") for task in tasks}
    agents = ("a2c", "a2c-equal-steps", "dreamer-set-rl2")
    assert {(row["agent"], row["task"]) for row in judged} == {(a, t) for a in agents for t in tasks}

    page = Path(first["report"]).read_text()
    assert "dreamer-set-rl2" in page
    assert page.count("<svg") >= 5
    lead = page.split('<p class="lead">')[1].split("</p>")[0]
    assert "on this fleet: 3 servers" in lead
    assert "clock: 21.5 times slower than recorded" in lead
    assert "seen (counts)" in lead
    tables = Path("runs/verdict/tables")
    rows = read_csv(tables / "results-dreamer-set-rl2-0.csv")
    assert {row["level"] for row in rows} <= {None, 0.455, 0.667, 0.909, 1.111}  # as on Park's servers
    assert {row["server"] for row in read_csv(tables / "jobs.csv")} <= {0, 1, 2}

    def saved():
        return sorted(str(path) for path in Path("runs/verdict").glob("*/checkpoints/*"))

    def judged_by():
        return {path.name: path.read_bytes() for path in tables.glob("results*.csv")}

    kept, judgements = saved(), judged_by()  # one or two for each run, as the machine's speed has it
    assert {Path(path).parts[2] for path in kept} == {f"{agent}-0" for agent in agents}
    (tables / "responses-dreamer-set-rl2-0.csv").unlink()  # as if it had been killed before this
    assert cli.main(words) == 0
    again = capsys.readouterr()
    assert saved() == kept
    assert judged_by() == judgements
    assert "agent / best rule" in again.out
    assert "CPU minutes" in again.out
    # What is played on which servers, and what is seen, stands before all else.
    for said in (captured.err.splitlines(), again.out.splitlines(), again.err.splitlines()):
        assert said[1] == "fleet: 3 servers, of speed 0.25 to 1, 1.75 together"
        assert said[2].startswith("clock: 21.5 times slower than recorded, for load 0.8")
        assert said[4].startswith("seen (counts)")
    assert "minutes: 0.001, now 0.002" in fails(capsys, *[w.replace("0.001", "0.002") for w in words])


def test_a_view_that_the_preset_cannot_read_leaves_no_verdict_behind(capsys, monkeypatch):
    blind = replace(TINY["dreamer"]["cpu"].agent.algorithm, model=QueueConfig())
    plan = replace(TINY["dreamer"]["cpu"], agent=replace(TINY["dreamer"]["cpu"].agent, algorithm=blind))
    monkeypatch.setitem(TINY["dreamer"], "cpu", plan)
    assert "--preset learned" in fails(capsys, "verdict", "--view", "counts", "--preset", "cpu")
    assert list(Path().iterdir()) == []


def test_a_signal_that_ended_training_is_the_exit_code(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted("stopped by SIGTERM at 10 environment steps", signal.SIGTERM)

    monkeypatch.setattr(loop, "train", interrupted)
    assert cli.main(["train", "--agent", "a2c", "--quiet", "--out", "run"]) == 128 + signal.SIGTERM
    said = "reverie train: stopped by SIGTERM at 10 environment steps. Go on with: reverie train --resume --out run\n"
    assert capsys.readouterr().err == said


def test_an_interrupted_verdict_names_itself_to_go_on_with(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("reverie.commands.verdict"), "main", interrupted)
    assert cli.main(["verdict", "--out", "my runs"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "reverie verdict: interrupted. Go on with: reverie verdict --out 'my runs'\n"


def test_a_reader_who_has_enough_gets_no_traceback():
    for words in ("--help", "trace inspect conversation-like"):
        line = f"{sys.executable} -m reverie {words} | head -c 1"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert done.stderr == ""


def newest(folder: str) -> tuple[str, dict[str, bytes]]:
    """Name and arrays of the newest checkpoint of a run."""
    path = max(Path(folder, "checkpoints").iterdir())
    with safe_open(path, "numpy") as file:
        return path.name, {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def test_a_run_goes_on_with_more_steps_to_the_numbers_of_an_unbroken_one(capsys):
    train = ["train", "--agent", "a2c", "--quiet"]
    assert cli.main([*train, "--steps", "128", "--out", "short"]) == 0
    resume = ["train", "--resume", "--quiet", "--out", "short"]
    said = fails(capsys, *resume, "--agent.learning-rate", "0.5", "--steps", "256")
    assert "learning_rate: 0.0007, now 0.5" in said
    assert "steps" not in said  # which may change
    assert "reverie train --start short --out ANOTHER" in said
    shutil.copytree("short", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    said = fails(capsys, *resume[:-1], "bare", "--agent.learning-rate", "0.5")
    assert "learning_rate" in said
    assert "--start" not in said  # it has learned nothing
    assert "--agent dreamer: the run that is there is of a2c" in fails(capsys, *resume, "--agent", "dreamer")
    assert cli.main([*resume, "--agent", "a2c", "--steps", "256", "--save-every", "7"]) == 0
    assert json.loads(Path("short/config.json").read_text())["loop"]["steps"] == 256
    assert cli.main([*train, "--steps", "256", "--out", "whole"]) == 0
    assert newest("short") == newest("whole")


def test_settings_come_from_a_file_below_the_options_and_a_stored_configuration_is_one(capsys):
    Path("ours.toml").write_text(
        "steps = 128\nseed = 3\n[agent]\nlearning-rate = 0.002\n[agent.algorithm.network]\nunits = 4\n"
        '[world]\nfamily = "easy"\nspeeds = "1,0.5"\n[loop]\nevaluate_every = 32\n'
    )
    train = ["train", "--agent", "a2c", "--quiet"]
    assert cli.main([*train, "--config", "ours.toml", "--world.family", "medium", "--out", "one"]) == 0
    plan = RunFolder(Path("one")).config(TrainConfig)
    assert (plan.loop.steps, plan.loop.evaluate_every, plan.seed) == (128, 32, 3)
    assert (plan.agent.algorithm.learning_rate, plan.agent.algorithm.network.units) == (0.002, 4)
    assert (plan.world.family, plan.world.own.speeds) == ("medium", "1,0.5")
    untouched = replace(TINY["a2c"]["cpu"].agent, algorithm=plan.agent.algorithm)
    assert plan.agent == untouched

    again = ["train", "--quiet", "--config", "one/config.json"]  # the algorithm is that of the file
    assert cli.main([*again, "--out", "two"]) == 0
    assert RunFolder(Path("two")).config(TrainConfig) == plan
    assert newest("two") == newest("one")
    assert cli.main([*again, "--seed", "4", "--out", "three"]) == 0
    assert RunFolder(Path("three")).config(TrainConfig) == replace(plan, seed=4)
    assert "--agent dreamer: one/config.json is of a2c" in fails(capsys, *again, "--agent", "dreamer")
    assert "whole configuration" in fails(capsys, *again, "--preset", "cpu")
    assert "--config ours.toml is for a new run" in fails(
        capsys, "train", "--resume", "--out", "one", "--config", "ours.toml"
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "stepz = 3", "a.toml: the configuration: TrainConfig has no field 'stepz'"),
        ("a.toml", "[loop]\nstepz = 3", "a.toml: loop: LoopConfig has no field 'stepz'; did you mean 'steps'?"),
        ("a.toml", "[world]\njobs = 'many'", "a.toml: world.jobs: expected int, found 'many'"),
        ("a.toml", "[world]\njobs = 0", "a.toml: world: WorldConfig: jobs must be at least 1"),
        ("a.toml", "world = 3", "a.toml: world: expected one of WorldConfig, GameConfig"),
        ("a.toml", "[[", "a.toml: is no TOML"),
        ("a.json", "[1]", "a.json: expected an object"),
        ("a.yaml", "seed: 1", "ends in .toml or .json"),
        ("a.toml", None, "a.toml: cannot be read: No such file"),
        ("a.json", '{"world": {"class": "GameConfig"}}', "a.json: world: GameConfig lacks"),
    ],
)
def test_a_mistake_in_a_file_of_settings_names_file_and_field(capsys, name, text, said):
    if text is not None:
        Path(name).write_text(text)
    assert said in fails(capsys, "train", "--agent", "a2c", "--config", name)
    assert {str(path) for path in Path().iterdir()} <= {name}


def test_a_file_of_settings_does_not_make_us_import_a_module(capsys):
    Path("stranger.py").write_text("open('was_here', 'w').close()")
    game = GameConfig("gym:stranger:Evil-v0")
    Path("theirs.json").write_text(json.dumps({"world": config_to_json(game)}))
    said = fails(capsys, "train", "--config", "theirs.json", "--out", "run")
    assert "theirs.json names a world of the module 'stranger'" in said
    assert not Path("was_here").exists()


def test_a_step_size_that_has_fallen_to_nothing_names_another_start(capsys, monkeypatch):
    plan = TINY["dreamer"]["cpu"]
    algorithm = replace(plan.agent.algorithm, optimiser=OptimiserConfig(warmup=2, decay=3))
    plan = replace(plan, agent=replace(plan.agent, algorithm=algorithm), loop=replace(plan.loop, steps=5))
    RunFolder.create(Path("run"), plan)
    assert "--start run and --agent.optimiser.decay" in fails(
        capsys, "train", "--resume", "--out", "run", "--steps", "100000"
    )
    (Path("run") / "metrics.jsonl").write_text('{"step": 5, "updates": 400}\n')
    train = ["train", "--start", "run", "--steps", "128", "--agent.optimiser.warmup", "2", "--agent.optimiser.decay"]
    assert "give --agent.optimiser.decay" in fails(capsys, *train, "300")
    assert "no checkpoint" in fails(capsys, *train, "5000")


@pytest.mark.parametrize("there", [False, True])
def test_a_start_without_a_checkpoint_is_said_before_anything_is_compiled(capsys, there):
    if there:
        RunFolder.create(Path("before"), TINY["a2c"]["cpu"])
    said = fails(capsys, "train", "--agent", "a2c", "--start", "before", "--out", "after")
    assert ("before has no checkpoint yet" if there else "before is not a run") in said
    assert not Path("after").exists()


def test_a_failed_start_leaves_nothing_that_refuses_the_same_command(capsys, monkeypatch):
    train = ["train", "--agent", "a2c", "--quiet", "--steps", "128", "--out", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "the disk is full")))
        assert "the disk is full" in fails(capsys, *train)
    assert "seed: 0, now 1" in fails(capsys, *train, "--seed", "1")
    assert cli.main([*train, "--steps", "64"]) == 0  # nor one that trains for longer, or not so long
    assert "not empty" in fails(capsys, *train)


def test_the_doctor_finds_versions_and_a_speed(capsys):
    found = {line["name"]: line["value"] for line in answer(capsys, "doctor")}
    assert found["reverie"] == reverie.__version__
    assert float(found["matrix products, float32"].split()[0].replace(",", "")) > 0


def test_the_doctor_fails_where_there_is_no_room(capsys, monkeypatch):
    nearly_full = shutil.disk_usage(".")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    assert cli.main(["doctor"]) == 1
    assert "make room" in capsys.readouterr().err
