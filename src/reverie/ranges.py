"""What each number of a configuration may be, declared beside its field and checked in one place.

    @dataclass(frozen=True)
    @checked
    class AdamConfig:
        learning_rate: Annotated[float, *above(0)] = 1e-4
        warmup: Whole = 0

A number that is none (NaN), is not finite, or lies outside is refused with the names of class and field; the help of an
option shows the range. What depends on several fields is left to a class's own `__post_init__`, which comes after.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAliasType, Union, get_args, get_origin, get_type_hints

import numpy as np
from tyro.conf import arg

LARGEST = 1e30
"""Of numbers that no other limit is declared for, and its inverse the smallest beside 0: float32 holds little more."""
MOST = 2**31 - 1
"""Of whole numbers that no other limit is declared for: int32."""

KINDS = {True: (int, np.integer), False: (int, float, np.integer, np.floating)}
"""What counts as a whole number, and what as a number."""


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, each of them included unless it is said to be open."""

    low: int | float
    high: int | float
    low_open: bool = False
    high_open: bool = False
    is_capped: bool = False
    """Whether `high` is no more than what can be computed with, and of no interest to whoever stays far below."""
    because: str = ""
    """Why there is no more, where that is not obvious."""

    def __str__(self) -> str:
        if self.is_capped:
            return f"{'greater than' if self.low_open else 'at least'} {self.low:,}"
        return f"in {'(' if self.low_open else '['}{self.low}, {self.high}{')' if self.high_open else ']'}"

    def expected(self, value: Any, whole: bool) -> str | None:
        """What a value should have been; None where it lies within."""
        if isinstance(value, bool) or not isinstance(value, KINDS[whole]):
            return "be a whole number" if whole else "be a number"
        if not whole and not abs(value) <= sys.float_info.max:
            return "be a finite number"
        if value < self.low or (self.low_open and value == self.low):
            return f"be {self}" if self.is_capped else f"lie {self}"
        if value > self.high or (self.high_open and value == self.high):
            return (
                f"be at most {self.high:,}{self.because and f' ({self.because})'}" if self.is_capped else f"lie {self}"
            )
        if -1 / LARGEST < value < 1 / LARGEST and value:
            return f"be at least {1 / LARGEST:g} in size{'' if self.low_open else ', or 0'}"
        return None


def at_least(low: int | float, most: int | float = MOST, because: str = "") -> tuple[Range, Any]:
    """`low` or more, and no more than can be computed with (`most`), because ..."""
    return _with_help(Range(low, most, is_capped=True, because=because))


def above(low: int | float) -> tuple[Range, Any]:
    """More than `low`."""
    return _with_help(Range(low, LARGEST, low_open=True, is_capped=True))


def between(
    low: int | float, high: int | float, *, low_open: bool = False, high_open: bool = False
) -> tuple[Range, Any]:
    """From `low` to `high`."""
    return _with_help(Range(low, high, low_open, high_open))


def checked[T](cls: type[T]) -> type[T]:
    """Below `@dataclass`: instances are checked when they are made, before their `__post_init__`, inherited or own."""
    own: Callable[[T], None] | None = getattr(cls, "__post_init__", None)

    def after(self: T) -> None:
        check(self)
        if own is not None:
            own(self)

    setattr(cls, "__post_init__", after)  # noqa: B010
    return cls


def check(config: Any) -> None:
    """Hold each field against what is declared for it: ranges of numbers, and choices.

    Raises:
        ValueError: a field holds something else. The message names class, field, what was expected and what was found.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if (expected := _expected(hint, value, None)) is not None:
            raise ValueError(f"{type(config).__name__}: {name} must {expected}, got {_brief(value)}")


def _with_help(within: Range) -> tuple[Range, Any]:
    return within, arg(help_behavior_hint=lambda default: f"(default: {default}; {within})")


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _expected(hint: Any, value: Any, within: Range | None) -> str | None:
    """What a value of this type should have been; None where it is right, or of a kind that is not checked here."""
    if isinstance(hint, TypeAliasType):
        return _expected(hint.__value__, value, within)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        declared = next((each for each in arguments[1:] if isinstance(each, Range)), within)
        return _expected(arguments[0], value, declared)
    if origin in (Union, UnionType):
        found = [_expected(member, value, within) for member in arguments]
        return None if None in found else next(each for each in found if each != "be None")
    if origin is Literal:
        return None if value in arguments else f"be one of {', '.join(map(str, arguments))}"
    if origin is tuple and isinstance(value, tuple) and arguments[-1] is Ellipsis:
        found = (_expected(arguments[0], item, within) for item in value)
        return next((f"have items that {each.replace('be ', 'are ', 1)}" for each in found if each), None)
    if hint is NoneType:
        return None if value is None else "be None"
    if hint in (int, float):
        return (within or Range(-LARGEST, LARGEST, is_capped=True)).expected(value, hint is int)
    return None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


# --- ranges with a name ---------------------------------------------------------------------------------------------

Count = Annotated[int, *at_least(1)]
"""At least one of them."""
Whole = Annotated[int, *at_least(0)]
"""A count that may be 0."""
Width = Annotated[int, *at_least(1, 65_536, "weights of a layer grow with its square")]
"""Units of a layer."""
WidthOr0 = Annotated[int, *at_least(0, 65_536, "weights of a layer grow with its square")]
"""Units of a layer that is left out where there are none."""
WidthOrNone = Annotated[int | None, *at_least(1, 65_536, "weights of a layer grow with its square")]
"""Units of a layer; None lets others decide."""
Layers = Annotated[int, *at_least(1, 1_000, "each is compiled and trained")]
Classes = Annotated[int, *between(2, 256)]
"""Of a categorical variable: replay keeps a byte of each."""
Positive = Annotated[float, *above(0)]
PositiveOrNone = Annotated[float | None, *above(0)]
"""None sets no limit."""
Weight = Annotated[float, *at_least(0, LARGEST)]
"""Of a loss, or another number that may be 0."""
Share = Annotated[float, *between(0, 1)]
"""0 and 1 included."""
Below1 = Annotated[float, *between(0, 1, high_open=True)]
"""From 0 on, 1 excluded."""
Horizon = Annotated[float, *above(1)]
"""Steps that a discount 1 - 1 / horizon looks ahead."""
Seed = Annotated[int, *between(0, 2**32 - 1)]
"""Of random numbers; JAX makes its keys of 32 bits."""
