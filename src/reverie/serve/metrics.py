"""What /metrics tells of an agent, for Prometheus; read off it when asked, so that decisions pay nothing."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from reverie.serve.agent import Agent
from reverie.serve.decide import Policy


def publish(agent: Agent, port: int) -> None:
    """Serve /metrics on a port of the loopback, from a thread of its own.

    Raises:
        ModuleNotFoundError: the extra `serve` is not installed.
        OSError: the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("metrics need `pip install 'reverie[serve]'`; or set metrics = 0") from error
    registry = CollectorRegistry()
    registry.register(Collector(agent))
    start_http_server(port, "127.0.0.1", registry)


class Collector:
    """The contract of prometheus-client: families of metrics, made when they are asked for."""

    def __init__(self, agent: Agent):
        self._agent = agent

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        agent = self._agent
        config, known, decision = agent.config, agent.known, agent.decision

        def gauge(name: str, help_: str, values: Mapping[str, int] | Mapping[str, float], label: str) -> Any:
            family = GaugeMetricFamily(f"reverie_{name}", help_, labels=[label])
            for of, value in values.items():
                family.add_metric([of], value)
            return family

        def counter(name: str, help_: str, values: Mapping[str, int] | Mapping[str, float], label: str) -> Any:
            family = CounterMetricFamily(f"reverie_{name}", help_, labels=[label])
            for of, value in values.items():
                family.add_metric([of], value)
            return family

        yield counter("decisions", "Decisions.", agent.decisions, "mode")
        yield counter("fallback", "Decisions for the configured weights.", agent.fallbacks, "reason")
        yield SummaryMetricFamily(
            "reverie_decision_seconds", "What decisions took.", agent.decisions.total(), agent.seconds
        )
        yield gauge("observation_age_seconds", "Since it was heard.", {"balancer": agent.age}, "source")
        stale = agent.age > config.limits.age
        yield GaugeMetricFamily("reverie_stale_inputs", "Sources that are too old to decide by.", stale)
        yield CounterMetricFamily("reverie_balancer_restarts", "Other processes that answered.", agent.restarts)
        yield CounterMetricFamily("reverie_weight_push_failures", "Weights that did not arrive.", agent.push_failures)
        yield CounterMetricFamily("reverie_observe_failures", "Questions without answer.", agent.observe_failures)
        yield gauge("mode", "1 for the mode it runs in.", {config.mode: 1}, "mode")
        yield gauge("arm", "1 for the arm of the trial that acts now.", {agent.slice.arm: 1}, "arm")
        yield GaugeMetricFamily("reverie_halted", "Whether a trial was lost and the policy stays out.", agent.halted)
        blocks = {"better": agent.score.better, "worse": agent.score.worse}
        yield counter("trial_blocks", "Blocks by whether the policy's p99 was below control's.", blocks, "result")
        yield GaugeMetricFamily("reverie_trial_p99_ratio", "Over control's, in the last block.", agent.score.ratio)
        info = GaugeMetricFamily(
            "reverie_decision_info", "What decides.", labels=["mode", "policy", "tau", "config_sha"]
        )
        info.add_metric([config.mode, config.policy, f"{agent.rule.tau:g}", config.sha], 1)
        yield info
        if known.counts is None or known.learned is None:
            return
        counts, policy = known.counts, cast(Policy, agent.rule)
        estimate = policy.estimate(known.learned, np.asarray(counts.configured))

        def of_servers(values: Any) -> dict[str, float]:
            return dict(zip(counts.names, map(float, values), strict=True))

        yield gauge("server_weight", "As the balancer has it.", of_servers(counts.weights), "server")
        yield gauge("wanted_weight", "As decided, sent or not.", decision.weights or {}, "server")
        yield gauge("server_speed_estimate", "Requests a second while busy.", of_servers(estimate), "server")
        yield gauge("inflight", "Requests at the server.", of_servers(counts.in_progress), "server")
        yield counter("server_failures", "Failures at the server.", of_servers(counts.failed), "server")
        if np.sum(known.learned.answered) > 0:
            predicted = (np.asarray(counts.in_progress) + 1) / estimate
            yield gauge("predicted_response_seconds", "Of the next request.", of_servers(predicted), "server")
