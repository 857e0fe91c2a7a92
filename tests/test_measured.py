"""Measured speeds: the file's median becomes 1, fleets are different machines, paths are stretches without outages."""

import gzip

import numpy as np
import pytest

from reverie.envs.fleet.measured import OUTAGE_HOURS, MeasuredSpeeds, draw_fleet, read_speeds, speed_paths
from reverie.envs.fleet.records import TraceError

# Machine 7 is measured out of order; machine 3 is away for two days between its third and fourth measurement.
RECORDING = """value,runtime,starttime,VM_id
30.0,1.5,2023-09-01 12:00:00.000,7
20.0,1.5,2023-09-01 06:00:00.000,7
10.0,1.5,2023-09-01 00:00:00.000,3
20.0,1.5,2023-09-01 01:00:00.000,3
40.0,1.5,2023-09-01 02:30:00.000,3
50.0,1.5,2023-09-03 02:30:00.001,3
"""


@pytest.fixture
def measured(tmp_path):
    path = tmp_path / "long.csv.gz"
    path.write_bytes(gzip.compress(RECORDING.encode()))
    return read_speeds(path)


def test_a_recording_is_sorted_by_machine_and_time_and_divided_by_its_median(measured):
    assert measured.name == "long"
    assert measured.num_machines == 2
    first, second = ((measured.hours[of], measured.speed[of]) for of in (measured.machine == 0, measured.machine == 1))
    assert first[0] == pytest.approx([0.0, 1.0, 2.5, 50.5 + 0.001 / 3600], rel=1e-12)
    assert first[1].tolist() == [10 / 25, 20 / 25, 40 / 25, 50 / 25]
    assert second[0].tolist() == [0.0, 6.0]
    assert second[1].tolist() == [20 / 25, 30 / 25]


@pytest.mark.parametrize("skip", ["PostgreSQL", "Redis", "Stress-NG", "Sysbench"])
def test_every_file_of_the_dataset_is_read(shared_data, skip):
    files = sorted((shared_data / "traces" / "azure_vm_noise_2024").glob(f"{skip}*.csv.gz"))
    assert files
    for path in files:
        measured = read_speeds(path)
        assert np.median(measured.speed) == pytest.approx(1.0)
        assert (measured.speed > 0).all()
        assert (measured.num_machines == 3) == ("__long__" in path.name)
        same = np.diff(measured.machine) == 0
        assert (np.diff(measured.hours)[same] > 0).all()


def test_a_burstable_fleet_is_as_unequal_as_published(shared_data):
    # Postgres on short-lived B8ms machines: CV .22, first percentile .51 of the median.
    (path,) = (shared_data / "traces" / "azure_vm_noise_2024").glob("PostgreSQL*short*B8ms*")
    measured = read_speeds(path)
    speeds = draw_fleet(measured, 5000, np.random.default_rng(0))
    assert speeds.std() / speeds.mean() == pytest.approx(0.22, abs=0.01)
    assert np.percentile(speeds, 1) == pytest.approx(0.51, abs=0.02)


def test_a_fleet_is_made_of_different_machines(measured):
    rng = np.random.default_rng(0)
    fleets = np.sort([draw_fleet(measured, 2, rng) * 25 for _ in range(200)])
    assert fleets.shape == (200, 2)
    of_one, of_other = {10.0, 20.0, 40.0, 50.0}, {20.0, 30.0}
    pairs = {tuple(sorted((a, b))) for a in of_one for b in of_other}
    assert {tuple(fleet.round(9)) for fleet in fleets} == pairs  # one measurement of each, and every pair occurs


@pytest.mark.parametrize("num_servers", [0, 3])
def test_a_fleet_larger_than_the_recording_is_refused(measured, num_servers):
    with pytest.raises(TraceError, match=rf"num_servers is {num_servers}: expected 1 to 2"):
        draw_fleet(measured, num_servers, np.random.default_rng(0))


def test_a_path_is_a_stretch_of_one_machine_without_an_outage(measured):
    start, value = speed_paths(measured, 300, 2, np.random.default_rng(0))
    assert start.shape == value.shape == (300, 2)
    assert (start[:, 0] == 0).all()
    paths = {(*(row * 25).round(9), float(end)) for row, end in zip(value, start[:, 1], strict=True)}
    assert paths == {(10.0, 20.0, 1.0), (20.0, 40.0, 1.5), (20.0, 30.0, 6.0)}  # never 40, 50 across the outage
    machines = (value[:, 1] * 25).round(9) == 30.0
    assert 125 < machines.sum() < 175  # machines are drawn with equal odds, however often they were measured


def test_paths_of_the_dataset_have_no_outage(shared_data):
    (path,) = (shared_data / "traces" / "azure_vm_noise_2024").glob("Stress*long*B8ms*")
    start, value = speed_paths(read_speeds(path), 10, 500, np.random.default_rng(1))
    gaps = np.diff(start)
    assert (gaps > 0).all()
    assert gaps.max() <= OUTAGE_HOURS
    assert 2 < np.median(gaps) < 4  # measured every three hours or so
    assert 0.1 < value.std() < 0.3


@pytest.mark.parametrize(
    ("num_servers", "segments", "what"),
    [
        (0, 2, "num_servers is 0"),
        (2, 0, "segments is 0"),
        (2, 4, "segments is 4: the longest stretch .* has 3 measurements"),
        (2, 99, "segments is 99: the longest stretch .* has 3 measurements"),
    ],
)
def test_paths_that_cannot_be_drawn_are_refused(measured, num_servers, segments, what):
    with pytest.raises(TraceError, match=what):
        speed_paths(measured, num_servers, segments, np.random.default_rng(0))


def test_draws_follow_their_generator(measured):
    for draw in (lambda rng: draw_fleet(measured, 2, rng), lambda rng: speed_paths(measured, 5, 2, rng)[1]):
        one, same = draw(np.random.default_rng(3)), draw(np.random.default_rng(3))
        assert np.array_equal(one, same)
        assert any(not np.array_equal(one, draw(np.random.default_rng(seed))) for seed in range(10))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0.0,1,2023-09-01 00:00:00,1", "value is 0"),
        ("-1,1,2023-09-01 00:00:00,1", "value is '-1', expected a finite number of at least 0"),
        ("fast,1,2023-09-01 00:00:00,1", "value is 'fast'"),
        ("1.0,1,noon,1", "starttime is 'noon', expected a time"),
        ("1.0,1,2023-09-01 00:00:00,", "VM_id is missing"),
        ("1.0,1", "2 columns where the header names 4"),
    ],
)
def test_a_broken_line_is_named_with_what_is_wrong(tmp_path, line, what):
    path = tmp_path / "speeds.csv"
    path.write_text(RECORDING + line + "\n")
    with pytest.raises(TraceError, match=rf"speeds.csv has 1 broken line:\n  line 8: {what}"):
        read_speeds(path)


def test_a_file_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "speeds.csv"
    path.write_text("value,when,VM_id\n1,2,3\n")
    with pytest.raises(TraceError, match="lacks starttime"):
        read_speeds(path)
    with pytest.raises(TraceError, match="there is no file"):
        read_speeds(tmp_path / "missing.csv")


def test_measurements_are_counted_by_machine():
    measured = MeasuredSpeeds("two", np.array([0, 1, 1]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.5, 2.0]))
    assert measured.num_machines == 2
