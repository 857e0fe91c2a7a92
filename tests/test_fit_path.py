"""The way of docs/from-a-log.md in front of a real HAProxy and servers that sleep: log, fit, tune, compare, serve."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from serving import Stack, stack, until

from reverie import cli
from reverie.envs.fleet.fitting import Interval, Server, works
from reverie.envs.fleet.formats.reading import Reading, read_requests
from reverie.serve.audit import replay
from reverie.serve.haproxy_config import haproxy_config
from reverie.serve.live import SleepingServer, poisson_plan
from reverie.serve.race import MOST_LAG

SPEEDS, SLOTS, B, WORK, RATE = (1.0, 0.5, 0.25), 4, 0.5, 0.06, 32.0


@contextmanager
def logged(running: Stack) -> Iterator[list[str]]:
    """HAProxy as it is run without us: least connections, no slots, its usual log, line by line."""
    path, lines = running.config.state / "log.sock", list[str]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(0.5)
        own = haproxy_config(running.config, capped=False).replace('log-format "%Ta %ST"', "option httplog")
        text = own.replace(f"log {running.config.log_socket} len 256", f"log {path} len 1024")
        (running.config.state / "haproxy.cfg").write_text(text)
        running.reload()

        def listen() -> None:
            while True:
                try:
                    lines.append(heard.recv(1024).decode())
                except TimeoutError:
                    if over.is_set():
                        return

        over, thread = threading.Event(), threading.Thread(target=listen)
        thread.start()
        yield lines
        over.set()
        thread.join()


def share(running: Stack) -> None:
    """Let the servers slow requests down that they serve at once."""
    for server, speed in zip(running.servers, SPEEDS, strict=True):
        port = server._listening.sockets[0].getsockname()[1]
        running.on_loop(server.stop)
        fresh = SleepingServer(speed, 1 - B, B, SLOTS)
        running.servers[running.servers.index(server)] = fresh
        running.on_loop(lambda fresh=fresh, port=port: fresh.start(port))


def works_of_the_truth() -> np.ndarray:
    """What the log says that each request brought, if the servers are what they are."""
    requests, exact = (
        read_requests([Path("proxy.log")], Reading(drop="zero,broken")),
        [Interval(v, v, v) for v in SPEEDS],
    )
    b, slots = Interval(B, B, B), Interval(SLOTS, SLOTS, SLOTS)
    return works(requests, [Server(f"s{i}", 0, 0, speed, b, slots) for i, speed in enumerate(exact)])


def operated(running: Stack, written: Path) -> str:
    """serve.toml of a fit with what only the operator knows."""
    own, text = running.config, written.read_text()
    for port in running.ports:
        text = re.sub(r'address = "" .*', f'address = "127.0.0.1:{port}"', text, count=1)
    text = re.sub(r"# slots = .*", f"slots = {SLOTS}", text)
    socket = f'socket = "{own.balancer.socket}"\nlisten = "{own.balancer.listen}"'
    text = text.replace('# socket = "/run/haproxy/reverie.sock"', socket)
    places = f'metrics = 0\nstate = "{own.state}"\naudit = "{own.audit}"\n'
    return text.replace("[balancer]", f"{places}[balancer]") + "\n[trial]\nslice = 1.0\nsettle = 0.2\n"


def test_from_a_log_to_weights_that_act(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with stack(SPEEDS, SLOTS) as running:
        share(running)
        plan = poisson_plan(RATE, 12.0, WORK, seed=13)
        with logged(running) as lines:
            answers = running.play(plan)
        assert answers.failed == 0
        Path("proxy.log").write_text("\n".join(line for line in lines if "] requests servers/s" in line))
        call = ["fit", "proxy.log", "--drop", "zero,broken", "--out", "ours", "--output", "json"]
        assert cli.main(call) == 0
        found = json.loads(capsys.readouterr().out)
        fair = np.quantile(answers.lag, 0.99) <= MOST_LAG * answers.seconds.mean()
        assert found["placed"] == "fewest" or not fair
        # Of 384 requests, on a machine that may be busy: intervals of so few miss the truth more often than they say.
        beyond = 1.3 if fair else 2.0  # where it sends late it answers late too, which makes servers more alike
        for server, speed in zip(found["servers"], SPEEDS, strict=True):
            assert server["speed"]["low"] / beyond < speed < server["speed"]["high"] * beyond
        slots = [server["slots"] for server in found["servers"]]
        assert sum(each["low"] <= SLOTS <= (each["high"] or np.inf) for each in slots) >= 2
        assert 0.1 < np.median([server["b"]["value"] for server in found["servers"]]) < 1.0
        # A line of the log may be lost, or show a request of no time: compared as distributions.
        truth, quantiles = works_of_the_truth(), np.linspace(0.1, 0.9, 9)
        assert len(truth) >= 0.98 * len(plan.work)
        assert np.abs(np.quantile(truth, quantiles) - np.quantile(plan.work, quantiles)).max() < 0.03
        tune, compare, serving = (shlex.split(words)[1:] for words in found["next"].values())
        # So short a search takes what chance likes best. With this seed its gain lies between 0.7 and 1.7 whatever that
        # is; above 3, the guard `spread` keeps such weights out.
        few = ["--members", "4", "--episodes", "2", "--generations", "2", "--seed", "10", "--quiet"]
        assert cli.main([*tune, *few]) == 0
        capsys.readouterr()
        assert cli.main([*compare[:-2], "--output", "json"]) == 0  # jsq would be another program to compile
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert {row["agent"] for row in rows} == {"tuned", "equal-weights"}
        serve = Path("ours/serve.toml")
        serve.write_text(operated(running, serve))
        assert cli.main(["serve", "init", str(serve), "--out", "deployment"]) == 0
        (running.config.state / "haproxy.cfg").write_text(Path("deployment/haproxy.cfg").read_text())
        running.reload()
        configured = running.weights()
        command = [sys.executable, "-m", "reverie", *serving]
        agent = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            until(lambda: running.config.audit.exists(), 30)
            assert running.play(poisson_plan(RATE, 1.5, WORK, seed=4)).failed == 0
            assert running.weights() == configured  # shadow sends nothing
            for before, mode in (("shadow", "canary"), ("canary", "active")):
                serve.write_text(serve.read_text().replace(f'mode = "{before}"', f'mode = "{mode}"'))
                agent.send_signal(signal.SIGHUP)
                for seed in range(10):  # until it has acted in this mode
                    assert running.play(poisson_plan(RATE, 1.5, WORK, seed=seed)).failed == 0
                    if any(each.change.mode == mode and each.change.sent for each in replay(running.config.audit)):
                        break
        finally:
            agent.terminate()
            agent.wait(20)
        changes = list(replay(running.config.audit))
        assert all(each.same for each in changes)
        sent = {each.change.mode for each in changes if each.change.sent}
        assert {each.change.mode for each in changes} == {"shadow", "canary", "active"}
        assert sent == {"canary", "active"}, Counter((each.change.mode, each.change.decision.fired) for each in changes)
        until(lambda: running.driver.observe().at_defaults, 5)
