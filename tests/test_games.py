"""Games by name: as worlds of training, on the command line, and as something that no fleet can be given to."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes

from reverie import cli
from reverie.agents.optimisers import GroupsConfig
from reverie.commands.train import parse
from reverie.envs.core import batch_reset, batch_step
from reverie.envs.games import GAMES, find_game
from reverie.envs.memory.discounting_chain import DELAYS
from reverie.envs.memory.memory_chain import LENGTHS
from reverie.evaluate import players
from reverie.evaluate.contestants import Contestant
from reverie.evaluate.returns import return_curve, returns
from reverie.models.rssm import RSSMConfig
from reverie.models.s3m import S3MConfig
from reverie.models.storm import StormConfig
from reverie.nn.optimiser import AdamConfig, OptimiserConfig
from reverie.report import judged
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import CurveConfig, GameConfig, LoopConfig, TrainConfig
from reverie.settings.games import game_plan
from reverie.settings.presets import MODELS, preset, with_model, with_optimiser, with_steps
from reverie.sweep.training import train_run


class Always:
    """A policy that repeats one action."""

    def __init__(self, action: int):
        self.action = action

    def initial_state(self, batch):
        return jnp.zeros(batch)

    def act(self, state, timestep, key):
        return jnp.full(timestep.reward.shape, self.action), state


@pytest.mark.parametrize("name", GAMES)
def test_games_open_with_the_observation_that_they_announce(name):
    world, tasks, _ = GAMES[name]
    opened = jax.eval_shape(lambda key: world.reset(jnp.asarray(tasks[-1]), key)[1], jax.random.key(0))
    assert {entry: spec.shape for entry, spec in world.observation_spec.items()} == {
        entry: leaf.shape for entry, leaf in opened.observation.items()
    }


def test_an_unknown_game_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no game 'repeat/easy'; there are repeat_previous/ easy, medium, hard; auto"):
        GameConfig("repeat/easy")


@pytest.mark.parametrize("arm", range(len(DELAYS)))
def test_returns_are_those_of_whole_episodes(arm):
    """In the discounting chain whose arm of delay 30 pays most, every arm pays 1 once, and that one 1.1."""
    game = GameConfig("discounting_chain/30")
    env, tasks = game.world(3), game.drawn(3)
    played = returns(env, Always(arm), tasks, jax.random.key(0))
    np.testing.assert_allclose(played, [[1.1 if DELAYS[arm] == 30 else 1.0]] * 3, rtol=1e-6)


def test_copies_take_turns_at_the_variants_of_a_game():
    """Of `memory_length/all`, each copy has one length: an episode of it is over when it says so."""
    game = GameConfig("memory_length/all")
    world, tasks = game.world(30), game.drawn(30)
    np.testing.assert_array_equal(tasks, [*range(23), *range(7)])
    states, steps = batch_reset(world, tasks, jax.random.key(0))
    step = jax.jit(partial(batch_step, world, tasks))
    ended = np.full(30, -1)
    for time in range(1, 102):
        states, steps = step(states, steps, jnp.zeros(30, jnp.int32), jax.random.key(time))
        ended = np.where((ended < 0) & steps.is_last, time, ended)
    np.testing.assert_array_equal(ended, np.resize(LENGTHS, 30) + 1)
    assert build(replace(small(sizes.S3M), world=GameConfig("memory_length/all"))).pool.tolist() == [*range(23)]


def test_the_memory_lives_through_a_trial_and_each_episode_is_counted_by_itself():
    """A policy that counts its steps turns card 0 in the first episode of Concentration, and lets be in the second."""

    class Counting(Always):
        def act(self, state, timestep, key):
            return jnp.where(state < world.limit, 0, (state % 52).astype(jnp.int32)), state + 1

    world = find_game("concentration/easy").world
    first, second = returns(world, Counting(0), jnp.zeros(2, jnp.int32), jax.random.key(0), 2).T
    np.testing.assert_allclose(first, -2.0 / world.limit * (world.limit // 2), rtol=1e-5)
    assert (second > first).all()


def test_a_game_of_many_tasks_is_judged_between_and_outside_those_it_was_learned_from():
    curve = return_curve(GameConfig("point_robot"), CurveConfig(6, trial=2))
    for name, tasks in zip(("interpolated", "extrapolated"), curve.tasks.values(), strict=True):
        np.testing.assert_array_equal(tasks, GAMES["point_robot"].tests[name][:6])
    still = type(
        "Still", (Always,), {"act": lambda self, state, step, key: (jnp.zeros((*step.reward.shape, 2)), state)}
    )
    judged = curve(still(0))
    for name, tasks in curve.tasks.items():  # who stays pays the distance in each of 20 steps, of the last episode
        assert judged[name] == pytest.approx(-20 * float(jnp.linalg.norm(tasks, axis=1).mean()), rel=1e-4)


def test_episodes_that_end_earlier_are_counted_once():
    """Turning one card again and again loses as often as the rules of Concentration say, and an episode is cut."""
    world = find_game("concentration/easy").world
    played = returns(world, Always(0), jnp.zeros(2, jnp.int32), jax.random.key(0))
    np.testing.assert_allclose(played, -2.0 / world.limit * (world.limit // 2), rtol=1e-5)


def small(model) -> object:
    """The plan of a game, so small that it compiles quickly."""
    plan = game_plan("memory_length/3")
    algorithm = replace(plan.agent.algorithm, model=model, units=8, layers=1, dream_length=3, starts=4)
    experience = replace(plan.agent.experience, streams=2, batch=2, length=6, ratio=3.0, capacity=100)
    agent = replace(plan.agent, algorithm=algorithm, experience=experience, chunk=2)
    return replace(plan, agent=agent)


@pytest.fixture(scope="module")
def player(tmp_path_factory) -> RunFolder:
    """A run that has learned a game, a little."""
    plan = replace(small(sizes.S3M), label="player", loop=LoopConfig(steps=40, evaluate_every=10))
    run = RunFolder.create(tmp_path_factory.mktemp("games") / "player", plan)
    train_run(plan, build(plan), run, ["test"], quiet=True)
    return run


def test_a_state_space_model_is_trained_and_judged_in_a_game(player):
    trained = [line for line in player.metrics() if "model/reward" in line]
    assert trained
    for line in trained:
        assert all(np.isfinite(value) for name, value in line.items() if name != "episode/return"), line
    plan = player.config(TrainConfig)
    trainer = build(plan)
    _, state = loop.newest_state(trainer, player)
    judged = return_curve(plan.world, CurveConfig(3))(trainer.policy(state))
    assert set(judged) == {"evaluation/return"}
    assert round(3 * judged["evaluation/return"], 5) in (-3, -1, 1, 3)  # each game is won or lost


@pytest.mark.parametrize("name", GAMES)
def test_every_game_has_a_plan(name):
    """Which recalls as far back as the game demands, with sequences that are long enough, in the game's own unit."""
    plan = game_plan(name)
    assert plan.world.game == name
    model, experience = plan.agent.algorithm.model, plan.agent.experience
    if isinstance(model, S3MConfig):
        assert 0 < model.recall < 2 * experience.length
    world, tasks = plan.world.world(2), plan.world.drawn(2)
    _, first = batch_reset(world, tasks, jax.random.key(0))
    assert first.is_first.all()


def test_a_game_is_chosen_by_its_name(capsys):
    chosen = parse(["--game", "repeat_previous/hard", "--agent.model.recall", "7"]).config
    assert (chosen.world.game, chosen.agent.algorithm.model.recall) == ("repeat_previous/hard", 7)
    outside = parse(["--game", "gym:CartPole-v1", "--world.repeat", "2"]).config
    assert (outside.world, type(outside.agent.algorithm.model)) == (GameConfig("gym:CartPole-v1", 2), RSSMConfig)
    for words in ("--agent a2c", "--preset cpu"):
        with pytest.raises(SystemExit):
            parse(["--game", "gym:CartPole-v1", *words.split()])
        assert f"{words} was given too" in " ".join(capsys.readouterr().err.replace("│", "").split())
    with pytest.raises(ValueError, match="there is no game 'repeat/easy'"):
        parse(["--game", "repeat/easy"])


@pytest.mark.parametrize(
    ("words", "model"),
    [("--model s3m", S3MConfig), ("--model storm", StormConfig), ("--model rssm --agent.model.units 32", RSSMConfig)],
)
def test_the_world_model_is_chosen_by_its_kind(words, model):
    chosen = parse(["--preset", "learned", *words.split()]).config
    assert isinstance(chosen.agent.algorithm.model, model)
    build(replace(chosen, world=replace(chosen.world, tasks=2)))  # it reads a fleet


def test_the_optimiser_is_chosen_by_its_kind():
    words = ["--game", "repeat_previous/easy", "--optimiser", "groups", "--agent.optimiser.actor.clip", "7"]
    chosen = parse(words).config.agent.algorithm
    assert chosen.optimiser == GroupsConfig(actor=AdamConfig(3e-5, 7.0, 1e-5))
    assert isinstance(chosen.model, S3MConfig)
    assert parse(["--optimiser", "single"]).config.agent.algorithm.optimiser == OptimiserConfig()
    with pytest.raises(ValueError, match="a2c has one kind of optimiser"):
        with_optimiser(preset("a2c", "cpu"), "groups")
    with pytest.raises(ValueError, match="--optimiser groups is for a new run"):
        parse(["--resume", "--out", "nowhere", "--optimiser", "groups"])


def test_a_step_size_that_ends_before_the_training_is_refused():
    words = ["--game", "repeat_previous/easy", "--steps", "60000"]
    with pytest.raises(ValueError, match="837 or more, or 0 for a step size that stays"):
        parse(words)
    for decay in (837, 0):
        assert parse([*words, "--agent.optimiser.decay", str(decay)]).config.loop.steps == 60_000
    with pytest.raises(ValueError, match="0 after 936 updates, and 60000 steps end after 937"):
        parse([*words, "--agent.optimiser.decay", "836"])
    assert parse(["--game", "repeat_previous/easy", "--steps", "20000"]).config.loop.steps == 20_000


@pytest.mark.parametrize("factor", [0.01, 0.5, 10])
def test_the_step_size_falls_for_as_long_as_the_training(factor):
    plan = preset("dreamer", "cpu")
    longer = with_steps(plan, int(factor * plan.loop.steps))
    before, after = plan.agent.algorithm.optimiser, longer.agent.algorithm.optimiser
    least = after.warmup + 1  # what is shorter than the warm-up ends within it
    assert after.warmup + after.decay == max(least, factor * (before.warmup + before.decay))
    assert longer.loop.steps == factor * plan.loop.steps
    assert with_steps(preset("a2c", "cpu"), 7).loop.steps == 7


@pytest.mark.parametrize("steps", [1, 150_000, 2_048_000, 3_000_000, 50_000_000])
@pytest.mark.parametrize("algorithm", ["a2c", "dreamer"])
def test_chunks_do_not_train_far_beyond_the_steps_that_were_asked_for(algorithm, steps):
    """150,000 steps were 2,048,000: one whole chunk."""
    before = preset(algorithm, "cpu").agent
    agent = with_steps(preset(algorithm, "cpu"), steps).agent
    trained, one = agent.experience.first_steps, agent.experience.env_steps
    while trained < steps:
        trained += agent.chunk * one
    assert 1 <= agent.chunk <= before.chunk
    assert trained <= max(1.03 * steps, agent.experience.first_steps) + one


def test_every_kind_of_model_is_a_choice():
    for kind, model in MODELS.items():
        assert with_model(preset("dreamer", "cpu"), kind).agent.algorithm.model == model
    with pytest.raises(ValueError, match="a2c has no world model"):
        with_model(preset("a2c", "cpu"), "rssm")


def test_an_agent_of_a_game_is_evaluated_and_reported(player, capsys):
    assert cli.main(["evaluate", str(player.path), "--episodes", "20", "--output", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["tasks"], row["episode"]) == ("trained", 1)
    assert (row["game"], row["episodes"], row["best"]) == ("memory_length/3", 20, 1.0)
    assert -1 <= row["mean_low"] <= row["mean"] <= row["mean_high"] <= 1
    assert cli.main(["evaluate", str(player.path), "--jobs", "5"]) == 1
    assert "--episodes and --seed are all" in capsys.readouterr().err
    assert cli.main(["report", str(player.path)]) == 0
    page = player.report.read_text()
    assert "memory_length/3" in page
    assert page.count("<svg") == 2  # one picture, drawn again for phones
    assert {"step", "evaluation/return"} <= player.metrics()[-1].keys()


def test_agents_of_one_game_are_compared_on_the_same_trials(player, tmp_path, capsys):
    """Beside the first, runs that differ in their seed alone as one; and each as it is judged alone."""
    second, other = tmp_path / "player-1", tmp_path / "other"
    for path, plan in {
        second: replace(player.config(TrainConfig), seed=1),
        other: replace(player.config(TrainConfig), label="other", loop=LoopConfig(steps=24, evaluate_every=24)),
    }.items():
        train_run(plan, build(plan), RunFolder.create(path, plan), ["test"], quiet=True)
    runs = [word for path in (player.path, second, other) for word in ("--run", str(path))]
    assert cli.main(["compare", *runs, "--episodes", "20", "--output", "json"]) == 0
    rows = {row["agent"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["seeds"] for name, row in rows.items()} == {"player": 2, "other": 1}
    assert rows["player"]["verdict"] == "baseline"
    assert rows["other"]["difference"] == pytest.approx(rows["other"]["mean"] - rows["player"]["mean"])
    each = []
    for path in (player.path, second):
        assert cli.main(["evaluate", str(path), "--episodes", "20", "--output", "json"]) == 0
        each.append(json.loads(capsys.readouterr().out)["rows"][0]["mean"])
    assert rows["player"]["mean"] == pytest.approx(np.mean(each))
    assert cli.main(["compare", *runs, "--episodes", "20"]) == 0
    assert "- player" in capsys.readouterr().out
    assert cli.main(["compare", *runs, "--run", str(second)]) == 1
    assert "are the same run" in capsys.readouterr().err


def test_options_that_say_nothing_of_a_game_are_refused_before_it_is_played(player, monkeypatch, capsys):
    monkeypatch.setattr(judged, "compare_players", None)
    for more in (["--family", "hard"], ["--jobs", "5"], ["--view", "counts"]):
        assert cli.main(["compare", "--run", str(player.path), *more]) == 1
        assert "--episodes and --seed are all" in capsys.readouterr().err


def test_agents_of_one_world_are_judged_in_one(player, tmp_path, monkeypatch):
    """Of a world outside every one that is opened holds a copy for each trial."""
    other = tmp_path / "other"
    plan = replace(player.config(TrainConfig), label="other", loop=LoopConfig(steps=24, evaluate_every=24))
    train_run(plan, build(plan), RunFolder.create(other, plan), ["test"], quiet=True)
    opened, world = [], GameConfig.world

    def counted(self, copies, judged=False):
        opened.extend([copies] * judged)
        return world(self, copies, judged)

    monkeypatch.setattr(GameConfig, "world", counted)
    players.compare_players([player.path, other], episodes=5, seed=0)
    assert opened == [5]


def test_agents_are_compared_on_the_tasks_that_their_games_share():
    """Told or not, and whichever they learned from; not where the worlds are others."""
    told, dense, hidas = (GameConfig(f"merging/{about}") for about in ("told", "dense", "hidas"))
    assert told.untold == dense.untold == GameConfig("merging")
    assert hidas.untold != told.untold
    sparse = GameConfig("point_robot/sparse/told").untold
    assert sparse == GameConfig("point_robot/sparse").untold == GameConfig("point_robot")
    assert GameConfig("memory_length/3").untold != GameConfig("memory_length/5").untold
    assert GameConfig("velocity:half_cheetah/told").untold == GameConfig("velocity:half_cheetah")
    sets = [players._sets(game, 16) for game in (told, dense)]
    assert list(players._shared(sets)) == ["interpolated", "extrapolated"]
    assert list(players._shared(sets[:1] * 2)) == ["trained", "interpolated", "extrapolated"]


def test_tasks_with_names_that_were_not_played_have_no_row():
    sets = {"trained": GameConfig("memory_length/3").drawn(2)}
    player = Contestant("fixed", Always(0), find_game("memory_length/3").world, training_seed=0)
    rows = players.standings([player], sets, ("first", "second", "third"), 1, seed=0)
    assert [(row["tasks"], row["episodes"]) for row in rows] == [("trained", 2), ("first", 1), ("second", 1)]


def test_who_earns_more_is_better():
    rng = np.random.default_rng(0)
    few, many = rng.normal(0, 1, (2, 30)), rng.normal(3, 1, (2, 30))
    first, second = players._stand({"few": few, "many": many})
    assert (first["agent"], first["verdict"], second["verdict"]) == ("many", "better", "baseline")
    assert first["difference_low"] > 0
    assert players._stand({"many": many, "few": few})[1]["verdict"] == "worse"


def test_trials_of_one_task_do_not_make_an_interval_on_tasks_narrower():
    """Of 400 sets of five tasks, which differ, with forty trials each, the interval holds the mean of all tasks in
    95 %; were trials taken for independent it would be a fifth as wide."""
    rng, held = np.random.default_rng(0), []
    tasks = jnp.resize(jnp.arange(5), 200)
    for _ in range(400):
        values = rng.normal(0, 1, 5)[np.asarray(tasks)] + rng.normal(0, 1, (1, 200))
        (row,) = players._stand({"agent": values}, players._of_tasks(tasks))
        held.append(row["mean_low"] < 0 < row["mean_high"])
        assert (row["episodes"], row["mean"]) == (200, pytest.approx(values.mean()))
    assert 0.92 < np.mean(held) < 0.98
    assert players._of_tasks(jnp.zeros(6)) is None
    assert players._of_tasks(jnp.arange(6)) is None


def test_intervals_of_a_test_set_are_over_its_tasks_and_of_a_learned_one_over_trials(monkeypatch):
    earned = np.resize(np.array([0.0, 1.0, 2.0]), 60)[:, None]
    monkeypatch.setattr(players, "returns", lambda *_: earned)
    tasks = jnp.resize(jnp.arange(3), 60)
    player = Contestant("fixed", Always(0), find_game("memory_length/3").world, training_seed=0)
    learned, tested = players.standings([player], {players.LEARNED: tasks, "interpolated": tasks}, (), 1, seed=0)
    assert (learned["mean"], tested["mean"]) == (pytest.approx(1), pytest.approx(1))
    assert (learned["mean_high"] - 1) == pytest.approx(2.001 * np.std(earned, ddof=1) / np.sqrt(60), rel=1e-3)
    assert (tested["mean_high"] - 1) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)


def test_a_resumed_run_keeps_its_model(tmp_path, capsys):
    run = RunFolder.create(tmp_path / "player", small(sizes.S3M))
    assert cli.main(["train", "--resume", "--out", str(run.path), "--model", "rssm"]) == 1
    assert "--model rssm is for a new run" in capsys.readouterr().err
