"""The agent: observes, decides and sends, 1 to 10 times a second, and says so to everybody who must know.

One tick is `Agent.tick`; `run` makes a process of it. What goes wrong with the balancer is counted and tried again;
what goes wrong here ends the process, and the configured weights are set on the way out, or by the dead-man's switch.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from reverie.files import write_text
from reverie.serve import deadman
from reverie.serve.audit import Audit, Begin, Change
from reverie.serve.balancer import Balancer, Counts
from reverie.serve.decide import Decision, Known, Weigh, decide, fresh
from reverie.serve.drivers import DRIVERS
from reverie.serve.guards import WHY
from reverie.serve.load import load_rule
from reverie.serve.settings import ServeConfig
from reverie.serve.trained import Trained
from reverie.serve.trial import Score, Slice, judge, lost, slice_at

type Say = Callable[[str], None]
_LONG = 10.0
"""Seconds without the policy's weights after which it is said why."""


class Agent:
    """A policy in front of a balancer. Its public fields are what /metrics tells."""

    def __init__(
        self,
        config: ServeConfig,
        balancer: Balancer,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
        weigh: Weigh | None = None,
        seed: int | None = None,
    ):
        """Arguments: `clock`, `weigh` and the `seed` of the order of slices (drawn unless given), for tests."""
        self._balancer, self._say, self._clock, self._weigh = balancer, say, clock, weigh
        self._seed = time.time_ns() % 2**32 if seed is None else seed
        self._alive, self._audit = deadman.SignOfLife(config.state), Audit(config.audit, config.audit_bytes)
        self._requests = _RequestLog(config)
        self.known: Known = fresh(clock(), None)
        self.decision = Decision((), None, ())
        self.score, self.slice = Score(), Slice(0, "policy", judged=False)
        self.decisions: Counter[str] = Counter()
        """By mode."""
        self.fallbacks: Counter[str] = Counter()
        """Decisions for the configured weights, by the guard that said so."""
        self.restarts = self.push_failures = self.observe_failures = 0
        self.seconds = 0.0
        """That decisions have taken."""
        self._last: tuple = ()
        self._complaint = ""
        self._begin(config)

    def _begin(self, config: ServeConfig) -> None:
        rule = load_rule(config)
        # What an agent remembers says nothing to another policy, nor theirs to it; any rule counts alike.
        if self.known.learned is not None and rule != self.rule and Trained in (type(rule), type(self.rule)):
            self.known = replace(self.known, learned=None)
        self.config, self.rule = config, rule
        self._began = self._acted = self._clock()
        self._kept_out = False
        self._times: dict[str, list[float]] = {"policy": [], "control": []}
        self._audit.begin(Begin(time.time(), config, self.rule))
        self._give_sign()

    @property
    def sends(self) -> bool:
        """Whether weights go to the balancer."""
        return self.config.mode in ("canary", "active")

    @property
    def age(self) -> float:
        """Seconds since the balancer was heard."""
        return self._clock() - self.known.counts.at if self.known.counts else float("inf")

    @property
    def halted(self) -> bool:
        """Whether a trial was lost, and nobody armed the policy again."""
        return halted_by(self.config).exists()

    def reload(self, config: ServeConfig) -> None:
        """Go on with another configuration.

        Raises:
            ValueError: it needs another process, or its policy is not possible; the old one holds.
        """
        fixed = "balancer", "state", "audit", "metrics"
        if changed := [name for name in fixed if getattr(config, name) != getattr(self.config, name)]:
            raise ValueError(f"{', '.join(changed)}: changes when the process is started anew")
        load_rule(config)
        if self.sends and config.mode in ("off", "shadow") and not deadman.restore(self._balancer):
            raise ValueError("the balancer did not take the configured weights back")
        self._begin(config)
        self._say(f"reverie serve: mode {config.mode}, policy {config.policy}, configuration {config.sha}")

    def tick(self) -> None:
        """Observe, decide, and send what has changed."""
        began = self._clock()
        counts = self._observe()
        self._follow_trial(began)
        if counts is None or self.config.mode == "off":
            self._acted = began
            self._give_sign()
            return
        healthy = counts is not self.known.counts
        halted, before, now = self.halted, self.known, self._clock()
        arm = self.slice.arm if self.sends else "policy"
        decision, self.known = decide(self.config, self.rule, before, counts, now, arm, halted, self._weigh)
        sent, answer = self._send(counts, decision) if self.sends else ({}, "")
        self.decision = decision
        self.decisions[self.config.mode] += 1
        if decision.weights is None:
            self.fallbacks[decision.fired[-1]] += 1
        self._say_why_not(decision, now)
        news = decision.weights, decision.fired, answer
        if news != self._last or sent != {}:
            change = Change(
                time.time(), self.config.sha, self.config.mode, arm, halted, now, before, counts, decision, sent, answer
            )
            self._audit.change(change)
        self._last = news
        self.seconds += self._clock() - began
        if healthy and not answer:
            self._give_sign()

    def _say_why_not(self, decision: Decision, now: float) -> None:
        """Say it where the configured weights, which an operator may take for the policy's, stay in force."""
        guard = decision.fired[-1] if decision.weights is None else ""
        if guard not in WHY:
            self._acted, self._kept_out = now, False
        elif now - self._acted > _LONG and not self._kept_out:
            self._kept_out = True
            self._say(f"reverie serve: guard {guard} has kept the policy's weights out for {_LONG:.0f} s: {WHY[guard]}")

    def _observe(self) -> Counts | None:
        """What the balancer tells, or told last."""
        try:
            counts = self._balancer.observe()
        except (OSError, ValueError) as error:
            self.observe_failures += 1
            self._complain(f"the balancer does not tell anything: {error}")
            return self.known.counts
        if self.known.counts is not None and self.known.counts.process != counts.process:
            self.restarts += 1
        return counts

    def _send(self, counts: Counts, decision: Decision) -> tuple[dict[str, int] | None, str]:
        """What was sent (None: the configured weights), and what went wrong."""
        actual = dict(zip(counts.names, counts.weights, strict=True))
        try:
            if decision.weights is None:
                if counts.at_defaults:
                    return {}, ""
                self._balancer.defaults()
                return None, ""
            changed = {name: weight for name, weight in decision.weights.items() if weight != actual[name]}
            if not changed:
                return {}, ""
            if self._clock() - counts.at > self.config.limits.age:  # stopped between seeing and sending
                return {}, "what was decided is stale"
            self._balancer.apply(changed)
            return changed, ""
        except (OSError, ValueError) as error:
            self.push_failures += 1
            self._complain(f"weights do not reach the balancer: {error}")
            return {}, str(error)

    def _follow_trial(self, now: float) -> None:
        """Take note of how long requests took, and judge blocks that are over."""
        times = self._requests.read(self.config.limits.failure)
        if not self.sends:
            return
        current = slice_at(now - self._began, self.config.trial, self.config.mode, self._seed)
        if current.block != self.slice.block:
            self.score = judge(self.score, self._times["control"], self._times["policy"], self.config.trial)
            self._times = {"policy": [], "control": []}
            if (why := lost(self.score, self.config.trial, self.config.mode)) and not self.halted:
                write_text(halted_by(self.config), f"{why}\n")
                self.score = Score()  # whoever arms it again begins another trial
                self._say(f"reverie serve: the trial is lost: {why}. The configured weights stay until `rearm`")
        self.slice = current
        if current.judged:
            self._times[current.arm] += times

    def _give_sign(self) -> None:
        self._alive.give(self._clock(), self.sends)

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._say(f"reverie serve: {what}")
        self._complaint = what

    def stop(self) -> None:
        """Leave the configured weights behind."""
        if self.sends and deadman.restore(self._balancer):
            self._alive.give(self._clock(), False)
        self._requests.close()
        self._alive.close()
        self._audit.close()


def halted_by(config: ServeConfig) -> Path:
    """The file that keeps a policy out whose trial was lost; `reverie serve rearm` removes it."""
    return config.audit.with_name("halted.txt")


class _RequestLog:
    """What the balancer says of each request, in datagrams."""

    def __init__(self, config: ServeConfig):
        self._path, self._times = config.log_socket, DRIVERS[config.balancer.driver].request_times
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._path.chmod(0o622)

    def read(self, failure: float) -> list[float]:
        """Seconds of each request since the last call; one that failed counts for `failure` seconds at least."""
        times: list[float] = []
        with suppress(BlockingIOError):
            while True:
                for line in self._socket.recv(1 << 16).splitlines():
                    with suppress(ValueError):
                        times += self._times(line, failure)
        return times

    def close(self) -> None:
        self._socket.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


def run(load: Callable[[], ServeConfig], say: Say) -> None:
    """Be the process: until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    heard: list[int] = []
    numbers = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
    usual = {number: signal.signal(number, lambda came, _: heard.append(came)) for number in numbers}
    config = load()
    agent = Agent(config, config.balancer.connect(), say)
    try:
        if config.metrics:
            from reverie.serve.metrics import publish

            publish(agent, config.metrics)
        say(f"reverie serve: mode {config.mode}, policy {config.policy}, configuration {config.sha}")
        _tell_systemd("READY=1")
        due, switch = time.monotonic(), None
        while True:
            if agent.sends and (switch is None or switch.poll() is not None) and not deadman.is_on_duty(config.state):
                switch = subprocess.Popen(deadman_command(config, str(os.getpid())), start_new_session=True)
            agent.tick()
            _tell_systemd("WATCHDOG=1")
            due = max(due + 1 / agent.config.hz, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))
            came, heard[:] = [*heard], []
            if any(number != signal.SIGHUP for number in came):
                return
            if not came:
                continue
            try:
                agent.reload(load())
            except (OSError, ValueError) as error:
                say(f"reverie serve: the configuration stays as it was: {error}")
    finally:
        agent.stop()
        for number, handler in usual.items():
            signal.signal(number, handler)


def deadman_command(config: ServeConfig, *how: str) -> Sequence[str]:
    """The command line of the dead-man's switch."""
    balancer = config.balancer
    words = (
        config.state,
        config.limits.dead,
        balancer.driver,
        balancer.socket,
        balancer.backend,
        balancer.endpoints or "",
    )
    return [sys.executable, "-m", "reverie.serve.deadman", *map(str, words), *how]


def _tell_systemd(message: str) -> None:
    """A word to the service manager, where there is one (sd_notify)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
            manager.sendto(message.encode(), address.replace("@", "\0", 1))
