"""Write docs/presets.md, what each preset changes against the defaults: `python docs/presets.py`.

A test holds the page to what this program would write.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverie.settings.presets import PRESETS

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# What the presets change

Each line is a field whose value differs from the default of its class; the fields are those of `reverie train --help`.
Where a preset chooses another class (a world model, say), that stands in a line of its own, and its fields are compared
with its own defaults. Written by `python docs/presets.py`.
"""


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
    parts = [HEAD]
    for algorithm, presets in PRESETS.items():
        for name, plan in presets.items():
            plain = dataclasses.replace(plan, agent=type(plan.agent)(), **_defaults(plan, "agent"))
            rows = [f"| `{field}` | {default} | {value} |" for field, default, value in changes(plan, plain)]
            head = [f"\n## {algorithm}, {name}\n", "| field | default | preset |", "|---|---|---|"]
            parts.append("\n".join([*head, *rows]) + "\n")
    return "".join(parts)


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
