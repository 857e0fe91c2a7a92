"""A configuration of HAProxy that keeps what `reverie serve` promises, written by `reverie serve init`.

A backend that closes connections or answers 500 costs no request that may be repeated: it is sent again, elsewhere
(`retry-on`, `option redispatch`), and the server is marked down after three failures (`observe layer7`). There are
more retries than that: where all other servers are full, a request comes back to the one that fails until it is down.
Requests beyond `maxconn` wait in one queue, no longer than `timeout queue`. A reload closes no connection that a
request may be on its way through (`idle-close-on-response`).
"""

from reverie.serve.settings import ServeConfig


def haproxy_config(config: ServeConfig, balance: str = "leastconn", capped: bool = True) -> str:
    """The text of haproxy.cfg; for races also with another way to `balance`, and without `maxconn`."""
    balancer = config.balancer
    servers = "\n".join(
        f"    server {each.name} {each.address} weight {each.weight}{f' maxconn {each.slots}' if capped else ''}"
        for each in config.server
    )
    return f"""\
# Written by `reverie serve init`. The agent needs the socket below and nothing else of this machine.
global
    stats socket {balancer.socket} mode 660 level admin expose-fd listeners
    stats timeout 1m
    hard-stop-after 10m
    log {config.log_socket} len 256 format raw local0 info

defaults
    mode http
    log global
    timeout connect 1s
    timeout client 1m
    timeout server 1m
    timeout queue {round(1000 * balancer.queue)}ms
    retries 10
    option redispatch 1

frontend requests
    bind {balancer.listen}
    log-format "%Ta %ST"
    option idle-close-on-response
    default_backend {balancer.backend}

backend {balancer.backend}
    balance {balance}
    retry-on all-retryable-errors
    # Only what may be done twice is sent twice.
    http-request disable-l7-retry unless METH_GET or {{ method OPTIONS PUT DELETE }}
    default-server check inter 1s fastinter 200ms downinter 500ms fall 2 rise 2
    default-server observe layer7 error-limit 3 on-error mark-down
{servers}
"""
