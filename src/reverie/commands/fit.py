"""`reverie fit`: what a balancer's log says of its servers and requests, and how far that is true."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from reverie.envs.fleet.formats.reading import Reading, read_requests, read_trace
from reverie.envs.fleet.load import offered_load
from reverie.envs.fleet.own import Own
from reverie.envs.fleet.traces import describe
from reverie.envs.fleet.workload import span
from reverie.files import write_text
from reverie.report.output import Output, print_facts, print_json, print_table, say
from reverie.report.words import summary_facts
from reverie.serve import fitted
from reverie.serve.logged import examine


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
    found = examine(requests)
    trace, servers = found.trace, found.fit.servers
    asked.out.mkdir(parents=True, exist_ok=True)
    write_text(fleet := asked.out / "fleet.toml", fitted.fleet_toml(servers))
    write_text(asked.out / "requests.csv", fitted.trace_csv(trace))
    write_text(asked.out / "serve.toml", fitted.serve_toml(servers))
    then = fitted.next_commands(asked.out, fleet, trace)
    if asked.output == "json":
        print_json(fitted.described(found) | {"next": dict(then)})
        return
    how = ("placed", fitted.PLACED[found.placed])
    print_facts(requests.name, [*trace.provenance, how, *summary_facts(describe(trace))])
    print_table(fitted.servers_table(found))
    print_facts(fitted.LAWS, fitted.law_facts(trace.work))
    for title, rows in found.predicted.items():
        print_table(fitted.predicted_table(title, rows))
    print_facts(f"Written: {asked.out}", then)
    for line in fitted.warnings(found):
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
    write_text(asked.out / "requests.csv", fitted.trace_csv(trace))
    then = fitted.next_commands(asked.out, fleet, trace)[:2]
    if asked.output == "json":
        print_json(fitted.described_requests(trace) | {"load": load, "next": dict(then)})
        return
    print_facts(trace.name, [*trace.provenance, *summary_facts(describe(trace)), (f"load of {fleet}", f"{load:.3g}")])
    print_facts(fitted.LAWS, fitted.law_facts(trace.work))
    print_facts(f"Written: {asked.out}", then)
