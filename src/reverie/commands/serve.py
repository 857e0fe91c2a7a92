"""`reverie serve`: weights for a real balancer; `init`, `explain` and `rearm` go with it. Nothing here needs JAX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro

from reverie.files import write_text
from reverie.ranges import Count
from reverie.report.output import Output, json_text, print_facts, print_json, print_table, say
from reverie.runs.config_json import config_to_json
from reverie.serve import agent, audit, deployment
from reverie.serve.race import DEFAULT_ARMS, MOST_LAG, OURS, RaceConfig, described, races, seen
from reverie.serve.settings import Mode, ServeConfig, load_config


@dataclass(frozen=True)
class Serve:
    """Set the weights of a balancer's servers, 1 to 10 times a second, within guards: docs/serving.md. Mode shadow,
    which sends nothing, comes first. `reverie serve init FILE` writes the files that go with it, `reverie serve explain
    FILE` makes the decisions of an audit log again, `reverie serve rearm FILE` lets a policy act again whose trial was
    lost, `reverie serve race` plays ways to balance against each other on this machine.

    Example: reverie serve --config serve.toml --policy runs/ours.safetensors --mode shadow
    """

    config: Path = Path("/etc/reverie/serve.toml")
    """The configuration file; SIGHUP reads it again."""
    policy: str | None = None
    """A file of `reverie tune --rule adaptive-weights`, an exported agent that sets weights, or
    `adaptive-least-connections`, the rule as it is in books; as in the file unless given."""
    mode: Mode | None = None
    """off, shadow, canary or active; as in the file unless given."""


@dataclass(frozen=True)
class Init:
    """Write the files that go with a configuration: haproxy.cfg or envoy.json, units for systemd, alerts for Prometheus
    and a dashboard for Grafana. Where there is no configuration file, an example is written first.

    Example: reverie serve init serve.toml --out deployment
    """

    config: tyro.conf.Positional[Path]
    """The configuration file."""
    out: Path = Path("deployment")
    """The folder for the others."""


@dataclass(frozen=True)
class Explain:
    """Make every decision of an audit log again, and show one: what was seen, what the policy said, which guards
    changed it, what was sent. Ends with an error where a decision comes out differently.

    Example: reverie serve explain /var/log/reverie/audit.jsonl --at 2026-11-29T07:00:00
    """

    log: tyro.conf.Positional[Path]
    """The audit log."""
    at: str | None = None
    """Show the last change up to then (UTC, or with an offset); the last of all unless given."""
    output: Output = "table"
    """A table, or JSON."""


@dataclass(frozen=True)
class Rearm:
    """Let a policy act again whose trial was lost.

    Example: reverie serve rearm serve.toml
    """

    config: tyro.conf.Positional[Path]
    """The configuration file."""


@dataclass(frozen=True)
class Race:
    """Play ways to balance against each other on the loopback, each with a real HAProxy, nginx or Envoy and sleeping
    servers of its own, all at once on the same requests; beside each, what the simulator says of these. Refused where
    requests were sent too late for the result to mean anything.

    Example: reverie serve race --speeds 1 0.5 0.2 --load 0.7 --seconds 60 --out race

    Example: reverie serve race --slots 8 --sharing 1 --drift --runs 5 --arm leastconn --arm maxconn --arm serve
    """

    config: Annotated[RaceConfig, tyro.conf.arg(name="")] = field(default_factory=RaceConfig)
    arm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Who runs (serve/arms.py); ratios are to the first. Unless given: leastconn, leastconn-weights (speeds at the
    beginning), maxconn, serve (maxconn, and weights by `reverie serve`), random (2), roundrobin."""
    runs: Count = 1
    """Races, with one seed after the other."""
    out: Path | None = None
    """A folder for report.html, a page with pictures, and race.json, the numbers."""
    output: Output = "table"
    """A table, or JSON."""


def main(arguments: Sequence[str]) -> None:
    match parse(arguments):
        case Init() as asked:
            _init(asked)
        case Explain() as asked:
            _explain(asked)
        case Rearm() as asked:
            _rearm(asked)
        case Race() as asked:
            _race(asked)
        case asked:
            agent.run(lambda: _configured(asked), say)


def parse(arguments: Sequence[str]) -> Serve | Init | Explain | Rearm | Race:
    match arguments:
        case ["init", *rest]:
            return tyro.cli(Init, prog="reverie serve init", args=rest)
        case ["explain", *rest]:
            return tyro.cli(Explain, prog="reverie serve explain", args=rest)
        case ["rearm", *rest]:
            return tyro.cli(Rearm, prog="reverie serve rearm", args=rest)
        case ["race", *rest]:
            return tyro.cli(Race, prog="reverie serve race", args=rest)
        case _:
            return tyro.cli(Serve, prog="reverie serve", args=arguments)


def _configured(asked: Serve) -> ServeConfig:
    config = load_config(asked.config)
    given = {"policy": asked.policy, "mode": asked.mode}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _init(asked: Init) -> None:
    if not asked.config.exists():
        asked.config.parent.mkdir(parents=True, exist_ok=True)
        write_text(asked.config, deployment.EXAMPLE)
        say(f"written: {asked.config}, an example: put your servers there, then give the command again")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, text in deployment.files(load_config(asked.config), asked.config).items():
        write_text(asked.out / name, text)
        say(f"written: {asked.out / name}")


def _rearm(asked: Rearm) -> None:
    halted = agent.halted_by(load_config(asked.config))
    say(f"was halted: {halted.read_text().strip()}" if halted.exists() else "was not halted")
    halted.unlink(missing_ok=True)


def _race(asked: Race) -> None:
    if asked.config.trace is not None and asked.runs > 1:
        raise ValueError(f"runs: a trace is the same in each, so give 1 with --trace, got {asked.runs}")
    outcomes = races(asked.config, asked.arm or DEFAULT_ARMS, asked.runs, say)
    fair = [each for each in outcomes if each.fair]
    told = described(outcomes)
    if asked.output == "json":
        print_json(told)
    else:
        from reverie.report.tables import race_table, rich_table  # here, as the agent needs no SciPy

        requests = sum(len(each.config.plan.at) for each in fair or outcomes)
        title = f"{requests:,} requests at load {asked.config.load}"
        print_table(rich_table(race_table(told["lanes"], OURS, title)))
    if not fair:
        raise ValueError(
            f"p99 of the lag was more than {100 * MOST_LAG:.0f} % of the mean response time: this machine is too busy "
            "for this race. Stop other programs, or give requests more --work"
        )
    if asked.out is not None:
        from reverie.report.race_page import write_race_page

        asked.out.mkdir(parents=True, exist_ok=True)
        write_text(asked.out / "race.json", json_text(told))
        page = asked.out / "report.html"
        write_race_page(page, seen(fair), told["lanes"], told["config"], fair[0].config.length)
        say(f"written: {page}")


def _explain(asked: Explain) -> None:
    until = math.inf if asked.at is None else _seconds(asked.at)
    shown, differ, count = None, [], 0
    for each in audit.replay(asked.log):
        count += 1
        differ += [] if each.same else [each]
        shown = each if each.change.ts <= until else shown
    if shown is None:
        raise ValueError(f"{asked.log} has no change{f' up to {asked.at}' if asked.at else ''}")
    if asked.output == "json":
        print_json({"changes": count, "differ": len(differ), "shown": config_to_json(shown.change)})
    else:
        print_facts(f"{count} changes, {count - len(differ)} of them decided again alike", audit.facts(shown))
    if differ:
        raise ValueError(
            f"{len(differ)} decisions come out differently, the first of {audit.date(differ[0].change.ts)}"
        )


def _seconds(date: str) -> float:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"--at is a moment such as 2026-11-29T07:00:00, got {date!r}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
