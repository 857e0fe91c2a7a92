"""Worlds outside of many tasks: factors that are told when an episode begins, and several worlds in one."""

from dataclasses import replace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from gymnasium import spaces

from reverie.agents.inputs import Inputs
from reverie.agents.metadreamer import MetaDreamerConfig
from reverie.agents.pearl import PEARLConfig
from reverie.envs.core import batch_reset, batch_step
from reverie.envs.outside.sources import open_outside
from reverie.envs.outside.tasks import ManyTasks, Together, tasks_of
from reverie.envs.outside.worlds import FromGymnasium, OutsideWorlds
from reverie.evaluate.imagined import code_rows, foretold_rows
from reverie.evaluate.returns import return_curve
from reverie.models.mixture import MixtureConfig
from reverie.models.storm import PRESETS
from reverie.runs.build import build
from reverie.settings.config import CurveConfig, GameConfig
from reverie.settings.games import game_plan
from reverie.settings.presets import TOGETHER, with_model
from reverie.train.off_policy import OffPolicyConfig

KEY = jax.random.key(3)


class Counter(gymnasium.Env):
    """Shows a number of its own and one drawn by chance; ends after two steps."""

    def __init__(self, number: float, actions: int = 2):
        self.action_space, self.observation_space = spaces.Discrete(actions), spaces.Box(-np.inf, np.inf, (2,))
        self.number = number

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._seen(), {}

    def step(self, action):
        self.time += 1
        return self._seen(), self.number, self.time == 2, False, {}

    def _seen(self):
        return np.array([self.number, self.np_random.random()], np.float32)


def counters(copies: int, names=("10", "20", "30")) -> OutsideWorlds:
    tasks = ManyTasks(np.arange(len(names), dtype=np.int32), names=tuple(names))
    worlds = [Together(lambda name: FromGymnasium(Counter(float(name))), names) for _ in range(copies)]
    return OutsideWorlds(worlds, name="several", tasks=tasks)


def test_an_episode_is_of_the_task_at_hand_when_it_opens():
    worlds = counters(2)
    assert worlds.observation_spec["task"].categories == 3
    states, seen = batch_reset(worlds, jnp.array([2, 0]), KEY)
    assert seen.observation["vector"][:, 0].tolist() == [30, 10]
    assert seen.observation["task"].tolist() == [2, 0]
    actions = jnp.zeros(2, jnp.int32)
    for _ in range(2):
        states, seen = batch_step(worlds, jnp.array([2, 0]), states, seen, actions, KEY)
    assert seen.is_last.all()
    _, seen = batch_step(worlds, jnp.array([1, 2]), states, seen, actions, KEY)
    assert seen.observation["vector"][:, 0].tolist() == [20, 30]
    assert seen.observation["task"].tolist() == [1, 2]


def test_worlds_that_are_made_late_are_seeded_too():
    def drawn():
        worlds = counters(1)
        states, seen = batch_reset(worlds, jnp.array([0]), KEY)
        found = []
        for task in (1, 1, 1, 2, 2, 2):  # an episode of each that is not made yet
            seen = seen._replace(is_last=jnp.array([True]))
            states, seen = batch_step(worlds, jnp.array([task]), states, seen, jnp.zeros(1, jnp.int32), KEY)
            found.append(float(seen.observation["vector"][0, 1]))
        return found

    assert drawn() == drawn()
    assert len(set(drawn())) == 6


def test_worlds_of_other_actions_are_not_played_together():
    made = {"two": Counter(1.0), "three": Counter(2.0, actions=3)}
    worlds = Together(lambda name: FromGymnasium(made[name]), ("two", "three"))
    worlds.reset(0, 0)
    with pytest.raises(
        ValueError, match=r"three cannot be played together with two: it shows .* and takes Discrete\(3\)"
    ):
        worlds.reset(0, 1)
    with pytest.raises(ValueError, match="different names, got Pong, Pong"):
        Together(lambda name: FromGymnasium(Counter(1.0)), ("Pong", "Pong"))


def test_tasks_are_told_where_the_name_says_so():
    names = ("10", "20")
    tasks = ManyTasks(np.arange(2, dtype=np.int32), names=names, told=True)
    worlds = OutsideWorlds([Together(lambda name: FromGymnasium(Counter(float(name))), names)], tasks=tasks)
    assert Inputs.of(worlds.observation_spec, worlds.action_spec, "flat").context == 2 + 2
    _, seen = batch_reset(worlds, jnp.array([1]), KEY)
    assert seen.observation["number"].tolist() == [[1]]
    assert tasks_of("velocity:half_cheetah/told").shown["factors"].shape == (1,)
    assert tasks_of("velocity:half_cheetah").shown == {}
    with pytest.raises(
        ValueError, match="gym:Pendulum-v1/told tells an agent which task it plays, and gym:Pendulum-v1 is"
    ):
        open_outside("gym:Pendulum-v1/told", 1)


def test_suites_are_known_by_name():
    assert len(tasks_of("metaworld:MT10").names) == 10
    assert len(tasks_of("atari:26").names) == 26
    assert tasks_of("atari:Pong+Boxing").names == ("Pong", "Boxing")
    assert tasks_of("atari:Pong").names == tasks_of("gym:A+B").names == ()
    assert GameConfig("metaworld:MT10").names[0] == "reach-v3"
    assert game_plan("metaworld:MT10").agent.experience.streams == 10
    assert game_plan("metaworld:MT10/told", "sac").agent.experience.batch == 510
    assert with_model(game_plan("metaworld:MT10"), "shared").agent.algorithm.model == TOGETHER["shared"]


# --- the half-cheetah that runs at a speed ----------------------------------------------------------------------------


def test_the_half_cheetah_is_paid_for_the_speed_of_its_task(tmp_path, monkeypatch, capfd):
    """Beside Gymnasium's own, stepped by hand."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    tasks = jnp.array([[0.25], [3.0]])
    worlds = open_outside("velocity:half_cheetah", 2)
    assert worlds.factors == ("velocity",)
    assert list(tmp_path.iterdir()) == []  # as MuJoCo notes warnings where one is, and says them
    assert capfd.readouterr() == ("", "")
    states, seen = batch_reset(worlds, tasks, KEY)
    seeds = np.random.SeedSequence(int(jax.random.bits(KEY))).generate_state(2)
    bare = [gymnasium.make("HalfCheetah-v5") for _ in range(2)]
    opened = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(bare, seeds, strict=True)])
    np.testing.assert_array_equal(seen.observation["vector"], opened.astype(np.float32))
    rng = np.random.default_rng(0)
    for step in range(1, 201):
        actions = rng.uniform(-1, 1, (2, 6)).astype(np.float32)
        states, seen = batch_step(worlds, tasks, states, seen, jnp.asarray(actions), KEY)
        for copy, env in enumerate(bare):
            observation, _, _, _, info = env.step(actions[copy])
            np.testing.assert_array_equal(seen.observation["vector"][copy], observation.astype(np.float32))
            wanted = -abs(info["x_velocity"] - float(tasks[copy, 0])) - 0.05 * np.square(actions[copy]).sum()
            assert float(seen.reward[copy]) == pytest.approx(wanted, abs=1e-6)
        assert seen.is_last.tolist() == [step == 200] * 2
    assert not seen.is_terminal.any()


def test_metadreamer_infers_speeds_and_is_judged_on_others():
    pytest.importorskip("mujoco")
    plan = game_plan("velocity:half_cheetah", "metadreamer")
    config = plan.agent.algorithm
    assert isinstance(config, MetaDreamerConfig)
    shared = PEARLConfig(
        units=8, layers=1, encoder_units=8, encoder_layers=1, tasks=2, evidence=4, recent=20, sees_next=True
    )
    algorithm = replace(config, pearl=shared, stretch=2, rollouts=4, dream_length=2, warmup=1, renew=1)
    experience = OffPolicyConfig(streams=12, batch=4, length=1, capacity=2_000, prefill=60, ratio=0.2, episodes=3)
    curve = CurveConfig(episodes=2, trial=3)
    plan = replace(plan, agent=replace(plan.agent, algorithm=algorithm, experience=experience, chunk=2), curve=curve)
    trainer = build(plan)
    state, metrics = jax.jit(trainer.train)(trainer.init(KEY))
    trainer.check()
    assert np.isfinite(np.asarray(metrics["model/loss"])).all()
    assert sorted(return_curve(plan.world, curve)(trainer.policy(state))) == [
        "evaluation/extrapolated",
        "evaluation/return",
    ]
    learner, game = state.learning.learner, plan.world
    sets = {"interpolated": np.asarray(game.drawn(3, "interpolated"))}
    rows = code_rows(trainer.agent, learner, game.world, sets, 0)
    assert [row["velocity"] for row in rows if row["tasks"] == "interpolated"] == [0.25, 0.75, 1.25]
    assert len({row["task"] for row in foretold_rows(trainer.agent, learner, game.world, 0)}) == 3


def test_factors_are_asked_of_worlds_outside_that_have_none():
    plan = game_plan("velocity:half_cheetah", "metadreamer")
    with pytest.raises(ValueError, match="metadreamer imagines tasks by their factors, and OutsideWorlds names none"):
        build(replace(plan, world=GameConfig("gym:Pendulum-v1")))


# --- several worlds in one --------------------------------------------------------------------------------------------


def small(plan, **model):
    """The plan of a mixture, at a size for tests."""
    config = replace(plan.agent.algorithm.model, **{**vars(sizes.STORM), **model})
    assert isinstance(config, MixtureConfig)
    algorithm = replace(plan.agent.algorithm, model=config, units=8, layers=1, starts=4, dream_length=2)
    experience = replace(plan.agent.experience, batch=2, length=4, capacity=100, ratio=1.0, prefill=20)
    return replace(plan, agent=replace(plan.agent, algorithm=algorithm, experience=experience, chunk=2))


def test_a_mixture_learns_from_two_games_of_atari():
    pytest.importorskip("ale_py")
    assert game_plan("atari:Pong").agent.algorithm.model == PRESETS["atari"]
    plan = game_plan("atari:Pong+Boxing")
    model = plan.agent.algorithm.model
    assert (model.modules, model.experts, model.acts) == (12, 12, "prior")
    trainer = build(small(plan, modules=2, experts=2, active=1, trunk=1, embedding=4, acts="prior"))
    assert trainer.env.action_spec.n == 18
    begun = trainer.init(KEY)
    before = jax.tree.map(np.array, begun.learning.learner.networks.model.senses)
    state, metrics = jax.jit(trainer.train)(begun)
    trainer.check()
    assert all(np.isfinite(value).all() for name, value in metrics.items() if name.startswith("model/"))
    senses = state.learning.learner.networks.model.senses
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max() > 0, before, senses)
    assert all(jax.tree.leaves(moved))
    collector = state.learning.collector
    assert collector.task.tolist() == [0, 1]
    assert collector.timesteps.observation["task"].tolist() == [0, 1]


def test_streams_that_settle_are_a_multiple_of_the_tasks():
    pytest.importorskip("ale_py")
    plan = small(game_plan("atari:Pong+Boxing"))
    experience = replace(plan.agent.experience, streams=3)
    with pytest.raises(ValueError, match="streams must be a multiple of the number of tasks, 2"):
        build(replace(plan, agent=replace(plan.agent, experience=experience)))


def test_the_learning_curve_is_drawn_for_each_named_task():
    with pytest.raises(ValueError, match="must be a multiple of the number of tasks, 2; got 3"):
        return_curve(GameConfig("atari:Pong+Boxing"), CurveConfig(episodes=3))


def test_meta_world_is_judged_by_success():
    pytest.importorskip("metaworld")
    trained = GameConfig("metaworld:reach-v3+window-open-v3")
    for judged in (False, True):
        worlds = trained.world(2, judged)
        states, seen = batch_reset(worlds, worlds.tasks, KEY)
        paid = []
        for _ in range(20):
            states, seen = batch_step(worlds, worlds.tasks, states, seen, jnp.ones((2, 4)), KEY)
            paid.append(seen.reward)
        assert (np.unique(paid).tolist() == [0.0]) == judged
    with pytest.raises(ValueError, match="metaworld:reach-v3 takes pays, got"):
        open_outside("metaworld:reach-v3", 1, arguments={"pays": "money"})
