"""Trainers: a run that begins from another, an agent that acts for a fleet of another size, tasks from a trace."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from jaxtyping import Array
from plans import CURVE, DREAMER, WORLD

from reverie.agents.a2c import A2CConfig
from reverie.agents.actor_critic import NetworkConfig
from reverie.envs.fleet.env import constant_speeds, fleet_task
from reverie.envs.fleet.families import PARK_MEAN_SIZE, park_sizes
from reverie.envs.fleet.formats.reading import Reading
from reverie.envs.fleet.workload import poisson
from reverie.evaluate.agents import _named, load_agents
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.trials import play
from reverie.models.counts import CountsConfig
from reverie.policies.rules import Random
from reverie.runs.build import build
from reverie.runs.config_json import config_from_json, config_to_json
from reverie.runs.folder import RunFolder
from reverie.settings.config import LoopConfig, OnPolicyRun, TrainConfig, WorldConfig
from reverie.settings.presets import preset
from reverie.sweep.training import train_run
from reverie.train.averaging import follow
from reverie.train.on_policy import OnPolicyConfig
from reverie.train.trainers import InWorld, WorldTrainer

PLAN = TrainConfig(DREAMER, replace(WORLD, family="easy"), LoopConfig(steps=32, evaluate_every=1_000), CURVE)


def with_model(model, **world) -> TrainConfig:
    agent = replace(DREAMER, algorithm=replace(DREAMER.algorithm, model=model))
    return replace(PLAN, agent=agent, world=replace(PLAN.world, **world))


@pytest.mark.usefixtures("few_rules")
def test_a_run_begins_with_what_another_has_learned_and_remembers(tmp_path):
    first = RunFolder.create(tmp_path / "easy", PLAN)
    end = train_run(PLAN, build(PLAN), first, ["test"], quiet=True).state
    later = replace(PLAN, world=WORLD, start=first.path, seed=1)
    more = replace(later, world=replace(later.world, tasks=3))
    assert build(more).continued(end, later.seed).pool.mask.shape[0] == 3
    trainer = build(later)
    begun = trainer.continued(end, later.seed)
    for new, old in zip(jax.tree.leaves(begun.learning.learner), jax.tree.leaves(end.learning.learner), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(begun.learning.replay.filled) == int(end.learning.replay.filled)
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.pool, trainer.pool))
    assert not jax.tree.all(jax.tree.map(np.array_equal, begun.pool, end.pool))
    assert (jax.random.key_data(begun.learning.key) != jax.random.key_data(end.learning.key)).any()

    second = RunFolder.create(tmp_path / "hard", later)
    updates = train_run(later, trainer, second, ["test"], quiet=True).state.learning.updates
    assert int(updates) > int(end.learning.updates), "it counts on from the run it began from"
    (agent,) = load_agents([second.path])
    assert agent.training_seed == 1


@pytest.mark.usefixtures("few_rules")
def test_agents_of_other_settings_have_other_names():
    """Two folders of one name would make one agent of two, and an agent may be called as another's folder is."""
    a2c, sac = preset("a2c", "cpu"), preset("sac", "cpu")
    slow = replace(a2c, loop=LoopConfig(steps=7))

    def names(**runs):
        return [
            agent.name
            for agent in _named([Path(place) for place in runs], [(c, Random(np.ones(2))) for c in runs.values()])
        ]

    assert names(**{"x/0": a2c, "x/1": replace(a2c, seed=1)}) == ["a2c", "a2c"]
    assert names(**{"x/0": a2c, "x/1": replace(a2c, seed=1), "y/2": slow}) == ["0", "0", "2"]
    assert names(**{"x/0": a2c, "y/0": replace(slow, seed=1)}) == ["x/0", "y/0"]
    assert names(**{"x/0": a2c, "x/sac": slow, "y": sac}) == ["0", "x/sac", "y"]


def test_updates_are_counted_and_not_their_rounds(tmp_path):
    experience = replace(DREAMER.experience, repeats=3, ratio=3 * DREAMER.experience.ratio)
    plan = replace(PLAN, agent=replace(DREAMER, experience=experience))
    run = RunFolder.create(tmp_path, plan)
    end = train_run(plan, build(plan), run, ["test"], quiet=True)
    assert end.updates == run.metrics()[-1]["updates"] == int(end.state.learning.updates) > 0


@pytest.mark.parametrize(
    "algorithm",
    [{"units": 16}, {"model": replace(DREAMER.algorithm.model, horizon=20.0)}],
    ids=["other shapes", "the same shapes, other settings"],
)
def test_a_run_cannot_begin_from_another_kind_of_agent(algorithm):
    state = build(PLAN).init(jax.random.key(0))
    other = replace(PLAN, agent=replace(DREAMER, algorithm=replace(DREAMER.algorithm, **algorithm)))
    with pytest.raises(ValueError, match="the sizes of its networks"):
        build(other).continued(state, 0)


def narrower(plan: TrainConfig) -> TrainConfig:
    """With half of the streams."""
    experience = replace(plan.agent.experience, streams=plan.agent.experience.streams // 2)
    return replace(plan, agent=replace(plan.agent, experience=experience))


@pytest.mark.usefixtures("few_rules")
def test_a_run_of_other_streams_begins_with_what_was_learned_and_experience_of_its_own(tmp_path, capsys):
    first = RunFolder.create(tmp_path / "first", PLAN)
    end = train_run(PLAN, build(PLAN), first, ["test"], quiet=True).state
    assert build(PLAN).remembers(end)
    plan = replace(narrower(PLAN), start=first.path)
    trainer = build(plan)
    assert not trainer.remembers(end)
    begun, fresh = trainer.continued(end, 0), trainer.init(jax.random.key(0))
    for new, old in zip(jax.tree.leaves(begun.learning.learner), jax.tree.leaves(end.learning.learner), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(begun.learning.updates) == int(end.learning.updates) > 0
    assert int(begun.learning.replay.filled) == int(fresh.learning.replay.filled)
    second = RunFolder.create(tmp_path / "second", plan)
    train_run(plan, trainer, second, ["test"])
    assert "experience begins anew" in capsys.readouterr().err
    assert second.metrics()[0]["step"] == trainer.first_steps > 0


def test_episodes_do_not_go_on_in_other_tasks():
    """They end where they are, with their trial. Of the new fleets one server is there, and what was last seen of the
    old ones allows them all: who went on would send jobs to servers that do not exist, which pays NaN."""
    before = build(PLAN)
    alone = before.pool._replace(mask=before.pool.mask.at[:, 1:].set(False))
    trainer = replace(before, pool=alone)
    state = before.train(before.init(jax.random.key(0)))[0]
    begun = trainer.continued(state, 0)
    assert begun.learning.collector.timesteps.is_last.all()
    filled = int(state.learning.replay.filled)
    rows = jax.tree.map(lambda leaf: leaf[filled:], trainer.train(begun)[0].learning.replay.rows)
    assert rows.timestep.is_last[0].all()
    assert rows.is_trial_first[1].all()
    assert np.isfinite(rows.timestep.reward).all()
    again = before.continued(state, 0)
    assert not again.learning.collector.timesteps.is_last.any()


def test_a2c_of_other_streams_begins_with_what_was_learned():
    plan = replace(preset("a2c", "cpu"), world=WORLD, loop=PLAN.loop)
    state, trainer = build(plan).init(jax.random.key(0)), build(narrower(plan))
    assert not trainer.remembers(state)
    begun = trainer.continued(state, 0)
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.learning.learner, state.learning.learner))


def responses(plan: TrainConfig, servers: int, order=None):
    """Mean response time of an untrained agent made for 10 servers, on a fleet of N, in an order of its servers."""
    trainer = build(plan)
    networks = jax.jit(trainer.agent.init)(jax.random.key(0)).networks
    policy = trainer.policy(InWorld(None, networks, trainer.pool), servers=servers)
    speeds = np.linspace(0.2, 1.0, servers)
    speeds = speeds if order is None else speeds[order]
    task = fleet_task(constant_speeds(speeds), poisson(400.0 / servers, park_sizes()))
    tasks = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, 4, *x.shape)), task)
    world = plan.world
    (jobs,) = play([Contestant("agent", policy, world.env)], tasks, jax.random.key(1), 30)
    return jobs


@pytest.mark.parametrize(
    "plan",
    [PLAN, with_model(CountsConfig(units=8, deter=8), view="counts", reward="elapsed")],
    ids=["queue", "counts"],
)
def test_an_agent_acts_for_a_fleet_of_another_size_in_any_order(plan):
    plan = replace(plan, agent=replace(plan.agent, algorithm=replace(plan.agent.algorithm, unimix=0.0)))
    order = np.array([2, 0, 3, 1, 4])
    one, two = responses(plan, 5), responses(plan, 5, order)
    assert set(np.unique(one.server)) <= set(range(5))
    if plan.world.view == "full":  # without sizes, ties between untried servers hang on their order
        np.testing.assert_allclose(one.response, two.response, rtol=1e-4)
    assert responses(plan, 12).server.max() < 12


@pytest.mark.parametrize(
    "plan",
    [
        with_model(sizes.RSSM),
        replace(
            PLAN,
            agent=OnPolicyRun(
                A2CConfig(network=NetworkConfig(units=8, servers="flat")), OnPolicyConfig(streams=2, steps=2, workers=1)
            ),
        ),
    ],
    ids=["rssm", "a2c"],
)
def test_networks_for_one_size_of_fleet_say_so(plan):
    with pytest.raises(ValueError, match="cannot act for 5"):
        responses(plan, 5)


def test_a_trace_is_trained_on_in_its_first_half(tmp_path: Path):
    lines = [f"{10.0 * i},{1.0 if i < 60 else 7.0}" for i in range(120)]
    path = tmp_path / "trace.csv"
    path.write_text("arrival,size\n" + "\n".join(lines) + "\n")
    world = WorldConfig(trace=path, jobs=30, tasks=5)
    size = np.asarray(world.draw(5, seed=0).workload.recording.size)
    assert size.shape == (5, 30)
    np.testing.assert_allclose(size, PARK_MEAN_SIZE, rtol=1e-5)  # all alike: none is of the second half
    with pytest.raises(ValueError, match="jobs must lie in"):
        replace(world, jobs=61).draw(1, seed=0)


def test_a_trace_is_read_in_training_as_it_is_asked_for_and_its_configuration_remembers_how(tmp_path: Path):
    """Milliseconds, a broken line, a job without work, and a slow start that is cut off."""
    clean, raw = tmp_path / "clean.csv", tmp_path / "raw.csv"
    work = [1.0 + i % 7 for i in range(200)]
    clean.write_text("arrival,size\n" + "".join(f"{10.0 * i},{w}\n" for i, w in enumerate(work)))
    slow = "".join(f"{100_000 * i},3\n" for i in range(10)) + "950000,0\n951000,x\n"
    raw.write_text("arrival,size\n" + slow + "".join(f"{1_000_000 + 10_000 * i},{w}\n" for i, w in enumerate(work)))
    reading = Reading(unit="ms", drop="zero,broken", start=1_000.0)
    world = WorldConfig(trace=raw, reading=reading, jobs=30, load=0.7)
    expected, drawn = replace(world, trace=clean, reading=Reading()).draw(5, 0), world.draw(5, 0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), drawn, expected)
    stored = json.loads(json.dumps(config_to_json(replace(PLAN, world=world))))
    again = config_from_json(TrainConfig, stored)
    assert again.fleet.reading == reading
    jax.tree.map(np.testing.assert_array_equal, again.fleet.draw(5, 0), drawn)
    own_clock = replace(world, load="recorded").draw(1, 0).workload.recording.gap
    np.testing.assert_allclose(np.asarray(own_clock)[0, 1:], 10.0 * PARK_MEAN_SIZE / np.mean(work[:100]), rtol=0.01)
    with pytest.raises(ValueError, match="are about a trace"):
        WorldConfig(reading=reading)
    assert WorldConfig(trace=Path("conversation-like"), jobs=30).draw(1, 0).mask.shape == (1, 10)


@pytest.mark.parametrize("algorithm", ["dreamer", "a2c"])
def test_lateness_is_learned_from_or_refused_by_name(algorithm):
    world = WorldConfig(family="easy", tasks=2, jobs=20, reward="lateness", deadline=500.0)
    plan = replace(preset(algorithm, "cpu"), world=world)
    if algorithm == "dreamer":  # its model is told that rewards are response times
        with pytest.raises(ValueError, match=r"--agent.model.rewards any.*'lateness'"):
            build(plan)
        model = replace(plan.agent.algorithm.model, rewards="any")
        plan = replace(plan, agent=replace(plan.agent, algorithm=replace(plan.agent.algorithm, model=model)))
    assert build(plan).env.deadline == 500.0


def test_averaged_weights_follow_each_update_however_often_one_logs_and_counters_stay_whole():
    network, experience = NetworkConfig(units=8, layers=1), OnPolicyConfig(streams=2, steps=2, workers=1)
    agent = OnPolicyRun(A2CConfig(network=network), experience, averaging=0.3)
    one, four = (build(replace(PLAN, agent=replace(agent, chunk=chunk))) for chunk in (1, 4))
    state = begun = one.init(jax.random.key(0))
    step, expected = jax.jit(one.train), begun.averaged
    for rate in (1.0, 1 / 2, 1 / 3, 0.3):  # the mean of all, until there are enough
        state, _ = step(state)
        now = state.learning.learner.networks
        expected = jax.tree.map(lambda old, new, rate=rate: (1 - rate) * old + rate * new, expected, now)
    together, _ = jax.jit(four.train)(begun)
    for averaged in (state.averaged, together.averaged):
        for x, y in zip(jax.tree.leaves(averaged), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    weights, counter = follow((jnp.zeros(()), jnp.int32(1)), (jnp.ones(()), jnp.int32(8)), 0.25)
    assert (float(weights), int(counter), counter.dtype) == (0.25, 8, jnp.int32)


class Counts(NamedTuple):
    networks: Array


class Counting:
    """An agent whose networks are the number of its updates."""

    rows_lent, evidence = 1, None

    def init(self, key):
        return Counts(jnp.zeros(()))

    def policy(self, networks, greedy=False):
        return Random(np.ones(10))

    def keep(self, networks, state):
        return None

    def update(self, learner, rows, key):
        return Counts(learner.networks + 1), None, {"networks": learner.networks}


def test_the_average_follows_each_of_several_updates_of_a_round():
    env, pool = PLAN.world.open(0)
    trainer = WorldTrainer(Counting(), replace(DREAMER.experience, repeats=3), env, pool, rounds=2, averaging=0.25)
    state, metrics = jax.jit(trainer.train)(trainer.init(jax.random.key(0)))
    expected = 0.0
    for update in range(1, 7):
        rate = max(0.25, 1 / update)
        expected = (1 - rate) * expected + rate * update
    assert float(state.averaged) == pytest.approx(expected)
    np.testing.assert_allclose(metrics["networks"], [1.0, 4.0])
