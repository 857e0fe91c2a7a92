"""The trial in slices of time, the dead-man's switch, the audit log and the files that go with an agent."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import config, counts

from reverie import cli
from reverie.serve import deployment, metrics
from reverie.serve.agent import Agent, halted_by
from reverie.serve.audit import replay
from reverie.serve.balancer import Counts
from reverie.serve.deadman import SignOfLife, is_dead, restore
from reverie.serve.settings import Trial, load_config
from reverie.serve.trial import Score, evidence, judge, lost, slice_at

# --- the trial -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "slices"), [("canary", 2), ("active", 5)])
def test_a_block_has_one_control_slice_at_a_place_that_is_drawn(mode, slices):
    trial = Trial(slice=10.0, settle=3.0, active=5)
    places = []
    for block in range(60):
        arms = [slice_at((block * slices + k) * 10 + 5.0, trial, mode, seed=4).arm for k in range(slices)]
        assert arms.count("control") == 1
        places.append(arms.index("control"))
    assert np.bincount(places, minlength=slices).min() > 0.5 * 60 / slices
    assert not slice_at(12.9, trial, mode, 4).judged
    assert slice_at(13.0, trial, mode, 4).judged


def test_evidence_is_the_averaged_likelihood_ratio():
    for won, against in ((1, 0), (3, 2), (12, 1), (0, 6)):
        p = np.linspace(0.5, 1, 200_001)
        expected = np.trapezoid(2 * (2 * p) ** won * (2 * (1 - p)) ** against, p)
        assert evidence(won, against) == pytest.approx(expected, rel=1e-6)


def test_fair_coins_end_a_trial_by_mistake_as_rarely_as_was_said():
    rng, stopped = np.random.default_rng(5), 0
    for _ in range(2000):
        wins, ended = 0, False
        for n, sign in enumerate(rng.integers(0, 2, 60), 1):
            wins += sign
            ended |= evidence(int(wins), n - int(wins)) >= 1 / 0.05
        stopped += ended
    assert stopped / 2000 < 0.05
    assert stopped > 0
    assert evidence(9, 0) >= 20  # and one who is always worse is stopped soon


def test_a_policy_that_is_worse_for_some_blocks_is_out_and_few_requests_are_no_block():
    trial, slow, fast = Trial(requests=10), [0.1] * 90 + [2.0] * 10, [0.1] * 90 + [1.0] * 10
    score = Score()
    for _ in range(2):
        score = judge(score, fast, slow, trial)
    assert judge(score, fast, slow[:9], trial) == score
    assert not lost(score, trial, "active")
    again = judge(score, fast, slow, trial)
    assert "1.2 times control's in 3 blocks" in lost(again, trial, "active")
    assert judge(score, fast, fast, trial).lost_in_a_row == 0
    assert (again.worse, again.better, again.ratio) == (3, 0, pytest.approx(2.0))
    assert "in 12 of 14 blocks" in lost(Score(worse=12, better=2), trial, "canary")
    assert not lost(Score(worse=12, better=2), trial, "active")  # 19 slices against one are no fair coin


# --- an agent in front of a balancer that is made up -----------------------------------------------------------------


class MadeUp:
    """A balancer whose servers end 8, 4 and 2 requests between two looks."""

    def __init__(self, clock):
        self.clock, self.counts, self.said = clock, counts(at=clock()), []

    def observe(self) -> Counts:
        done = (8, 4, 2)
        started = tuple(a + b for a, b in zip(self.counts.started, done, strict=True))
        self.counts = replace(self.counts, at=self.clock(), started=started)
        return self.counts

    def apply(self, weights) -> None:
        self.said.append(dict(weights))
        by_name = dict(zip(self.counts.names, self.counts.weights, strict=True)) | weights
        self.counts = replace(self.counts, weights=tuple(by_name.values()))

    def defaults(self) -> None:
        self.said.append(None)
        self.counts = replace(self.counts, weights=self.counts.configured)

    def identity(self) -> str:
        return self.counts.process


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def made_up(tmp_path):
    """A function that makes an agent of a configuration, with its balancer, clock and words."""
    agents = []

    def make(**changes):
        clock, words = Clock(), []
        balancer = MadeUp(clock)
        own = config(state=tmp_path / "s", audit=tmp_path / "audit.jsonl", metrics=0, **changes)
        agents.append(Agent(own, balancer, words.append, clock, seed=0))
        return agents[-1], balancer, clock, words

    yield make
    for agent in agents:
        agent.stop()


def tick(agent, clock, times: int, requests: float | None = None) -> None:
    for _ in range(times):
        clock.now += 0.1
        if requests is not None:
            agent._times[agent.slice.arm] += [requests] * 50
        agent.tick()


def test_shadow_decides_and_sends_nothing(made_up):
    agent, balancer, clock, _ = made_up(mode="shadow")
    tick(agent, clock, 100)
    assert balancer.said == []
    assert agent.decision.weights["s2"] == pytest.approx(64, rel=0.1)
    changes = list(replay(agent.config.audit))
    assert len(changes) > 5
    assert all(each.same and each.change.sent == {} for each in changes)


def test_another_rule_goes_on_with_what_was_known_of_the_servers(made_up):
    agent, _, clock, _ = made_up(mode="shadow")
    tick(agent, clock, 100)
    known = agent.known.learned
    agent.reload(replace(agent.config, limits=replace(agent.config.limits, failure=9.0)))
    assert (agent.rule.failure, agent.known.learned) == (9.0, known)
    tick(agent, clock, 1)
    assert agent.decision.weights["s2"] == pytest.approx(64, rel=0.1)


def test_off_does_not_even_decide(made_up):
    agent, balancer, clock, _ = made_up(mode="off")
    tick(agent, clock, 5)
    assert (balancer.said, agent.decisions.total()) == ([], 0)


def test_a_canary_that_is_slower_is_stopped_and_stays_out_until_rearmed(made_up):
    agent, balancer, clock, words = made_up(mode="canary", trial=Trial(slice=2.0, settle=0.0, requests=20))
    for _ in range(130):
        slow = agent.slice.arm == "policy"
        tick(agent, clock, 1, 2.0 if slow else 1.0)
    assert agent.halted
    assert "p99 above 1.2 times control's in 3 blocks" in words[-1]
    assert balancer.counts.at_defaults
    tick(agent, clock, 50)
    assert balancer.counts.at_defaults
    assert agent.fallbacks["halted"] > 0
    halted_by(agent.config).unlink()
    tick(agent, clock, 20)
    assert not agent.halted
    assert agent.fallbacks["control"] > 0
    assert all(each.same for each in replay(agent.config.audit))


def test_weights_that_a_guard_keeps_out_for_long_are_spoken_of_once_and_explained(made_up, capsys):
    """Rates of 8, 4 and 2 to the sixth power: two of three servers would have the least weight."""
    agent, balancer, clock, words = made_up(mode="active", trial=Trial(slice=1e4, active=1000))
    agent.rule = replace(agent.rule, gain=6.0)
    tick(agent, clock, 90)
    assert (words, balancer.said[-1]) == ([], None)
    tick(agent, clock, 90)
    (said,) = words
    assert "guard spread has kept the policy's weights out for 10 s" in said
    assert "more than half of the servers would have the least one" in said
    cli.main(["serve", "explain", str(agent.config.audit)])
    told = " ".join(capsys.readouterr().out.split())
    assert "why the configured weights the policy's weights lie so far apart" in told


def test_a_change_in_the_log_that_is_decided_otherwise_is_found(made_up, capsys):
    agent, _, clock, _ = made_up(mode="active")
    tick(agent, clock, 30)
    path = agent.config.audit
    path.write_text(path.read_text().replace('"s2": 1', '"s2": 2', 1))
    assert cli.main(["serve", "explain", str(path)]) == 1
    assert "1 decisions come out differently" in capsys.readouterr().err
    path.write_text("{}\n")
    assert cli.main(["serve", "explain", str(path)]) == 1
    assert "line 1" in capsys.readouterr().err


def test_the_log_is_moved_aside_and_still_explains_itself(made_up):
    agent, _, clock, _ = made_up(mode="active", audit_bytes=20_000)
    tick(agent, clock, 60)
    for path in (agent.config.audit, Path(f"{agent.config.audit}.1")):
        assert all(each.same for each in replay(path))


def test_a_balancer_that_is_silent_is_complained_about_once_and_gets_defaults_when_back(made_up):
    agent, balancer, clock, words = made_up(mode="active", trial=Trial(slice=1e4, active=1000))
    tick(agent, clock, 30)
    assert not balancer.counts.at_defaults
    observe, balancer.observe = balancer.observe, lambda: (_ for _ in ()).throw(OSError("gone"))
    tick(agent, clock, 30)
    assert len(words) == 1
    assert agent.observe_failures == 30
    assert agent.fallbacks["fresh"] > 0
    balancer.observe = observe
    tick(agent, clock, 30)
    assert not balancer.counts.at_defaults


def test_weights_decided_before_the_process_was_stopped_are_not_sent_after(made_up):
    agent, balancer, clock, _ = made_up(mode="active", trial=Trial(slice=1e4, active=1000))
    tick(agent, clock, 5)
    said, weigh = len(balancer.said), agent.rule.weigh

    def stopped(*arguments):
        clock.now += 10
        return weigh(*arguments)

    agent._weigh = stopped
    tick(agent, clock, 1)
    assert len(balancer.said) == said


def test_metrics_tell_what_the_docs_say(made_up):
    client = pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
    agent, _, clock, _ = made_up(mode="active")
    tick(agent, clock, 30)
    agent.fallbacks["fresh"] += 1
    registry = client.CollectorRegistry()
    registry.register(metrics.Collector(agent))
    told = client.generate_latest(registry).decode()
    assert 'reverie_decisions_total{mode="active"} 30.0' in told
    assert 'reverie_server_weight{server="s0"} 256.0' in told
    names = {line.split("{")[0].split(" ")[0] for line in told.splitlines() if not line.startswith("#")}
    asked = json.dumps([deployment.ALERTS, {title: dict(lines) for title, lines in deployment.PANELS.items()}])
    assert set(re.findall(r"reverie_\w+", asked)) <= names


# --- the dead-man's switch and the files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "armed", "now", "dead"),
    [(100, True, 101.9, False), (100, True, 102.1, True), (100, False, 200, False), (100, True, 99, True)],
)
def test_a_sign_of_life_is_read_as_it_was_meant(tmp_path, at, armed, now, dead):
    sign = SignOfLife(tmp_path)
    sign.give(12345.678, True)
    sign.give(float(at), armed)
    sign.close()
    assert is_dead((tmp_path / "alive").read_text(), float(now), 2.0) == dead
    assert not is_dead("", 1.0, 2.0)


def test_what_cannot_be_restored_is_not_taken_for_restored():
    balancer = MadeUp(time.monotonic)
    balancer.apply({"s0": 3})
    balancer.defaults = lambda: None
    assert not restore(balancer)
    balancer.observe = lambda: (_ for _ in ()).throw(OSError("gone"))
    assert not restore(balancer)


def test_init_writes_an_example_and_all_that_goes_with_it(tmp_path):
    path = tmp_path / "serve.toml"
    assert cli.main(["serve", "init", str(path), "--out", str(tmp_path / "out")]) == 0
    assert load_config(path).mode == "shadow"
    written = {each.name: each.read_text() for each in (tmp_path / "out").iterdir()}
    assert "maxconn 4" in written["haproxy.cfg"]
    assert f"--config {path}" in written["reverie-serve.service"]
    assert "WatchdogSec=" in written["reverie-serve.service"]
    assert "reverie.serve.deadman" in written["reverie-deadman.service"]
    assert len(json.loads(written["dashboard.json"])["panels"]) == len(deployment.PANELS)
    assert written["alerts.yml"].count("alert:") == len(deployment.ALERTS)


def test_init_writes_what_envoy_needs_where_that_is_the_balancer(tmp_path):
    path, there = tmp_path / "serve.toml", tmp_path / "eds" / "endpoints.json"
    path.write_text(
        f'[balancer]\ndriver = "envoy"\nsocket = "/run/envoy/admin.sock"\nendpoints = "{there}"\n'
        '[[server]]\nname = "s0"\naddress = "127.0.0.1:8001"\nslots = 4\nweight = 64\n'
    )
    assert cli.main(["serve", "init", str(path), "--out", str(tmp_path / "out")]) == 0
    written = {each.name: each.read_text() for each in (tmp_path / "out").iterdir()}
    assert "haproxy.cfg" not in written
    assert str(there) in written["envoy.json"]
    (server,) = json.loads(written["endpoints.json"])["resources"][0]["endpoints"][0]["lb_endpoints"]
    assert server["load_balancing_weight"] == server["metadata"]["filter_metadata"]["reverie"]["configured"] == 64
    for unit in ("reverie-serve.service", "reverie-deadman.service"):
        assert f"ReadWritePaths={tmp_path / 'eds'}" in written[unit]
        assert f"envoy /run/envoy/admin.sock servers {there}" in written[unit]


def test_the_agent_needs_no_jax():
    code = "import sys, reverie.commands.serve; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rearm_lets_a_policy_act_again(tmp_path, capsys):
    path = tmp_path / "serve.toml"
    cli.main(["serve", "init", str(path), "--out", str(tmp_path / "out")])
    path.write_text(f'audit = "{tmp_path / "audit.jsonl"}"\n' + path.read_text())
    (tmp_path / "halted.txt").write_text("it was slow\n")
    assert cli.main(["serve", "rearm", str(path)]) == 0
    assert "it was slow" in capsys.readouterr().err
    assert not (tmp_path / "halted.txt").exists()
