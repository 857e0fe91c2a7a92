"""Traces: formats and their errors, scaling, statistics against theory and published values, the built-in workload."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot

from reverie.envs.fleet.conversation import conversation_like
from reverie.envs.fleet.records import TraceError
from reverie.envs.fleet.traces import DEFAULT_COST, TokenCost, Trace, describe, read_trace, scale_to_load
from reverie.report.traces import draw_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319601,3180,8
2023-11-16 18:17:04.0319601,110,27
"""


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "requests.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def trace(arrival, work=None, name="test") -> Trace:
    arrival = np.asarray(arrival, np.float64)
    return Trace(name, arrival, np.ones(len(arrival)) if work is None else np.asarray(work, np.float64))


# Reading


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # the table of published statistics, with half a unit of its last digit as tolerance
        (
            "conv",
            {
                "count": (19_366, 0),
                "gap_cv": (1.09, 0.005),
                "dispersion_1s": (1.4, 0.05),
                "dispersion_10s": (3.9, 0.05),
                "dispersion_60s": (16, 0.5),
                "size_mean": (5.5, 0.05),
                "size_c2": (0.54, 0.005),
            },
        ),
        (
            "code",
            {
                "count": (8819, 0),
                "gap_cv": (13.2, 0.05),
                "dispersion_10s": (72, 0.5),
                "peak_to_mean": (4.2, 0.05),
                "size_mean": (1.11, 0.005),
                "size_c2": (1.96, 0.005),
                "size_tail_index": (1.8, 0.05),
            },
        ),
    ],
)
def test_azure_traces_have_their_published_statistics(shared_data, name, expected):
    summary = describe(read_trace(shared_data / "traces" / "azure_llm_2023" / f"AzureLLMInferenceTrace_{name}.csv"))
    for field, (value, tolerance) in expected.items():
        assert getattr(summary, field) == pytest.approx(value, abs=tolerance), field


def test_azure_csv_keeps_every_digit_of_the_time_and_applies_the_cost(write):
    read = read_trace(write(AZURE, "conv.csv"), TokenCost(prefill_rate=1000.0, decode_rate=10.0))
    assert read.name == "conv"
    assert read.arrival.tolist() == [0.0, 0.0520001, 0.0520001]
    assert read.columns["context_tokens"].tolist() == [4808, 3180, 110]
    assert read.columns["generated_tokens"].tolist() == [10, 8, 27]
    assert read.work.tolist() == [4.808 + 1.0, 3.18 + 0.8, 0.11 + 2.7]


def test_json_lines_count_milliseconds_or_give_dates(write):
    def lines(*stamps):
        return "\n".join(
            json.dumps({"timestamp": stamp, "input_length": 5000, "output_length": 40, "hash_ids": [1, 2]})
            for stamp in stamps
        )

    assert read_trace(write(lines(27482, 27483, 30535))).arrival.tolist() == [0.0, 0.001, 3.053]
    assert read_trace(write(lines(1.7e12 + 0.25, 1.7e12 + 0.5))).arrival.tolist() == [0.0, 0.00025]
    dates = lines("2023-11-16T23:59:59.999999999+00:00", "2023-11-17T00:00:00Z", "2023-11-17T02:00:01+01:00")
    read = read_trace(write(dates, "kimi.jsonl"))
    assert read.arrival.tolist() == [0.0, 1e-9, 3601.000000001]
    assert read.work.tolist() == [2.0] * 3
    assert read.name == "kimi"


def test_plain_csv_is_read_by_the_names_of_its_columns_or_else_by_their_order(write):
    for content in (
        "arrival,size\n10.5,2\n11.0,0.25\n",
        "0.5, 2\n1.0, 0.25\n",
        'size,note,arrival\r\n2,"a, b",10.5\r\n\r\n0.25,,11.0\r\n',
        "\ufeffarrival,size\n10.5,2\n11.0,.25",
    ):
        read = read_trace(write(content))
        assert read.arrival.tolist() == [0.0, 0.5], content
        assert read.work.tolist() == [2.0, 0.25], content
        assert read.columns == {}


def test_a_gzipped_file_is_known_by_its_content(write):
    read = read_trace(write(gzip.compress(AZURE.encode()), "code.csv.gz"))
    assert (read.name, len(read.work)) == ("code", 3)
    assert len(read_trace(write(gzip.compress(AZURE.encode()), "no-ending")).work) == 3


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2023-11-16 18:17:04.5,abc,10", "ContextTokens is 'abc', expected a finite number of at least 0"),
        ("2023-11-16 18:17:04.5,,10", "ContextTokens is ''"),
        ("2023-11-16 18:17:04.5,10", "2 columns where the header names 3"),
        ("2023-11-16 18:17:04.5,10,-1", "GeneratedTokens is '-1', expected a finite number of at least 0"),
        ("2023-11-16 18:17:04.5,nan,10", "ContextTokens is 'nan'"),
        ("2023-11-16 18:17:04.5,10,inf", "GeneratedTokens is 'inf'"),
        ("2023-11-16 18:17:04.5,0,0", "a request without tokens brings no work"),
        ("2023-11-16 18:17:04.0,5,5", r"time goes back by 0.0319601 s \(sort the file by time\)"),
        ("2023-02-30 18:17:04.5,5,5", "TIMESTAMP is '2023-02-30 18:17:04.5', expected a time such as 2023-11-16 18:17"),
        ("yesterday,5,5", "TIMESTAMP is 'yesterday'"),
    ],
)
def test_a_broken_line_of_azure_csv_is_named_with_what_is_wrong(write, line, what):
    path = write(AZURE + "\n" + line + "\n2023-11-16 18:20:00,1,1\n")  # a blank line counts: the broken one is the 6th
    with pytest.raises(TraceError, match=rf"requests.csv has 1 broken line:\n  line 6: {what}.*: '{line}'$"):
        read_trace(path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"timestamp": 5, "input_length": 1}', "no output_length"),
        ('{"timestamp": 5, "input_length": "x", "output_length": 1}', "input_length is 'x'"),
        ('{"timestamp": 5, "input_length": true, "output_length": 1}', "input_length is True"),
        ('{"timestamp": 5, "input_length": [1], "output_length": 1}', r"input_length is \[1\]"),
        ('{"timestamp": true, "input_length": 1, "output_length": 1}', "timestamp is True, expected a time"),
        ('{"timestamp": null, "input_length": 1, "output_length": 1}', "timestamp is None, expected a time"),
        ('{"timestamp": 5, "input_length": NaN, "output_length": 1}', "input_length is nan"),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}', "timestamp is inf"),
        ('{"timestamp": 5, "input_length": 1, "output_length": 1', "not JSON"),
        ("[1, 2]", "no timestamp, no input_length, no output_length"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}', "time goes back by 0.001 s"),
    ],
)
def test_a_broken_line_of_json_is_named_with_what_is_wrong(write, line, what):
    good = '{"timestamp": 2, "input_length": 1, "output_length": 1}\n'
    with pytest.raises(TraceError, match=rf"has 1 broken line:\n  line 2: {what}"):
        read_trace(write(good + line + "\n"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("5,0", "a size of 0 brings no work"),
        ("5,-2", "size is '-2', expected a finite number of at least 0"),
        ("x,1", "arrival is 'x', expected a finite number: "),
        ("-inf,1", "arrival is '-inf'"),
        (f'5,"{"9" * 200_000}"', "not CSV"),
    ],
    ids=lambda text: text[:20],
)
def test_a_broken_line_of_plain_csv_is_named_with_what_is_wrong(write, line, what):
    with pytest.raises(TraceError, match=rf"line 3: {what}") as caught:
        read_trace(write(f"arrival,size\n4,1\n{line}\n"))
    assert len(str(caught.value)) < 500


def test_of_many_broken_lines_the_first_are_shown_and_all_are_counted(write):
    rows = [f"{k},1" for k in range(20)]
    for broken in (3, 5, 7, 9, 11, 13, 15):
        rows[broken] = "oops,1"
    with pytest.raises(TraceError) as caught:
        read_trace(write("\n".join(["arrival,size", *rows])))
    message = str(caught.value).splitlines()
    assert "7 broken lines" in message[0]
    assert [line.split(":")[0].strip() for line in message[1:-1]] == [f"line {k + 2}" for k in (3, 5, 7, 9, 11)]
    assert message[-1] == "  and 2 more"


def test_one_step_back_in_time_does_not_condemn_all_that_follows(write):
    with pytest.raises(TraceError, match="1 broken line:\n  line 4"):
        read_trace(write("arrival,size\n1,1\n900,1\n3,1\n4,1\n5,1\n"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("\n  \n", "is empty"),
        ("arrival,size\n", "no records"),
        ("time,bytes\n1,2\n", "no known format.*'time,bytes'.*TIMESTAMP.*arrival,size.*input_length"),
        ("1,2,3\n", "no known format"),
        ("arrival,bytes\n1,2\n", "lacks size; expected arrival,size"),
        ("TIMESTAMP,ContextTokens\n", "lacks GeneratedTokens"),
        (b"\xff\xfe\x00\x01", "not a text file in UTF-8"),
        (gzip.compress(AZURE.encode(), mtime=0)[:-20], "cannot be read"),
        (b"\x1f\x8bnothing", "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(write, content, what):
    with pytest.raises(TraceError, match=rf"requests.csv.*{what}"):
        read_trace(write(content))


def test_a_path_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"there is no file .*missing.csv"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("arrival", "work", "what"),
    [
        ([], [], "is empty"),
        ([1.0, 2.0], [1.0, 1.0], "first arrival is 1.0"),
        ([0.0, 2.0, 1.0], [1.0, 1.0, 1.0], "job 2 arrives at 1.0"),
        ([0.0, math.nan, 1.0], [1.0, 1.0, 1.0], "job 1 arrives at nan"),
        ([0.0, math.inf], [1.0, 1.0], "job 1 arrives at inf"),
        ([0.0, 1.0], [1.0, 0.0], "work of job 1 is 0.0"),
        ([0.0, 1.0], [math.nan, 1.0], "work of job 0 is nan"),
    ],
)
def test_a_trace_in_memory_keeps_the_same_rules(arrival, work, what):
    with pytest.raises(TraceError, match=what):
        trace(arrival, work)


def test_a_cost_of_zero_is_refused():
    with pytest.raises(TraceError, match="decode_rate is 0"):
        TokenCost(decode_rate=0.0)


# Scaling


@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
def test_scaling_reaches_the_load_and_multiplies_every_gap_by_one_constant(load):
    before = conversation_like(500, seed=1)
    after = scale_to_load(before, load, total_speed=6.0)
    assert after.work.sum() / (after.span * 6.0) == pytest.approx(load, rel=1e-12)
    ratio = np.diff(after.arrival) / np.diff(before.arrival)
    assert np.allclose(ratio, ratio[0], rtol=1e-6)  # so the shape of every burst is kept
    assert np.array_equal(after.work, before.work)


@pytest.mark.parametrize(
    ("load", "speed", "what"),
    [(0.0, 1.0, "load is 0.0"), (-0.5, 1.0, "load"), (math.nan, 1.0, "load"), (0.9, 0.0, "total_speed is 0.0")],
)
def test_an_impossible_load_or_speed_is_named(load, speed, what):
    with pytest.raises(TraceError, match=what):
        scale_to_load(trace([0.0, 1.0]), load, speed)


def test_a_trace_without_duration_can_neither_be_scaled_nor_described():
    for use in (describe, lambda t: scale_to_load(t, 0.9, 1.0)):
        with pytest.raises(TraceError, match="same time"):
            use(trace([0.0, 0.0]))


# Describing


def test_poisson_arrivals_and_exponential_sizes_are_described_as_theory_says():
    rng = np.random.default_rng(0)
    n = 200_000
    summary = describe(trace(np.cumsum(rng.exponential(0.5, n)) * (np.arange(n) > 0), rng.exponential(3.0, n)))
    assert summary.rate == pytest.approx(2.0, rel=0.02)
    assert summary.gap_cv == pytest.approx(1.0, abs=0.02)
    assert summary.gap_autocorrelation == pytest.approx(0.0, abs=0.01)
    assert summary.dispersion_1s == pytest.approx(1.0, abs=0.03)
    assert summary.dispersion_10s == pytest.approx(1.0, abs=0.06)
    assert summary.dispersion_60s == pytest.approx(1.0, abs=0.15)
    assert summary.size_c2 == pytest.approx(1.0, abs=0.03)
    assert summary.size_p50 == pytest.approx(3 * math.log(2), rel=0.02)
    assert summary.size_p90 == pytest.approx(3 * math.log(10), rel=0.02)
    assert summary.size_p99 == pytest.approx(3 * math.log(100), rel=0.02)
    assert summary.size_top_share == pytest.approx(0.01 * (1 + math.log(100)), rel=0.03)
    assert summary.work_rate == pytest.approx(6.0, rel=0.03)


def test_the_tail_index_of_pareto_sizes_is_their_shape():
    rng = np.random.default_rng(1)
    for shape in (1.2, 2.5):
        sizes = rng.pareto(shape, 100_000) + 1
        assert describe(trace(np.arange(100_000), sizes)).size_tail_index == pytest.approx(shape, rel=0.05)


def test_counts_gaps_and_peaks_of_a_small_trace_are_those_of_hand_calculation():
    # Minute 0 holds 4 arrivals, minute 1 none, minute 2 two; the third begins with the last arrival and is cut off.
    summary = describe(trace([0, 10, 20, 30, 130, 140, 180], [1, 1, 1, 1, 1, 1, 14]))
    assert (summary.count, summary.span) == (7, 180.0)
    assert summary.dispersion_60s == pytest.approx(4.0 / 2.0)  # counts 4, 0, 2: variance 4, mean 2
    assert summary.peak_to_mean == 2.0
    assert summary.gap_cv == pytest.approx(np.std([10, 10, 10, 100, 10, 40]) / 30)
    assert summary.gap_autocorrelation == pytest.approx(np.corrcoef([10, 10, 10, 100, 10], [10, 10, 100, 10, 40])[0, 1])
    assert summary.size_top_share == 0.7
    assert summary.size_max == 14.0
    assert math.isnan(summary.size_tail_index)


def test_what_a_short_trace_cannot_show_is_nan_and_regular_arrivals_have_no_dispersion():
    short = describe(trace([0.0, 0.5]))
    undefined = ("dispersion_1s", "dispersion_60s", "peak_to_mean", "gap_autocorrelation", "size_tail_index")
    assert all(math.isnan(getattr(short, field)) for field in undefined)
    regular = describe(trace(np.arange(1000) / 2))
    assert (regular.gap_cv, regular.dispersion_10s, regular.size_cv) == (0.0, 0.0, 0.0)
    assert math.isnan(regular.size_tail_index)


# The built-in workload


def test_the_built_in_workload_has_the_statistics_of_the_conversation_trace():
    # Published: gap CV 1.09, dispersion 1.4 / 3.9 / 16, tokens 1155 (CV .96) and 211 (CV .77), work 5.5 with C2 .54.
    hours = [conversation_like(19_366, seed) for seed in range(30)]
    summaries = [describe(hour) for hour in hours]

    def mean(field):
        return np.mean([getattr(summary, field) for summary in summaries])

    assert mean("rate") == pytest.approx(5.53, rel=0.001)
    assert mean("gap_cv") == pytest.approx(1.09, abs=0.02)
    assert mean("dispersion_1s") == pytest.approx(1.4, abs=0.1)
    assert mean("dispersion_10s") == pytest.approx(3.9, abs=0.5)
    assert mean("dispersion_60s") == pytest.approx(16, abs=3)
    assert mean("size_mean") == pytest.approx(5.5, abs=0.05)
    assert mean("size_c2") == pytest.approx(0.54, abs=0.02)
    for name, average, cv in (("context_tokens", 1155, 0.96), ("generated_tokens", 211, 0.77)):
        tokens = np.concatenate([hour.columns[name] for hour in hours])
        assert tokens.mean() == pytest.approx(average, rel=0.01)
        assert tokens.std() / tokens.mean() == pytest.approx(cv, abs=0.01)
        assert np.array_equal(tokens, np.round(tokens))
        assert tokens.min() >= 1


def test_the_built_in_workload_follows_its_seed_and_has_as_many_jobs_as_asked():
    one, same, other = (conversation_like(300, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.arrival, same.arrival)
    assert np.array_equal(one.work, same.work)
    assert not np.array_equal(one.arrival, other.arrival)
    assert np.array_equal(one.work, DEFAULT_COST.work(**one.columns))
    for num_jobs in (1, 2, 3):
        assert len(conversation_like(num_jobs, 0).work) == num_jobs
    for num_jobs, seed in ((0, 0), (10, -1)):
        with pytest.raises(TraceError, match="expected at least"):
            conversation_like(num_jobs, seed)


# The picture


def test_the_picture_shows_the_share_of_larger_jobs_and_leaves_pyplot_alone(tmp_path):
    drawn = trace([0.0, 1.0, 1.0, 3.0], [1.0, 2.0, 2.0, 8.0], name="four jobs")
    figure = draw_trace(drawn, describe(drawn))
    figure.savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    assert pyplot.get_fignums() == []
    assert "four jobs" in [text.get_text() for text in figure.texts]
    (sizes,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "Share of jobs larger than"]
    (curve,) = [line for line in sizes.lines if line.get_label() == "this trace"]
    x, share = curve.get_data()
    at_least = {2.0: 0.75, 8.0: 0.25, 1.0: 1.0}
    assert all(np.max(share[x == size]) == expected for size, expected in at_least.items())


@pytest.mark.parametrize("arrival", [[0.0, 2.0], [0.0, 0.0, 1e-6, 4e5]])
def test_a_short_or_uneven_trace_can_be_drawn(arrival):
    drawn = trace(arrival)
    draw_trace(drawn, describe(drawn)).draw_without_rendering()


def test_park_traces_and_measured_speeds_do_not_import_jax():
    modules = "reverie.envs.fleet.park, reverie.envs.fleet.traces, reverie.envs.fleet.measured"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'jax' not in sys.modules"], check=True)
