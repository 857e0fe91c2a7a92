"""What users of a balancer notice of an agent that dies, stops, goes mad or blind: nothing.

A real proxy, servers that sleep, an open-loop plan of requests. The tables of docs/serving.md, 10,000 requests a row:

    REVERIE_SERVING_REQUESTS=10000 python -m pytest -q -s tests/test_serving_failures.py
    REVERIE_SERVING_DRIVER=envoy REVERIE_SERVING_REQUESTS=10000 python -m pytest -q -s tests/test_serving_failures.py
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from serving import Stack, serve_toml, stack, until

from reverie.serve.agent import Agent
from reverie.serve.audit import replay
from reverie.serve.live import Answers, poisson_plan, quantile

REQUESTS = int(os.environ.get("REVERIE_SERVING_REQUESTS", "0"))
"""Of a row; 0 for as few as show the danger."""
DRIVER = os.environ.get("REVERIE_SERVING_DRIVER", "haproxy")
assert DRIVER in ("haproxy", "envoy"), f"REVERIE_SERVING_DRIVER must be haproxy or envoy, got {DRIVER!r}"
RATE, WORK = 400.0, 0.004
SPEEDS = (1.0, 0.5, 0.25)


@pytest.fixture
def running() -> Iterator[Stack]:
    with stack(SPEEDS, driver=DRIVER) as found:
        yield found


@contextmanager
def agent(running: Stack) -> Iterator[subprocess.Popen]:
    """The command, as a process; weights have begun to move when it is given."""
    path = serve_toml(running, mode="active", slice=1000.0, active=10_000)
    command = [sys.executable, "-m", "reverie", "serve", "--config", str(path)]
    with (path.parent / "agent.log").open("w+") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            until(lambda: (path.parent / "audit.jsonl").exists(), 20)
            running.play(poisson_plan(RATE, 1.0, WORK, seed=1))
            assert uneven(running), log.seek(0) or log.read()
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(10)
    until(lambda: not deadman_runs(running), 5)


def deadman_runs(running: Stack) -> bool:
    from reverie.serve.deadman import is_on_duty

    return is_on_duty(running.config.state)


def play(running: Stack, seconds: float, event: Callable[[], None]) -> Answers:
    """Requests for so long, `event` half a second after the first."""
    begun = threading.Timer(0.5, event)
    begun.start()
    answers = running.play(poisson_plan(RATE, max(seconds, REQUESTS / RATE), WORK, seed=2))
    begun.join()
    return answers


def none_failed(name: str, answers: Answers, note: str = "", allowed: int = 0) -> None:
    if REQUESTS:
        p99, lag = (1000 * quantile(each, 0.99) for each in (answers.seconds, answers.lag))
        line = f"| {name} | {len(answers.status):,} | {answers.failed} | {p99:.0f} ms | {lag:.0f} ms | {note} |"
        print(line, file=sys.__stdout__, flush=True)
    assert answers.failed <= allowed, np.unique(answers.status, return_counts=True)


def uneven(running: Stack) -> bool:
    """Whether the slowest server has less weight than the others; all configured weights are alike."""
    weights = running.weights()
    return weights[2] < 0.8 * max(weights)


def at_defaults(running: Stack) -> bool:
    return running.driver.observe().at_defaults


def test_nobody_notices_that_the_agent_is_killed(running):
    back = []
    with agent(running) as process:

        def kill() -> None:
            assert not at_defaults(running)
            process.kill()
            back.append(until(lambda: at_defaults(running), 3))

        answers = play(running, 2.0, kill)
    none_failed("agent killed", answers, f"configured weights back after {back[0]:.1f} s")


def test_nobody_notices_that_the_agent_stops_for_a_while(running):
    back = []
    with agent(running) as process:

        def pause() -> None:
            process.send_signal(signal.SIGSTOP)
            back.append(until(lambda: at_defaults(running), 3))
            time.sleep(10 - back[0] if REQUESTS else 0.5)
            assert at_defaults(running)
            process.send_signal(signal.SIGCONT)
            back.append(until(lambda: not at_defaults(running), 3))

        answers = play(running, 5.0, pause)
    assert len(back) == 2
    none_failed("agent stopped", answers, f"configured weights back after {back[0]:.1f} s")


def test_nobody_notices_that_the_socket_is_gone(running):
    path = running.config.balancer.socket
    back = []
    with agent(running):

        def take_away() -> None:
            path.rename(f"{path}.away")
            time.sleep(10 if REQUESTS else 1.5)
            if endpoints := running.config.balancer.endpoints:  # which the agent still reaches
                groups = json.loads(endpoints.read_text())["resources"][0]["endpoints"]
                assert {each["load_balancing_weight"] for group in groups for each in group["lb_endpoints"]} == {128}
            Path(f"{path}.away").rename(path)
            back.append(until(lambda: uneven(running), 4))

        answers = play(running, 3.0, take_away)
    assert back
    none_failed("socket gone", answers, f"weights again {back[0]:.1f} s after it is back")


def test_after_a_reload_weights_are_pushed_again(running):
    took = []
    with agent(running):

        def reload() -> None:
            running.reload()
            took.append(until(lambda: uneven(running), 2))

        answers = play(running, 1.5, reload)
    assert took
    none_failed("proxy reloaded", answers, f"weights again after {took[0]:.1f} s")


@contextmanager
def ticking(running: Stack, **options) -> Iterator[Agent]:
    """An agent in a thread of the test, without a dead-man's switch."""
    config = replace(running.config, mode="active", trial=replace(running.config.trial, slice=1000.0, active=10_000))
    found, ended, errors = Agent(config, config.balancer.connect(), print, **options), threading.Event(), []

    def tick() -> None:
        try:
            while not ended.wait(0.1):
                found.tick()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.stop()
    assert not errors


def test_nobody_notices_that_the_policy_talks_nonsense(running):
    words = cycle([np.full(3, np.nan), np.zeros(3), np.array([1e9, 1, 1]), np.full(3, -1.0), np.full(3, np.inf)])
    with ticking(running, weigh=lambda rates, configured: next(words)) as mad:
        answers = play(running, 1.5, lambda: None)
        assert at_defaults(running)
        assert {"finite", "spread"} <= mad.fallbacks.keys()
    none_failed("output NaN, 0, 1e9", answers, "configured weights throughout")


def test_nobody_notices_that_the_clock_jumps(running, monkeypatch):
    jump = [0.0]
    wall = time.time
    monkeypatch.setattr("reverie.serve.agent.time.time", lambda: wall() + 1000 * jump[0])
    with ticking(running, clock=lambda: time.monotonic() + jump[0]) as jumping:

        def jumps() -> None:
            for jump[0] in (0.0, 3600.0, -3600.0, 0.0):
                time.sleep(0.4)

        answers = play(running, 3.5, jumps)
        assert jumping.fallbacks["fresh"] > 0
        assert not at_defaults(running)
        assert min(running.weights()) >= 8
    assert all(each.same for each in replay(running.config.audit))
    none_failed("clock jumps by an hour, to and fro", answers)


@pytest.mark.parametrize("behaviour", ["closes", "fails"])
def test_a_server_that_fails_costs_no_request(running, behaviour):
    with agent(running):

        def fail() -> None:
            running.servers[1].behaviour = behaviour
            time.sleep(8 if REQUESTS else 1.0)
            running.servers[1].behaviour = "works"

        answers = play(running, 2.0, fail)
    name = {"closes": "a server closes connections", "fails": "a server answers 500 at once"}[behaviour]
    none_failed(name, answers, allowed=10 if behaviour == "fails" else 0)


def test_ten_decisions_a_second_take_a_fiftieth_of_a_core(running):
    with agent(running) as process:
        before, began = cpu_seconds(process.pid), time.monotonic()
        answers = play(running, 3.0, lambda: None)
        share = (cpu_seconds(process.pid) - before) / (time.monotonic() - began)
    none_failed("nothing happens", answers, f"{100 * share:.1f} % of a core at 10 Hz")
    # Three seconds are 300 ticks of the system's clock, and much else runs; Envoy's answers are JSON.
    assert share <= (0.02 if REQUESTS and DRIVER == "haproxy" else 0.05)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_audit_log_of_a_real_run_is_decided_again_alike(running, capsys):
    with agent(running):
        running.play(poisson_plan(RATE, 1.0, WORK, seed=3))
    from reverie import cli

    assert cli.main(["serve", "explain", str(running.config.audit), "--output", "json"]) == 0
    assert '"differ": 0' in capsys.readouterr().out
    assert sum(1 for _ in replay(running.config.audit)) > 5


def test_the_agent_leaves_the_configured_weights_behind_and_obeys_a_new_mode(running):
    with agent(running) as process:
        assert not at_defaults(running)
        serve_toml(running, mode="shadow")
        process.send_signal(signal.SIGHUP)
        until(lambda: at_defaults(running), 3)
        running.driver.apply({"s0": 7})  # somebody's own weight: shadow sends nothing
        running.play(poisson_plan(RATE, 0.5, WORK, seed=3))
        assert running.weights()[0] == 7
        (running.config.state / "serve.toml").write_text("mode = 3")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None, (
            running.config.state / "agent.log"
        ).read_text()  # a bad file leaves things as they were
        running.driver.defaults()
        serve_toml(running, mode="active", slice=1000.0, active=10_000)
        process.send_signal(signal.SIGHUP)
        until(lambda: not at_defaults(running), 3)
        process.terminate()
        process.wait(10)
        assert at_defaults(running)
