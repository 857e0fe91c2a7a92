"""`reverie fit`: what a balancer's log says of its servers and requests, and how far that is true."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from reverie.commands.trace import summary_facts
from reverie.envs.fleet.families import trace_unit
from reverie.envs.fleet.fitting import FEWEST, Fit, Interval, Server, fit
from reverie.envs.fleet.formats.reading import Reading, read_requests, read_trace
from reverie.envs.fleet.load import offered_load
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.traces import Requests, Trace, describe
from reverie.envs.fleet.workload import span
from reverie.files import write_text
from reverie.report.output import Output, print_facts, print_json, print_table, say
from reverie.serve.logged import Alike, Placed, Predicted, Times, alike, laws, placed, predict

_PLACED: dict[Placed, str] = {
    "fewest": "where the fewest were in progress (least connections), as can be seen of them",
    "as logged": "not where the fewest were: predictions repeat the places. If the balancer looked at its servers in "
    "another way, they come out too slow",
    "queued": "held back by the balancer until a slot was free (maxconn): when a request was sent depends on works, so "
    "nothing is predicted; the works are judged alone",
}


@dataclass(frozen=True)
class FitLog:
    """Find from a balancer's log how fast each server is, how many requests it serves at once and how much these slow
    each other down, and how large requests are; check it on the half that was not used; write a fleet and a trace for
    `simulate`, `compare`, `tune` and `train`, and a configuration for `serve`: docs/from-a-log.md.

    Example: reverie fit /var/log/haproxy.log --out ours

    Example: reverie fit requests.csv --columns arrival=time,size=seconds,server=host --unit s

    Example: reverie fit BurstGPT.csv --fleet fleet.toml
    """

    logs: tyro.conf.Positional[tuple[Path, ...]]
    """Logs of HAProxy (httplog), nginx (with $upstream_addr, $upstream_response_time and $msec) or Envoy; more than one
    are read as parts of one."""
    fleet: Path | None = None
    """A file of your servers (docs/your-fleet.md), for what does not say who served a request, such as published
    traces: requests alone are found then, and the load that they are for these servers."""
    out: Path = Path("fit")
    """The folder for fleet.toml, requests.csv and serve.toml; with --fleet for requests.csv alone."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """How logs are read."""
    output: Output = "table"
    """Tables, or JSON."""


def parse(arguments: Sequence[str]) -> FitLog:
    return tyro.cli(FitLog, prog="reverie fit", args=arguments)


def main(arguments: Sequence[str]) -> None:
    asked = parse(arguments)
    if not asked.logs:
        raise ValueError("say which log: reverie fit FILE")
    if asked.fleet is not None:
        _fit_requests(asked, asked.fleet)
        return
    requests = read_requests(asked.logs, asked.reading)
    say(f"reverie fit: {len(requests.server):,} requests at {len(requests.servers)} servers")
    fitted, how = fit(requests), placed(requests)
    trace = Trace(requests.name, requests.arrival, fitted.work, {}, requests.provenance)
    judged, checks = alike(requests, fitted), _checked(requests, fitted, how)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_text(fleet := asked.out / "fleet.toml", _fleet_toml(fitted.servers))
    write_text(asked.out / "requests.csv", _trace_csv(trace))
    write_text(asked.out / "serve.toml", _serve_toml(fitted.servers))
    if asked.output == "json":
        print_json(_described(trace, fitted, how, judged, checks, dict(_next(asked.out, fleet, trace))))
        return
    print_facts(requests.name, [*trace.provenance, ("placed", _PLACED[how]), *summary_facts(describe(trace))])
    print_table(_servers_table(fitted.servers, judged))
    print_facts(_LAWS, _laws(fitted.work))
    for title, rows in checks.items():
        print_table(_predictions_table(title, rows))
    print_facts(f"Written: {asked.out}", _next(asked.out, fleet, trace))
    for line in _warnings(fitted.servers, judged):
        say(f"reverie fit: {line}")


def _fit_requests(asked: FitLog, fleet: Path) -> None:
    """What can be said of requests alone, and the load that they are for servers that are known otherwise."""
    if len(asked.logs) > 1:
        raise ValueError(f"--fleet {fleet} goes with one recording; {len(asked.logs)} files were given")
    trace = read_trace(asked.logs[0], reading=asked.reading)
    jobs = len(trace.work)
    task = Own(fleet=fleet).play(trace, "recorded", jobs)(np.random.default_rng(0))
    load = offered_load(task, span(task.workload, jobs))
    asked.out.mkdir(parents=True, exist_ok=True)
    write_text(asked.out / "requests.csv", _trace_csv(trace))
    written = _next(asked.out, fleet, trace)[:2]
    if asked.output == "json":
        workload, sizes = describe(trace).__dict__, [law._asdict() for law in laws(trace.work)]
        told = {"log": trace.name, "provenance": dict(trace.provenance), "workload": workload, "sizes": sizes}
        print_json(told | {"load": load, "next": dict(written)})
        return
    print_facts(trace.name, [*trace.provenance, *summary_facts(describe(trace)), (f"load of {fleet}", f"{load:.3g}")])
    print_facts(_LAWS, _laws(trace.work))
    print_facts(f"Written: {asked.out}", written)


def _checked(requests: Requests, fitted: Fit, how: Placed) -> dict[str, list[Predicted]]:
    """The second half of a log as the numbers of the whole, and of its first half, say it should be."""
    middle = len(requests.server) // 2
    first, second = requests.part(slice(0, middle)), requests.part(slice(middle, None))
    servers = range(len(requests.servers))
    if how == "queued" or middle < FEWEST or not np.isin(servers, first.server).all():
        return {}
    of_first = fit(first)
    return {
        "predicted from the first half": predict(second, of_first.servers, of_first.work, how),
        "predicted from the whole log": predict(second, fitted.servers, fitted.work, how),
    }


# --- what is printed -------------------------------------------------------------------------------------------------


_LAWS = "Sizes as a law (KS distance)"


def _laws(work: np.ndarray) -> list[tuple[str, str]]:
    return [(law.text, f"{law.distance:.3f}") for law in laws(work)]


def _servers_table(servers: Sequence[Server], judged: Sequence[Alike]) -> Table:
    caption = (
        "At most `slots` requests in service, each at speed / (1 + b (n - 1)) while n are; speed 1 is the fastest, "
        "alone. In brackets 95 % intervals. KS: distance of works from the others' (in brackets what chance allows); "
        "rank: correlation of work with how many were there; pace: of the second half over the first."
    )
    table = Table(title="Servers", title_justify="left", caption=caption, caption_justify="left")
    for name in ("server", "requests", "at once", "speed", "b", "slots", "KS", "rank", "pace"):
        table.add_column(name, justify="left" if name == "server" else "right")
    for server, works in zip(servers, judged, strict=True):
        alone = server.slots.value == server.slots.high == 1
        table.add_row(
            server.name,
            f"{server.requests:,}",
            f"{server.most}",
            _between(server.speed),
            "no effect" if alone else _between(server.b),
            _slots(server.slots),
            f"{works.distance:.3f} [{works.critical:.3f}]",
            f"{works.correlation:+.2f}",
            f"{works.pace:.2f} ± {2 * works.error:.2f}",
        )
    return table


def _between(number: Interval) -> str:
    return f"{number.value:.3g} [{number.low:.3g}, {number.high:.3g}]"


def _slots(slots: Interval) -> str:
    high = "or more" if np.isinf(slots.high) else f"to {slots.high:.0f}"
    exact = slots.low == slots.high
    return f"{slots.value:.0f}" if exact else f"{slots.value:.0f} ({slots.low:.0f} {high})"


def _predictions_table(title: str, rows: Sequence[Predicted]) -> Table:
    caption = "Milliseconds, real / predicted; ± what chance does to so few requests (two standard deviations)."
    table = Table(title=f"Second half, {title}", title_justify="left", caption=caption, caption_justify="left")
    for name in ("server", "requests", *Times._fields):
        table.add_column(name, justify="left" if name == "server" else "right")
    for row in rows:
        cells = [f"{_ms(a)} / {_ms(b)}" for a, b in zip(row.real, row.predicted, strict=True)]
        cells[0] += f" ± {_ms(row.chance)}"
        table.add_row(row.server, f"{row.requests:,}", *cells)
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def _warnings(servers: Sequence[Server], judged: Sequence[Alike]) -> list[str]:
    lines = []
    for server, works in zip(servers, judged, strict=True):
        if np.isinf(server.slots.high):
            lines.append(
                f"{server.name}: never more than {server.most} requests were there, so it may serve "
                f"{server.slots.low:.0f} at once or any more: a log of busier hours would tell, or who configured it"
            )
        if abs(np.log(works.pace)) > 3 * max(works.error, 0.02):
            lines.append(f"{server.name}: not steady, in the second half {works.pace:.2f} of its pace in the first")
        if works.distance > 2 * works.critical:
            lines.append(f"{server.name}: its works are unlike the others' (KS {works.distance:.2f}): other requests?")
    return lines


def _next(out: Path, fleet: Path, trace: Trace) -> list[tuple[str, str]]:
    """The commands that come next; weights are held for a tenth of a second, as `serve` does, which begins in the mode
    of its file, shadow."""
    where = ["--fleet", f"{fleet}", "--trace", f"{out / 'requests.csv'}", "--load", "recorded"]
    where += ["--jobs", f"{max(len(trace.work) // 10, 1)}"] if len(trace.work) < 10_000 else []
    where += ["--idle-first", "--hold", f"{trace_unit(trace) / 10:.4g}"]
    tuned = f"{out / 'tuned.safetensors'}"
    tune = ["reverie", "tune", "--rule", "adaptive-weights", *where, "--out", tuned]
    compare = ["reverie", "compare", *where, "--held-out", "--view", "latency"]
    compare += [word for policy in (tuned, "equal-weights", "jsq") for word in ("--policy", policy)]
    serve = ["reverie", "serve", "--config", f"{out / 'serve.toml'}", "--policy", tuned]
    return [(name, shlex.join(words)) for name, words in (("tune", tune), ("compare", compare), ("serve", serve))]


def _described(
    trace: Trace,
    fitted: Fit,
    how: Placed,
    judged: Sequence[Alike],
    checks: dict[str, list[Predicted]],
    commands: dict[str, str],
) -> dict[str, Any]:
    servers = []
    for server, works in zip(fitted.servers, judged, strict=True):
        numbers = {name: getattr(server, name)._asdict() for name in ("speed", "b", "slots")}
        servers.append({"name": server.name, "requests": server.requests, "most": server.most, **numbers})
        servers[-1] |= {"works": works._asdict()}
    predictions = {
        title: [{**row._asdict(), "real": row.real._asdict(), "predicted": row.predicted._asdict()} for row in rows]
        for title, rows in checks.items()
    }
    return {
        "log": trace.name,
        "provenance": dict(trace.provenance),
        "placed": how,
        "workload": describe(trace).__dict__,
        "sizes": [law._asdict() for law in laws(fitted.work)],
        "servers": servers,
        "predictions": predictions,
        "next": commands,
    }


# --- what is written -------------------------------------------------------------------------------------------------


def _fleet_toml(servers: Sequence[Server]) -> str:
    lines = ["# Read from a log by `reverie fit`. Speed 1 is the fastest server, alone; work is in its seconds.\n"]
    for server in servers:
        b = server.b.value
        lines.append(
            f"\n[[server]]\nname = {_quoted(server.name)}\n"
            f"speed = {server.speed.value:.6g}    # {server.speed.low:.4g} to {server.speed.high:.4g}\n"
            f"a = {1 - b:.6g}\nb = {b:.6g}    # {server.b.low:.4g} to {server.b.high:.4g}\n"
            f"slots = {server.slots.value:.0f}    # {_slots(server.slots)}\n"
        )
    return "".join(lines)


def _trace_csv(trace: Trace) -> str:
    rows = (f"{at:.6f},{work:.9g}\n" for at, work in zip(trace.arrival, trace.work, strict=True))
    return "".join(["arrival,size\n", *rows])


def _serve_toml(servers: Sequence[Server]) -> str:
    most = max(server.capacity for server in servers)
    lines = [
        "# Written by `reverie fit` from a log; docs/serving.md has every key.\n"
        'mode = "shadow"\n\n[balancer]\n# socket = "/run/haproxy/reverie.sock"\n# backend = "servers"\n'
    ]
    for server in servers:
        address = 'address = ""    # host:port, which `reverie serve init` needs and the log does not say'
        if ":" in server.name:
            address = f"address = {_quoted(server.name)}"
        lines.append(
            f"\n[[server]]\nname = {_quoted(server.name)}\n{address}\n"
            f"{_slots_to_serve(server.slots)}\nweight = {max(1, round(256 * server.capacity / most))}\n"
        )
    return "".join(lines)


def _slots_to_serve(slots: Interval) -> str:
    """A `maxconn` that is too low starves servers, so what the log cannot tell is left to be filled in."""
    if math.isfinite(slots.high):
        return f"slots = {slots.value:.0f}"
    return f"# slots = {slots.value:.0f} or more: the log cannot tell; how many does it serve at once?"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
