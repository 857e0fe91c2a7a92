"""Declared ranges: every number of every configuration has one, and what lies outside is refused by name."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAliasType, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie import cli
from reverie.commands import simulate
from reverie.commands.train import Choice
from reverie.envs.fleet.env import FleetEnv
from reverie.envs.fleet.traces import TokenCost
from reverie.evaluate.examination import Exam
from reverie.evaluate.results import Examination
from reverie.ranges import LARGEST, Count, Range, Share, above, at_least, between, check, checked
from reverie.settings.config import CurveConfig, LoopConfig, OffPolicyRun, TrainConfig, WorldConfig
from reverie.sweep.plans import SweepConfig, VerdictConfig

ROOTS = (TrainConfig, Examination, SweepConfig, VerdictConfig, Choice, Exam, FleetEnv, TokenCost)


def members(hint: Any) -> list[Any]:
    """A type and all that it is made of, aliases resolved."""
    hint = hint.__value__ if isinstance(hint, TypeAliasType) else hint
    return [hint, *(inner for part in get_args(hint) for inner in members(part))]


def configurations() -> list[type]:
    """Every dataclass that can be reached from the fields of the roots."""
    found: list[type] = []
    waiting: list[Any] = [*ROOTS]
    while waiting:
        cls = waiting.pop()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in found:
            found.append(cls)
            waiting += [part for hint in get_type_hints(cls, include_extras=True).values() for part in members(hint)]
    return found


def numbers() -> list[tuple[type, str, Any]]:
    """Class, field and type of every field that holds a number."""
    return [
        (cls, each.name, hint)
        for cls in configurations()
        for each in dataclasses.fields(cls)
        if {int, float} & {*members(hint := get_type_hints(cls, include_extras=True)[each.name])}
    ]


NUMBERS = numbers()


def default(cls: type) -> Any:
    """An instance as far as a check of ranges needs one: fields that have no default are left out."""
    made = object.__new__(cls)
    for each in dataclasses.fields(cls):
        if each.default is not dataclasses.MISSING:
            object.__setattr__(made, each.name, each.default)
        elif each.default_factory is not dataclasses.MISSING:
            object.__setattr__(made, each.name, each.default_factory())
        else:
            object.__setattr__(made, each.name, None)
    return made


def test_the_walk_finds_the_configurations():
    names = {cls.__name__ for cls in configurations()}
    assert {"DreamerConfig", "RSSMConfig", "S3MConfig", "PPOConfig", "AdamConfig", "WorldConfig", "Exam"} <= names
    assert len(NUMBERS) > 120


@pytest.mark.parametrize(("cls", "name", "hint"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, n, _ in NUMBERS])
def test_every_number_has_a_declared_range(cls, name, hint):
    declared = [part for each in members(hint) if get_origin(each) is Annotated for part in get_args(each)]
    assert any(isinstance(part, Range) for part in declared)


@settings(max_examples=400)
@given(
    st.sampled_from(NUMBERS),
    st.one_of(
        st.floats(),
        st.integers(),
        st.integers(10**19, 10**40) | st.integers(-(10**40), -(10**19)),
        st.sampled_from([math.nan, math.inf, -math.inf, 10**400, True]),
    ),
)
def test_what_is_accepted_is_finite_in_float32_and_int64_and_what_is_not_is_named(number, value):
    cls, name, hint = number
    config = default(cls)
    is_many = any(get_origin(part) is tuple for part in members(hint))
    object.__setattr__(config, name, (value,) if is_many else value)
    if (refused := refusal(config)) is not None:
        assert refused.startswith(f"{cls.__name__}: {name} must ")
        return
    assert not isinstance(value, bool)
    assert np.isfinite(np.float32(value))
    assert (np.float32(value) == 0) == (value == 0)
    assert float not in members(hint) or abs(value) <= LARGEST
    assert float in members(hint) or (isinstance(value, int) and abs(value) < 2**63)


def refusal(config: Any) -> str | None:
    try:
        check(config)
    except ValueError as error:
        return str(error)
    return None


FRACTIONS = [(cls, name) for cls, name, hint in NUMBERS if float in members(hint)]


@pytest.mark.parametrize(("cls", "name"), FRACTIONS, ids=[f"{c.__name__}.{n}" for c, n in FRACTIONS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_class_itself_refuses_what_is_no_number(cls, name, value):
    with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} must be a finite number, got {value}"):
        cls(**{name: value})


@dataclass(frozen=True)
@checked
class Toy:
    """One of each kind."""

    share: Share = 0.5
    open: Annotated[float, *between(0, 1, low_open=True, high_open=True)] = 0.5
    positive: Annotated[float, *above(0)] = 1.0
    whole: Annotated[int, *at_least(2, 10, "fingers")] = 3
    maybe: Annotated[int | None, *at_least(1)] = None
    many: tuple[Count, ...] = field(default=())

    def __post_init__(self):
        if self.share > self.positive:
            raise ValueError("share above positive")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 1.5}, "Toy: share must lie in [0, 1], got 1.5"),
        ({"share": math.nan}, "Toy: share must be a finite number, got nan"),
        ({"open": 1.0}, "Toy: open must lie in (0, 1), got 1.0"),
        ({"open": 0.0}, "Toy: open must lie in (0, 1), got 0.0"),
        ({"positive": 0.0}, "Toy: positive must be greater than 0, got 0.0"),
        ({"positive": 1e-40}, "Toy: positive must be at least 1e-30 in size, got 1e-40"),
        ({"positive": 1e35}, "Toy: positive must be at most 1e+30, got 1e+35"),
        ({"whole": 1}, "Toy: whole must be at least 2, got 1"),
        ({"whole": 11}, "Toy: whole must be at most 10 (fingers), got 11"),
        ({"maybe": 0}, "Toy: maybe must be at least 1, got 0"),
        ({"many": (1, 0)}, "Toy: many must have items that are at least 1, got (1, 0)"),
        ({"share": 1.0, "positive": 0.5}, "share above positive"),
    ],
)
def test_what_is_wrong_is_said(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Toy(**fields)
    assert str(error.value) == message


def test_the_ends_of_a_range_belong_to_it_unless_it_is_open():
    assert Toy(share=0.0, maybe=1, whole=2).whole == 2
    assert Toy(share=1.0, whole=10, many=(1, 5)).many == (1, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --agent.entropy nan", "entropy must be a finite number, got nan"),
        ("train --agent.replay-critic nan", "replay_critic must be a finite number, got nan"),
        ("train --agent a2c --agent.learning-rate 1e400", "learning_rate must be a finite number, got inf"),
        ("train --preset paper --agent.model.rep-scale nan", "rep_scale must be a finite number, got nan"),
        ("train --seed 1000000000000000000000000000000", "seed must lie in [0, 4294967295]"),
        ("train --seeds 100000", "seeds must be at most 1,000"),
        ("train --world.tasks 1000000000", "tasks must be at most 1,000,000"),
        ("simulate --episodes 100000000", "episodes must be at most 1,000,000"),
        ("simulate --episodes 1000000", "episodes x jobs must be at most 10,000,000"),
        ("sweep --seeds 1000000", "seeds must be at most 1,000"),
    ],
)
def test_numbers_that_are_none_or_would_take_all_memory_are_refused_at_once(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(words.split())
    except SystemExit as left:
        code = left.code
    assert code in (1, 2)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_an_option_shows_its_range(capsys):
    with pytest.raises(SystemExit):
        simulate.parse(["--help"])
    assert "at least 2)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_presets_and_the_largest_sizes_still_pass():
    assert OffPolicyRun(chunk=1).averaging == 1.0
    assert LoopConfig(steps=10**12).steps == 10**12
    assert WorldConfig(tasks=1_000_000).tasks == 1_000_000
    assert CurveConfig(episodes=1).episodes == 1
