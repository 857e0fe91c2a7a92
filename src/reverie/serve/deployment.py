"""The files that go with an agent: its configuration as an example, units for systemd, rules for Prometheus and a
dashboard for Grafana, as text."""

import json
import shlex
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from reverie.serve.agent import deadman_command
from reverie.serve.envoy_config import endpoints, envoy_config
from reverie.serve.haproxy_config import haproxy_config
from reverie.serve.settings import ServeConfig

EXAMPLE = """\
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
_HARDENED = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_UNIX AF_INET
MemoryMax=512M"""

ALERTS: Mapping[str, tuple[str, str, str]] = {
    "ReverieGone": ("absent(reverie_decision_info)", "1m", "The agent tells nothing; weights are the configured ones."),
    "ReverieFallsBack": (
        'sum(rate(reverie_fallback_total{reason!="control"}[5m])) / sum(rate(reverie_decisions_total[5m])) > 0.01',
        "5m",
        "More than 1 % of decisions are for the configured weights.",
    ),
    "ReverieBlind": ("reverie_observation_age_seconds > 2", "10s", "The balancer has not been heard for 2 seconds."),
    "ReverieCannotPush": ("increase(reverie_weight_push_failures_total[5m]) > 0", "0s", "Weights do not arrive."),
    "ReverieHalted": ("reverie_halted == 1", "0s", "A trial was lost; the configured weights stay until rearmed."),
    "ReverieSlower": ("reverie_trial_p99_ratio > 1.2", "5m", "p99 is above 1.2 times that of the configured weights."),
    "ReverieSlowDecisions": (
        "rate(reverie_decision_seconds_sum[5m]) / rate(reverie_decision_seconds_count[5m]) > 0.01",
        "5m",
        "A decision takes more than 10 ms.",
    ),
}
"""Name: what is looked at, for how long, and what it means."""

PANELS: Mapping[str, Mapping[str, str]] = {
    "Share of weight (wanted, sent or not)": {
        "{{server}}": "reverie_wanted_weight / scalar(sum(reverie_wanted_weight))"
    },
    "Share of capacity (estimated)": {
        "{{server}}": "reverie_server_speed_estimate / scalar(sum(reverie_server_speed_estimate))"
    },
    "Weight in the balancer": {"{{server}}": "reverie_server_weight"},
    "Requests at servers": {"{{server}}": "reverie_inflight"},
    "Predicted response time of the next request": {"{{server}}": "reverie_predicted_response_seconds"},
    "p99 over control's, in the last block": {"ratio": "reverie_trial_p99_ratio"},
    "Age of what is known": {"{{source}}": "reverie_observation_age_seconds"},
    "Decisions for the configured weights": {"{{reason}}": "rate(reverie_fallback_total[1m])"},
    "Failures at servers": {"{{server}}": "rate(reverie_server_failures_total[1m])"},
    "Pushes that failed, and restarts of the balancer": {
        "pushes": "increase(reverie_weight_push_failures_total[5m])",
        "restarts": "increase(reverie_balancer_restarts_total[5m])",
    },
}
"""Title: legend and expression of each line."""


def files(config: ServeConfig, where: Path) -> dict[str, str]:
    """All of them by name; `where` is the configuration file, as the unit is to find it.

    Raises:
        ValueError: a server has no address, or Envoy gets one that it cannot take.
    """
    if unknown := [server.name for server in config.server if not server.address]:
        raise ValueError(f"server {unknown[0]} has no address: say where it listens, as in address = '127.0.0.1:8001'")
    balancer: dict[str, str] = {"haproxy.cfg": haproxy_config(config)}
    if config.balancer.endpoints is not None:
        for server in config.server:
            _require_ip(f"server {server.name}", server.address)
        _require_ip("balancer.listen", config.balancer.listen)
        balancer = {"envoy.json": envoy_config(config), config.balancer.endpoints.name: endpoints(config)}
    return {
        **balancer,
        "reverie-serve.service": _agent_unit(config, where),
        "reverie-deadman.service": _deadman_unit(config),
        "alerts.yml": _alerts(),
        "dashboard.json": _dashboard(),
    }


def _require_ip(whose: str, address: str) -> None:
    """Envoy looks up no names here."""
    host, _, port = address.rpartition(":")
    try:
        ip_address(host)
        fine = 0 < int(port) < 65_536
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(f"{whose}: Envoy needs an IP address and a port, as in '127.0.0.1:8001', got {address!r}")


def _agent_unit(config: ServeConfig, where: Path) -> str:
    command = shlex.join([sys.executable, "-m", "reverie", "serve", "--config", str(where.absolute())])
    return f"""\
[Unit]
Description=Reverie: weights for the balancer
After={config.balancer.driver}.service reverie-deadman.service
Wants=reverie-deadman.service

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
ExecStopPost={shlex.join(deadman_command(config, "--now"))}
WatchdogSec=5
Restart=on-failure
RestartSec=2
User=reverie
Group={config.balancer.driver}
RuntimeDirectory=reverie
RuntimeDirectoryPreserve=yes
LogsDirectory=reverie
CPUQuota=20%
{_hardened(config)}

[Install]
WantedBy=multi-user.target
"""


def _hardened(config: ServeConfig) -> str:
    """What a unit may do; with Envoy, also replace the file of endpoints in its folder."""
    file = config.balancer.endpoints
    return _HARDENED if file is None else f"{_HARDENED}\nReadWritePaths={file.parent}"


def _deadman_unit(config: ServeConfig) -> str:
    return f"""\
[Unit]
Description=Reverie: the configured weights, where the agent shows no sign of life
After={config.balancer.driver}.service

[Service]
ExecStart={shlex.join(deadman_command(config))}
Restart=always
RestartSec=1
User=reverie
Group={config.balancer.driver}
RuntimeDirectory=reverie
RuntimeDirectoryPreserve=yes
{_hardened(config)}

[Install]
WantedBy=multi-user.target
"""


def _alerts() -> str:
    """YAML, of which JSON strings are a part."""
    rules = "".join(
        f"      - alert: {name}\n        expr: {json.dumps(expression)}\n        for: {time}\n"
        f"        annotations:\n          summary: {json.dumps(meaning)}\n"
        for name, (expression, time, meaning) in ALERTS.items()
    )
    return f"groups:\n  - name: reverie\n    rules:\n{rules}"


def _dashboard() -> str:
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "type": "timeseries",
            "title": title,
            "datasource": source,
            "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
            "targets": [
                {"refId": chr(65 + k), "expr": expression, "legendFormat": legend}
                for k, (legend, expression) in enumerate(lines.items())
            ],
        }
        for i, (title, lines) in enumerate(PANELS.items())
    ]
    modes = {
        "name": "mode",
        "enable": True,
        "iconColor": "orange",
        "datasource": source,
        "expr": "changes(reverie_decision_info[1m]) > 0 or resets(reverie_decision_seconds_count[1m]) > 0",
        "titleFormat": "mode {{mode}}",
    }
    chosen = {"name": "source", "type": "datasource", "query": "prometheus"}
    dashboard = {
        "title": "Reverie",
        "uid": "reverie",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [chosen]},
        "annotations": {"list": [modes]},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=2) + "\n"
