"""The page of what each preset changes is what its program writes, and the program misses nothing."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import get_args

from reverie.envs.fleet.weights import View
from reverie.policies.rules import ELSEWHERE, rules
from reverie.settings.presets import Algorithm, Preset, preset
from reverie.sweep import training

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


def test_the_glossary_has_every_rule_agent_view_preset_and_number_of_the_progress_line():
    explained = set(re.findall(r"`([^`]+)`", (DOCS / "glossary.md").read_text(encoding="utf-8")))
    explained |= {name.lower() for name in explained}
    words = {
        *rules([1.0], [1.0]),
        *ELSEWHERE,
        *get_args(Algorithm),
        *get_args(Preset),
        *training.SHOWN,
        "evaluation/extrapolated",
    }
    words |= {view for part in get_args(View) for view in get_args(part) or (part,)}
    assert words <= explained
