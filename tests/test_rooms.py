"""The way through the house: a room imports from the rooms to its left, and the docs name the rooms in that order."""

import ast
import re
from pathlib import Path

import pytest

import reverie

SOURCE = Path(reverie.__file__).parent
DOCS = SOURCE.parents[1]


def written_order() -> list[str]:
    """The rooms, as CONTRIBUTING.md has them."""
    lines = (DOCS / "CONTRIBUTING.md").read_text().splitlines()
    return next(line.strip().split(" -> ") for line in lines if " -> " in line)


ROOMS = written_order()
GROUND = sorted(path.stem for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__", "cli"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def files(room: str) -> list[Path]:
    return [SOURCE / "cli.py"] if room == "cli" else sorted((SOURCE / room).rglob("*.py"))


def test_every_room_is_on_the_way():
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms == set(ROOMS) - {"cli"}


@pytest.mark.parametrize("page", ["README.md", "docs/how-it-works.md"])
def test_the_docs_show_the_same_way(page):
    assert " -> ".join(ROOMS) in (DOCS / page).read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_to_its_left(room):
    right = set(ROOMS[ROOMS.index(room) + 1 :])
    for path in files(room):
        for module in imported(path):
            first, *rest = module.split(".")
            assert not (first == "reverie" and rest and rest[0] in right), f"{path}: {module}"


def test_no_command_imports_another():
    """What two of them share lies in modules without a `main`, or in the rooms to their left."""
    commands = {path.stem for path in files("commands") if "\ndef main(" in path.read_text()}
    assert {"train", "sweep", "verdict"} <= commands
    for path in files("commands"):
        parts = [module.split(".") for module in imported(path)]
        assert not any(first[:2] == ["reverie", "commands"] and first[2] in commands for first in parts), path


@pytest.mark.parametrize("module", GROUND)
def test_what_lies_below_all_rooms_imports_from_none(module):
    for name in imported(SOURCE / f"{module}.py"):
        assert not (name.startswith("reverie.") and name.split(".")[1] in ROOMS), name


@pytest.mark.parametrize("folder", ["experiments", "benchmarks", "docs"])
def test_scripts_beside_the_package_need_no_command(folder):
    for path in (DOCS / folder).glob("*.py"):
        assert not any(name.startswith("reverie.commands") for name in imported(path)), path


@pytest.mark.parametrize(
    ("recipe", "example"),
    [
        ("a world model", r"\bSetRSSMConfig\b"),
        ("an agent", r"\bRSACConfig\b"),
        ("a rule", r"\bResidualLife\b"),
        ("a view", '"park"'),
        ("a workload", None),
    ],
)
def test_a_recipe_names_the_files_that_such_a_thing_is_in_and_how_many(recipe, example):
    """Whoever adds one touches these, and no other of the package."""
    page = (DOCS / "docs" / "how-it-works.md").read_text()
    text = re.split(r"\n##+ ", page.split(f"### Add {recipe}\n")[1])[0]
    said = re.findall(r"(\d) files? of the package", text)
    named = {SOURCE / name for name in re.findall(r"\.\./src/reverie/([\w/]+\.py)\)", text)}
    if example is None:
        assert said == [str(len(named))]
        return
    touched = {path for path in SOURCE.rglob("*.py") if re.search(example, path.read_text())}
    own = {path for path in touched if re.search(f"class {example}", path.read_text())}
    assert len(own) == (recipe != "a view")
    assert touched - own <= named
    assert said == [str(len(touched))]
