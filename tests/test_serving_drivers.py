"""Drivers: what HAProxy and Envoy tell and take, by one contract."""

import socket
import subprocess
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import binary, config, free_port, stack

from reverie.serve import deadman, deployment, envoy, haproxy
from reverie.serve.drivers import DRIVERS
from reverie.serve.envoy import Envoy
from reverie.serve.haproxy import HAProxy
from reverie.serve.live import Plan, poisson_plan
from reverie.serve.proxies import PROXIES

# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=DRIVERS)
def driver(request) -> str:
    return request.param


def test_weights_are_set_and_come_back_and_a_new_process_is_noticed(driver):
    with stack(speeds=(1.0, 0.5, 0.25), weights=(128, 64, 32), driver=driver) as running:
        before = running.driver.observe()
        assert before.names == ("s0", "s1", "s2")
        assert before.configured == before.weights == (128, 64, 32)
        assert before.process == running.driver.identity()
        running.driver.apply({"s0": 9, "s2": 256})
        assert running.weights() == (9, 64, 256)
        assert not running.driver.observe().at_defaults
        running.driver.defaults()
        assert running.driver.observe().at_defaults
        assert running.play(poisson_plan(200.0, 0.5, 0.002, seed=1)).failed == 0
        after = running.driver.observe()
        assert sum(after.started) == 100
        assert after.in_progress == after.failed == (0, 0, 0)
        running.driver.apply({"s0": 9})
        running.reload()
        fresh = running.driver.observe()
        assert fresh.process != before.process
        assert fresh.configured == (128, 64, 32)
        assert fresh.weights[0] == {"haproxy": 128, "envoy": 9}[driver]  # Envoy reads its weights from the file
        assert sum(fresh.started) == 0
        running.driver.apply({"s1": 200})  # reaches the new process, not the old one
        assert running.weights()[1] == 200


def test_weights_move_the_share_of_requests(driver):
    """A server of a sixteenth of the weight gets clearly fewer requests than another, while several are there."""
    with stack(speeds=(1.0, 1.0), slots=64, weights=(128, 128), driver=driver) as running:
        shares = []
        for weights in ({}, {"s0": 16, "s1": 256}, None):
            running.driver.defaults() if weights is None else running.driver.apply(weights)
            before = np.array(running.driver.observe().started)
            assert running.play(poisson_plan(300.0, 0.8, 0.03, seed=1)).failed == 0
            new = running.driver.observe().started - before
            shares.append(new[0] / new.sum())
    assert abs(shares[0] - 0.5) < 0.12
    assert abs(shares[2] - 0.5) < 0.12
    assert 0.02 < shares[1] < 0.38  # Envoy weighs down who has more requests already


def test_failures_at_a_server_are_counted_as_its_own(driver):
    with stack(driver=driver) as running:
        running.servers[1].behaviour = "fails"
        assert running.play(poisson_plan(200.0, 0.5, 0.002, seed=1)).failed == 0  # sent again, elsewhere
        seen = running.driver.observe()
        assert seen.failed[1] > 0
        assert seen.failed[0] == seen.failed[2] == 0


def test_an_answer_that_does_not_come_is_an_error_of_the_system(driver, tmp_path):
    connected = DRIVERS[driver].connect(tmp_path / "a", "be", tmp_path / "endpoints.json")
    with pytest.raises(FileNotFoundError):
        connected.identity()
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "a"))
    silent.listen()
    with silent, pytest.raises(OSError, match="timed out"):
        connected.identity()


@pytest.mark.parametrize(
    ("read", "line", "seconds"),
    [
        (haproxy.request_times, b"120 200", [0.12]),
        (haproxy.request_times, b"3 503", [5.0]),
        (haproxy.request_times, b"7000 -1", [7.0]),
        (envoy.request_times, b"envoy.http.requests.downstream_rq_time:120|ms", [0.12]),
        (envoy.request_times, b"envoy.http.requests.downstream_rq_5xx:2|c", [5.0, 5.0]),
        (envoy.request_times, b"envoy.http.requests.downstream_rq_5xx:0|c", []),
        (envoy.request_times, b"envoy.cluster.servers.upstream_rq_time:9|ms", []),
    ],
)
def test_what_a_balancer_says_of_requests_is_read_as_seconds(read, line, seconds):
    assert read(line, 5.0) == seconds


def test_both_send_the_times_of_requests_to_the_agent(driver):
    with stack(driver=driver) as running:
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.bind(str(running.config.log_socket))
        heard.settimeout(1.0)
        running.play(poisson_plan(100.0, 0.06, 0.02, seed=1))  # few: some systems keep no more than 10 datagrams
        times = []
        with heard:
            while len(times) < 6:
                for line in heard.recv(1 << 16).splitlines():
                    times += DRIVERS[driver].request_times(line, 5.0)
    assert len(times) == 6
    assert 0.005 < np.mean(times) < 0.3


def test_of_idle_servers_the_heavier_is_tried_first():
    """HAProxy does not look at their weights, but at who was used or set longest ago."""
    with stack(speeds=(1.0, 1.0)) as running:
        for weights in ({"s0": 100, "s1": 200}, {"s0": 200, "s1": 100}, {"s0": 90, "s1": 210}):
            before = np.array(running.driver.observe().started)
            running.driver.apply(weights)
            running.play(Plan(np.zeros(1), np.full(1, 0.001)))
            took = running.driver.observe().started - before
            assert took.tolist() == [weights["s0"] > weights["s1"], weights["s1"] > weights["s0"]]


# --- Envoy -----------------------------------------------------------------------------------------------------------


def test_a_file_of_endpoints_that_is_none_is_named(tmp_path):
    path = tmp_path / "endpoints.json"
    at = Envoy(tmp_path / "a", "servers", path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        at.defaults()
    path.write_text('{"resources": []}')
    with pytest.raises(ValueError, match="no file of endpoints"):
        at.defaults()
    path.write_text(PROXIES["envoy"].files(envoy_settings(tmp_path), "FULL_SCAN", False)["endpoints.json"])
    with pytest.raises(ValueError, match="no server s9"):
        at.apply({"s9": 3})
    with pytest.raises(ValueError, match=r"\[1, 256\], got .*'s1': 0"):
        at.apply({"s0": 1, "s1": 0})


@pytest.mark.parametrize("lost", ["hostname", "metadata"])
def test_an_endpoint_that_says_no_name_or_no_configured_weight_is_refused_by_the_file(tmp_path, lost):
    """Agent and dead-man's switch survive errors of the driver's contract, and no others."""
    settings = envoy_settings(tmp_path)
    path, at = settings.balancer.endpoints, settings.balancer.connect()
    path.write_text(PROXIES["envoy"].files(settings, "FULL_SCAN", False)["endpoints.json"].replace(lost, "other"))
    for call in (at.defaults, lambda: at.apply({"s0": 9})):
        with pytest.raises(ValueError, match=f"endpoints.json is no file of endpoints .*{lost}"):
            call()
    FakeEnvoy(settings.balancer.socket)
    with pytest.raises(ValueError, match=f"endpoints.json is no file of endpoints .*{lost}"):
        at.observe()
    assert not deadman.restore(at)


def test_an_envoy_that_does_not_know_its_servers_yet_is_an_error_that_agent_and_switch_survive(tmp_path):
    settings = envoy_settings(tmp_path)
    path, at = settings.balancer.endpoints, settings.balancer.connect()
    path.write_text(PROXIES["envoy"].files(settings, "FULL_SCAN", False)["endpoints.json"])
    FakeEnvoy(settings.balancer.socket)
    for call in (at.observe, at.defaults, lambda: at.apply({"s0": 9})):
        with pytest.raises(ValueError, match=r"has not all servers of .*cluster_statuses"):
            call()
    assert not deadman.restore(at)


def test_an_envoy_that_hangs_up_after_each_answer_is_asked_again_and_nobody_else(tmp_path):
    """As one does that a new process is about to follow."""
    settings = envoy_settings(tmp_path)
    settings.balancer.endpoints.write_text(PROXIES["envoy"].files(settings, "FULL_SCAN", False)["endpoints.json"])
    envoy = FakeEnvoy(settings.balancer.socket, b"Connection: close\r\n")
    with pytest.raises(ValueError, match=r"has not all servers of .*cluster_statuses"):
        settings.balancer.connect().observe()
    assert [question.split()[1].partition(b"?")[0] for question in envoy.asked] == [b"/config_dump", b"/clusters"]


@pytest.mark.parametrize(
    ("driver", "address", "message"),
    [
        ("haproxy", "", "server s1 has no address"),
        ("envoy", "", "server s1 has no address"),
        ("envoy", "web-1:80", "server s1: Envoy needs an IP address and a port, .* got 'web-1:80'"),
        ("envoy", "10.0.0.1", "server s1: Envoy needs an IP address and a port, .* got '10.0.0.1'"),
        ("envoy", "10.0.0.1:99999", "server s1: Envoy needs an IP address and a port, .* got '10.0.0.1:99999'"),
        ("haproxy", "web-1:80", None),
        ("envoy", "10.0.0.1:80", None),
    ],
)
def test_where_a_server_listens_is_asked_for_by_its_name(tmp_path, driver, address, message):
    own = envoy_settings(tmp_path) if driver == "envoy" else config()
    own = replace(
        own, server=tuple(replace(each, address=address) if each.name == "s1" else each for each in own.server)
    )
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        deployment.files(own, tmp_path / "serve.toml")


def test_envoy_is_told_by_an_ip_address_where_to_listen(tmp_path):
    own = envoy_settings(tmp_path)
    with pytest.raises(ValueError, match=r"balancer.listen: Envoy needs an IP address and a port, .* got '\*:80'"):
        deployment.files(replace(own, balancer=replace(own.balancer, listen="*:80")), tmp_path / "serve.toml")


class FakeEnvoy:
    """Answers whatever is asked of its admin socket with nothing but when it was started."""

    def __init__(self, path: Path, header: bytes = b""):
        self.asked: list[bytes] = []
        self._header = header
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        text = b'{"configs": [{"last_updated": "now"}]}'
        while True:
            connection, _ = self._listening.accept()
            with connection:
                while question := connection.recv(1 << 16):
                    self.asked.append(question)
                    head = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (self._header, len(text))
                    connection.sendall(head + text)


def envoy_settings(folder: Path):
    own = replace(config().balancer, driver="envoy", socket=folder / "a", endpoints=folder / "endpoints.json")
    return config(balancer=replace(own, listen=f"127.0.0.1:{free_port()}"))


def test_weights_that_envoy_does_not_take_are_an_error():
    with stack(driver="envoy") as running:
        path = running.config.balancer.endpoints
        elsewhere = path.with_name("elsewhere.json")
        elsewhere.write_text(path.read_text())
        deaf = Envoy(running.config.balancer.socket, "servers", elsewhere)
        with pytest.raises(TimeoutError, match="did not take"):
            deaf.apply({"s0": 9})
        elsewhere.write_text(path.read_text().replace('"s1"', '"s7"'))
        with pytest.raises(ValueError, match="has not all servers of"):
            deaf.observe()


# --- HAProxy ---------------------------------------------------------------------------------------------------------

INFO = "Name: HAProxy\nPid: 7\nStart_time_sec: 99\n\n"
STATE = "1\n# be_id be_name srv_name srv_iweight\n3 be s0 64\n3 be s1 128\n\n"
HEAD = "# svname,status,weight,stot,scur,econ,eresp,wretr,hrsp_5xx,qcur,\n"
STAT = f"{HEAD}s0,UP,10,500,3,1,2,3,4,0,\ns1,MAINT,128,7,,0,0,0,,0,\nBACKEND,UP,138,507,3,1,2,3,4,6,\n\n"


class FakeHAProxy:
    """Answers each connection with the next text, in two parts, and keeps what was asked."""

    def __init__(self, path: Path, *answers: str):
        self.asked, self._answers = [], list(answers)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listening.accept()
            with connection:
                self.asked.append(connection.recv(1 << 16).decode())
                connection.sendall(answer[:20].encode())
                connection.sendall(answer[20:].encode())
        self._listening.close()


def test_columns_are_found_by_name_wherever_they_stand(tmp_path):
    order = HEAD.replace("svname,", "").replace("\n", "svname\n")
    moved = f"{order}UP,10,500,3,1,2,3,4,0,s0\nMAINT,128,7,,0,0,0,,0,s1\nUP,138,507,3,1,2,3,4,6,BACKEND\n\n"
    for name, stat in (("a", STAT), ("b", moved)):
        FakeHAProxy(tmp_path / name, INFO + STATE + stat)
        seen = HAProxy(tmp_path / name, "be").observe()
        assert (seen.process, seen.names) == ("7 of 99", ("s0", "s1"))
        assert (seen.started, seen.in_progress, seen.failed) == ((500, 7), (3, 0), (10, 0))
        assert (seen.weights, seen.configured, seen.takes) == ((10, 128), (64, 128), (True, False))
        assert seen.waiting == 6  # in the proxy, of all servers


def test_what_is_drained_or_in_maintenance_keeps_its_weight(tmp_path):
    drained = STAT.replace("s0,UP,10", "s0,DRAIN,0")
    fake = FakeHAProxy(tmp_path / "a", INFO + STATE + drained)
    HAProxy(tmp_path / "a", "be").defaults()  # a second exchange would find nobody
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("No such proxy.\n\n", "No such proxy"),
        (INFO + STATE + STAT.replace("scur", "gone"), "'scur'"),
        (INFO + STATE + HEAD + "\n", "/a: HAProxy's answer lacks 'BACKEND'"),
        (INFO + STATE.replace("srv_iweight", "gone") + STAT, "/a: HAProxy's answer lacks 'srv_iweight'"),
        (INFO + "Can't find backend.\n\n", "Can't find|table"),
        (INFO + STATE + STAT.replace("500", "many"), "many"),
    ],
)
def test_nonsense_is_an_error_that_quotes_it(tmp_path, answer, message):
    FakeHAProxy(tmp_path / "a", answer)
    with pytest.raises(ValueError, match=message):
        HAProxy(tmp_path / "a", "be").observe()


def test_a_refused_weight_is_an_error(tmp_path):
    FakeHAProxy(tmp_path / "a", "\nNo such server.\n\n")
    with pytest.raises(ValueError, match="No such server"):
        HAProxy(tmp_path / "a", "be").apply({"s9": 3})
    with pytest.raises(ValueError, match=r"\[1, 256\], got .*'s1': 0"):
        HAProxy(tmp_path / "a", "be").apply({"s0": 1, "s1": 0})


def test_haproxy_accepts_the_configuration_without_a_warning(tmp_path):
    program = binary()
    own = replace(config(), balancer=replace(config().balancer, listen=f"127.0.0.1:{free_port()}"))
    (tmp_path / "haproxy.cfg").write_text(PROXIES["haproxy"].files(own, "leastconn", True)["haproxy.cfg"])
    environment = {"LD_LIBRARY_PATH": f"{Path(program).parent}/lib"}
    checked = subprocess.run(
        [program, "-c", "-f", tmp_path / "haproxy.cfg"], env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
