"""Worlds outside JAX: what our side sees of them is what they say, and Dreamer learns from them.

Packages that are not installed here are skipped, such as those that have no wheel for the newest Python; Gymnasium's
CartPole always runs.
"""

import signal
import sys
import time
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from reverie import cli, signals
from reverie.agents.dreamer import DreamerConfig
from reverie.envs.core import ArraySpec, Continuous, Discrete, batch_reset, batch_step
from reverie.envs.outside.sources import open_outside
from reverie.envs.outside.spaces import Seen
from reverie.envs.outside.worlds import FromDmEnv, FromGymnasium, OutsideWorlds, WorldError
from reverie.evaluate.returns import returns
from reverie.models.rssm import RSSMConfig
from reverie.runs import checkpoint, loop
from reverie.runs.build import build
from reverie.runs.loop import Interrupted
from reverie.settings.config import GameConfig, OffPolicyRun, OnPolicyRun, TrainConfig
from reverie.settings.games import game_plan
from reverie.train.collect import collect, open_streams
from reverie.train.off_policy import OffPolicyConfig
from reverie.train.seeds import side_by_side

COPIES = 3


class Probe(gymnasium.Env):
    """Shows the number of steps, pays it, ends after `length` steps, and notes the actions that it is told."""

    def __init__(
        self,
        action_space=spaces.Discrete(2),  # noqa: B008 - spaces are not changed
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),  # noqa: B008
        length=3,
        truncates=False,
        shows=None,
    ):
        self.action_space = action_space
        self.observation_space = observation_space
        self.length, self.truncates, self.shows, self.told = length, truncates, shows, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._seen(), {}

    def step(self, action):
        assert self.time < self.length, "a step after the end"
        self.told.append(action)
        self.time += 1
        ends = self.time == self.length
        return self._seen(), float(self.time), ends and not self.truncates, ends and self.truncates, {}

    def _seen(self):
        return np.array([self.time], np.float32) if self.shows is None else self.shows


class Drawing(NamedTuple):
    """A policy that acts at random."""

    spec: Discrete | Continuous

    def initial_state(self, batch):
        return ()

    def act(self, state, timestep, key):
        batch = timestep.reward.shape[0]
        if isinstance(self.spec, Discrete):
            return jax.random.randint(key, (batch,), 0, self.spec.n), state
        return jax.random.normal(key, (batch, self.spec.size)), state


def played(worlds: OutsideWorlds, actions, key=None):
    """The timesteps [T + 1, B, ...] that follow from actions [T, B, ...], stepped within one compiled program."""

    @jax.jit
    def run(actions, key):
        reset_key, key = jax.random.split(key)
        opened = batch_reset(worlds, worlds.tasks, reset_key)

        def step(carry, now):
            carry = batch_step(worlds, worlds.tasks, *carry, *now)
            return carry, carry[1]

        _, later = jax.lax.scan(step, opened, (actions, jax.random.split(key, len(actions))))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), opened[1], later)

    return jax.tree.map(np.asarray, run(jnp.asarray(actions), jax.random.key(0) if key is None else key))


def seeds(key, copies=COPIES):
    """With which `played` opens the copies."""
    drawn = jax.random.bits(jax.random.split(key)[0])
    return [int(each) for each in np.random.SeedSequence(int(drawn)).generate_state(copies)]


def check(seen, row, column, observation, reward, is_first, is_last, is_terminal):
    """One timestep, bit for bit."""
    for name, value in observation.items():
        np.testing.assert_array_equal(seen.observation[name][row, column], value)
    assert seen.reward[row, column] == np.float32(reward)
    flags = (seen.is_first, seen.is_last, seen.is_terminal)
    assert [bool(flag[row, column]) for flag in flags] == [is_first, is_last, is_terminal]


def check_gymnasium(name: str, world: str, actions, told=lambda action: action, read=lambda seen: {"vector": seen}):
    """`world`, opened by us, does what the environment `name` does when it is stepped by hand."""
    key = jax.random.key(7)
    seen = played(open_outside(world, COPIES), actions, key)
    for column, seed in enumerate(seeds(key)):
        env = gymnasium.make(name)
        observation, ended = env.reset(seed=seed)[0], False
        check(seen, 0, column, read(observation), 0, True, False, False)
        for row, action in enumerate(actions[:, column], start=1):
            if ended:
                observation, ended = env.reset()[0], False
                check(seen, row, column, read(observation), 0, True, False, False)
                continue
            observation, reward, terminated, truncated, _ = env.step(told(action))
            ended = terminated or truncated
            check(seen, row, column, read(observation), reward, False, ended, terminated)
    return seen


def check_dm_env(worlds: OutsideWorlds, make, actions, told, read):
    """The same for an environment of dm_env's interface; `make(seed)` makes it."""
    key = jax.random.key(7)
    seen = played(worlds, actions, key)
    for column, seed in enumerate(seeds(key, actions.shape[1])):
        env = make(seed)
        for row in range(len(actions) + 1):  # after the last timestep, a step begins an episode
            raw = env.step(told(actions[row - 1, column])) if row else env.reset()
            ends = raw.last()
            check(
                seen, row, column, read(raw.observation), raw.reward or 0, raw.first(), ends, ends and not raw.discount
            )
    return seen


def collected(worlds: OutsideWorlds, steps: int):
    """Experience [T, B, ...] of the collector that training uses."""
    pool, policy = jnp.zeros((1,)), Drawing(worlds.action_spec)

    @jax.jit
    def run(key):
        return collect(worlds, pool, policy, open_streams(worlds, pool, policy, COPIES, key), steps, episodes=1)[1]

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


# --- what is seen is what the world says -----------------------------------------------------------------------------


def test_cartpole_does_what_it_does_when_stepped_by_hand():
    actions = np.random.default_rng(0).integers(0, 2, (60, COPIES))
    seen = check_gymnasium("CartPole-v1", "gym:CartPole-v1", actions)
    assert seen.is_terminal.sum() >= COPIES, "no copy has seen an end"
    assert len(np.unique(seen.observation["vector"][0, :, 0])) == COPIES, "the copies have one seed"


def test_the_collector_stores_what_the_world_says():
    seen = collected(open_outside("gym:CartPole-v1", COPIES), 60)
    length = np.diff(np.flatnonzero(seen.timestep.is_first[:, 0]))
    finished = seen.finished[seen.timestep.is_last[:, 0], 0]
    np.testing.assert_array_equal(finished[: len(length)], length - 1)  # each step pays 1


@pytest.mark.parametrize("truncates", [False, True])
def test_an_episode_that_is_cut_off_is_last_and_not_terminal(truncates):
    worlds = OutsideWorlds([FromGymnasium(Probe(truncates=truncates)) for _ in range(2)])
    seen = played(worlds, np.zeros((8, 2), int))
    for column in range(2):
        np.testing.assert_array_equal(seen.observation["vector"][:, column, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0])
        np.testing.assert_array_equal(seen.reward[:, column], [0, 1, 2, 3, 0, 1, 2, 3, 0])
        np.testing.assert_array_equal(seen.is_first[:, column], np.arange(9) % 4 == 0)
        np.testing.assert_array_equal(seen.is_last[:, column], np.arange(9) % 4 == 3)
        np.testing.assert_array_equal(seen.is_terminal[:, column], (np.arange(9) % 4 == 3) & (not truncates))


def test_the_action_after_an_end_is_ignored():
    probe = Probe(spaces.Discrete(10))
    played(OutsideWorlds([FromGymnasium(probe)]), np.arange(8)[:, None])
    assert probe.told == [0, 1, 2, 4, 5, 6]


def test_a_life_that_is_lost_while_an_action_is_repeated_is_told():
    told = iter([Seen([0.0], 1.0, False, True), Seen([0.0], 2.0), Seen([0.0], 4.0)])

    class Lives(FromGymnasium):
        def step(self, action):
            return next(told)

    seen = played(OutsideWorlds([Lives(Probe())], repeat=2), np.arange(2)[:, None] % 2)
    np.testing.assert_array_equal(seen.reward[:, 0], [0, 1, 2 + 4])
    np.testing.assert_array_equal(seen.is_terminal[:, 0], [False, True, False])


def test_repeated_actions_add_up_and_stop_at_the_end():
    probe = Probe(spaces.Discrete(10), length=3)
    seen = played(OutsideWorlds([FromGymnasium(probe)], repeat=2), np.arange(2)[:, None])
    np.testing.assert_array_equal(seen.reward[:, 0], [0, 1 + 2, 3])
    np.testing.assert_array_equal(seen.is_last[:, 0], [False, False, True])
    assert probe.told == [0, 0, 1]


# --- spaces ----------------------------------------------------------------------------------------------------------

PICTURE = np.arange(32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("space", "shown", "spec", "read"),
    [
        (spaces.Box(-1, 1, (2, 2)), np.eye(2), {"vector": ArraySpec((4,))}, {"vector": [1, 0, 0, 1]}),
        (spaces.Box(-1, 1, ()), 0.5, {"vector": ArraySpec((1,))}, {"vector": [0.5]}),
        (
            spaces.Box(0, 255, (32, 48, 3), np.uint8),
            PICTURE,
            {"image": ArraySpec((32, 48, 3), "image")},
            {"image": PICTURE},
        ),
        (
            spaces.Box(0, 255, (1, 2, 2), np.uint8),
            [[[1, 2], [3, 4]]],
            {"vector": ArraySpec((4,))},
            {"vector": [1, 2, 3, 4]},
        ),
        (spaces.Discrete(5, start=-1), 2, {"vector": ArraySpec((1,), categories=5)}, {"vector": [3]}),
        (spaces.MultiDiscrete([2, 4]), [1, 3], {"vector": ArraySpec((2,), categories=4)}, {"vector": [1, 3]}),
        (spaces.MultiBinary(3), [1, 0, 1], {"vector": ArraySpec((3,), categories=2)}, {"vector": [1, 0, 1]}),
        (
            spaces.Tuple(
                [spaces.Discrete(3, start=1), spaces.Tuple([spaces.Discrete(4), spaces.MultiDiscrete([2, 2])])]
            ),
            (3, (1, np.array([0, 1]))),
            {"vector": ArraySpec((4,), categories=4)},
            {"vector": [2, 1, 0, 1]},
        ),
        (
            spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(2)])}),
            {"a": 2, "b": (np.array([0.25, 0.75]), 1)},
            {"a": ArraySpec((1,), categories=3), "b/0": ArraySpec((2,)), "b/1": ArraySpec((1,), categories=2)},
            {"a": [2], "b/0": [0.25, 0.75], "b/1": [1]},
        ),
    ],
    ids=["numbers", "number", "picture", "symbols", "integer", "integers", "bits", "tuple", "dict"],
)
def test_observations_arrive_as_the_spec_says(space, shown, spec, read):
    worlds = OutsideWorlds([FromGymnasium(Probe(observation_space=space, shows=shown))])
    assert dict(worlds.observation_spec) == spec
    seen = played(worlds, np.zeros((1, 1), int))
    assert set(seen.observation) == set(read)
    for name, value in read.items():
        kind = np.uint8 if spec[name].kind == "image" else np.int32 if spec[name].categories else np.float32
        assert seen.observation[name].dtype == kind
        np.testing.assert_array_equal(seen.observation[name][1, 0], value)


def test_continuous_actions_are_clipped_and_scaled_to_the_bounds():
    probe = Probe(spaces.Box(np.array([[-2.0, 0.0]], np.float32), np.array([[2.0, 10.0]], np.float32)), length=4)
    worlds = OutsideWorlds([FromGymnasium(probe)])
    assert worlds.action_spec == Continuous(2)
    played(worlds, np.array([[-1, -1], [0, 0.5], [1, 1], [-3, 7]], np.float32)[:, None])
    np.testing.assert_allclose(np.concatenate(probe.told), [[-2, 0], [0, 7.5], [2, 10], [-2, 10]])
    assert all(told in probe.action_space for told in probe.told)


@pytest.mark.parametrize(
    "space",
    [spaces.MultiDiscrete([2, 3, 2], start=[0, 5, -1]), spaces.MultiDiscrete([[2, 3], [1, 2]]), spaces.MultiBinary(3)],
    ids=["start", "matrix", "bits"],
)
def test_each_combination_of_separate_actions_is_one_action(space):
    counts = np.full(3, 2) if isinstance(space, spaces.MultiBinary) else space.nvec.ravel()
    start = 0 if isinstance(space, spaces.MultiBinary) else space.start.ravel()
    probe = Probe(space, length=99)
    worlds = OutsideWorlds([FromGymnasium(probe)])
    assert worlds.action_spec == Discrete(int(counts.prod()))
    played(worlds, np.arange(counts.prod())[:, None])
    assert all(told in space for told in probe.told)
    back = [np.ravel_multi_index(tuple(np.ravel(told) - start), counts) for told in probe.told]
    np.testing.assert_array_equal(back, np.arange(counts.prod()))


def test_the_first_discrete_action_is_the_least():
    probe = Probe(spaces.Discrete(3, start=-1))
    played(OutsideWorlds([FromGymnasium(probe)]), np.arange(3)[:, None])
    assert probe.told == [-1, 0, 1]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe(observation_space=spaces.Text(3)), "no counterpart"),
        (Probe(observation_space=spaces.Dict({"mask": spaces.Discrete(2)})), "rename it"),
        (Probe(spaces.Box(-np.inf, np.inf, (2,))), "not bounded"),
        (Probe(spaces.MultiBinary(13)), "has 8,192"),
        (Probe(spaces.Tuple([spaces.Discrete(2)])), "no counterpart"),
    ],
    ids=["text", "mask", "unbounded", "many", "tuple"],
)
def test_a_space_without_counterpart_is_refused(probe, message):
    with pytest.raises(ValueError, match=message):
        OutsideWorlds([FromGymnasium(probe)])


# --- masks, faults, limits -------------------------------------------------------------------------------------------


class Faulty(Probe):
    """Does what no world may do, in its `at`-th step."""

    def __init__(self, fault, at=2):
        super().__init__(length=10)
        self.fault, self.at = fault, at

    def step(self, action):
        observation, reward, *ends = super().step(action)
        if self.time >= self.at:
            if isinstance(self.fault, BaseException):
                raise self.fault
            observation, reward = self.fault(observation, reward)
        return observation, reward, *ends


FAULTS = {
    "nan": (lambda seen, reward: (seen * np.nan, reward), "its observation 'vector' is nan at place 0"),
    "too large": (lambda seen, reward: (np.array([1e300]), reward), r"its observation 'vector' is 1e\+300 at place 0"),
    "reward": (lambda seen, reward: (seen, np.inf), "its reward is inf"),
    "shape": (
        lambda seen, reward: (np.zeros(2), reward),
        r"its observation 'vector' has shape \(2,\), and its space says \(1,\)",
    ),
    "exception": (KeyError("no such server"), "it failed with KeyError: 'no such server'"),
    "exit": (SystemExit(3), "it failed with SystemExit: 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_world_is_named_with_copy_step_and_entry(fault):
    does, said = FAULTS[fault]
    worlds = OutsideWorlds([FromGymnasium(Probe(length=10)), FromGymnasium(Faulty(does))], name="gym:lb/Faulty-v0")
    seen = played(worlds, np.zeros((5, 2)))
    assert seen.is_last[3:].all()  # stepping goes on, and stands for nothing
    assert np.isfinite(seen.observation["vector"]).all()
    with pytest.raises(WorldError, match=f"^gym:lb/Faulty-v0, copy 2 of 2, in step 2 of an episode: {said}"):
        worlds.check()
    with pytest.raises(WorldError, match=said):
        returns(worlds, Drawing(worlds.action_spec), worlds.tasks, jax.random.key(0))


def test_a_world_that_fails_while_it_is_tried_is_named():
    gymnasium.register("faulty-v0", lambda: Faulty(FAULTS["nan"][0], at=5))
    with pytest.raises(WorldError, match="gym:faulty-v0, copy 1 of 1, in step 5 of an episode: its observation"):
        open_outside("gym:faulty-v0", 1)


def test_a_world_is_tried_by_the_rules_of_gymnasium_before_it_is_trained_in():
    gymnasium.register("broken-v0", lambda: Probe(shows=[1.0]))
    with pytest.raises(WorldError, match=r"^gym:broken-v0, copy 1 of 1, when an episode began: .*list"):
        open_outside("gym:broken-v0", 2)


def test_an_episode_that_never_ends_is_cut_with_a_word():
    worlds = OutsideWorlds([FromGymnasium(Probe(length=1000)) for _ in range(2)], limit=5, name="gym:lb/Infinite-v0")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scores = returns(worlds, Drawing(worlds.action_spec), worlds.tasks, jax.random.key(0))
    np.testing.assert_array_equal(scores, [[15.0], [15.0]])  # 1 + 2 + ... + 5
    assert [str(warning.message).partition(": ")[2][:47] for warning in said] == [
        "an episode had not ended after 5 steps and was "
    ]
    seen = played(worlds, np.zeros((5, 2)))
    assert seen.is_last[5].all()
    assert not seen.is_terminal.any()


class Masked(Probe):
    """Allows one action, another in each step, and says so in one of the usual ways."""

    def __init__(self, way):
        n = 3
        entry = {way: spaces.MultiBinary(n)} if way != "action_masks" else {}
        super().__init__(spaces.Discrete(n), spaces.Dict({"load": spaces.Box(0, 9, (1,)), **entry}))
        self.way = way
        if way == "action_masks":
            self.action_masks = self.allowed

    def allowed(self):
        return np.arange(3) == self.time

    def _seen(self):
        entry = {self.way: self.allowed().astype(np.int8)} if self.way != "action_masks" else {}
        return {"load": np.array([self.time], np.float32), **entry}


@pytest.mark.parametrize("way", ["mask", "action_mask", "action_masks"])
def test_masks_are_read_in_the_usual_ways(way):
    worlds = OutsideWorlds([FromGymnasium(Masked(way))])
    assert worlds.observation_spec == {"load": ArraySpec((1,)), "mask": ArraySpec((3,), "mask")}
    seen = played(worlds, np.arange(2)[:, None])
    worlds.check()
    np.testing.assert_array_equal(seen.observation["mask"][:, 0], np.eye(3, dtype=bool))


def test_a_mask_that_allows_nothing_is_the_worlds_fault():
    world = Masked("mask")
    world.length = 10
    worlds = OutsideWorlds([FromGymnasium(world)])
    played(worlds, np.zeros((5, 1), int))
    with pytest.raises(WorldError, match="in step 3 of an episode: its mask allows no action"):
        worlds.check()


def test_a_game_of_atari_is_seen_as_the_protocol_says():
    """Beside the emulator, stepped frame by frame."""
    needs("ale_py")
    ale, cv2 = import_module("ale_py"), import_module("cv2")
    worlds = open_outside("atari:Breakout", 1, arguments={"sticky": 0.0, "no_ops": 0})
    assert worlds.observation_spec["image"] == ArraySpec((64, 64, 3), "image")
    actions = np.ones((80, 1), int)  # FIRE serves the ball, and the paddle stays where it is
    seen = jax.tree.map(np.asarray, played(worlds, actions, jax.random.key(0)))
    bare = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
    screen = bare.reset(seed=0)[0]
    lives, lost = 5, []
    for step in range(81):
        np.testing.assert_array_equal(seen.observation["image"][step, 0], cv2.resize(screen, (64, 64), interpolation=3))
        assert (not seen.is_last[step], bool(seen.is_terminal[step, 0])) == (True, bool(lost and lost[-1] == step))
        if step == 80:
            break
        frames, reward = [], 0.0
        for _ in range(4):
            frame, paid, *_, info = bare.step(1)
            frames.append(frame)
            reward += paid
        assert seen.reward[step + 1, 0] == reward
        screen = np.maximum(*frames[-2:])
        if info["lives"] < lives:
            lives = info["lives"]
            lost.append(step + 1)
    assert lost, "no life was lost: nothing was tested"
    assert ale.__version__


def test_a_module_in_the_working_directory_is_found_where_it_is_named(tmp_path, monkeypatch, capsys):
    """Also by the installed program, which does not look there by itself."""
    (tmp_path / "world_from_here.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=20)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    assert build(game_plan("gym:world_from_here:Mine-v0")).env.observation_spec["vector"].shape == (4,)
    assert "world_from_here" in sys.modules
    assert cli.main(["train", "--game", "gym:world_from_nowhere:Mine-v0", "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert f"there is no module 'world_from_nowhere', neither installed nor in {tmp_path}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()

    def interrupted(*_, **__):
        raise Interrupted("stopped by SIGINT at 10 environment steps", signal.SIGINT)

    monkeypatch.setattr(loop, "train", interrupted)
    cli.main(["train", "--game", "gym:world_from_here:Mine-v0", "--out", "run", "--quiet"])
    assert "Go on with: reverie train --resume --out run --trust\n" in capsys.readouterr().err


def test_a_world_is_made_with_arguments():
    slippery, dry = (open_outside("gym:FrozenLake-v1", 1, arguments={"is_slippery": slips}) for slips in (True, False))
    down = np.ones((1, 1), int)
    places = [
        {int(played(each, down, jax.random.key(seed)).observation["vector"][1, 0, 0]) for seed in range(12)}
        for each in (slippery, dry)
    ]
    assert len(places[0]) > 1
    assert places[1] == {4}
    with pytest.raises(ValueError, match="cannot be made with the arguments"):
        open_outside("gym:FrozenLake-v1", 1, arguments={"is_sliperry": False})
    with pytest.raises(ValueError, match="arguments must be a JSON object, got 'is_slippery'"):
        GameConfig("gym:FrozenLake-v1", arguments="is_slippery")


def test_a_signal_ends_episodes_in_a_compiled_program(monkeypatch):
    worlds = OutsideWorlds([FromGymnasium(Probe(length=10**9))], limit=10**9)
    begun = time.monotonic()
    monkeypatch.setattr(signals, "is_overdue", lambda: time.monotonic() - begun > 3.0)
    with pytest.raises(signals.Stopped):
        returns(worlds, Drawing(worlds.action_spec), worlds.tasks, jax.random.key(0))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CartPole-v1", "gym:", "brax:ant"])
def test_a_name_without_a_known_source_is_answered_by_the_sources(name):
    with pytest.raises(ValueError, match="gym:NAME, popgym:NAME, bsuite:NAME, dmc:NAME, memory_maze:NAME"):
        open_outside(name, 1)


@pytest.mark.parametrize("name", ["CartPole-v9", "Cartpole-v1", "nowhere/CartPole-v1"])
def test_an_unknown_world_is_answered_by_those_there_are(name):
    with pytest.raises(ValueError, match="CartPole-v1"):
        open_outside(f"gym:{name}", 1)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("popgym:RepeatPreviousEasy", "popgym", "popgym"),
        ("bsuite:memory_len/7", "bsuite", "bsuite"),
        ("dmc:walker_walk", "dm_control", "dmc"),
        ("memory_maze:9x9", "memory_maze", "memory-maze"),
        ("atari:Pong", "ale_py", "atari"),
        ("atari:Pong+Boxing", "ale_py", "atari"),
        ("metaworld:MT10", "metaworld", "metaworld"),
        ("velocity:half_cheetah", "mujoco", "velocity"),
    ],
)
def test_a_missing_package_is_answered_by_the_extra_to_install(name, package, extra, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'reverie\[{extra}\]'"):
        open_outside(name, 1)


def test_a_missing_package_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bsuite", None)
    assert cli.main(["train", "--game", "bsuite:catch/0", "--steps", "1", "--out", "none"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'reverie[bsuite]'" in said
    assert "Traceback" not in said


def test_what_gymnasium_says_is_passed_on(monkeypatch):
    def make(name, **options):
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(ValueError, match="gym:LunarLander-v3 cannot be made: Box2D is not installed"):
        open_outside("gym:LunarLander-v3", 1)


def test_another_number_of_streams_is_refused():
    worlds = open_outside("gym:CartPole-v1", 2)
    with pytest.raises(ValueError, match="2 copies of a world were opened, and 3"):
        batch_reset(worlds, jnp.zeros(3), jax.random.key(0))


# --- dm_env ----------------------------------------------------------------------------------------------------------


class _Raw(NamedTuple):
    observation: float
    reward: float | None
    discount: float | None
    ends: bool

    def last(self):
        return self.ends


class _DmProbe:
    """Of dm_env's interface, without the package: ends after one step, at discount `discount`."""

    def __init__(self, seed, discount):
        self.seed, self.discount = seed, discount

    def reset(self):
        return _Raw(0.0, None, None, False)

    def step(self, action):
        return _Raw(1.0, 2.0, self.discount, True)


@pytest.mark.parametrize(("discount", "is_terminal"), [(0.0, True), (1.0, False)])
def test_the_end_of_a_dm_env_is_terminal_where_nothing_is_worth_anything_after_it(discount, is_terminal):
    world = FromDmEnv(lambda seed: _DmProbe(seed, discount))
    assert world.reset(3) == Seen(0.0)
    assert world.step(0) == Seen(1.0, 2.0, True, is_terminal)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training():
    """A trainer, its state at the beginning, and the program that makes two updates, compiled as the loop does."""
    model = RSSMConfig(units=16, deter=16, stoch=2, classes=4, blocks=2, encoder_layers=1, decoder_layers=1)
    config = OffPolicyRun(
        algorithm=DreamerConfig(model=model, memory=0, units=8, layers=1, starts=4, dream_length=2),
        experience=OffPolicyConfig(streams=COPIES, batch=3, length=4, capacity=300, ratio=0.2),
        chunk=2,
    )
    trainer = build(TrainConfig(config, GameConfig("gym:CartPole-v1")))
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    chunk = jax.jit(trainer.train, donate_argnums=0).lower(trainer.place(shapes)).compile()
    return trainer, trainer.init(jax.random.key(0)), chunk


def rows(state):
    """The timesteps [T, B, ...] of replay, the oldest first."""
    replay = state.learning.replay
    assert int(replay.filled) == int(replay.position), "the ring is full: make it larger"
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: int(replay.filled)], replay.rows.timestep)


def test_dreamer_learns_from_cartpole_and_goes_on_from_a_checkpoint_with_new_episodes(training, tmp_path):
    trainer, begun, chunk = training
    before = jax.tree.map(np.array, begun.learning.learner.networks)
    state, metrics = chunk(begun)
    assert all(np.isfinite(value).all() for name, value in metrics.items() if not name.startswith("episode/"))
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max() > 0, before, state.learning.learner.networks)
    assert any(jax.tree.leaves(moved))
    seen = rows(state)
    assert len(seen.reward) * COPIES == trainer.first_steps + trainer.env_steps

    checkpoint.save(tmp_path / "step-1.safetensors", state, {})
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    loaded = [checkpoint.load(tmp_path / "step-1.safetensors", shapes) for _ in range(2)]
    resumed = [rows(chunk(trainer.place(each))[0]) for each in loaded]
    cut = len(seen.reward)
    for later in resumed:
        assert later.is_last[cut].all(), "the episodes of before do not end where the run stopped"
        assert later.is_first[cut + 1].all(), "the run does not go on with new episodes"
        opens = later.is_first[1:]
        np.testing.assert_array_equal(opens, later.is_last[:-1], "an episode begins inside another")
        pole = later.observation["vector"]
        assert (np.abs(pole[later.is_first]) <= 0.05).all(), "an episode does not begin where CartPole begins"
    jax.tree.map(np.testing.assert_array_equal, *resumed)  # a checkpoint goes on to the same numbers each time


def test_a_loaded_state_that_was_not_placed_is_refused(training):
    trainer, _, _ = training
    worlds = trainer.env
    worlds.go_on(0)
    opened = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), worlds._shapes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="begun in another process"):
        jax.block_until_ready(batch_step(worlds, worlds.tasks, (), opened, jnp.zeros(3, int), jax.random.key(0)))
    jax.effects_barrier()


def test_only_dreamer_trains_there_and_each_seed_by_itself():
    world = GameConfig("gym:CartPole-v1")
    with pytest.raises(ValueError, match="a2c does not train in worlds outside JAX, such as gym:CartPole-v1"):
        build(TrainConfig(OnPolicyRun(), world))
    plan = game_plan("gym:CartPole-v1")
    with pytest.raises(ValueError, match="outside JAX are stepped on the host"):
        side_by_side([build(plan)])


def test_actions_are_repeated_outside_alone():
    assert GameConfig("gym:CartPole-v1", repeat=2).world(1)._repeat == 2
    with pytest.raises(ValueError, match="repeat, limit and arguments are for worlds outside"):
        GameConfig("repeat_previous/easy", repeat=2)


# --- packages that are extras ----------------------------------------------------------------------------------------


def needs(package: str):
    """Skip where the package is not installed. It is not imported: our side may have to say something before."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_popgym():
    needs("popgym")
    actions = np.random.default_rng(0).integers(0, 4, (60, COPIES))
    check_gymnasium(
        "popgym-RepeatPreviousEasy-v0",
        "popgym:RepeatPreviousEasy",
        actions,
        told=int,
    )
    seen = collected(open_outside("popgym:MineSweeperEasy", COPIES), 30)  # its actions are pairs
    assert seen.action.max() > 4


def test_bsuite():
    needs("bsuite")
    bsuite = import_module("bsuite")
    actions = np.random.default_rng(0).integers(0, 2, (40, COPIES))
    check_dm_env(
        open_outside("bsuite:memory_len/7", COPIES),
        lambda seed: bsuite.load("memory_len", {"memory_length": 8, "seed": seed}),
        actions,
        told=int,
        read=lambda seen: {"vector": seen.ravel()},
    )
    collected(open_outside("bsuite:discounting_chain/0", COPIES), 10)  # it takes no seed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dm-control sets shapes of arrays
def test_deepmind_control():
    needs("dm_control")
    worlds = open_outside("dmc:walker_walk", COPIES)
    suite = import_module("dm_control.suite")
    actions = np.random.default_rng(0).uniform(-1, 1, (20, COPIES, 6)).astype(np.float32)
    seen = check_dm_env(
        worlds,
        lambda seed: suite.load("walker", "walk", task_kwargs={"random": seed}),
        actions,
        told=np.float64,
        read=lambda seen: {name: np.float32(np.ravel(value)) for name, value in seen.items()},
    )
    assert set(seen.observation) == {"orientations", "height", "velocity"}


@pytest.mark.filterwarnings("ignore")  # gym warns that it is old
def test_memory_maze():
    needs("memory_maze")
    worlds = open_outside("memory_maze:9x9", 1)  # each takes many seconds to open
    make = import_module("memory_maze.tasks").memory_maze_9x9
    actions = np.random.default_rng(0).integers(0, 6, (3, 1))
    check_dm_env(
        worlds,
        lambda seed: make(image_only_obs=True, seed=seed),
        actions,
        told=int,
        read=lambda seen: {"image": seen},
    )


def test_a_module_in_the_working_directory_is_found_and_a_missing_one_named(tmp_path, monkeypatch):
    text = "import gymnasium\ngymnasium.register('here/Pole-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    (tmp_path / "poles_of_mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    assert open_outside("gym:poles_of_mine:here/Pole-v0", 1).action_spec.n == 2
    assert str(tmp_path) not in sys.path
    with pytest.raises(ValueError, match="no module 'nobody_has_it', neither installed nor in "):
        open_outside("gym:nobody_has_it:X-v0", 1)
