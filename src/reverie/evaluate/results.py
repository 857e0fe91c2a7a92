"""The results of a run on disk: tables that `evaluate` and `verdict` write, and what is read back from them.

    tables/examination.json       what was examined, and on how many episodes
    tables/results-PART.csv       one row per contestant, trial, episode and level, as `evaluate/trials.py` has them
    tables/responses-PART.csv     the distributions of response times
    tables/jobs.csv, servers.csv  one episode job by job, for the picture of the fleet
    tables/SHA256SUMS             what they have to be: a table that is not is made anew

A part is what was examined together: the rules, or one trained agent. All parts are of one examination.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import tyro

from reverie.envs.fleet.families import Load, traced
from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.own import NOTHING_OWN, Own
from reverie.envs.fleet.sources import BUILT_IN, read_source
from reverie.envs.fleet.traces import Trace
from reverie.envs.fleet.weights import USUAL, Proxy, View
from reverie.evaluate.about import about_episodes
from reverie.evaluate.agents import load_agents
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.examination import (
    TRACE_LOAD,
    Exam,
    Setting,
    all_settings,
    bounds,
    episode_of,
    hold,
    of_trace,
    rules_of,
)
from reverie.evaluate.statistics import verdict
from reverie.evaluate.trials import Tables
from reverie.evaluate.watch import Watched
from reverie.files import SEALS, forget_damaged, is_sealed, locked, read_json, seal, seals, write_text
from reverie.ranges import above, checked
from reverie.runs.config_json import config_from_json, config_to_json
from reverie.tables import Row, read_csv, write_csv

_DESCRIBED = "examination.json"
_WATCHED_JOBS = 300


@dataclass(frozen=True)
@checked
class Examination:
    """What agents are examined on."""

    trace: str = BUILT_IN
    """A trace: a file, or `conversation-like`, the built-in workload."""
    held_out: bool = False
    """Examine on the second half of the trace only: for agents that were trained on its first."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """How the trace is read."""
    load_per_window: bool = False
    """Bring every window of the trace to the load by a pace of its own, instead of the whole trace by one."""
    load: Annotated[Load, *above(0)] = TRACE_LOAD
    """The offered load that the trace is brought to, by scaling its clock; `recorded` keeps it."""
    own: Annotated[Own, tyro.conf.arg(name="")] = field(default_factory=Own)
    """Your own servers and jobs. The trace is played on these servers, with its own jobs."""
    exam: Annotated[Exam, tyro.conf.arg(name="")] = field(default_factory=Exam)
    """Episodes, jobs and seed."""

    def read(self) -> Trace:
        """The trace, sound and long enough.

        Raises:
            ValueError: it is not there or broken, shorter than an episode, or the load is impossible.
        """
        trace = read_source(self.trace, self.held_out, self.reading)
        traced(trace, self.load, self.exam.jobs, self.own.servers(), self.load_per_window)
        return trace

    def at_home(self, own: Own) -> "Examination":
        """On the servers and jobs that an agent was trained for, unless others are asked for."""
        return replace(self, own=own) if self.own == NOTHING_OWN else self


class Results:
    """The tables of one examination in a folder."""

    def __init__(self, folder: Path, examination: Examination):
        """Go on with the tables in `folder`; those of another examination, or of an older version, are removed, and
        those that are gone or damaged have to be made anew."""
        self.folder = folder
        self.examination = examination
        if not self.is_in(folder):
            for old in _files(folder):
                old.unlink(missing_ok=True)
            write_text(folder / _DESCRIBED, json.dumps(config_to_json(examination), indent=2) + "\n")
            seal(folder, [_DESCRIBED])
        forget_damaged(folder)

    @classmethod
    def of(cls, folder: Path) -> "Results":
        """The tables that are there.

        Raises:
            FileNotFoundError: nothing was examined yet.
            ValueError: it is of another version.
        """
        return cls(folder, config_from_json(Examination, read_json(folder / _DESCRIBED)))

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether a whole examination is in `folder`, as it was written."""
        whole = {name: is_sealed(folder, name) for name in seals(folder)}
        rules = any(name.startswith("results-rules-") for name in whole)
        return rules and {_DESCRIBED, "jobs.csv", "servers.csv"} <= whole.keys() and all(whole.values())

    def is_in(self, folder: Path) -> bool:
        """Whether what was examined in `folder` is what this examines."""
        described = folder / _DESCRIBED
        return is_sealed(folder, _DESCRIBED) and read_json(described) == config_to_json(self.examination)

    @cached_property
    def trace(self) -> Trace:
        return self.examination.read()

    @cached_property
    def settings(self) -> list[Setting]:
        asked = self.examination
        return all_settings(asked.exam, self.trace, asked.load, asked.load_per_window, asked.own)

    @cached_property
    def about(self) -> tuple[str, ...]:
        """How the trace is played."""
        asked = self.examination
        return of_trace(self.trace, asked.exam, asked.load, asked.load_per_window, asked.own.on_a_trace).about

    def examine_rules(self, view: View, proxy: Proxy = USUAL) -> None:
        """Let the rules play, unless they have: opponents of agents that see `view`, and set weights of the `proxy` if
        these do."""
        exam = self.examination.exam
        if not self._is_there(part := f"rules-{view}"):
            played = [hold(setting, rules_of(setting, view, proxy=proxy), exam) for setting in self.settings]
            least = [row for setting in self.settings for row in bounds(setting, exam)]
            self._keep(part, played, least)

    def examine_agent(self, agent: Contestant) -> None:
        """Let an agent play, unless it has."""
        if not self._is_there(part := f"{agent.name}-{agent.training_seed}"):
            self._keep(part, [hold(setting, [agent], self.examination.exam) for setting in self.settings])

    def tables(self) -> Tables:
        """All parts together."""
        results, responses = (
            [
                row
                for name in sorted(seals(self.folder))
                if name.startswith(kind)
                for row in read_csv(self.folder / name)
            ]
            for kind in ("results-", "responses-")
        )
        return Tables(results, responses)

    @property
    def _watched_setting(self) -> Setting:
        """The hardest of the standard trials."""
        return [s for s in self.settings if s.experiment == "standard" and s.windows is None][-1]

    def watch(self, agents: Sequence[Contestant], view: View) -> None:
        """Keep one episode of the best rule and of agents, job by job, unless that was done."""
        known = {episode.jobs[0]["agent"] for episode in self.watched()} if self.are_in(self.folder) else set()
        if known and known.issuperset(agent.name for agent in agents):
            return
        setting = self._watched_setting
        rows = [row for row in self.tables().results if row["task"] == setting.name and row["role"] != "agent"]
        best = str(verdict(rows)[0]["against"])
        exam = self.examination.exam
        watched = episode_of(setting, [*rules_of(setting, view, [best]), *agents], exam, min(exam.jobs, _WATCHED_JOBS))
        self._write("jobs.csv", [row for episode in watched for row in episode.jobs])
        self._write("servers.csv", [row for episode in watched for row in episode.servers])

    def episodes(self, names: Sequence[str]) -> list[Watched]:
        """One episode of each policy: of agents as `watch` kept it, of other rules as they play it now.

        Raises:
            ValueError: nobody has that name.
        """
        kept = {str(episode.jobs[0]["agent"]): episode for episode in self.watched()}
        if missing := [name for name in names if name not in kept]:
            setting = self._watched_setting
            count, exam = len(next(iter(kept.values())).jobs), self.examination.exam
            played = episode_of(setting, rules_of(setting, "full", missing), exam, count)
            kept |= dict(zip(missing, played, strict=True))
        return [kept[name] for name in names]

    def watched(self) -> list[Watched]:
        """The episodes that `watch` kept."""

        def by_agent(name: str) -> dict[str, list[Row]]:
            rows = read_csv(self.folder / name)
            return {str(agent): list(of_agent) for agent, of_agent in groupby(rows, key=lambda row: row["agent"])}

        jobs, servers = by_agent("jobs.csv"), by_agent("servers.csv")
        return [Watched(jobs[agent], servers[agent]) for agent in jobs]

    def _is_there(self, part: str) -> bool:
        return all(is_sealed(self.folder, f"{kind}-{part}.csv") for kind in ("results", "responses"))

    def _keep(self, part: str, played: Sequence[Tables], more: Sequence[Row] = ()) -> None:
        self._write(f"results-{part}.csv", [row for tables in played for row in tables.results] + [*more])
        self._write(f"responses-{part}.csv", [row for tables in played for row in tables.responses])

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        write_csv(self.folder / name, rows)
        seal(self.folder, [name])


def examine_agent(path: Path, tables: Path, examination: Examination, tell: Callable[[str], None]) -> Results:
    """Examine the agent of a run or of an exported policy and the rules; `tell` is called with what goes on. The tables
    in a folder are replaced when all new ones are whole.

    Raises:
        ValueError: the examination is impossible, or there are several agents.
        BlockingIOError: another process examines into this folder.
    """
    examination.read()
    agent, *others = load_agents([path])
    if others:
        raise ValueError(f"{path} holds {1 + len(others)} agents: evaluate each, or all by `reverie compare`")
    tables.mkdir(exist_ok=True)
    with locked(tables / "lock", str(tables)):
        new = tables / "new"
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir()
        try:
            _copy_rules(tables, new)
            results = Results(new, examination)
            for line in about_episodes(examination.exam.episodes):
                tell(line)
            tell("examining the rules")
            results.examine_rules(agent.world.view, agent.world.proxy or USUAL)
            tell(f"examining {agent.name}")
            results.examine_agent(agent)
            results.watch([agent], agent.world.view)
            _replace(tables, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return Results(tables, examination)


def _files(folder: Path) -> list[Path]:
    """The tables of an examination, and what says what they are."""
    return [*folder.glob("re*-*.csv"), *(folder / name for name in ("jobs.csv", "servers.csv", _DESCRIBED, SEALS))]


def _copy_rules(old: Path, new: Path) -> None:
    """Rules need not play again under the same examination."""
    for file in (*old.glob("re*-rules-*.csv"), old / _DESCRIBED, old / SEALS):
        if file.is_file():
            shutil.copy(file, new)


def _replace(old: Path, new: Path) -> None:
    """Put whole tables in the place of others; a kill in between leaves what does not pass for an examination."""
    for file in reversed(_files(old)):  # the seals first
        file.unlink(missing_ok=True)
    for file in sorted(_files(new), key=lambda file: file.name == SEALS):  # the seals last
        os.replace(file, old / file.name)
