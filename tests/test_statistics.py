"""Intervals hold what they promise, and the verdict says what the table says."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from reverie.evaluate import statistics
from reverie.evaluate.statistics import decided, difference, holm, mean, ratio, ratio_of_means, verdict
from reverie.tables import read_csv, write_csv


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
    assert ratio(values, baseline).value == pytest.approx(np.sqrt(2 * 4))
    assert ratio_of_means(values, baseline).value == pytest.approx(10 / 3)
    assert difference(values, baseline).value == pytest.approx((1 + 6) / 2)
    assert mean(values).value == pytest.approx(5)


def test_identical_agents_have_a_ratio_of_exactly_one():
    values = np.random.default_rng(2).lognormal(size=(1, 50))
    assert ratio(values, values.copy()) == (1.0, 1.0, 1.0)
    assert ratio_of_means(values, values.copy()) == (1.0, 1.0, 1.0)
    assert difference(values, values.copy()) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [0.9, -0.1, 0.3, -143.7])
@pytest.mark.parametrize("kind", [np.float32, float])
def test_what_rounding_alone_tells_apart_is_no_difference(value, kind):
    """Means of 5 and of 1 equal rows differ in their last digit, and there is no spread that would hold that."""
    for seeds in (2, 3, 5):
        values = {"few": np.full((1, 200), value, kind), "many": np.full((seeds, 200), value, kind)}
        assert decided(values, "few")["many"] == (1.0, "no difference")
        assert decided(values | {"more": values["few"] * kind(1.00001)}, "few")["more"][1] != "no difference"


def test_a_constant_ratio_has_no_width():
    values = np.random.default_rng(3).lognormal(size=(1, 50))
    assert ratio(0.9 * values, values) == pytest.approx((0.9, 0.9, 0.9))
    assert ratio_of_means(0.9 * values, values) == pytest.approx((0.9, 0.9, 0.9))


def test_one_training_seed_gives_students_interval_of_paired_episodes():
    rng = np.random.default_rng(4)
    values, baseline = rng.lognormal(size=(2, 1, 30))
    expected = scipy.stats.ttest_rel(values[0], baseline[0]).confidence_interval()
    assert difference(values, baseline)[1:] == pytest.approx((expected.low, expected.high))


def test_one_episode_has_a_value_and_no_interval():
    value, low, high = ratio(np.array([[3.0]]), np.array([[2.0]]))
    assert value == pytest.approx(1.5)
    assert np.isnan([low, high]).all()


SPREADS = [(0.1, 0.0), (0.1, 0.1), (0.05, 0.1)]
"""Standard deviations of the effect of a training seed, and of what seed and episode have together."""


@pytest.mark.parametrize("episodes", [8, 200])
@pytest.mark.parametrize(
    ("seeds", "seed_sigma", "cell_sigma"), [(1, 0.0, 0.1), *((n, *spread) for n in (2, 3, 5) for spread in SPREADS)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, seed_sigma, cell_sigma, episodes):
    """Log ratios with effects of the training seed, of the episode, and of both: their mean is 0.2."""
    rng, repeats = np.random.default_rng(5), 600
    held = dict.fromkeys(("ratio", "ratio of means", "mean", "difference"), 0)
    for _ in range(repeats):
        baseline = rng.lognormal(sigma=0.5, size=(1, episodes))
        pair = 0.1 * rng.standard_normal((1, episodes))
        effect = seed_sigma * rng.standard_normal((seeds, 1)) + cell_sigma * rng.standard_normal((seeds, episodes))
        values = baseline * np.exp(0.2 + pair + effect)
        noise = 0.1**2 + seed_sigma**2 + cell_sigma**2
        gain = np.exp(0.2 + noise / 2)
        found = {
            "ratio": (np.exp(0.2), ratio(values, baseline)),
            "ratio of means": (gain, ratio_of_means(values, baseline)),
            "mean": (np.exp(0.5**2 / 2) * gain, mean(values)),
            "difference": (0.2, difference(np.log(values), np.log(baseline))),
        }
        for name, (truth, (_, low, high)) in found.items():
            held[name] += low <= truth <= high
    # What hardly differs is hard to tell from chance in few cells: there intervals err on the wide side.
    most = 0.99 if seeds == 2 or (episodes == 8 and seed_sigma < cell_sigma) else 0.98
    for name, count in held.items():
        if episodes == 200 or name not in ("mean", "ratio of means"):
            assert 0.92 <= count / repeats <= most, f"{name}: {count} of {repeats}"


@pytest.mark.parametrize("episodes", [8, 200])
@pytest.mark.parametrize(
    ("seeds", "spreads"),
    [((5, 3), (0.05, 0.05)), ((5, 5), (0.1, 0.1)), ((3, 3), (0.05, 0.1)), ((2, 2), (0.1, 0.1)), ((5, 3), (0.02, 0.2))],
)
def test_intervals_between_two_that_learned_hold_the_truth_as_often_as_they_say(seeds, spreads, episodes):
    """As above, both sides with training seeds of their own, which differ as much or up to ten times less."""
    rng, repeats, gap = np.random.default_rng(6), 600, 0.2
    held = dict.fromkeys(("ratio", "ratio of means"), 0)
    for _ in range(repeats):
        luck = rng.normal(0, 0.5, (1, episodes))
        values, baseline = (
            np.exp(luck + mean + s * rng.standard_normal((n, 1)) + 0.1 * rng.standard_normal((n, episodes)))
            for n, s, mean in zip(seeds, spreads, (gap, 0.0), strict=True)
        )
        of_means = gap + (spreads[0] ** 2 - spreads[1] ** 2) / 2
        for name, found, truth in (("ratio", ratio, gap), ("ratio of means", ratio_of_means, of_means)):
            _, low, high = found(values, baseline)
            held[name] += low <= np.exp(truth) <= high
    most = 0.99 if episodes == 8 or seeds == (2, 2) else 0.98  # as above
    for name, count in held.items():
        assert 0.92 <= count / repeats <= most, f"{name}: {count} of {repeats}"


def test_windows_of_a_trace_are_independent_and_overlapping_ones_are_not():
    """Two policies differ by what lasts for some 100 jobs; a trace of 8,800 jobs, windows of 1,000, true mean 0."""
    rng, jobs, window, memory = np.random.default_rng(8), 8800, 1000, np.exp(-1 / 100)
    starts = np.arange(0, jobs - window + 1, window)
    held = dict.fromkeys(("disjoint", "overlapping"), 0)
    for _ in range(1000):
        noise = scipy.signal.lfilter([1], [1, -memory], rng.standard_normal(jobs))
        sums = np.append(0, noise.cumsum())
        for name, first in (("disjoint", starts), ("overlapping", rng.integers(jobs - window + 1, size=200))):
            means = (sums[first + window] - sums[first])[None] / window
            _, low, high = difference(means, np.zeros((1, len(first))))
            held[name] += low <= 0 <= high
    assert 0.92 <= held["disjoint"] / 1000 <= 0.98
    assert held["overlapping"] / 1000 < 0.5  # what was published before


def test_holms_correction_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_of_many_equal_agents_one_table_in_twenty_calls_one_better_or_worse():
    rng, wrong = np.random.default_rng(9), 0
    for _ in range(40):
        noise = rng.lognormal(sigma=0.05, size=(11, 1, 20))
        rows = [row for n, values in enumerate(noise) for row in table(values, agent=f"rule {n}")]
        words = {row["verdict"] for row in verdict(rows, against="rule 0")}
        wrong += bool(words & {"better", "worse"})
    assert wrong <= 5  # 2 expected; without the correction 15


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
            ("value", "value_low", "value_high"),
            ("means_ratio", "means_ratio_low", "means_ratio_high"),
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


def test_levels_stand_in_order_whichever_was_met_first():
    rows = [result("sed", e, 1.0, level=level) for level in (0.9, 0.5, None, 0.7) for e in range(2)]
    assert [row["level"] for row in verdict(rows)] == [None, 0.5, 0.7, 0.9]


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
    assert judged["sed"]["value"] == pytest.approx(7 * judged["sed"]["mean"])
    assert judged["sed"]["metric"] == "p99"


def test_mean_and_tail_that_contradict_one_another_are_named():
    rng = np.random.default_rng(10)
    fast = rng.lognormal(size=200)
    rows = []
    for e, value in enumerate(fast):
        rows += [result("sed", e, value, p99=5 * value), result("jsq", e, 1.1 * value, p99=6 * value)]
        noise = rng.lognormal(sigma=0.02)
        rows.append(result("dreamer", e, 0.9 * value * noise, "agent", 0, p99=7 * value * noise))
    judged = by_agent(verdict(rows))
    assert (judged["dreamer"]["verdict"], judged["dreamer"]["p99_verdict"]) == ("better", "worse")
    assert judged["dreamer"]["p99_ratio"] == pytest.approx(1.4, rel=0.01)
    assert {name: row["disagree"] for name, row in judged.items()} == {"dreamer": True, "sed": False, "jsq": False}


def test_shares_of_late_jobs_may_be_zero_and_are_judged_by_their_difference():
    rng = np.random.default_rng(11)
    rows = []
    for e in range(200):
        late = rng.uniform(0, 0.02)
        rows += [result("sed", e, 1.0, late=late), result("jsq", e, 2.0, late=3 * late)]
        rows.append(result("never", e, 3.0, late=0.0))
    judged = by_agent(verdict(rows, metric="late"))
    assert {row["against"] for row in judged.values()} == {"never"}
    assert judged["sed"]["verdict"] == judged["jsq"]["verdict"] == "worse"
    assert judged["sed"]["ratio"] is None  # to a share of 0 there is none
    judged = by_agent(verdict(rows, against="sed", metric="late"))
    assert judged["jsq"]["ratio"] == pytest.approx(3)
    assert (judged["never"]["ratio"], judged["never"]["verdict"]) == (0, "better")


@pytest.mark.parametrize(
    ("windows", "word", "claim"), [(1, "no claim", False), (2, "no claim", False), (8, "worse", True)]
)
def test_few_windows_of_a_recording_are_no_claim(windows, word, claim):
    rng = np.random.default_rng(12)
    rows = []
    for e in range(windows):
        value = rng.lognormal()
        rows += [
            result("sed", e, value, windows=windows),
            result("jsq", e, 2 * value * rng.lognormal(sigma=0.1), windows=windows),
        ]
    jsq = by_agent(verdict(rows))["jsq"]
    assert (jsq["verdict"], jsq["claim"], jsq["windows"]) == (word, claim, windows)
    assert (jsq["low"] is None) == (windows == 1)


def test_paired_values_need_the_same_episodes():
    with pytest.raises(ValueError, match="same episodes"):
        statistics.difference(np.ones((1, 3)), np.ones((1, 4)))
