"""Configurations as JSON and back: nested frozen dataclasses, checked field by field, so that a run can be repeated.

Each dataclass becomes an object that carries its class name under `class` (no field can have that name), which tells
the members of a union apart. What the fields mean, and what values are possible, the dataclasses say themselves.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAliasType, Union, get_args, get_origin, get_type_hints

type Json = bool | int | float | str | list[Json] | dict[str, Json] | None

RENAMED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "DreamerConfig": {"horizon": "dream_length"},
        "Proxy": {"memory": "span"},
        "Trained": {"memory": "span"},
        "Limits": {"memory": "forgets"},
        "Change": {"memory": "before"},
        "Memory": {"known": "learned"},
    }
)
"""Fields by class that were stored under another name once, and what they are called now."""
_CLASSES: Mapping[Json, str] = MappingProxyType({"Memory": "Known"})
"""The same of classes."""
_WITHOUT_WEIGHTS: Mapping[str, Json] = MappingProxyType({"gain": 0.5, "correction": None})
"""Fields of a world that older ones lack, as they are where nothing reads them: in all views but `weights`, whose
older agents saw something else."""

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def config_to_json(config: Any) -> dict[str, Json]:
    """The resolved configuration, every default included, as values that JSON can hold.

    Fields may be bool, int, float, str, None, `Path`, dataclasses, and tuples, lists and dicts (with text
    keys) of these. Floats that JSON lacks become the text `nan`, `inf`, `-inf`.

    Raises:
        TypeError: a field holds something else, or `config` is not a dataclass.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a configuration is a dataclass, not {config!r}")
    return _encode_dataclass(config, "")


def config_from_json[T](cls: type[T], data: Json) -> T:
    """The configuration of type `cls` that `config_to_json` described; what its fields hold is checked by their types.

    Raises:
        ValueError: fields that are unknown or missing, values of a wrong type or refused by the class itself. The
            message names the field by its path.
    """
    return _decode(cls, current(data), "")


def current(data: Json) -> Json:
    """A stored configuration under the names of now, with the fields that came later."""
    if isinstance(data, list):
        return [current(item) for item in data]
    if not isinstance(data, dict):
        return data
    names = RENAMED.get(str(data.get("class")), {})
    later = _WITHOUT_WEIGHTS if data.get("class") == "WorldConfig" and data.get("view") != "weights" else {}
    now = {**later, **{names.get(name, name): current(value) for name, value in data.items()}}
    return {**now, "class": _CLASSES[data["class"]]} if data.get("class") in _CLASSES else now


def read_settings(path: Path) -> dict[str, Json]:
    """Settings from a TOML or JSON file, to be handed to `with_changes`.

    Raises:
        ValueError: it cannot be read, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    read = {".json": json.loads, ".toml": tomllib.loads}.get(path.suffix)
    if read is None:
        raise ValueError(f"{path}: expected a file whose name ends in .toml or .json")
    try:
        data = read(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object with the fields of a configuration, got {_brief(data)[:40]}")
    return data


def with_changes[T](config: T, changes: Json) -> T:
    """The configuration with the fields that `changes` names, an object as `config_to_json` gives it or a part of one.

    Fields may have the names of their options on the command line, hyphens included: what stands there without the name
    of the part that it belongs to (`tyro.conf.arg(name="")`) may do so here. An object of another class than the part
    that it replaces has to be complete.

    Raises:
        ValueError: as `config_from_json`.
    """
    data = config_to_json(config)
    return config_from_json(type(config), _put(config, data, changes))


def config_differences(old: Json, new: Json, where: str = "") -> list[str]:
    """The fields in which two configurations differ, one line each, such as `agent.units: 256, now 512`."""
    old, new = current(old), current(new)
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        return [
            line
            for name in [*old, *(name for name in new if name not in old)]
            for line in config_differences(old.get(name), new.get(name), _join(where, name))
        ]
    return [] if old == new else [f"{_place(where)}: {_brief(old)}, now {_brief(new)}"]


def _put(config: Any, data: Any, changes: Json) -> Json:
    """`data`, which describes `config`, with the changes put in."""
    if not isinstance(changes, dict) or changes.get("class", data["class"]) != data["class"]:
        return changes
    for name, value in changes.items():
        part, described = config, data
        *parts, last = _path_to(config, name.replace("-", "_")) or [name]
        for each in parts:
            part, described = getattr(part, each), described[each]
        now = getattr(part, last, None)
        described[last] = _put(now, described[last], value) if dataclasses.is_dataclass(now) else value
    return data


def _path_to(config: Any, name: str) -> list[str] | None:
    """The field of that name, or of that name as an option; in parts whose options do not bear the part's name, too."""
    hints = get_type_hints(type(config), include_extras=True)
    called = {
        field.name: next((told for told in _names(hints[field.name]) if told is not None), field.name)
        for field in dataclasses.fields(config)
    }
    for field, option in called.items():
        if name in (field, option):
            return [field]
    for field, option in called.items():
        if option == "" and (found := _path_to(getattr(config, field), name)):
            return [field, *found]
    return None


def _names(hint: Any) -> list[str | None]:
    """What an option is called, where that is said."""
    return [getattr(note, "name", None) for note in getattr(hint, "__metadata__", ())]


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _place(where: str) -> str:
    return where or "the configuration"


def _brief(data: Json) -> str:
    return str(data["class"]) if isinstance(data, dict) and "class" in data else repr(data)


def _wrong(where: str, data: Json, expected: str) -> ValueError:
    return ValueError(f"{_place(where)}: expected {expected}, found {_brief(data)}")


def _encode(value: Any, where: str) -> Json:
    if value is None or type(value) in (bool, int, str):  # not what derives from them (enumerations)
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_dataclass(value, where)
    raise TypeError(f"{where}: a {type(value).__name__} cannot be part of a stored configuration: {value!r}")


def _encode_dataclass(value: Any, where: str) -> dict[str, Json]:
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    encoded = {name: _encode(getattr(value, name), _join(where, name)) for name in fields}
    return {"class": type(value).__name__, **encoded}


def _decode(hint: Any, data: Json, where: str) -> Any:
    if isinstance(hint, TypeAliasType):
        return _decode(hint.__value__, data, where)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, data, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(hint, data, where)
    if origin is Literal:
        if any(type(data) is type(choice) and data == choice for choice in arguments):
            return data
        raise _wrong(where, data, f"one of {', '.join(map(repr, arguments))}")
    if origin in (tuple, list):
        if not isinstance(data, list):
            raise _wrong(where, data, "a list")
        if origin is list or arguments[-1] is Ellipsis:
            hints = [arguments[0]] * len(data)
        elif len(arguments) == len(data):
            hints = arguments
        else:
            raise _wrong(where, data, f"a list of {len(arguments)}")
        return origin(
            _decode(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(hints, data, strict=True))
        )
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            raise _wrong(where, data, "an object")
        return {key: _decode(arguments[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if hint is float and isinstance(data, str) and data in _NON_FINITE:
        return _NON_FINITE[data]
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is int and type(data) is int and not -(2**63) <= data < 2**63:
        raise _wrong(where, data, "int of 64 bits")
    if hint in (bool, int, str) and type(data) is hint:
        return data
    if hint in (None, type(None)) and data is None:
        return None
    raise _wrong(where, data, _name(hint))


def _decode_dataclass(cls: Any, data: Json, where: str) -> Any:
    if not isinstance(data, dict) or data.get("class") != cls.__name__:
        raise _wrong(where, data, f'an object with "class": "{cls.__name__}"')
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in data:
        if name not in names and name != "class":
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(names)}"
            raise ValueError(f"{_place(where)}: {cls.__name__} has no field {name!r}; {hint}")
    if missing := [name for name in names if name not in data]:
        raise ValueError(
            f"{_place(where)}: {cls.__name__} lacks {', '.join(missing)}; a stored configuration is complete, so this"
            " one was edited or is of another version of Reverie"
        )
    hints = get_type_hints(cls)
    values = {name: _decode(hints[name], data[name], _join(where, name)) for name in names}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{_place(where)}: {error}") from error


def _decode_union(hint: Any, data: Json, where: str) -> Any:
    members = [member for member in _members(hint) if member is not type(None) or data is None]
    if isinstance(data, dict) and "class" in data:
        members = [member for member in members if getattr(member, "__name__", None) == data["class"]]
    if len(members) == 1:
        return _decode(members[0], data, where)  # with its own, more exact, errors
    for member in members:
        try:
            return _decode(member, data, where)
        except ValueError:
            continue
    raise _wrong(where, data, "one of " + ", ".join(map(_name, _members(hint))))


def _members(hint: Any) -> list[Any]:
    """The members of a union; those of unions within it, by way of aliases, among them."""
    if isinstance(hint, TypeAliasType):
        return _members(hint.__value__)
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for member in get_args(hint) for inner in _members(member)]
    return [hint]


def _name(hint: Any) -> str:
    return "None" if hint is type(None) else str(hint) if get_args(hint) else getattr(hint, "__name__", str(hint))
