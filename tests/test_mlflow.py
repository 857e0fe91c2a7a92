"""What MLflow is told of a run, by a server that answers as its REST API is documented."""

import json
import math
import threading
import warnings
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from reverie.runs.folder import RunFolder
from reverie.runs.mlflow import reported


@dataclass(frozen=True)
class Part:
    units: int = 8


@dataclass(frozen=True)
class Config:
    """More parameters than MLflow takes in one request."""

    part: Part = field(default_factory=Part)
    label: str | None = None
    many: dict[str, int] = field(default_factory=lambda: {f"f{i}": i for i in range(250)})


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = parse_qs(urlsplit(self.path).query)["experiment_name"][0]
        known = self.server.experiments.get(asked)
        if known is None:
            return self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such experiment"})
        return self.answer(200, {"experiment": {"experiment_id": known, "name": asked}})

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, name = self.server, self.path.removeprefix("/api/2.0/mlflow/")
        server.told.append((name, told))
        if name == "experiments/create":
            server.experiments[told["name"]] = str(len(server.experiments))
            return self.answer(200, {"experiment_id": server.experiments[told["name"]]})
        if name == "runs/create":
            server.runs.append(f"run{len(server.runs)}")
            return self.answer(200, {"run": {"info": {"run_id": server.runs[-1]}}})
        if len(told.get("params", [])) > 100:
            return self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too many params"})
        return self.answer(200, {})

    def answer(self, code, data):
        body = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as made:
        made.experiments, made.runs, made.told = {}, [], []
        threading.Thread(target=made.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{made.server_address[1]}"
        yield made
        made.shutdown()


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "first", Config())


def told(server, name):
    return [what for each, what in server.told if each == name]


def test_settings_and_metrics_arrive_and_a_run_that_goes_on_is_the_same_run(server, run):
    with reported(server.url, run, Config(part=Part(9))) as tell:
        tell(10, {"evaluation/ratio": 1.5, "actor/loss": math.nan})
    with reported(server.url + "/", run, Config()) as tell:
        tell(20, {"evaluation/ratio": 1.25})
    assert server.runs == ["run0"]
    assert told(server, "runs/create")[0]["run_name"] == "first"
    params = {row["key"]: row["value"] for batch in told(server, "runs/log-batch") for row in batch.get("params", [])}
    assert len(params) > 250
    assert (params["part.units"], params["part.class"], params["label"]) == ("9", "Part", "None")
    points = [row for batch in told(server, "runs/log-batch") for row in batch.get("metrics", [])]
    assert [(row["key"], row["value"], row["step"]) for row in points] == [
        ("evaluation/ratio", 1.5, 10),  # what is no number JSON cannot say
        ("evaluation/ratio", 1.25, 20),
    ]
    assert [row["status"] for row in told(server, "runs/update")] == ["FINISHED", "RUNNING", "FINISHED"]


def test_another_folder_is_another_run_of_the_same_experiment(server, run, tmp_path):
    for folder in (run, RunFolder.create(tmp_path / "second", Config())):
        with reported(server.url, folder, Config()):
            pass
    assert len(told(server, "experiments/create")) == 1
    assert server.runs == ["run0", "run1"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (OSError, "FAILED")])
def test_how_a_run_ended_is_told(server, run, error, status):
    with pytest.raises(error), reported(server.url, run, Config()):
        raise error
    assert told(server, "runs/update")[-1]["status"] == status


def test_a_server_that_goes_away_is_said_once_and_stops_nothing(server, run):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with reported(server.url, run, Config()) as tell:
            server.shutdown()
            server.server_close()
            tell(1, {"a": 1.0})
            tell(2, {"a": 1.0})
    assert [str(each.message).startswith("there is no MLflow server") for each in said] == [True]


def test_a_server_that_is_not_there_or_is_none_is_named(run):
    for url, what in (("http://127.0.0.1:9", "no MLflow server at"), ("mlruns", "expected the address of a server")):
        with pytest.raises(ValueError, match=what), reported(url, run, Config()):
            pass


def test_without_a_server_nobody_is_told(run):
    with reported(None, run, Config()) as tell:
        assert tell is None
