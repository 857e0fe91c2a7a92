"""Tables come back as they were written; broken ones are named by line."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.tables import read_csv, write_csv

numbers = st.integers() | st.floats(allow_nan=False)
texts = st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: f"x{text}")  # not a number
columns = st.sampled_from([numbers, texts, st.booleans()]).map(lambda cells: st.none() | cells)


@st.composite
def tables(draw):
    names = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    kinds = [draw(columns) for _ in names]
    return draw(st.lists(st.tuples(*kinds).map(lambda cells: dict(zip(names, cells, strict=True))), min_size=1))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_a_table_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    write_csv(path, rows)
    back = read_csv(path)
    assert back == rows
    assert [[type(cell) for cell in row.values()] for row in back] == [
        [type(cell) for cell in row.values()] for row in rows
    ]


def test_the_file_is_what_other_programs_expect(tmp_path):
    rows = [
        {"policy": "jsq, ties", "load": np.float32(0.5), "seed": np.int64(3), "won": np.True_, "p99": None},
        {"policy": 'a "b"', "load": math.nan, "seed": 4, "won": False, "p99": math.inf},
    ]
    write_csv(tmp_path / "t.csv", rows)
    assert (tmp_path / "t.csv").read_text() == (
        'policy,load,seed,won,p99\n"jsq, ties",0.5,3,true,\n"a ""b""",nan,4,false,inf\n'
    )
    first, second = read_csv(tmp_path / "t.csv")
    assert first == {"policy": "jsq, ties", "load": 0.5, "seed": 3, "won": True, "p99": None}
    assert math.isnan(second["load"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{}], "needs columns"),
        ([{"": 1}], "needs columns"),
        ([{"a": 1}, {"b": 1}], r"row 2 has the columns \['b'\], the first row has \['a'\]"),
        ([{"a": 1}, {"a": "x"}], "column 'a' mixes numbers and text"),
        ([{"a": True}, {"a": 1}], "column 'a' mixes numbers and truth values"),
        ([{"a": ""}], "column 'a' holds empty text"),
        ([{"a": "1"}, {"a": "2e3"}], "column 'a' holds only text that reads as numbers"),
        ([{"a": "nan"}, {"a": None}], "column 'a' holds only text that reads as numbers"),
        ([{"a": "true"}], "column 'a' holds only text that reads as"),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_csv(tmp_path / "t.csv", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_cell_of_another_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"column 'a': \[1\] is a list"):
        write_csv(tmp_path / "t.csv", [{"a": [1]}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name the columns"),
        ("a,a\n1,2\n", "first line must name the columns"),
        ("a,\n1,2\n", "first line must name the columns"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells, the header has 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells, the header has 2"),
        ("a,b\n\n", "line 2 has 0 cells"),
        ('a,b\n1,2\n"3,4\n', "line 3 is not CSV"),
        ("a\n1\n\udcff\n", "line 3 is not UTF-8"),
    ],
)
def test_a_broken_table_is_named_by_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "t.csv")


def test_a_failed_write_leaves_the_table_before(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_csv(path, [{"a": 1}])

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"the disk is full while writing .*t\.csv"):
        write_csv(path, [{"a": 2}])
    assert read_csv(path) == [{"a": 1}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]
