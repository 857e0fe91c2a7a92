"""A fleet at work as an animated GIF: one frame for each job that arrives, drawn as `render` of the world does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reverie.envs.fleet.picture import Scene, draw, reach
from reverie.evaluate.watch import Watched
from reverie.files import replacing

_COLUMNS = ("server", "size", "arrival", "response")
_MILLISECONDS = 100
"""Of a frame, and of the last one twenty times as much."""


def write_film(path: Path, episodes: Sequence[Watched], unit: str) -> None:
    """Write the GIF, whole or not at all: one or more policies below one another, job by job, on the same jobs.

    Arguments: `unit`, of the times. A frame takes 4 ms for each policy.
    """
    columns = [{name: np.array([job[name] for job in each.jobs]) for name in _COLUMNS} for each in episodes]
    ahead = reach(np.concatenate([each["response"] for each in columns]))

    def panel(watched: Watched, jobs: dict[str, np.ndarray], count: int) -> UInt8[np.ndarray, "H W 3"]:
        now = float(jobs["arrival"][min(count, len(jobs["arrival"]) - 1)])
        first, speed = _speeds(watched, 0.0), _speeds(watched, now)
        order = np.array(sorted(first, key=lambda n: -first[n]))
        seen = (jobs[name][:count] for name in _COLUMNS)
        door = float(jobs["size"][count]) if count < len(jobs["size"]) else None
        at = np.array([speed.get(n, 0.0) for n in range(1 + max(first))])
        scene = Scene(now, *seen, door, len(jobs["size"]), at, np.ones(len(at), bool), order)
        return draw(scene, f"{watched.jobs[0]['agent']} on {watched.jobs[0]['task']}", ahead, unit)

    def frame(count: int) -> Image.Image:
        return Image.fromarray(np.concatenate([panel(*each, count) for each in zip(episodes, columns, strict=True)]))

    count = len(columns[0]["size"])
    palette = frame(count // 2).quantize(64, dither=Image.Dither.NONE)
    frames = (frame(j).quantize(palette=palette, dither=Image.Dither.NONE) for j in range(count + 1))
    with replacing(path) as partial:
        durations = [*[_MILLISECONDS] * count, 20 * _MILLISECONDS]
        next(frames).save(partial, "GIF", save_all=True, append_images=frames, duration=durations, loop=0)


def best_of(episodes: Sequence[Watched], verdict: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is worth watching: the best rule, and the best agent by the verdict on the task of the episodes."""
    rule, *agents = (str(each.jobs[0]["agent"]) for each in episodes)
    ranked = [row["agent"] for row in verdict if row["task"] == episodes[0].jobs[0]["task"]]
    return [rule, *sorted(agents, key=ranked.index)[:1]]


def _speeds(watched: Watched, time: float) -> dict[int, float]:
    """The speed of each server at a time; 0 of one that has failed."""
    return {row["server"]: row["speed"] for row in watched.servers if row["time"] <= time}
