"""What the terminal shows: right rates and times, plain lines where there is no terminal, nothing when quiet."""

import io
import math

import pytest

from reverie.runs.progress import Curve, Progress, Terminal, sparkline


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(file=file, force_terminal=False, width=30), file


def test_plain_lines_come_at_the_beginning_every_ten_seconds_and_at_the_end():
    console, file = plain()
    clock = Clock()
    with Progress(100_000, console=console, clock=clock, done=20_000) as progress:
        for second in range(1, 22):
            clock.now += 1
            progress.update(20_000 + 2_000 * second, {"mean response time": 10 / second}, updates=5_000 + 50 * second)
    assert file.getvalue().splitlines() == [
        "training: 20,000 of 100,000 env steps (20 %), 0:00:00 elapsed",
        "training: 40,000 of 100,000 env steps (40 %), 2,000 env steps/s, 50 updates/s, 0:00:10 elapsed, 0:00:30 left,"
        " mean response time 1",
        "training: 60,000 of 100,000 env steps (60 %), 2,000 env steps/s, 50 updates/s, 0:00:20 elapsed, 0:00:20 left,"
        " mean response time 0.5",
        "training: 62,000 of 100,000 env steps (62 %), 2,000 env steps/s, 50 updates/s, 0:00:21 elapsed, 0:00:19 left,"
        " mean response time 0.4762",
    ]


def test_the_rate_forgets_a_slow_start():
    console, file = plain()
    clock = Clock()
    with Progress(10_000, console=console, clock=clock) as progress:
        clock.now += 100  # compilation
        for second in range(1, 41):
            clock.now += 1
            progress.update(10 * second)
    assert file.getvalue().splitlines()[-1] == (
        "training: 400 of 10,000 env steps (4 %), 10 env steps/s, 0:02:20 elapsed, 0:16:00 left"
    )


def test_many_small_updates_cost_no_memory():
    clock = Clock()
    with Progress(10**6, quiet=True, clock=clock) as progress:
        for step in range(10_000):
            clock.now += 0.01
            progress.update(step, {"loss": step})
    assert len(progress._recent) < 100
    assert len(progress._curves["loss"].points) < 80


def test_a_terminal_gets_a_display_with_curves():
    file = io.StringIO()
    console = Terminal(file=file, force_terminal=True, force_interactive=True, width=100, color_system=None)
    clock = Clock()
    with Progress(1_000, unit="jobs", title="dreaming", console=console, clock=clock) as progress:
        for step in range(1, 9):
            clock.now += 1
            progress.update(100 * step, {"loss": float(step), "kl": math.nan})
    last = file.getvalue().rsplit("dreaming", 1)[1]
    assert "80 %  800 / 1,000 jobs" in last
    assert "100 jobs/s · 0:00:08 elapsed · 0:00:02 left" in last
    assert "▁▂▃▄▅▆▇█" in last
    assert "nan" in last


def test_quiet_is_silent():
    console, file = plain()
    with Progress(10, quiet=True, console=console) as progress:
        progress.update(10)
    assert file.getvalue() == ""


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_vanished_reader_stops_nothing(error, terminal):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    clock = Clock()
    console = Terminal(file=Gone(), force_terminal=terminal, force_interactive=terminal)
    with Progress(10, console=console, clock=clock) as progress:
        clock.now += 20
        progress.update(10)


def test_an_error_inside_passes_through():
    with pytest.raises(ZeroDivisionError), Progress(10, console=plain()[0]):
        _ = 1 / 0


@pytest.mark.parametrize(("total", "done"), [(0, 0), (10, 11), (10, -1)])
def test_impossible_amounts_are_refused(total, done):
    with pytest.raises(ValueError, match=f"done is {done}, total is {total}"):
        Progress(total, done=done)


def test_sparklines_span_the_range_and_keep_their_width():
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7.0, 0.0, 3.4]) == "█▁▄"
    curve = Curve()
    for step in range(10_000):
        curve.add(float(step))
    assert 20 <= len(sparkline(curve.points)) <= 40
    assert curve.points == sorted(curve.points)
    assert curve.points[-1] == pytest.approx(10_000, rel=0.05)
