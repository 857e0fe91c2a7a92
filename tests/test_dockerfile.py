"""The Dockerfile names a Python, files, extras and a command that there are."""

import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from reverie.cli import COMMANDS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lines(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.*)$", TEXT.replace("\\\n", " "), re.MULTILINE)


def test_its_python_is_one_that_the_project_allows():
    (image,) = lines("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", image)
    assert version
    assert f"{version[1]}.1" in SpecifierSet(PROJECT["requires-python"])


def test_what_it_copies_and_installs_is_there():
    ((source, target),) = [line.split() for line in lines("COPY")]
    assert (ROOT / source).is_dir()
    (step,) = lines("RUN")
    for path in re.findall(rf"{target}(/[\w./-]+)?", step):
        assert (ROOT / path.lstrip("/")).exists()
    assert "/src${EXTRAS}" in step
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not {"src", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "hatch_build.py"} & set(ignored)


def test_what_it_runs_and_advises_are_commands_of_ours():
    assert lines("ENTRYPOINT") == ['["reverie"]']
    assert PROJECT["scripts"]["reverie"] == "reverie.__main__:main"
    shown = re.findall(r"docker run .* reverie (\w+)", TEXT)
    assert shown
    assert set(shown) <= set(COMMANDS)
    for extra in re.findall(r"EXTRAS=\[(\w+)\]", TEXT):
        assert extra in PROJECT["optional-dependencies"]


def test_everything_that_a_build_installs_has_a_fixed_version():
    """`constraints.txt` holds each direct dependency at one version within what the project allows."""
    from packaging.requirements import Requirement

    fixed = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        assert fixed[wanted.name.lower()] in wanted.specifier, line
