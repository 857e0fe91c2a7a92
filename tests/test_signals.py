"""Signals are heard: while garbage is collected, in a compiled program, while modules are imported, at any moment."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

WAIT = 60.0
"""Seconds after which a process that was asked to stop counts as deaf: much more than it takes, for a busy machine."""

HEAD = """
import gc, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let processes in the background ignore it,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
from reverie import signals
"""


def ended(script: str, *words: str) -> tuple[int, str]:
    """Exit code and stderr of a Python process."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script, *words],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    return done.returncode, done.stderr


COLLECTING = """
def collect(phase, info):
    until = time.monotonic() + 0.002
    while time.monotonic() < until:
        pass
gc.callbacks.append(collect)
"""


@pytest.mark.parametrize("delay", [0.1, 0.11, 0.12, 0.13])
@pytest.mark.parametrize("within", ['heard("test")', "noted()"])
def test_an_interrupt_that_comes_while_garbage_is_collected_is_not_dropped(within, delay):
    """Half of its time this process is in a callback of the collector, as JAX has one; an interrupt that is dropped
    there is raised again until it is heard."""
    code, said = ended(
        COLLECTING
        + f"""
try:
    with signals.{within}:
        threading.Timer({delay}, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            gc.collect(0)
            outside = time.monotonic() + 0.002
            while time.monotonic() < outside:
                pass
    sys.exit(3)
except KeyboardInterrupt:
    sys.exit(7)
"""
    )
    assert code == 7, said
    assert said == ""


def test_a_second_interrupt_that_is_dropped_ends_work_that_holds_a_first():
    code, said = ended(
        """
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
try:
    with signals.noted() as caught:
        caught.hold()
        os.kill(os.getpid(), signal.SIGINT)
        late = Late()
        del late
        time.sleep(5)
    sys.exit(len(caught.caught))
except KeyboardInterrupt:
    sys.exit(7)
"""
    )
    assert code == 7, said


def test_a_main_thread_that_cannot_answer_does_not_keep_the_process():
    """As in a compiled program: no handler runs while C code has the thread, and here it takes up the wait again."""
    code, said = ended(
        """
import ctypes
signals.GRACE = 1.0
with signals.heard("test"):
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    signal.siginterrupt(signal.SIGINT, False)
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""
    )
    assert (code, said) == (130, "reverie test: interrupted\n")


def test_a_process_that_is_left_says_how_its_work_goes_on_and_by_which_signal_it_ended():
    """As while a program is compiled: the main thread runs no handler."""
    code, said = ended(
        """
import ctypes
signals.GRACE = 1.0
with signals.heard("test"), signals.told(". Go on with: this"), signals.noted():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    signal.siginterrupt(signal.SIGTERM, False)
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""
    )
    assert (code, said) == (128 + signal.SIGTERM, "reverie test: interrupted. Go on with: this\n")


def test_what_may_not_be_lost_is_finished_first():
    code, said = ended(
        """
with signals.noted() as caught:
    caught.hold()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGHUP)).start()
    time.sleep(2)
    sys.exit(10 + len(caught.caught))
"""
    )
    assert code == 11, said


def test_what_cannot_be_lost_is_left_at_once():
    code, said = ended(
        """
begun = time.monotonic()
try:
    with signals.noted():
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        time.sleep(30)
except signals.Stopped as stopped:
    assert stopped.number == signal.SIGTERM
    assert str(stopped) == "stopped by SIGTERM"
    sys.exit(7 if time.monotonic() - begun < 10 else 8)
"""
    )
    assert code == 7, said


def test_a_hangup_that_is_ignored_stays_so():
    code, said = ended(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        + "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGHUP)).start()\n"
        + "with signals.noted() as caught:\n    time.sleep(1)\n    sys.exit(10 + len(caught.caught))\n"
    )
    assert code == 10, said


def test_an_interrupt_while_the_command_is_read_is_no_traceback(tmp_path):
    """A module of the standard library that it imports takes long here."""
    (tmp_path / "difflib.py").write_text("print(flush=True)\nimport time\ntime.sleep(30)\n")
    # Where the tests were begun in the background, they and what they begin would not hear it.
    heard = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execv(sys.executable, [sys.executable, '-m', 'reverie', '--help'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", heard],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert (process.returncode, said) == (-signal.SIGINT, "")


@pytest.mark.parametrize("seed", range(3))
def test_a_command_hears_an_interrupt_at_any_moment_of_its_start(seed):
    """In its first seconds it imports: no traceback, and the usual exit code."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HEAD + "from reverie.cli import main\nprint(flush=True)\nraise SystemExit(main())",
            "doctor",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # what comes before is Python's own start
    time.sleep(random.Random(seed).uniform(0.05, 1.5))
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode in (0, 130), said
    assert "Traceback" not in said
