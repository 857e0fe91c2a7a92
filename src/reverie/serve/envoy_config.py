"""A configuration of Envoy that keeps what `reverie serve` promises as far as Envoy can, and the file of its endpoints.

As with HAProxy, requests that may be repeated are sent again elsewhere, and a server is set aside after three failures.
There is no queue in Envoy: requests wait at the servers, and `slots` are not kept. The admin socket is a file, so that
who may write to it is said by its mode (660). Response times come as `statsd` to the agent's socket, and nothing else
does (`stats_matcher`): who wants Envoy's other statistics adds them to the list.
"""

import json
from typing import Any

from reverie.serve.settings import ServeConfig

_TYPE = "type.googleapis.com/envoy"
_MANAGER = "envoy.filters.network.http_connection_manager"


def endpoints(config: ServeConfig) -> str:
    """The text of the file of endpoints, with the configured weights."""
    servers = []
    for each in config.server:
        endpoint = {"hostname": each.name, "address": _address(each.address)}
        configured = {"filter_metadata": {"reverie": {"configured": each.weight}}}
        servers.append({"endpoint": endpoint, "load_balancing_weight": each.weight, "metadata": configured})
    resource = {
        "@type": f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": config.balancer.backend,
        "endpoints": [{"lb_endpoints": servers}],
    }
    return json.dumps({"resources": [resource]}, indent=1) + "\n"


def envoy_config(config: ServeConfig, choices: str = "FULL_SCAN") -> str:
    """The text of envoy.json. `choices`: of all servers (FULL_SCAN), or of two drawn (N_CHOICES, Envoy's default),
    that with the fewest requests is taken while weights are alike."""
    balancer = config.balancer
    statsd = {"address": {"pipe": {"path": str(config.log_socket)}}}
    told = ("downstream_rq_time", "downstream_rq_5xx")
    listener = {
        "name": "requests",
        "address": _address(balancer.listen),
        "filter_chains": [{"filters": [_named(_MANAGER, "HttpConnectionManager", _manager(config))]}],
    }
    whole = {
        "admin": {"address": {"pipe": {"path": str(balancer.socket), "mode": 0o660}}},
        "node": {"id": "reverie", "cluster": balancer.backend},
        "stats_flush_interval": "0.5s",
        "stats_sinks": [
            {
                "name": "envoy.stat_sinks.statsd",
                "typed_config": {"@type": f"{_TYPE}.config.metrics.v3.StatsdSink", **statsd},
            }
        ],
        "stats_config": {
            "stats_matcher": {"inclusion_list": {"patterns": [{"exact": f"http.requests.{name}"} for name in told]}}
        },
        "static_resources": {"listeners": [listener], "clusters": [_cluster(config, choices)]},
    }
    return json.dumps(whole, indent=2) + "\n"


def _manager(config: ServeConfig) -> dict[str, Any]:
    """What becomes of a request."""
    again = {
        "retry_on": "5xx,reset,connect-failure,refused-stream",
        "num_retries": 10,
        "retry_host_predicate": [
            _named(
                "envoy.retry_host_predicates.previous_hosts", "PreviousHostsPredicate", {}, "retry.host.previous_hosts"
            )
        ],
        "host_selection_retry_max_attempts": 10,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }
    to = {"cluster": config.balancer.backend, "timeout": "60s"}
    # Only what may be done twice is sent twice; what never arrived may always be sent again.
    repeatable = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD|OPTIONS|PUT|DELETE"}}}
    routes = [
        {"match": {"prefix": "/", "headers": [repeatable]}, "route": {**to, "retry_policy": again}},
        {"match": {"prefix": "/"}, "route": {**to, "retry_policy": {**again, "retry_on": "connect-failure"}}},
    ]
    return {
        "stat_prefix": "requests",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [_named("envoy.filters.http.router", "Router", {})],
    }


def _cluster(config: ServeConfig, choices: str) -> dict[str, Any]:
    # With unequal weights it goes round by weight / (requests there + 1)^bias: at Envoy's own bias of 1 that is slower
    # than no weights at all.
    least = {"selection_method": choices, "active_request_bias": {"default_value": 2.0, "runtime_key": "reverie.bias"}}
    policy = _named("envoy.load_balancing_policies.least_request", "LeastRequest", least)
    return {
        "name": config.balancer.backend,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": {"path_config_source": {"path": str(config.balancer.endpoints)}}},
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 2,
                "tcp_health_check": {},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": 3,
            "interval": "0.5s",
            "base_ejection_time": "1s",
            "max_ejection_time": "10s",
            "max_ejection_percent": 50,
            "enforcing_success_rate": 0,
        },
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 100_000)
            ]
        },
    }


def _named(name: str, kind: str, config: dict[str, Any], where: str = "") -> dict[str, Any]:
    """An extension of Envoy's, by its name and the type of its configuration."""
    where = where or name.removeprefix("envoy.")
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.extensions.{where}.v3.{kind}", **config}}


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
