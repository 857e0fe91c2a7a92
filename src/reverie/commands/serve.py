"""`reverie serve`: weights for a real balancer; `init`, `explain` and `rearm` go with it. Nothing here needs JAX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from reverie.files import write_text
from reverie.ranges import Count
from reverie.report.output import Output, json_text, print_facts, print_json, print_table, say
from reverie.runs.config_json import config_to_json
from reverie.serve import agent, audit, deployment
from reverie.serve.arms import ARMS
from reverie.serve.guards import WHY
from reverie.serve.race import DEFAULT_ARMS, MOST_LAG, Lane, Outcome, RaceConfig, lanes, race
from reverie.serve.settings import Mode, ServeConfig, load_config

_EXAMPLE = """\
# The one configuration file of `reverie serve`; docs/serving.md has every key. Unknown keys are errors.
mode = "shadow"    # off, shadow, canary, active

[balancer]
driver = "haproxy" # or envoy, which needs `endpoints` too
socket = "/run/haproxy/reverie.sock"
backend = "servers"
listen = "127.0.0.1:8080"

[[server]]
name = "web-1"
address = "127.0.0.1:8001"
slots = 4          # requests that it serves well at once; more wait in the balancer

[[server]]
name = "web-2"
address = "127.0.0.1:8002"
slots = 4
"""


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
        write_text(asked.config, _EXAMPLE)
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
    names, outcomes = asked.arm or DEFAULT_ARMS, []
    for run in range(asked.runs):
        outcome = race(replace(asked.config, seed=asked.config.seed + run), names)
        late = f"race {run + 1} of {asked.runs}: p99 of the lag is {100 * outcome.lag:.1f} % of the mean response time"
        say(late if outcome.lag <= MOST_LAG else f"{late}, too much: left out")
        outcomes.append(outcome)
    fair = [each for each in outcomes if each.lag <= MOST_LAG]
    found = lanes(fair or outcomes)
    told = {
        "config": config_to_json(asked.config),
        "lag": [each.lag for each in outcomes],
        "lanes": [lane._asdict() for lane in found],
        "races": [[lane._asdict() for lane in lanes([each])] for each in fair],
    }
    if asked.output == "json":
        print_json(told)
    else:
        print_table(_race_table(fair or outcomes, found))
    if not fair:
        raise ValueError(
            f"p99 of the lag was more than {100 * MOST_LAG:.0f} % of the mean response time: this machine is too busy "
            "for this race. Stop other programs, or give requests more --work"
        )
    if asked.out is not None:
        from reverie.report.race_page import write_race_page

        asked.out.mkdir(parents=True, exist_ok=True)
        write_text(asked.out / "race.json", json_text(told))
        write_race_page(
            asked.out / "report.html",
            _seen(fair),
            [lane._asdict() for lane in found],
            told["config"],
            fair[0].config.length,
        )
        say(f"written: {asked.out / 'report.html'}")


def _seen(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of each race, all requests of each arm, for pictures."""
    return [
        {
            "arm": name,
            "served": ARMS[name].served,
            "at": each.config.plan.at,
            "seconds": answers.seconds,
        }
        for each in outcomes
        for name, answers in each.answers.items()
    ]


def _race_table(outcomes: Sequence[Outcome], found: Sequence[Lane]) -> Table:
    config, count = outcomes[0].config, sum(len(each.config.plan.at) for each in outcomes)
    table = Table(title=f"{count:,} requests at load {config.load}, milliseconds", title_justify="left")
    ratio_to = f"mean over {found[0].name}'s"
    for head in ("arm", "failed", "mean", "in the second half", "p99", ratio_to, "simulated", "mean over that"):
        table.add_column(head, justify="left" if head == "arm" else "right")
    for lane in found:
        times = (f"{1000 * each:.0f}" for each in (lane.mean, lane.second_half, lane.p99))
        ratio, low, high = lane.ratio
        predicted = f"{1000 * lane.simulated:.0f}" if lane.simulated else "-"
        of = f"{lane.of_simulated:.2f}" if lane.of_simulated else "-"
        table.add_row(lane.name, f"{lane.failed}", *times, f"{ratio:.3f} [{low:.3f}, {high:.3f}]", predicted, of)
    return table


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
        print_facts(f"{count} changes, {count - len(differ)} of them decided again alike", _facts(shown))
    if differ:
        raise ValueError(f"{len(differ)} decisions come out differently, the first of {_date(differ[0].change.ts)}")


def _facts(shown: audit.Explained) -> list[tuple[str, str]]:
    change = shown.change
    decision, counts = change.decision, change.counts
    facts = [
        ("when", _date(change.ts)),
        ("mode, arm", f"{change.mode}, {change.arm}"),
        ("process of the balancer", counts.process),
        ("seconds since it was asked", f"{change.now - counts.at:.4f}"),
        ("guards that changed it", ", ".join(decision.fired) or "none"),
    ]
    if decision.weights is None:
        facts.append(("why the configured weights", WHY.get(decision.fired[-1], "it is their turn")))
    for i, name in enumerate(counts.names):
        wanted = "configured" if decision.weights is None else decision.weights.get(name, "not ours to set")
        seen = f"{counts.in_progress[i]} in progress, {counts.started[i]} started, {counts.failed[i]} failed"
        facts.append((name, f"{seen}; policy {decision.raw[i]:.4g}; weight {counts.weights[i]}, wanted {wanted}"))
    sent = "the configured weights" if change.sent is None else ", ".join(f"{n} {w}" for n, w in change.sent.items())
    return [*facts, ("sent", change.answer or sent or "nothing")]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(date: str) -> float:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"--at is a moment such as 2026-11-29T07:00:00, got {date!r}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
