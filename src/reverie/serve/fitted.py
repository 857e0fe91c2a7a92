"""What is said of servers that were found in a log (`serve/logged.py`), and the files that they become.

Tables and sentences for people, the same as data, a fleet and a trace for the simulator, a configuration for `serve`.
"""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from reverie.envs.fleet.families import trace_unit
from reverie.envs.fleet.fitting import Interval, Server
from reverie.envs.fleet.traces import Trace, describe
from reverie.report.output import plain_table
from reverie.serve.logged import Found, Placed, Predicted, Times, laws

PLACED: dict[Placed, str] = {
    "fewest": "where the fewest were in progress (least connections), as can be seen of them",
    "as logged": "not where the fewest were: predictions repeat the places. If the balancer looked at its servers in "
    "another way, they come out too slow",
    "queued": "held back by the balancer until a slot was free (maxconn): when a request was sent depends on works, so "
    "nothing is predicted; the works are judged alone",
}


# --- what is said ---------------------------------------------------------------------------------------------------


LAWS = "Sizes as a law (KS distance)"


def law_facts(work: np.ndarray) -> list[tuple[str, str]]:
    """Laws that may stand for works, and how far each is from them."""
    return [(law.text, f"{law.distance:.3f}") for law in laws(work)]


def servers_table(found: Found) -> Table:
    """What was found of each server, and whether its works are like the others'."""
    rows = []
    for server, works in zip(found.fit.servers, found.alike, strict=True):
        alone = server.slots.value == server.slots.high == 1
        rows.append(
            [
                server.name,
                f"{server.requests:,}",
                f"{server.most}",
                _between(server.speed),
                "no effect" if alone else _between(server.b),
                _slots(server.slots),
                f"{works.distance:.3f} [{works.critical:.3f}]",
                f"{works.correlation:+.2f}",
                f"{works.pace:.2f} ± {2 * works.error:.2f}",
            ]
        )
    return plain_table(
        "Servers",
        ("server", "requests", "at once", "speed", "b", "slots", "KS", "rank", "pace"),
        rows,
        "At most `slots` requests in service, each at speed / (1 + b (n - 1)) while n are; speed 1 is the fastest, "
        "alone. In brackets 95 % intervals. KS: distance of works from the others' (in brackets what chance allows); "
        "rank: correlation of work with how many were there; pace: of the second half over the first.",
    )


def _between(number: Interval) -> str:
    return f"{number.value:.3g} [{number.low:.3g}, {number.high:.3g}]"


def _slots(slots: Interval) -> str:
    high = "or more" if np.isinf(slots.high) else f"to {slots.high:.0f}"
    exact = slots.low == slots.high
    return f"{slots.value:.0f}" if exact else f"{slots.value:.0f} ({slots.low:.0f} {high})"


def predicted_table(title: str, rows: Sequence[Predicted]) -> Table:
    """Response times in the second half of a log beside those that were predicted."""
    caption = "Milliseconds, real / predicted; ± what chance does to so few requests (two standard deviations)."
    cells = []
    for row in rows:
        mean, *others = (f"{_ms(a)} / {_ms(b)}" for a, b in zip(row.real, row.predicted, strict=True))
        cells.append([row.server, f"{row.requests:,}", f"{mean} ± {_ms(row.chance)}", *others])
    return plain_table(f"Second half, {title}", ("server", "requests", *Times._fields), cells, caption)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def warnings(found: Found) -> list[str]:
    """What the reader should mistrust."""
    lines = []
    for server, works in zip(found.fit.servers, found.alike, strict=True):
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


def next_commands(out: Path, fleet: Path, trace: Trace) -> list[tuple[str, str]]:
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


def described(found: Found) -> dict[str, Any]:
    """The same as data."""
    servers = []
    for server, works in zip(found.fit.servers, found.alike, strict=True):
        numbers = {name: getattr(server, name)._asdict() for name in ("speed", "b", "slots")}
        servers.append({"name": server.name, "requests": server.requests, "most": server.most, **numbers})
        servers[-1] |= {"works": works._asdict()}
    predictions = {
        title: [{**row._asdict(), "real": row.real._asdict(), "predicted": row.predicted._asdict()} for row in rows]
        for title, rows in found.predicted.items()
    }
    told = {"placed": found.placed, "servers": servers, "predictions": predictions}
    return described_requests(found.trace) | told


def described_requests(trace: Trace) -> dict[str, Any]:
    """Requests alone, as data."""
    return {
        "log": trace.name,
        "provenance": dict(trace.provenance),
        "workload": describe(trace).__dict__,
        "sizes": [law._asdict() for law in laws(trace.work)],
    }


# --- what is written -------------------------------------------------------------------------------------------------


def fleet_toml(servers: Sequence[Server]) -> str:
    """Servers for the simulator."""
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


def trace_csv(trace: Trace) -> str:
    """Requests with their works."""
    rows = (f"{at:.6f},{work:.9g}\n" for at, work in zip(trace.arrival, trace.work, strict=True))
    return "".join(["arrival,size\n", *rows])


def serve_toml(servers: Sequence[Server]) -> str:
    """A configuration for `reverie serve`, in mode shadow."""
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
