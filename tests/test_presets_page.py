"""The page of what each preset changes is what its program writes, and the program misses nothing."""

import runpy
from dataclasses import replace
from pathlib import Path

from reverie.settings.presets import preset

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_program_writes():
    program = runpy.run_path(str(DOCS / "presets.py"))
    assert program["page"]() == program["PAGE"].read_text(encoding="utf-8"), "run python docs/presets.py"


def test_every_change_is_a_line_however_deep():
    changes = runpy.run_path(str(DOCS / "presets.py"))["changes"]
    plan = preset("dreamer", "cpu")
    algorithm = replace(plan.agent.algorithm, optimiser=replace(plan.agent.algorithm.optimiser, warmup=7))
    other = replace(plan, agent=replace(plan.agent, algorithm=algorithm), seed=3)
    assert list(changes(other, plan)) == [("agent.algorithm.optimiser.warmup", "200", "7"), ("seed", "0", "3")]
