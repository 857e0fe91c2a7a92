"""Intervals hold what they promise, and the verdict says what the table says."""

import numpy as np
import pytest
import scipy.stats

from reverie.evaluate import statistics
from reverie.evaluate.statistics import Bootstrap, difference, iqm, mean, ratio, verdict
from reverie.tables import read_csv, write_csv

QUICK = Bootstrap(resamples=500)


def result(agent, episode, value, role="rule", seed=None, level=None, jobs=100, number=0, **other):
    return {
        "experiment": "test",
        "agent": agent,
        "role": role,
        "training_seed": seed,
        "task": "hard",
        "evaluation_seed": episode,
        "episode": number,
        "level": level,
        "jobs": jobs,
        "mean_size": 3.0 + episode,
        "mean": value,
    } | other


def table(values, role="rule", agent="sed", seeds=(None,)):
    """Rows of one agent from values [S, E]."""
    return [
        result(agent, e, float(v), role, s) for s, line in zip(seeds, values, strict=True) for e, v in enumerate(line)
    ]


def by_agent(rows):
    return {row["agent"]: row for row in rows}


# --- estimates -------------------------------------------------------------------------------------------------------


def test_estimates_are_those_computed_by_hand():
    values, baseline = np.array([[2.0, 8.0]]), np.array([[1.0, 2.0]])
    assert ratio(values, baseline, QUICK).value == pytest.approx(np.sqrt(2 * 4))
    assert difference(values, baseline, QUICK).value == pytest.approx((1 + 6) / 2)
    assert mean(values, QUICK).value == pytest.approx(5)
    assert iqm(np.arange(1.0, 9.0).reshape(2, 4), QUICK).value == pytest.approx(4.5)  # of 3, 4, 5, 6
    assert iqm(np.array([[1.0, 2.0, 3.0, 4.0, 100.0]]), QUICK).value == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)


def test_interquartile_mean_is_scipys_where_a_quarter_is_a_whole_number():
    values = np.random.default_rng(1).lognormal(size=(3, 40))
    assert iqm(values, QUICK).value == pytest.approx(scipy.stats.trim_mean(values.ravel(), 0.25))


def test_identical_agents_have_a_ratio_of_exactly_one():
    values = np.random.default_rng(2).lognormal(size=(1, 50))
    assert ratio(values, values.copy()) == (1.0, 1.0, 1.0)
    assert difference(values, values.copy()) == (0.0, 0.0, 0.0)


def test_a_constant_ratio_has_no_width():
    values = np.random.default_rng(3).lognormal(size=(1, 50))
    assert ratio(0.9 * values, values) == pytest.approx((0.9, 0.9, 0.9))


def test_standard_error_of_paired_episodes_is_scipys():
    rng = np.random.default_rng(4)
    baseline = rng.lognormal(sigma=1, size=(1, 300))
    values = baseline * rng.lognormal(sigma=0.1, size=(1, 300))
    ours = difference(values, baseline, Bootstrap(resamples=5000))
    scipys = scipy.stats.bootstrap(((values - baseline)[0],), np.mean, method="percentile", rng=0)
    low, high = scipys.confidence_interval
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.06)
    assert ours.low == pytest.approx(low, abs=0.06 * (high - low))


@pytest.mark.parametrize(("seeds", "seed_sigma"), [(1, 0.0), (3, 0.1), (5, 0.1)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, seed_sigma):
    """Log ratios with an effect of the training seed, of the episode, and of both: the truth is a ratio of exp(0.2)."""
    rng = np.random.default_rng(5)
    episodes, repeats, quick = 60, 300, Bootstrap(resamples=250)
    held = dict.fromkeys(("ratio", "mean", "iqm"), 0)
    for _ in range(repeats):
        baseline = rng.lognormal(sigma=0.5, size=(1, episodes))
        effect = 0.2 + seed_sigma * rng.standard_normal((seeds, 1)) + 0.1 * rng.standard_normal((seeds, episodes))
        values = baseline * np.exp(effect)
        sigma2 = 0.5**2 + seed_sigma**2 + 0.1**2
        z = scipy.stats.norm.ppf(0.75)
        middle = np.exp(0.2 + sigma2 / 2) * 2 * np.diff(scipy.stats.norm.cdf(np.array([-z, z]) - np.sqrt(sigma2)))[0]
        truths = {"ratio": np.exp(0.2), "mean": np.exp(0.2 + sigma2 / 2), "iqm": middle}
        estimates = {
            "ratio": ratio(values, baseline, quick),
            "mean": mean(values, quick),
            "iqm": iqm(values, quick),
        }
        for name, (_, low, high) in estimates.items():
            held[name] += low <= truths[name] <= high
    for name, count in held.items():
        assert 0.92 <= count / repeats <= 0.99, f"{name}: {count} of {repeats}"


def test_training_seeds_widen_the_interval_and_do_not_hide_in_it():
    rng = np.random.default_rng(6)
    baseline = rng.lognormal(size=(1, 200))
    lucky_and_not = baseline * np.array([[0.8], [0.9], [1.0], [1.1], [1.2]])
    low, high = ratio(lucky_and_not, baseline)[1:]
    assert low < 0.85
    assert high > 1.15


# --- the verdict -----------------------------------------------------------------------------------------------------


def some_results(episodes=200, gain=0.9):
    rng = np.random.default_rng(7)
    sed = rng.lognormal(sigma=1, size=(1, episodes))
    noise = rng.lognormal(sigma=0.05, size=(5, episodes))
    noise /= np.exp(np.log(noise).mean(1, keepdims=True))  # of geometric mean 1
    return [
        *table(1.3 * sed, agent="jsq"),
        *table(gain * sed * noise, "agent", "dreamer", seeds=range(5)),
        *table(1.001 * sed * noise[:1], "agent", "a2c", seeds=[0]),
        *table(0.999 * sed * noise[1:2], "agent", "ppo", seeds=[0]),
        *table(sed),
        *table(0.5 * sed, "oracle", "told"),
        *table(0.6 * sed, "oracle", "half-told"),
        *table(0.1 * sed, "bound", "lower-bound"),
    ]


def test_verdict_names_the_best_rule_and_compares_with_it():
    rows = verdict(some_results())
    assert [row["agent"] for row in rows] == [
        "lower-bound",
        "told",
        "half-told",
        "dreamer",
        "ppo",
        "sed",
        "a2c",
        "jsq",
    ]
    assert {row["against"] for row in rows} == {"sed"}
    words = {row["agent"]: row["verdict"] for row in rows}
    assert words == {
        "lower-bound": "bound",
        "told": "better",
        "half-told": "better",
        "dreamer": "better",
        "ppo": "no difference",
        "sed": "baseline",
        "a2c": "no difference",
        "jsq": "worse",
    }
    row = by_agent(rows)
    assert row["jsq"]["ratio"] == pytest.approx(1.3)
    assert (row["sed"]["ratio"], row["sed"]["low"], row["sed"]["high"]) == (1.0, 1.0, 1.0)
    assert row["dreamer"]["ratio"] == pytest.approx(0.9)
    assert 0.89 < row["dreamer"]["low"] < 0.9 < row["dreamer"]["high"] < 0.91
    assert {r["oracle"] for r in rows} == {"told"}
    assert row["jsq"]["oracle_ratio"] == pytest.approx(2.6)
    assert row["jsq"]["regret"] == pytest.approx(0.3 * row["sed"]["mean"])


def test_every_number_has_its_interval_and_its_counts():
    for row in verdict(some_results()):
        assert (row["seeds"], row["episodes"]) == (5 if row["agent"] == "dreamer" else 1, 200)
        for name, low, high in [
            ("mean", "mean_low", "mean_high"),
            ("iqm", "iqm_low", "iqm_high"),
            ("ratio", "low", "high"),
            ("regret", "regret_low", "regret_high"),
            ("oracle_ratio", "oracle_ratio_low", "oracle_ratio_high"),
        ]:
            assert row[low] <= row[name] <= row[high]


def test_a_claim_needs_five_training_seeds_and_two_hundred_episodes():
    enough = {row["agent"]: row["claim"] for row in verdict(some_results())}
    assert enough["dreamer"]
    assert enough["sed"]  # nothing was trained
    assert not enough["a2c"]
    assert not any(row["claim"] for row in verdict(some_results(episodes=199)))


def test_the_opponent_can_be_named():
    rows = verdict(some_results(), against="jsq")
    assert {row["against"] for row in rows} == {"jsq"}
    assert by_agent(rows)["sed"]["ratio"] == pytest.approx(1 / 1.3)


def test_regret_over_changing_levels_is_to_the_best_rule_of_each_level():
    """Jobs 3 : 1. sed is best at the low level (2 against 4), jsq at the high one (10 against 16)."""
    rows = []
    for e in range(2):
        for agent, low, high in [("sed", 2.0, 16.0), ("jsq", 4.0, 10.0)]:
            rows += [
                result(agent, e, low, level=0.5, jobs=75),
                result(agent, e, high, level=0.9, jobs=25),
                result(agent, e, 0.75 * low + 0.25 * high, jobs=100),
            ]
    found = {(row["level"], row["agent"]): row["regret"] for row in verdict(rows)}
    best_of_both = 0.75 * 2 + 0.25 * 10
    assert found == pytest.approx(
        {
            (0.5, "sed"): 0,
            (0.5, "jsq"): 2,
            (0.9, "sed"): 6,
            (0.9, "jsq"): 0,
            (None, "sed"): 5.5 - best_of_both,
            (None, "jsq"): 5.5 - best_of_both,
        }
    )


def test_episodes_of_one_trial_count_as_one_weighted_by_their_jobs():
    rows = []
    for e in range(3):
        rows += [result("sed", e, 1.0, jobs=10, number=0), result("sed", e, 4.0, jobs=30, number=1)]
    (row,) = verdict(rows)
    assert row["episodes"] == 3
    assert row["mean"] == pytest.approx(3.25)


def test_a_table_that_was_written_and_read_gives_the_same_verdict(tmp_path):
    rows = some_results(episodes=20)
    write_csv(tmp_path / "results.csv", rows)
    judged = verdict(rows)
    assert verdict(read_csv(tmp_path / "results.csv")) == judged
    write_csv(tmp_path / "verdict.csv", judged)
    assert read_csv(tmp_path / "verdict.csv") == judged


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:-1], "lower-bound lacks 1 of 20 results"),
        (lambda rows: [*rows, rows[0]], "twice"),
        (
            lambda rows: [r | {"mean_size": 7.0} if r["agent"] == "a2c" else r for r in rows],
            "did not meet the same jobs",
        ),
        (lambda rows: [r | {"jobs": 90} if r["agent"] == "a2c" else r for r in rows], "did not meet the same jobs"),
        (lambda rows: [r | {"mean": 0.0} if r["agent"] == "a2c" else r for r in rows], "not finite and positive"),
        (lambda rows: [r for r in rows if r["evaluation_seed"] == 0], "at least 2 evaluation episodes"),
        (lambda rows: [r for r in rows if r["role"] != "rule"], "no classical rule"),
        (lambda rows: [{k: v for k, v in r.items() if k != "role"} for r in rows], "no column 'role'"),
        (lambda rows: [], "is empty"),
    ],
)
def test_tables_that_do_not_compare_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        verdict(spoil(some_results(episodes=20)))


def test_an_unknown_opponent_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean 'dreamer'"):
        verdict(some_results(episodes=20), against="dreamr")


def test_other_metrics_can_be_judged():
    rows = [row | {"p99": None if row["role"] == "bound" else 7 * row["mean"]} for row in some_results(episodes=20)]
    judged = by_agent(verdict(rows, metric="p99"))
    assert "lower-bound" not in judged  # a bound on the mean says nothing of other metrics
    assert judged["jsq"]["ratio"] == pytest.approx(1.3)
    assert judged["sed"]["mean"] == pytest.approx(7 * by_agent(verdict(rows))["sed"]["mean"])


@pytest.mark.parametrize("field", [{"confidence": 1.0}, {"resamples": 10}])
def test_impossible_bootstraps_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        Bootstrap(**field)


def test_paired_values_need_the_same_episodes():
    with pytest.raises(ValueError, match="same episodes"):
        statistics.difference(np.ones((1, 3)), np.ones((1, 4)))
