"""Races on the loopback: sleeping servers keep to their model, arms differ as theory says, and nothing is hidden."""

import asyncio
import json

import numpy as np
import pytest
from serving import haproxy_binary

from reverie import cli
from reverie.serve.live import BROKEN, TIMED_OUT, Plan, SleepingServer, play, poisson_plan
from reverie.serve.race import RaceConfig, paired_ratio, race


def answers(server: SleepingServer, plan: Plan, timeout: float = 5.0):
    async def run():
        port = await server.start()
        try:
            return await play(plan, port, timeout)
        finally:
            server.stop()

    return asyncio.run(run())


def test_a_sleeping_server_is_first_come_first_served():
    plan = poisson_plan(30.0, 2.0, 0.02, seed=1)
    free, expected = 0.0, []
    for at, work in zip(plan.at, plan.work, strict=True):  # Lindley
        free = max(at, free) + work / 0.8
        expected.append(free - at)
    found = answers(SleepingServer(0.8), plan)
    assert found.failed == 0
    assert np.median(np.abs(found.seconds - expected)) < 0.02  # of this machine, on which much else runs


def test_a_sleeping_server_shares_itself_among_its_requests():
    plan = Plan(np.array([0.0, 0.1, 0.2]), np.array([0.2, 0.1, 0.3]))
    found = answers(SleepingServer(1.0, 0.0, 1.0, 2), plan)
    # [0, .1) the first alone; then two at 1/2 each until both end at .3; the third waits for a slot from .2 on.
    np.testing.assert_allclose(found.seconds, [0.3, 0.2, 0.4], atol=0.06)


def test_what_times_out_or_breaks_is_kept_as_that():
    plan = Plan(np.array([0.0, 0.01]), np.array([5.0, 0.1]))
    slow = answers(SleepingServer(1.0), plan, timeout=0.3)
    assert slow.status.tolist() == [TIMED_OUT, TIMED_OUT]
    assert slow.seconds.min() >= 0.3
    server = SleepingServer(1.0)
    server.behaviour = "closes"
    assert answers(server, plan).status.tolist() == [BROKEN, BROKEN]


def test_the_interval_of_a_ratio_has_the_ratio_in_it():
    rng = np.random.default_rng(2)
    one = rng.exponential(size=4000)
    ratio, low, high = paired_ratio(0.8 * one + 0.02 * rng.random(4000), one)
    assert low < ratio < high
    assert 0.79 < low < high < 0.84


def test_the_plan_offers_the_load_that_was_asked_for():
    for sharing, slots in ((0.0, 1), (0.0, 4), (1.0, 4)):
        config = RaceConfig(slots=slots, sharing=sharing, load=0.6, seconds=2000.0)
        assert config.plan.work.sum() / 2000 / config.capacity == pytest.approx(0.6, rel=0.05)
    assert RaceConfig(slots=4, sharing=1.0).capacity == pytest.approx(1.7)


def test_a_race_with_a_real_haproxy_tells_arms_apart(capsys):
    haproxy_binary()
    words = "--speeds 1 0.2 --load 0.7 --work 0.03 --seconds 6 --arm roundrobin --arm maxconn --arm serve --output json"
    code = cli.main(["serve", "race", *words.split()])
    told = capsys.readouterr()
    assert code == 0 or "too busy" in told.err  # of this machine, and said
    lanes = {lane["name"]: lane for lane in json.loads(told.out)["lanes"]}
    assert all(lane["failed"] == 0 for lane in lanes.values())
    assert lanes["maxconn"]["ratio"][2] < 0.8  # the slow server is given 2.1 times what it can do by turns
    assert lanes["serve"]["ratio"][2] < 0.8


def test_an_arm_that_does_not_run_is_named():
    with pytest.raises(ValueError, match="no arm 'fastest'; there are roundrobin"):
        race(RaceConfig(), ["fastest"])
