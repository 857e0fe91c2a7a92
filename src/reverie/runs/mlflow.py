"""The metrics of a run in MLflow too, by its REST API: nothing to install here, and a server on this machine will do.

    mlflow server --port 5000
    reverie train --mlflow http://127.0.0.1:5000 --out runs/first

What MLflow has is a copy; a run is its folder. So a server that is gone while training goes on is said once, and no
reason to stop. https://mlflow.org/docs/latest/rest-api.html
"""

import json
import math
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsFloat
from urllib.parse import urlencode

from reverie.files import read_json, write_text
from reverie.runs.config_json import Json, config_to_json
from reverie.runs.folder import RunFolder

EXPERIMENT = "reverie"
_KEPT = "mlflow.json"
"""In the folder of a run: which run of MLflow it is, to go on with."""
_PARAMS = 100
"""Most parameters in one request."""
_SECONDS = 10

type Tell = Callable[[int, Mapping[str, SupportsFloat]], None]
"""Is called with the environment steps and metrics of each line that is logged."""


@contextmanager
def reported(url: str | None, run: RunFolder, config: Any) -> Generator[Tell | None]:
    """What tells the server at `url` of a run until the block ends; None without a server.

    Raises:
        ValueError: there is no MLflow server, or it refuses.
    """
    if url is None:
        yield None
        return
    server = _Server(url)
    number = _enter(server, run, config)
    gone: list[str] = []

    def send(name: str, **told: Any) -> None:
        try:
            if not gone:
                server.post(name, run_id=number, **told)
        except ValueError as error:
            gone.append(str(error))
            warnings.warn(f"{error}; nothing more is sent there, and {run.path} has all of it", stacklevel=3)

    def tell(step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        now, values = _now(), {name: float(value) for name, value in metrics.items()}
        points = [
            {"key": name, "value": value, "timestamp": now, "step": step}
            for name, value in values.items()
            if math.isfinite(value)
        ]
        send("runs/log-batch", metrics=points)

    status = "FAILED"
    try:
        yield tell
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        send("runs/update", status=status, end_time=_now())


def _enter(server: "_Server", run: RunFolder, config: Any) -> str:
    """The run of MLflow that this run is: the one before, where it goes on."""
    kept = run.path / _KEPT
    if kept.exists() and (before := read_json(kept))["url"] == server.url:
        server.post("runs/update", run_id=before["run_id"], status="RUNNING")
        return before["run_id"]
    try:
        experiment = server.get("experiments/get-by-name", experiment_name=EXPERIMENT)["experiment"]["experiment_id"]
    except FileNotFoundError:
        experiment = server.post("experiments/create", name=EXPERIMENT)["experiment_id"]
    made = server.post("runs/create", experiment_id=experiment, run_name=run.path.name, start_time=_now())
    number = made["run"]["info"]["run_id"]
    params = [{"key": name, "value": value} for name, value in _flat(config_to_json(config)) if value]
    for first in range(0, len(params), _PARAMS):
        server.post("runs/log-batch", run_id=number, params=params[first : first + _PARAMS])
    write_text(kept, json.dumps({"url": server.url, "run_id": number}) + "\n")
    return number


def _now() -> int:
    """Milliseconds, as MLflow counts them."""
    return round(1000 * time.time())


def _flat(data: Json, where: str = "") -> Generator[tuple[str, str]]:
    """Fields by their path, and their values as text."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _flat(value, f"{where}.{name}" if where else name)
    else:
        yield where, str(data)


class _Server:
    """An MLflow tracking server."""

    def __init__(self, url: str):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--mlflow {url}: expected the address of a server, such as http://127.0.0.1:5000")
        self.url = url.rstrip("/")

    def get(self, name: str, /, **asked: str) -> Any:
        """Errors: FileNotFoundError where there is no such thing; else as `post`."""
        return self._answer(urllib.request.Request(self._place(f"{name}?{urlencode(asked)}")))

    def post(self, name: str, /, **told: Any) -> Any:
        """Errors: ValueError where the server cannot be reached or refuses."""
        body = json.dumps(told, allow_nan=False).encode()
        request = urllib.request.Request(self._place(name), body, {"Content-Type": "application/json"})
        return self._answer(request)

    def _place(self, name: str) -> str:
        return f"{self.url}/api/2.0/mlflow/{name}"

    def _answer(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            if error.code == 404 and "RESOURCE_DOES_NOT_EXIST" in said:
                raise FileNotFoundError(said) from error
            raise ValueError(f"the MLflow server at {self.url} refuses ({error.code}): {said}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no MLflow server at {self.url}: {error}") from error
