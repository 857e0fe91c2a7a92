"""One moment of a fleet at work as pixels: servers, the jobs that wait at each, and the job at the door.

Drawn by Pillow in 2 to 4 ms (matplotlib takes 50). Gymnasium's `render` and `reverie report --gif` show the same; what
happened comes as arrays, and nothing here knows of policies.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from reverie.colours import BLUE, GRID, INK, MUTED, PAPER, SILVER, SKY, VERMILLION

WIDTH = 640
"""Pixels; a phone shows its letters at 10."""
_HEAD, _FOOT, _LEFT, _RIGHT, _LETTERS = 88, 46, 66, 70, 16
_TALLEST, _LEAST, _ROWS = 24, 8, 480
"""Heights of a server's row, and of all rows together where there are many."""


class Scene(NamedTuple):
    """What is to be seen, of J jobs dispatched so far to N servers; times and sizes in time and work units."""

    now: float
    server: Int[np.ndarray, " J"]
    size: Float[np.ndarray, " J"]
    arrival: Float[np.ndarray, " J"]
    response: Float[np.ndarray, " J"]
    door: float | None
    """The size of the job that waits to be dispatched; None after the last."""
    jobs: int
    """How many there are in the episode."""
    speed: Float[np.ndarray, " N"]
    """Of now."""
    there: Bool[np.ndarray, " N"]
    """Which servers may be given a job now."""
    order: Int[np.ndarray, " R"]
    """Which servers are rows, from the top; R at most N."""


def reach(response: Float[np.ndarray, " J"]) -> float:
    """How far ahead a picture looks: a round number that few response times are beyond."""
    usual = 2 * float(np.percentile(response, 90)) if len(response) else 1.0
    power = 10 ** np.floor(np.log10(max(usual, 1e-9)))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= usual))


def draw(
    scene: Scene, title: str = "", ahead: float | None = None, unit: str = "time units"
) -> UInt8[np.ndarray, "H W 3"]:
    """The fleet at one moment. To the right of a server stand its jobs in the order in which it does them, the one that
    it works on dark, each until it will be done. The one dispatched last is orange, as is the new one at the door, as
    long as a server of speed 1 takes. At the end stands how many jobs there are.

    Arguments: `title`, whose doing it is; `ahead`, how far the axis reaches, that of `reach` unless given; `unit`, of
    times.
    """
    ahead = reach(scene.response) if ahead is None else ahead
    height = int(np.clip(_ROWS // len(scene.order), _LEAST, _TALLEST))
    bottom = _HEAD + height * len(scene.order)
    image = Image.new("RGB", (WIDTH, bottom + _FOOT), PAPER)
    pen = ImageDraw.Draw(image)
    right = WIDTH - _RIGHT

    def x(time: float) -> float:
        return _LEFT + (right - _LEFT) * min(time / ahead, 1.0)

    def bar(y: int, begin: float, end: float, colour: str) -> None:
        pen.rectangle((x(begin), y + 2, max(x(end) - 1, x(begin) + 1), y + height - 2), colour)

    def say(x: float | int, y: float | int, words: str, anchor: str, colour: str = MUTED, bold: bool = False) -> None:
        pen.text((x, y), words, colour, _font(_LETTERS, bold), anchor)

    done = len(scene.response)
    mean = f", mean response {scene.response.mean():,.4g}" if done else ""
    say(8, 16, title or "A fleet at work", "lm", INK, bold=True)
    say(8, 39, f"job {min(done + 1, scene.jobs):,} of {scene.jobs:,} at {scene.now:,.5g} {unit}{mean}", "lm", INK)

    for tick in np.arange(0, 5) / 4 * ahead:
        pen.line((x(tick), _HEAD - 26, x(tick), bottom), GRID)
        say(x(tick), bottom + 12, f"{tick:,.4g}", "mm")
    say((_LEFT + right) / 2, bottom + 33, f"until done [{unit}]", "mm")
    say(8, bottom + 33, "speed [work/time]", "lm")
    say(WIDTH - 8, bottom + 33, "jobs", "rm")

    if scene.door is not None:
        say(_LEFT - 8, _HEAD - 14, "new", "rm", VERMILLION, bold=True)
        bar(_HEAD - 26, 0.0, scene.door, VERMILLION)
        say(WIDTH - 8, _HEAD - 14, f"{scene.door:,.4g}", "rm", VERMILLION)
    pen.line((8, _HEAD, WIDTH - 8, _HEAD), SILVER)

    finish = scene.arrival + scene.response
    for row, server in enumerate(scene.order):
        top, middle = _HEAD + row * height, _HEAD + (row + 0.5) * height
        mine = np.flatnonzero((scene.server == server) & (finish > scene.now))
        begin = 0.0
        for place, job in enumerate(mine):
            colour = VERMILLION if job == done - 1 else SKY if place else BLUE
            bar(top, begin, finish[job] - scene.now, colour)
            begin = finish[job] - scene.now
        if begin > ahead:
            say(right - 4, middle, f"{begin:,.0f}", "rm", PAPER)
        if height < _LETTERS:
            continue
        working = scene.there[server] and scene.speed[server] > 0
        speed = f"{scene.speed[server]:.3g}" if working else "away" if not scene.there[server] else "down"
        say(_LEFT - 8, middle, speed, "rm", INK if working else VERMILLION)
        say(WIDTH - 8, middle, str(len(mine)) if len(mine) else "", "rm", INK)
    return np.asarray(image)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """The letters of matplotlib, which knows more alphabets than Pillow's own."""
    import matplotlib as mpl  # here, as it takes half a second to import

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)
