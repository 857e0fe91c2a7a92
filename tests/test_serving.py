"""Weights for real balancers: the rule that makes weights, the guards, the settings."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from serving import config, counts

from reverie.envs.core import TimeStep
from reverie.policies.adaptive import AdaptiveLeastConnections
from reverie.runs.tuned import TuneConfig, TunedRule, save_rule
from reverie.serve import rates
from reverie.serve.decide import decide, fresh
from reverie.serve.guards import GUARDS, Situation, guard, scaled
from reverie.serve.load import load_rule
from reverie.serve.rates import Rule, failures_as_slow
from reverie.serve.settings import Limits, ServeConfig, Server, load_config
from reverie.settings.config import WorldConfig
from reverie.train.evolve import EvolveConfig

# --- the rule --------------------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_rule_in_the_simulator():
    """Where servers are busy throughout, a poll and an arrival see the same."""
    speeds, tau, rng = np.array([1.0, 0.5, 0.2]), 40.0, np.random.default_rng(3)
    rule = AdaptiveLeastConnections(speeds, tau=tau)
    state, held = rule.initial_state(1), np.full(3, 50.0)
    state = state._replace(jobs=jnp.asarray(held[None]))
    own = rates.nothing_known(3)
    for _ in range(40):
        gap = float(np.float32(rng.exponential(3.0)))
        done = rng.integers(0, 3, 3)
        held = held - done
        timestep = TimeStep(
            {
                "servers": jnp.asarray(held[None, :, None], jnp.float32),
                "job": jnp.full((1, 1), gap),
                "mask": jnp.ones((1, 3), bool),
            },
            *(jnp.zeros(1),),
            *(jnp.zeros(1, bool),) * 3,
        )
        action, state = rule.act(state, timestep, jax.random.key(0))
        own = rates.watch(Rule(tau, 5.0), own, gap, held, done, np.zeros(3))
        held[int(action[0])] += 1
    np.testing.assert_allclose(rates.estimate(own, speeds), rule.rates(state)[0], rtol=1e-4)


def test_an_unknown_fleet_has_its_configured_weights():
    assert rates.estimate(rates.nothing_known(2), np.array([3, 1])).tolist() == [3, 1]


def test_a_server_that_fails_at_once_does_not_pass_for_a_fast_one():
    own, naive = rates.nothing_known(2), rates.nothing_known(2)
    for _ in range(100):  # the first does 10 a second; the second answers 500 to 40 a second, and is never seen busy
        busy, done, failed = np.array([1, 0]), np.array([1, 4]), np.array([0, 4])
        own = rates.watch(Rule(3.0, 5.0), own, 0.1, busy, done, failed)
        naive = rates.watch(Rule(3.0, 5.0), naive, 0.1, busy, done, np.zeros(2))
    one, other = rates.estimate(own, np.ones(2))
    assert other < one / 100
    one, other = rates.estimate(naive, np.ones(2))
    assert other > one
    answered, busy = failures_as_slow(np.array([5]), np.array([5]), np.array([0.1]), 5.0)
    assert (answered.tolist(), busy.tolist()) == ([0], [25.1])


def tuned_file(folder: Path, name: str, centre: np.ndarray, seconds: float | None = None) -> tuple[Path, TunedRule]:
    speeds, sizes = np.array([1.0, 0.5, 0.0]), np.array([0.1, 0.2, 0.6])
    world = TuneConfig(name, WorldConfig(), EvolveConfig())
    tuned = TunedRule(world, centre, np.zeros((1, 4)), speeds, sizes, seconds)
    save_rule(folder / "tuned.safetensors", tuned)
    return folder / "tuned.safetensors", tuned


def test_a_tuned_file_gives_the_constant_that_was_tuned(tmp_path):
    path, tuned = tuned_file(tmp_path, "adaptive-least-connections", np.array([0.3, -0.7]))
    rule = load_rule(config(policy=str(path), unit=2.0))
    assert (rule.tau, rule.gain) == (pytest.approx(2.0 * float(tuned.rule.tau), rel=1e-6), 1.0)
    path, tuned = tuned_file(tmp_path, "adaptive-weights", np.array([-0.2, 0.4]))
    rule, ours = load_rule(config(policy=str(path), unit=2.0)), tuned.rule
    assert rule.tau == pytest.approx(2.0 * float(ours.estimates.tau), rel=1e-6)
    assert rule.gain == pytest.approx(float(ours.gain), rel=1e-6)


def test_a_file_that_was_tuned_on_a_trace_knows_how_long_its_time_units_are(tmp_path):
    path, tuned = tuned_file(tmp_path, "adaptive-least-connections", np.zeros(2), seconds=1e-3)
    for unit, seconds in ((None, 1e-3), (2.0, 2.0)):
        rule = load_rule(config(policy=str(path), unit=unit))
        assert rule.tau == pytest.approx(seconds * float(tuned.rule.tau), rel=1e-6)


def test_a_policy_that_makes_no_weights_is_refused(tmp_path):
    path, _ = tuned_file(tmp_path, "wait-plus-service", np.array([0.3]))
    with pytest.raises(ValueError, match="reverie tune --rule adaptive-weights"):
        load_rule(config(policy=str(path)))
    with pytest.raises(FileNotFoundError, match="no policy at nowhere"):
        load_rule(config(policy="nowhere"))
    (tmp_path / "broken").write_text("x")
    with pytest.raises(ValueError, match="damaged"):
        load_rule(config(policy=str(tmp_path / "broken")))


# --- the guards ------------------------------------------------------------------------------------------------------


def situation(**changes) -> Situation:
    held = np.array([128.0, 128, 128, 128])
    usual = Situation(Limits(), True, 0.0, 0.1, held, np.zeros(4), 0.0, halted=False)
    return usual._replace(**changes)


ONE = np.array([100.0, 100, 100, 100])

# For each guard, what is wanted and when, and what must hold of the answer, which does not without the guard.
DANGERS = {
    "halted": (ONE, situation(halted=True), lambda w, now: w is None),
    "known": (ONE, situation(known=False), lambda w, now: w is None),
    "fresh": (ONE, situation(age=1.01), lambda w, now: w is None),
    "finite": (np.array([1.0, np.nan, 1, 1]), situation(), lambda w, now: w is None),
    "spread": (np.array([256.0, 1, 1, 1]), situation(), lambda w, now: w is None),
    "capped": (
        np.array([256.0, 60, 60, 60]),
        situation(held=np.array([255.0, 85, 85, 85])),
        lambda w, now: w[0] <= 0.5 * w.sum() + 0.5,
    ),
    "floored": (
        np.array([256.0, 200, 200, 1]),
        situation(held=np.array([256.0, 200, 200, 8])),
        lambda w, now: w[3] >= 8,
    ),
    "not_raised": (
        np.array([256.0, 256, 256, 256]),
        situation(failed=np.array([0, 0.2, 0, 0]), failed_fleet=0.05),
        lambda w, now: w[1] <= now.held[1],
    ),
    "stepped": (
        np.array([256.0, 200, 200, 100]),
        situation(held=np.array([256.0, 200, 200, 10])),
        lambda w, now: w[3] <= 10 * 2**0.1 + 1e-9,
    ),
}


def holds(property_, weights, now) -> bool:
    with np.errstate(all="ignore"):
        return bool(property_(weights, now))


@pytest.mark.parametrize("name", GUARDS)
def test_each_guard_stands_between_a_danger_and_the_fleet(name):
    wanted, now, safe = DANGERS[name]
    allowed, fired = guard(wanted, now)
    assert holds(safe, allowed, now)
    assert name in fired
    with np.errstate(all="ignore"):
        unguarded, _ = guard(wanted, now, {each: of for each, of in GUARDS.items() if each != name})
    assert not holds(safe, unguarded, now), "the danger is none without this guard, so this test shows nothing"


numbers = arrays(float, 4, elements=st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1e9, 1.0]))
held = arrays(float, 4, elements=st.floats(8, 256)).map(lambda w: np.maximum(scaled(w), 8))


@given(numbers, held, st.floats(0, 1), arrays(float, 4, elements=st.floats(0, 1)))
def test_whatever_a_policy_says_the_fleet_is_safe(wanted, held, since, failed):
    now = situation(held=held, since=since, failed=failed, failed_fleet=0.5)
    allowed, _ = guard(wanted, now)
    if allowed is None:
        return
    assert np.isfinite(allowed).all()
    assert (allowed >= 8 - 1e-9).all()
    assert (allowed <= 256 + 1e-9).all()
    ratio = allowed / held
    assert (ratio <= 2**since * (1 + 1e-9)).all()
    assert (ratio >= 2**-since * (1 - 1e-9)).all()
    assert (allowed[failed > 0.5] <= held[failed > 0.5] + 1e-9).all()


@given(arrays(float, 5, elements=st.floats(1e-3, 1e3)), st.floats(0.2, 1))
def test_the_cap_holds_and_keeps_the_order(weights, cap):
    now = situation()._replace(limits=Limits(share=cap))
    shares = GUARDS["capped"](weights, now)
    shares = shares / shares.sum()
    assert (shares <= cap * (1 + 1e-6)).all()
    assert (np.diff(shares[np.argsort(weights)]) >= -1e-9).all()


def test_weights_that_are_right_are_left_alone():
    allowed, fired = guard(np.array([2.0, 1, 1, 0.5]), situation(held=np.array([256.0, 128, 128, 64])))
    assert fired == ()
    np.testing.assert_allclose(allowed, [256, 128, 128, 64])


# --- a decision ------------------------------------------------------------------------------------------------------


def later(before, seconds: float = 0.1, done=(1, 1, 1), **changes):
    started = tuple(s + d for s, d in zip(before.started, done, strict=True))
    return replace(before, at=before.at + seconds, started=started, **changes)


def decided(own: ServeConfig, steps: int, done, **options):
    """The decision after so many polls, each of which saw `done` requests end at busy servers."""
    seen = counts()
    known = fresh(seen.at, seen)
    for _ in range(steps):
        seen = later(seen, done=done)
        decision, known = decide(own, Rule(3.0, 5.0), known, seen, seen.at, **options)
    return decision, known, seen


def test_weights_come_to_be_as_the_rates_at_two_times_a_second():
    decision, _, _ = decided(config(), 10, (8, 4, 2))
    slowest = decision.weights["s2"]
    assert slowest == pytest.approx(128, abs=1)  # half of 256, after one second
    decision, _, _ = decided(config(), 100, (8, 4, 2))
    assert [decision.weights[name] for name in ("s0", "s1", "s2")] == pytest.approx([256, 128, 64], rel=0.05)
    assert decision.fired == ()


def test_a_reload_keeps_what_is_known_and_pushes_it_again():
    decision, known, seen = decided(config(), 100, (8, 4, 2))
    anew = replace(seen, at=seen.at + 0.1, process="2 of 2", started=(0, 0, 0), in_progress=(0, 0, 0))
    again, _ = decide(config(), Rule(3.0, 5.0), known, anew, anew.at)
    assert again.weights == pytest.approx(decision.weights, abs=1)


def test_another_set_of_servers_gets_the_configured_weights():
    _, known, seen = decided(config(), 100, (8, 4, 2))
    renamed = replace(seen, at=seen.at + 0.1, names=("s0", "s1", "s3"))
    decision, after = decide(config(), Rule(3.0, 5.0), known, renamed, renamed.at)
    assert (decision.weights, decision.fired) == (None, ("known",))
    assert after.held == (256, 256, 256)


def test_old_news_and_a_process_that_stood_still_get_the_configured_weights():
    _, known, seen = decided(config(), 100, (8, 4, 2))
    for news, now in ((seen, seen.at + 1.01), (later(seen, 10.0), seen.at + 10.0)):
        decision, after = decide(config(), Rule(3.0, 5.0), known, news, now)
        assert (decision.weights, decision.fired) == (None, ("fresh",))
        assert after.held == (256, 256, 256)


def test_what_happened_while_nobody_looked_teaches_nothing():
    """One look at who is busy would stand for all that time."""
    _, known, seen = decided(config(), 100, (8, 4, 2))
    blind = later(seen, 5.0, done=(400, 200, 100), in_progress=(1, 1, 0))
    _, after = decide(config(), Rule(3.0, 5.0), known, blind, blind.at)
    assert after.learned == known.learned


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_moves_no_weight_by_more_than_a_step(jump):
    _, known, seen = decided(config(), 100, (8, 4, 2))
    held = known.held
    jumped = later(seen, jump, done=(8, 4, 2))
    decision, known = decide(config(), Rule(3.0, 5.0), known, jumped, jumped.at)
    if jump > 0:
        assert decision.fired == ("fresh",)
    else:
        assert known.held == pytest.approx(held)
    assert all(math.isfinite(each) for each in (*known.learned.answered, *known.learned.busy, *known.ended))


def test_servers_that_are_down_or_drained_are_not_sent_weights():
    _, known, seen = decided(config(), 5, (8, 4, 2))
    aside = later(seen, takes=(True, False, True))
    decision, _ = decide(config(), Rule(3.0, 5.0), known, aside, aside.at)
    assert decision.weights.keys() == {"s0", "s2"}


def test_control_is_the_configured_weights():
    decision, known, _ = decided(config(), 50, (8, 4, 2), arm="control")
    assert (decision.weights, decision.fired) == (None, ("control",))
    assert known.held == (256, 256, 256)


@pytest.mark.parametrize("word", [np.nan, 0.0, 1e9, -1.0, np.inf])
def test_garbage_from_a_policy_changes_nothing(word):
    def garbage(rates, configured):
        return np.array([word, 1.0, 1.0]) if word == 1e9 else np.full(3, word)

    decision, _, _ = decided(config(), 3, (8, 4, 2), weigh=garbage)
    assert decision.weights is None
    assert decision.fired == (("spread",) if word == 1e9 else ("finite",))


# --- the settings ----------------------------------------------------------------------------------------------------

TOML = """
mode = "shadow"
[balancer]
backend = "web"
[[server]]
name = "s0"
address = "127.0.0.1:8001"
slots = 4
[[server]]
name = "s1"
address = "127.0.0.1:8002"
slots = 4
[limits]
step = 3
"""


def test_a_short_file_is_completed_by_defaults(tmp_path):
    (tmp_path / "serve.toml").write_text(TOML)
    own = load_config(tmp_path / "serve.toml")
    assert (own.balancer.backend, own.limits.step, own.limits.floor) == ("web", 3.0, 8)
    assert own.server[1] == Server("s1", "127.0.0.1:8002", 4)


def test_a_file_with_an_older_name_of_a_key_says_what_it_did(tmp_path):
    (tmp_path / "serve.toml").write_text(TOML.replace("step = 3", "memory = 4"))
    assert load_config(tmp_path / "serve.toml").limits.forgets == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("step = 3", "stepp = 3"), "limits.*no field 'stepp'; did you mean 'step'"),
        (("[limits]", "[limit]"), "no field 'limit'; did you mean 'limits'"),
        (("slots = 4", "slot = 4"), r"server\[0\].*no field 'slot'"),
        (("step = 3", "step = 1"), "step must be greater than 1, got 1"),
        (("step = 3", "share = 0.4"), "2 servers need at least 0.5"),
        (('"s1"', '"s0"'), "name of its own"),
        (("[balancer]", '[balancer]\ndriver = "nginx"'), "driver: expected one of 'haproxy', 'envoy', found 'nginx'"),
        (("[balancer]", '[balancer]\ndriver = "envoy"'), "balancer.endpoints: the driver envoy, and no other, needs"),
        (
            ("[balancer]", '[balancer]\nendpoints = "e.json"'),
            "balancer.endpoints: .* got the driver haproxy and e.json",
        ),
        (('"shadow"', '"live"'), "mode: expected one of 'off', 'shadow', 'canary', 'active', found 'live'"),
        (('"shadow"', "shadow"), "serve.toml: Invalid value"),
        (('mode = "shadow"', "hz = 50"), "hz must lie in"),
    ],
)
def test_what_a_file_must_not_have_is_named(tmp_path, change, message):
    (tmp_path / "serve.toml").write_text(TOML.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "serve.toml")
