"""Write docs/presets.md, what each preset changes against the defaults: `python docs/presets.py`.

A test holds the page to what this program would write.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from reverie.envs.games import GAMES
from reverie.settings.config import TrainConfig
from reverie.settings.games import DEMANDS, Player, game_plan
from reverie.settings.presets import PRESETS, ModelKind
from reverie.settings.suites import suite_plan

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# What the presets change

One table for each kind of setting: a row is a field whose value differs from the default of its class in one of them,
an empty cell is the default. The fields are those of `reverie train --help`. Where classes differ (of the agent, or of
its world model) that stands in a row of its own, and fields are compared with the defaults of their class. The family
`calm` has jobs as large as Park's in the mean, with a squared coefficient of variation of 1: no giants. Written by
`python docs/presets.py`.
"""
OUTSIDE = ("gym:CartPole-v1", "atari:Pong", "metaworld:MT10", "atari:26")
MANY = ("point_robot", "merging", "dispatch", "velocity:half_cheetah")


def changes(value: Any, default: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Field, default and value of all that differs."""
    if not dataclasses.is_dataclass(value):
        if value != default:
            yield where, _shown(default), _shown(value)
        return
    if type(value) is not type(default):
        yield where, type(default).__name__, type(value).__name__
        default = type(value)()
    for field in dataclasses.fields(value):
        path = f"{where}.{field.name}".removeprefix(".")
        yield from changes(getattr(value, field.name), getattr(default, field.name), path)


def page() -> str:
    """The whole page."""
    presets = {f"{name} ({agent})": plan for agent, found in PRESETS.items() for name, plan in found.items()}
    players = [each for each in get_args(Player) if each not in ("pearl", "metadreamer")]
    return "".join(
        [
            HEAD,
            table("Fleets: --preset", presets),
            table("Games of memory: --game", {game: game_plan(_a_level(game)) for game in DEMANDS}),
            table("Worlds outside: --game", {game: game_plan(game) for game in OUTSIDE}),
            table("Games of many tasks, dispatch: --agent", {who: game_plan("dispatch", who) for who in players}),
            table("The same: --agent pearl --game", {game: game_plan(game, "pearl") for game in MANY}),
            table("The same: --agent metadreamer --game", {game: game_plan(game, "metadreamer") for game in MANY}),
            table("Suites, fleets: --model", {model: suite_plan("fleets", model) for model in get_args(ModelKind)}),
        ]
    )


def table(title: str, plans: Mapping[str, TrainConfig]) -> str:
    """Fields down, plans across."""
    cells: dict[str, dict[str, str]] = {}
    defaults: dict[str, set[str]] = {}
    for name, plan in plans.items():
        plain = dataclasses.replace(plan, agent=type(plan.agent)(), **_defaults(plan, "agent"))
        for field, default, value in changes(plan, plain):
            cells.setdefault(field, {})[name] = value
            defaults.setdefault(field, set()).add(default)
    lines = [f"\n## {title}\n", f"| field | default | {' | '.join(plans)} |", "|---|---|" + "---|" * len(plans)]
    for field, values in sorted(cells.items()):
        default = defaults[field].pop() if len(defaults[field]) == 1 else "(by class)"
        lines.append(f"| `{field}` | {default} | {' | '.join(values.get(name, '') for name in plans)} |")
    return "\n".join(lines) + "\n"


def _a_level(game: str) -> str:
    """Some game of a kind whose levels have the same settings."""
    return game if game in GAMES else next(each for each in GAMES if each.startswith(f"{game}/"))


def _defaults(config: Any, *but: str) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config):
        if field.name not in but:
            made = field.default_factory
            found[field.name] = field.default if made is dataclasses.MISSING else made()
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
