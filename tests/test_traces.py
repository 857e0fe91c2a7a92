"""Traces: formats and their errors, scaling, statistics against theory and published values, the built-in workload."""

import bz2
import gzip
import json
import lzma
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from matplotlib import pyplot

from reverie.envs.fleet import records
from reverie.envs.fleet.conversation import conversation_like
from reverie.envs.fleet.formats.reading import Reading, read_trace
from reverie.envs.fleet.records import TraceError
from reverie.envs.fleet.traces import DEFAULT_COST, TokenCost, Trace, describe, scale_to_load, tenths
from reverie.report.style import to_svg
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


@pytest.mark.parametrize("packing", [gzip, bz2, lzma])
def test_a_packed_file_is_known_by_its_content(write, packing):
    packed = packing.compress(AZURE.encode())
    ending = {gzip: "gz", bz2: "bz2", lzma: "xz"}[packing]
    read = read_trace(write(packed, f"code.csv.{ending}"))
    assert (read.name, len(read.work)) == ("code", 3)
    assert len(read_trace(write(packed, "no-ending")).work) == 3


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_fills_the_memory(write, monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 2**20)
    bomb = write(gzip.compress(b"0" * 2**26), "bomb.csv.gz")
    tracemalloc.start()
    with pytest.raises(TraceError, match=r"bomb.csv.gz holds more than 1 MiB of text"):
        read_trace(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


CASES = {  # what people have: the text, options, and the arrivals and sizes that a person would say
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n3,ChatGPT,100,20,120,API log\n"
        "3,GPT-4,80,0,80,API log\n9,ChatGPT,60,30,90,Conversation log\n",
        Reading(),
        [0, 0, 6],
        [100 / 5000 + 20 / 40, 80 / 5000, 60 / 5000 + 30 / 40],
    ),
    "vidur": (
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,100,20\n1.5,80,10\n",
        Reading(),
        [0, 1.5],
        [100 / 5000 + 20 / 40, 80 / 5000 + 10 / 40],
    ),
    "azure functions, whose calls are written when they end": (
        "app,func,end_timestamp,duration\na,f,10.0,1.0\na,g,10.5,4.0\n",
        Reading(),
        [0, 2.5],
        [4, 1],
    ),
    "swf": (
        "; Version: 2.2\n1 0 10 100 4 -1 -1 4 3600 -1 1 1 1 -1 1 -1 -1 -1\n"
        "2 60 0 30 -1 -1 -1 2 3600 -1 1 1 1 -1 1 -1 -1 -1\n",
        Reading(),
        [0, 60],
        [400, 60],
    ),
    "nginx": (
        '203.0.113.1 - - [10/May/2024:00:00:00 +0000] "GET /a HTTP/1.1" 200 10 "-" "curl" rt=0.120\n'
        '203.0.113.2 - - [10/May/2024:00:00:01 +0000] "GET /b HTTP/1.1" 200 10 "-" "curl" rt=0.020\n',
        Reading(),
        [0, 1.1],
        [0.12, 0.02],
    ),
    "haproxy": (
        "May 10 00:00:00 lb1 haproxy[1]: 203.0.113.0:50 [10/May/2024:00:00:01.915] fe be/s0 0/0/1/84/85 200 512 - - "
        '---- 3/3/1/1/0 0/0 "GET /x HTTP/1.1"\n'
        "May 10 00:00:01 lb1 haproxy[1]: 203.0.113.1:50 [10/May/2024:00:00:00.487] fe be/s1 0/0/1/2175/2176 200 512 - -"
        ' ---- 3/3/1/1/0 0/0 "GET /x HTTP/1.1"\n',
        Reading(),
        [0, 1.428],
        [2.175, 0.084],
    ),
    "wikibench": (
        "1000 1190146243.488 http://en.example.org/wiki/Page_0 -\n1001 1190146244.915 http://en.example.org/x -\n",
        Reading(),
        [0, 1.427],
        [1, 1],
    ),
    "milliseconds since 1970": ("arrival,size\n1715299200000,1\n1715299200500,2\n", Reading(), [0, 0.5], [1, 2]),
    "nanoseconds since 1970": ("1715299200000000000,1\n1715299200000000001,2\n", Reading(), [0, 1e-9], [1, 2]),
    "another unit by option": ("arrival,size\n0,1\n1500,2\n", Reading(unit="us"), [0, 0.0015], [1, 2]),
    "ISO 8601": ("arrival,size\n2024-05-10T00:00:00Z,1\n2024-05-10T00:00:01Z,2\n", Reading(), [0, 1], [1, 2]),
    "semicolons": ("arrival;size\n0,5;1,2\n1,5;0,7\n", Reading(), [0, 1], [1.2, 0.7]),
    "semicolons without a header": ("0,5;1,2\n1,5;0,7\n", Reading(), [0, 1], [1.2, 0.7]),
    "tabs": ("arrival\tsize\n0\t1\n1\t2\n", Reading(), [0, 1], [1, 2]),
    "bars": ("arrival|size\n0|1\n1|2\n", Reading(), [0, 1], [1, 2]),
    "commas, and bars within": ("arrival,size,who\n0,1,a|b\n1,2,c|d\n", Reading(), [0, 1], [1, 2]),
    "capitals": ("Arrival,SIZE\n0,1\n1,2\n", Reading(), [0, 1], [1, 2]),
    "seconds in JSON lines": (
        '{"timestamp": 0.0, "input_length": 100, "output_length": 20}\n'
        '{"timestamp": 0.2, "input_length": 100, "output_length": 20}\n',
        Reading(unit="s"),
        [0, 0.2],
        [0.52, 0.52],
    ),
    "columns of JSON lines": (
        '{"ts": 10, "ms": 5, "x": []}\n{"ts": 20, "ms": 10}\n',
        Reading(columns="arrival=ts,size=ms,unit=s,size_unit=ms"),
        [0, 10],
        [0.005, 0.01],
    ),
    "columns of a header": (
        "when;tokens in;tokens out\n1000;5000;40\n2000;0;80\n",
        Reading(columns="arrival=when,context=tokens in,generated=Tokens Out,unit=ms"),
        [0, 1],
        [2, 2],
    ),
    "columns by number, blanks between them": (
        "# id time size\n1 5.0 2\n2 5.5 3\n",
        Reading(columns="arrival=2,size=3,unit=s"),
        [0, 0.5],
        [2, 3],
    ),
    "columns by number in a file with a header": (
        "time,size\n5,2\n6,3\n",
        Reading(columns="arrival=1,size=2,unit=s"),
        [0, 1],
        [2, 3],
    ),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # as Windows writes them
def test_a_byte_order_mark_says_how_text_is_encoded(tmp_path, encoding):
    (tmp_path / "jobs.csv").write_text("arrival\tsize\n0\t1\n1\t2\n", encoding=encoding)
    assert read_trace(tmp_path / "jobs.csv").work.tolist() == [1, 2]


@pytest.mark.parametrize("case", CASES)
def test_what_people_have_is_read_as_a_person_would(write, case):
    text, reading, arrival, work = CASES[case]
    read = read_trace(write(text), reading=reading)
    assert read.arrival.tolist() == pytest.approx(arrival, rel=1e-12)
    assert read.work.tolist() == pytest.approx(work, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "reading", "count", "span", "work"),
    [
        ("burstgpt.csv", Reading(), 3, 6.0, 1.298),
        ("epoch_ms.csv", Reading(), 3, 1.0, 4.0),
        ("haproxy.log", Reading(), 20, 10.592, None),
        ("iso_arrival.csv", Reading(), 2, 1.0, 3.0),
        ("job.swf", Reading(), 2, 60.0, 430.0),
        ("nginx.log", Reading(), 2, 1.1, 0.14),
        ("one_window.csv", Reading(), 61, None, None),
        ("ramp.csv", Reading(), 440, None, None),
        ("ramp_cut.csv", Reading(), 400, 129.63, None),
        ("seconds.jsonl", Reading(unit="s"), 3, 0.4, 1.56),
        ("semicolon.csv", Reading(), 2, 1.0, 1.9),
        ("tab.tsv", Reading(), 2, 1.0, 3.0),
        ("title.csv", Reading(), 2, 1.0, 3.0),
        ("unsorted.csv", Reading(sort=True), 3, 2.0, 3.0),
        ("vidur.csv", Reading(), 2, 1.5, 0.786),
        ("wikibench.txt", Reading(), 10, 4.465, 10.0),
        ("zero_row.csv", Reading(drop="zero"), 2, 2.0, 2.0),
    ],
)
def test_every_case_from_outside_is_read(shared_data, name, reading, count, span, work):
    read = read_trace(shared_data / "cases" / name, reading=reading)
    assert len(read.work) == count
    assert span is None or read.span == pytest.approx(span, rel=1e-12)
    assert work is None or read.work.sum() == pytest.approx(work, rel=1e-12)


@pytest.mark.parametrize(
    "content",
    [
        '{"timestamp": 0.0, "input_length": 1, "output_length": 1}\n',
        '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 3000, "input_length": 1, '
        '"output_length": 1}\n',
    ],
)
def test_a_unit_that_cannot_be_seen_is_asked_for(write, content):
    with pytest.raises(TraceError, match=r"the unit of timestamp cannot be seen.*--unit s, ms, us or ns"):
        read_trace(write(content))
    with pytest.raises(TraceError, match="--unit"):
        read_trace(write("t,s\n1,1\n"), reading=Reading(columns="arrival=t,size=s"))


def test_what_was_seen_and_done_is_said(write):
    read = read_trace(
        write("arrival,size\n1715299200000,1\n0,3\n1715299201000,0\n1715299200500,x\n1715299199000,2\n"),
        reading=Reading(drop="zero,broken", sort=True),
    )
    said = dict(read.provenance)
    assert said["times"] == "milliseconds since 1970, the first 2024-05-10 00:00:00"
    assert said["lines dropped that cannot be read"] == "2 of 5"
    assert said["lines dropped that bring no work"] == "1 of 5"
    assert said["lines that were not in order of time: sorted"] == "1 of 5"
    assert (read.arrival.tolist(), read.work.tolist()) == ([0, 1], [2, 1])
    assert dict(read.between(0.5).provenance)["stretch"] == "1 of 2 jobs, from 0.5 s to 1 s"


def test_lines_are_dropped_only_where_that_is_asked_for(write):
    zero, broken = write("arrival,size\n0,1\n1,0\n", "zero.csv"), write("arrival,size\n0,1\n1,x\n", "broken.csv")
    for path, wrong, right in ((zero, "broken", "zero"), (broken, "zero", "broken")):
        for reading in (Reading(), Reading(drop=wrong), Reading(sort=True)):
            with pytest.raises(TraceError, match=f"--drop {right}"):
                read_trace(path, reading=reading)
        assert len(read_trace(path, reading=Reading(drop=right)).work) == 1
    with pytest.raises(TraceError, match="all 1 lines were dropped"):
        read_trace(write("arrival,size\n0,0\n"), reading=Reading(drop="zero"))
    with pytest.raises(TraceError, match="--sort"):
        read_trace(write("arrival,size\n0,1\n2,1\n1,1\n"), reading=Reading(drop="zero,broken"))


def test_a_comma_among_decimal_points_is_no_decimal_comma(write):
    with pytest.raises(TraceError, match="line 3: size is '1,234'"):
        read_trace(write("arrival;size\n0;1.5\n1;1,234\n"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"drop": "odd"}, "--drop odd: expected zero, broken or zero,broken"),
        ({"columns": "arrival"}, "'arrival' is not understood; expected arrival=NAME,size=NAME"),
        ({"columns": "arrival=a,sise=b"}, "'sise=b' is not understood"),
        ({"columns": "arrival=a"}, "expected arrival=NAME,size=NAME"),
        ({"columns": "arrival=a,size=b,unit=min"}, "unit=min: expected one of s, ms, us, ns"),
        ({"columns": "arrival=a,size=b,unit=ms", "unit": "s"}, "disagree"),
        ({"start": 5.0, "end": 5.0}, "--from 5 --to 5: expected from < to"),
    ],
)
def test_an_impossible_way_of_reading_is_named(options, what):
    with pytest.raises(TraceError, match=what):
        Reading(**options)


def test_a_column_that_is_not_there_is_named(write):
    with pytest.raises(TraceError, match="--columns names b; expected columns of its first line, a, c, or their"):
        read_trace(write("a,c\n1,2\n"), reading=Reading(columns="arrival=a,size=b"))


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
        ("2023-11-16 18:17:04.0,5,5", "time goes back by 0.0319601 s"),
        ("2023-02-30 18:17:04.5,5,5", "TIMESTAMP is '2023-02-30 18:17:04.5', expected a time such as 2023-11-16 18:17"),
        ("yesterday,5,5", "TIMESTAMP is 'yesterday'"),
    ],
)
def test_a_broken_line_of_azure_csv_is_named_with_what_is_wrong(write, line, what):
    path = write(AZURE + "\n" + line + "\n2023-11-16 18:20:00,1,1\n")  # a blank line counts: the broken one is the 6th
    with pytest.raises(TraceError, match=rf"requests.csv has 1 broken line:\n  line 6: {what}.*: '{line}'\n--"):
        read_trace(path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"timestamp": 5, "input_length": 1}', "no output_length"),
        ('{"timestamp": 5, "input_length": "x", "output_length": 1}', "input_length is 'x'"),
        ('{"timestamp": 5, "input_length": true, "output_length": 1}', "input_length is True"),
        ('{"timestamp": 5, "input_length": [1], "output_length": 1}', r"input_length is \[1\]"),
        ('{"timestamp": true, "input_length": 1, "output_length": 1}', "timestamp is True, expected a finite number"),
        ('{"timestamp": null, "input_length": 1, "output_length": 1}', "timestamp is None, expected a finite number"),
        ('{"timestamp": 5, "input_length": NaN, "output_length": 1}', "input_length is nan"),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}', "timestamp is inf"),
        ('{"timestamp": 5, "input_length": 1, "output_length": 1', "not JSON"),
        ("[1, 2]", "no timestamp, no input_length, no output_length"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}', "time goes back by 0.001 s"),
    ],
)
def test_a_broken_line_of_json_is_named_with_what_is_wrong(write, line, what):
    good = '{"timestamp": 2, "input_length": 1, "output_length": 1, "hash_ids": []}\n'
    with pytest.raises(TraceError, match=rf"has 1 broken line:\n  line 2: {what}"):
        read_trace(write(good + line + "\n"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("5,0", "a size of 0 brings no work"),
        ("5,-2", "size is '-2', expected a finite number of at least 0"),
        ("x,1", "arrival is 'x', expected a finite number, at most 4.1e.18: "),
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
    assert [line.split(":")[0].strip() for line in message[1:-2]] == [f"line {k + 2}" for k in (3, 5, 7, 9, 11)]
    assert message[-2] == "  and 2 more"
    assert message[-1] == "--drop broken leaves lines out that cannot be read (and counts them)"


def test_one_step_back_in_time_does_not_condemn_all_that_follows(write):
    with pytest.raises(TraceError, match="1 broken line:\n  line 4"):
        read_trace(write("arrival,size\n1,1\n900,1\n3,1\n4,1\n5,1\n"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("\n  \n", "is empty"),
        ('[\n {"timestamp": 1}\n]', "one JSON document: expected JSON lines"),
        ('[{"timestamp": 1}, {"timestamp": 2}]', "one JSON document"),
        ('{\n "requests": []\n}', "one JSON document"),
        ("[" * 100_000, "one JSON document"),
        ('{"a":' * 100_000, "broken line:\n  line 1: not JSON"),
        ("HashOwner,HashApp,HashFunction,Trigger,1,2\na,b,c,http,0,3\n", "2019.*no single calls.*2021"),
        (
            '1.2.3.4 - - [10/May/2024:00:00:00 +0000] "GET / HTTP/1.1" 200 10',
            r"without request times.*rt=\$request_time",
        ),
        ("arrival,size\n0,1\n1e20,1\n", "line 3: arrival is '1e20', expected a finite number, at most 4.1e.18"),
        ("arrival,size\n0,1\n1e12,1\n", "lasts 1e.12 s, which is 31,710 years; expected at most 100.*--unit"),
        (f"arrival,size\n{'9' * 400},1\n1,1\n", "line 2: arrival is '999"),
        (f"arrival,size\n0,{'9' * 400}\n1,1\n", "line 2: size is '999"),
        (f"arrival,size\n0,{'9' * 5000}\n1,1\n", "line 2: size is '999"),
        (b"\x28\xb5\x2f\xfd0000", "packed by zstd.*zstd -d"),
        ("arrival,size\n", "no records"),
        ("time,bytes\n1,2\n", "no known format.*'time,bytes'.*TIMESTAMP.*arrival,size.*input_length"),
        ("1,2,3\n", "no known format"),
        ("arrival,bytes\n1,2\n", "lacks size; expected arrival,size"),
        ("TIMESTAMP,ContextTokens\n", "lacks GeneratedTokens"),
        (b"\xff\x01", "not a text file in UTF-8 or UTF-16"),
        (b"\xff\xfe\x00", "not a text file in UTF-8 or UTF-16"),
        (gzip.compress(AZURE.encode(), mtime=0)[:-20], "cannot be read"),
        (b"\x1f\x8bnothing", "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(write, content, what):
    with pytest.raises(TraceError, match=rf"(?s)requests.csv.*{what}"):
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
    with pytest.raises(ValueError, match="decode_rate must be greater than 0"):
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


# The load over a trace


def ramp() -> Trace:
    """A slow start of 100 jobs, then 900 a hundred times as fast, all of size 1."""
    gaps = np.where(np.arange(1, 1000) < 100, 10.0, 0.1)
    return trace(np.concatenate([[0.0], np.cumsum(gaps)]), name="ramp")


def test_a_slow_start_is_warned_of_and_cut_off():
    course = tenths(ramp())
    assert course.unsteady
    rate = 1000 / ramp().span
    assert course.load == pytest.approx([0.1 / rate, *[10 / rate] * 9], rel=0.02)
    start, end = course.steady_stretch()
    assert (start, end) == (pytest.approx(980.0, abs=20), ramp().span)
    steady = ramp().between(start, end)
    assert not tenths(steady).unsteady
    assert "--from 9" in course.warning()


@pytest.mark.parametrize("hours", [1, 24])
def test_steady_traffic_is_not_warned_of(hours):
    rng = np.random.default_rng(hours)
    arrival = np.cumsum(rng.exponential(3600 * hours / 1000, 1000))
    assert not tenths(trace(arrival - arrival[0], rng.exponential(1.0, 1000))).unsteady
    assert not tenths(conversation_like(20_000, seed=hours)).unsteady


def test_ramps_of_the_cases_are_told_apart(shared_data):
    folder = shared_data / "cases"
    assert tenths(read_trace(folder / "ramp.csv")).unsteady
    assert not tenths(read_trace(folder / "ramp_cut.csv")).unsteady
    assert not tenths(read_trace(folder / "ramp.csv", reading=Reading(start=1600.0))).unsteady


def test_jobs_that_arrive_at_once_have_a_load_without_bounds_and_can_be_drawn():
    batch = trace(np.concatenate([np.zeros(500), np.arange(1, 501)]))
    course = tenths(batch)
    assert np.isinf(course.load[0])
    assert "not steady" in course.warning()
    draw_trace(batch, describe(batch)).draw_without_rendering()
    assert tenths(trace(np.arange(99))) is None


def test_a_stretch_begins_at_its_first_job_and_an_empty_one_is_refused():
    cut = trace([0, 1, 2, 3], [1, 2, 3, 4]).between(1.0, 3.0)
    assert (cut.arrival.tolist(), cut.work.tolist()) == ([0, 1], [2, 3])
    with pytest.raises(TraceError, match="no job from 5 to inf s: expected a stretch of its 3 s"):
        trace([0, 1, 2, 3]).between(5.0)


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


def test_a_name_with_dollars_brackets_and_braces_is_drawn_as_it_is():
    name = "a$b$[red]_{x}^"
    drawn = trace(np.arange(200.0), name=name)
    figure = draw_trace(drawn, describe(drawn))
    assert f">{name}<" in to_svg(figure, "name", name)


@pytest.mark.parametrize("arrival", [[0.0, 2.0], [0.0, 0.0, 1e-6, 4e5]])
def test_a_short_or_uneven_trace_can_be_drawn(arrival):
    drawn = trace(arrival)
    draw_trace(drawn, describe(drawn)).draw_without_rendering()


def test_park_traces_and_measured_speeds_do_not_import_jax():
    modules = "reverie.envs.fleet.park, reverie.envs.fleet.traces, reverie.envs.fleet.measured"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'jax' not in sys.modules"], check=True)
