"""Suites of fleets: the same jobs for all who are judged on a task, and scores that mean what they say."""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.commands.train import parse
from reverie.envs.fleet.suites import suite_fleets
from reverie.evaluate import suites
from reverie.evaluate.agents import Agent
from reverie.evaluate.dreams import dream_rows
from reverie.evaluate.examination import Exam
from reverie.evaluate.suites import compare_in_suite, suite_trials
from reverie.nn.distributions import SquaredError
from reverie.policies.rules import rules
from reverie.runs.build import build
from reverie.settings.config import SuiteConfig
from reverie.settings.suites import suite_plan


@pytest.fixture(scope="module")
def trials():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "RIVALS", ("random", "least-work", "wait-plus-service"))
        return suite_trials(SuiteConfig("loads"), episodes=4, jobs=40, seed=1)


class Blind:
    """A rule for one task, and another for all others: it has to know which it plays."""

    def __init__(self, at: int, servers: int = 8):
        both = rules([1.0] * servers, [1.0], ["wait-plus-service", "random"])
        self.known, self.chance, self.at = both["wait-plus-service"], both["random"], at

    def initial_state(self, batch):
        return self.known.initial_state(batch), self.chance.initial_state(batch)

    def act(self, state, timestep, key):
        one, first = self.known.act(state[0], timestep, key)
        other, second = self.chance.act(state[1], timestep, key)
        return jnp.where(timestep.observation["task"] == self.at, one, other), (first, second)


class Paid:
    """A rule, but chance where the last step cost little."""

    def __init__(self):
        both = rules([1.0] * 8, [1.0], ["wait-plus-service", "random"])
        self.known, self.chance = both["wait-plus-service"], both["random"]

    def initial_state(self, batch):
        return self.known.initial_state(batch), self.chance.initial_state(batch)

    def act(self, state, timestep, key):
        one, first = self.known.act(state[0], timestep, key)
        other, second = self.chance.act(state[1], timestep, key)
        return jnp.where(timestep.reward < -200, one, other), (first, second)


def test_agents_of_a_suite_are_compared_as_each_was_paid(monkeypatch):
    monkeypatch.setattr(suites, "RIVALS", ("random", "least-work"))
    paid = {reward: SuiteConfig("loads", reward=reward) for reward in ("admission", "elapsed")}
    plan = suite_plan("loads", "shared")
    agents = [Agent(name, replace(plan, world=world), Paid()) for name, world in paid.items()]
    monkeypatch.setattr(suites, "load_trained", lambda *_: agents)
    rows = compare_in_suite([], exam := Exam(episodes=2, jobs=20))
    found = {(row["agent"], row["task"]): row["ratio"] for row in rows}
    for name, world in paid.items():
        alone = suite_trials(world, exam.episodes, exam.jobs, exam.stream)
        for task, response in alone.responses(Paid()).items():
            assert found[name, task] == pytest.approx(suites.score_row(alone, task, response[None])["ratio"])
    assert found["admission", "load-0.9"] != pytest.approx(found["elapsed", "load-0.9"])


def test_a_policy_that_is_told_the_task_meets_the_jobs_of_the_rules(trials):
    played = trials.responses(Blind(2))
    for number, (name, response) in enumerate(played.items()):
        same = np.allclose(response, trials.rules[name]["wait-plus-service"], rtol=1e-5)
        assert same == (number == 2), name


def test_a_task_is_judged_in_its_own_view_with_room_for_all(monkeypatch):
    monkeypatch.setattr(suites, "RIVALS", ("random", "jsq", "wait-plus-service"))
    trials = suite_trials(SuiteConfig("schemas"), episodes=2, jobs=20, seed=1)
    assert ["wait-plus-service" in of for of in trials.rules.values()] == [True, False, False, True]  # it has to see

    class Wide:
        """Fewest jobs in progress, from the first column of the rows of all views but `full`."""

        def initial_state(self, batch):
            return ()

        def act(self, state, timestep, key):
            servers = timestep.observation["servers"]
            assert servers.shape[-2:] == (10, 6)
            return jnp.where(timestep.observation["mask"], servers[..., 0], jnp.inf).argmin(-1), state

    played = trials.responses(Wide())
    jsq = trials.rules["two-speeds/heavy"]["jsq"]
    np.testing.assert_allclose(played["two-speeds/heavy"], jsq, rtol=0.05)  # but for ties
    assert played["failing/daily"].shape == (2,)
    with pytest.raises(ValueError, match="each task of schemas has a view of its own; view was given: counts"):
        SuiteConfig("schemas", view="counts")


def test_random_choice_scores_0_and_the_best_rule_1(trials):
    for task, of_task in trials.rules.items():
        assert trials.score(task, of_task[trials.best(task)][None]) == pytest.approx((1, 1, 1))
        assert trials.score(task, of_task["random"][None]) == pytest.approx((0, 0, 0), abs=1e-9)
        half = (of_task["random"] + of_task[trials.best(task)])[None] / 2
        assert trials.score(task, half) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_of_a_score_is_that_of_a_ratio_of_means(trials):
    """Against the bootstrap over episodes, of a made-up table with many of them."""
    rng = np.random.default_rng(0)
    best = rng.gamma(4, 100, size=400)
    table = {"x": {"random": 3 * best + rng.gamma(2, 50, size=400), "least-work": best}}
    made = trials.__class__(trials.suite, 1, {}, {}, jnp.zeros((1, 400, 0)), trials.key, table)
    response = 1.5 * best + rng.normal(0, 40, size=400)
    value, low, high = made.score("x", response[None])
    draws = rng.integers(400, size=(4000, 400))
    chance, least = table["x"]["random"], table["x"]["least-work"]
    resampled = (chance - response)[draws].mean(1) / (chance - least)[draws].mean(1)
    assert value == pytest.approx((chance - response).mean() / (chance - least).mean())
    assert (low, high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.15 * (high - low))


@pytest.mark.parametrize("model", ["queue", "counts", "storm", "mixture", "shared"])
def test_every_plan_for_a_suite_can_be_built_for_any_of_its_tasks(model):
    plan = suite_plan("loads", model)
    trainer = build(plan)
    assert len(trainer.env.names) == 4
    one = replace(plan, world=replace(plan.world, tasks=plan.world.names[:1]))
    assert len(build(one).env.names) == 4


def test_settings_of_storms_are_for_the_tasks_that_are_learned():
    """As many streams, sequences, dreams and steps of a task, alone or with others; and each may have returns of its
    own scale, without siblings."""
    words = ["--suite", "fleets", "--model", "mixture"]
    whole, alone = (parse([*words, *more]).config for more in ((), ("--world.tasks", "equal/steady")))
    assert whole.loop.steps == 16 * alone.loop.steps
    assert whole.agent.algorithm.starts == 16 * alone.agent.algorithm.starts
    for name in ("streams", "batch", "capacity"):
        assert getattr(whole.agent.experience, name) == 16 * getattr(alone.agent.experience, name)
    assert whole.agent.experience.by_task
    scaled = parse([*words, "--agent.siblings", "1", "--agent.scales", "16"]).config
    assert build(scaled).agent.config.scales == 16


def test_a_descriptor_says_how_tasks_differ_and_nothing_else():
    described = np.asarray(suite_fleets("fleets", draws=2).descriptor).reshape(4, 4, 2, -1)  # fleets, traffic, draws
    of_fleets = described[..., :11]
    np.testing.assert_array_equal(of_fleets, np.broadcast_to(of_fleets[:, :1, :1], of_fleets.shape))
    shares, down, load, unequal, bursts = np.split(described, [10, 11, 12, 13], -1)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(shares[0, 0, 0, :5], [0.25] * 4 + [0])
    np.testing.assert_allclose(shares[2, 0, 0, 0], 7 / 16, rtol=1e-5)
    assert ((down[3] > 0).all(), (down[:3] == 0).all()) == (True, True)
    np.testing.assert_allclose(down[3] * 2, np.sqrt(1 / (1 - 1 / 8) - 1), rtol=1e-3)  # down an eighth of the time
    np.testing.assert_allclose(unequal[:, 0] * 2, 1, rtol=0.05)  # squared CV 1
    assert (unequal[:, 1] > 1.3 * unequal[:, 0]).all()
    assert np.isfinite(described).all()
    assert (bursts[:, :2] < 1e-3).all()
    np.testing.assert_allclose(bursts[:, 3] * 2, 0.5 / np.sqrt(2), rtol=0.05)  # a sine of half the mean
    np.testing.assert_allclose(load[:, (0, 1, 3)], 0.8, rtol=1e-3)


def test_each_trial_is_told_its_own_descriptor(monkeypatch):
    """Bursts are drawn, so that draws of one task differ in their load."""
    monkeypatch.setattr(suites, "RIVALS", ("random", "least-work"))
    drawn = suite_trials(SuiteConfig("fleets", tasks=("equal/bursty",)), episodes=3, jobs=10, seed=1)

    class Asking(Blind):
        def act(self, state, timestep, key):
            told.append(timestep.observation["descriptor"].shape)
            return super().act(state, timestep, key)

    told = []
    drawn.responses(Asking(0, servers=10))
    number = list(drawn.tasks).index("equal/bursty")
    described = np.asarray(drawn.descriptors[number])
    assert set(told) == {described.shape}
    assert len(np.unique(described, axis=0)) == 3


class _Counts(eqx.Module):
    """Foretells that each job adds 1 to the work that waits, and that nothing is ever done."""

    def initial(self, batch):
        return jnp.zeros(batch)

    def observe(self, state, sequence, key):
        work = jnp.where(sequence.observation["mask"], sequence.observation["servers"][..., 0], 0)
        return work[:, -1], work

    def imagine(self, state, action, key):
        return state + action

    def decoded(self, state):
        return {"servers": SquaredError(jnp.stack([state, 7 + 0 * state], -1).reshape(*state.shape[:-1], -1))}


def test_dreams_begin_where_the_model_saw_last_and_are_measured_against_what_came():
    suite = SuiteConfig("loads")
    policy = rules([1.0] * 8, [1.0], ["least-work"])["least-work"]
    rows = dream_rows(_Counts(), policy, suite, seed=3, episodes=1, dreams=2)
    assert [row["task"] for row in rows[::64]] == list(suite.names)
    for row in rows:
        assert row["low"] == row["mean"] == row["high"]
        assert row["error"] == pytest.approx(abs(row["mean"] - row["truth"]), abs=0.05)
        last = row["mean"] - row["ahead"]  # what waited when the model saw it last
        assert row["still"] == pytest.approx(abs(last - row["truth"]), abs=0.05)
    of_one = [row["truth"] for row in rows[:64]]
    assert np.std(of_one) > 0
