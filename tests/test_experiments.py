"""Experiments: their options parse, and what they mean to train can be built."""

import dataclasses
import importlib
import sys
from functools import partial
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tyro

from reverie.envs.dispatch import Dispatch
from reverie.envs.fleet.load import offered_load
from reverie.models.rssm import RSSMConfig
from reverie.policies.adaptive import AdaptiveLeastConnections
from reverie.policies.weights import AdaptiveWeights
from reverie.runs.build import build
from reverie.settings.games import game_plan
from reverie.settings.presets import preset


@pytest.fixture
def load(monkeypatch):
    """Import an experiment, whose folder is no package."""

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def fits(plan) -> None:
    """A fleet's plan can be built: with two of its tasks, as to draw a thousand takes longer than all else."""
    build(dataclasses.replace(plan, world=dataclasses.replace(plan.fleet, tasks=2)))


def test_forgetting_goes_on_from_stage_to_stage(load, tmp_path):
    forgetting = load("forgetting")
    asked = tyro.cli(forgetting.Forgetting, args=["--runs", str(tmp_path), "--steps", "30000", "--episodes", "3"])
    assert asked.exam.episodes == 3
    for name in forgetting.learners(asked):
        first, second, third = (forgetting.stage(asked, name, 1, number) for number in (1, 2, 3))
        assert [plan.world.family for plan in (first, second, third)] == ["easy", "medium", "hard"]
        assert first.start is None
        assert second.start == tmp_path / f"{first.name}-1"
        assert third.start == tmp_path / f"{second.name}-1"
        mixture = forgetting.mixture(asked, name, 1)
        assert mixture.loop.steps == 3 * first.loop.steps
        for plan in (first, mixture):
            fits(plan)
    steps = {name: plan.loop.steps for name, plan in forgetting.learners(asked).items()}
    assert steps == {"dreamer-queue-rl2": 30_000, "a2c-equal-steps": 30_000, "a2c-long": 400 * 30_000}


def test_forgetting_reads_its_measures_from_results(load):
    forgetting = load("forgetting")
    time = {"untrained": 4.0, "easy": 2.0, "medium": 2.0, "hard": 2.0, "mixture": 1.0}
    levels = {}
    for level in ("easy", "medium", "hard"):
        rows = []
        for seed, episode, after in ((s, e, a) for s in (0, 1) for e in (0, 1) for a in time):
            rows.append(row(forgetting.called("a2c-long", after), "agent", seed, episode, level, time[after]))
        rows += [row("jsq", "rule", None, episode, level, 1.0) for episode in (0, 1)]
        levels[level] = rows
    table = forgetting.matrix(["a2c-long"], levels)
    assert [r["ratio"] for r in table if r["level"] == "hard"] == pytest.approx([4, 2, 2, 2, 1])
    found = {r["measure"]: r["value"] for r in forgetting.measures(["a2c-long"], 2, levels)}
    assert found["retention"] == pytest.approx(1)
    assert found["final"] == pytest.approx(0.6931, abs=1e-4)
    assert found["forward"] == pytest.approx(0.6931, abs=1e-4)
    assert found["final_mixture"] == pytest.approx(0, abs=1e-9)


def row(agent, role, seed, episode, level, mean):
    numbers = dict.fromkeys(("mean", "median", "p95", "p99", "mean_slowdown", "p99_slowdown"), mean)
    who = {"experiment": "standard", "agent": agent, "role": role, "view": "full", "training_seed": seed}
    where = {"task": level, "evaluation_seed": episode, "episode": 0, "level": None, "jobs": 10, "mean_size": 1.0}
    return who | where | numbers


def test_memory_compares_agents_that_differ_in_their_trials_alone(load, tmp_path):
    memory = load("memory")
    asked = tyro.cli(memory.Memory, args=["--runs", str(tmp_path), "--seeds", "2"])
    assert asked.exam.jobs == 100
    plans = memory.plans(asked)
    assert plans["dreamer-queue-rl2"] == load("standard").dreamers(asked)
    alone, in_trials = (plans[name][1] for name in ("dreamer-counts-rl2", "dreamer-counts-rl2-trials"))
    assert alone.agent.experience.episodes * alone.world.jobs == 500
    assert in_trials.agent.experience.episodes * in_trials.world.jobs == 500
    fits(in_trials)


def test_the_memory_curve_is_read_from_results(load):
    memory = load("memory")
    rows = []
    for seed, trial, episode in ((s, e, k) for s in (0, 1) for e in (0, 1) for k in range(16)):
        time = 2.0 + trial
        rows.append(row("mine", "agent", seed, trial, "task", time / (episode + 1)) | {"episode": episode})
        rows.append(row("mine-wiped", "agent", seed, trial, "task", time) | {"episode": episode})
        if seed == 0:
            rows.append(row("jsq", "rule", None, trial, "task", time / 2) | {"episode": episode})
    found = memory.curve("mine", rows)
    assert [r["episode"] for r in found] == list(range(1, 17))
    assert [r["to_wiped"] for r in found] == pytest.approx([1 / k for k in range(1, 17)])
    assert [r["to_rule"] for r in found] == pytest.approx([2 / k for k in range(1, 17)])


def test_what_is_remembered_of_servers_is_read_from_results(load):
    remembered = load("remembered")
    lives, ends = (remembered.plan(kind, "x") for kind in ("trial", "episode"))
    model = dataclasses.replace(ends.agent.algorithm.model, forgets="trial")
    algorithm = dataclasses.replace(ends.agent.algorithm, model=model)
    assert lives == dataclasses.replace(ends, agent=dataclasses.replace(ends.agent, algorithm=algorithm))
    fits(lives)
    rows = []
    others = {"ends": 2.0, "tuned-adaptive-least-connections": 4.0, "tuned-little": 5.0}
    rules = {"little-root": 3.0, "jsq": 9.0}
    for trial, episode in ((t, k) for t in (0, 1) for k in range(16)):
        base = 1.0 + trial

        def add(who, role, seed, time, trial=trial, episode=episode):
            rows.append(row(who, role, seed, trial, "task", time) | {"episode": episode, "p99": time**2})

        for seed in (0, 1):
            add("lives", "agent", seed, base / (episode + 1))
            add("lives-wiped", "agent", seed, base)
            add("lives-swapped", "agent", seed, base * 2)
            for who, factor in others.items():
                add(who, "agent", seed, base * factor)
        for who, factor in rules.items():
            add(who, "rule", None, base * factor)
        add("shortest-wait", "oracle", None, base / 100)
    found = remembered.compared("task", rows)
    assert [r["episode"] for r in found] == [*map(str, range(1, 17)), "3 to 16", "3 to 16, p99"]
    assert {r["best rule"] for r in found} == {"little-root"}
    second, later, tail = found[1], found[-2], found[-1]
    assert [second["wiped"], second["swapped"], second["over ends"]] == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    assert second["over best rule"] == second["over little-root"] == pytest.approx(1 / 6)
    assert later["wiped"] == pytest.approx(np.exp(-np.log(np.arange(3, 17)).mean()))
    assert tail["wiped"] == pytest.approx(later["wiped"] ** 2)


def test_an_untrained_agent_can_be_probed(load, monkeypatch):
    memory, study = load("memory"), load("study")
    monkeypatch.setattr(memory, "PROBED_TRIALS", 6)
    monkeypatch.setattr(memory, "PROBED_JOBS", 40)
    monkeypatch.setattr(memory, "EVERY", 4)
    plan = preset("dreamer", "hidden")
    rows = memory.probed(study.untrained(plan), plan, stream=0)
    found = {(r["source"], r["target"]) for r in rows}
    assert {("recurrent", "load"), ("model", "speed"), ("observation", "jobs since the change")} <= found
    assert memory.averaged(rows)[0]["seeds"] == 1


def test_latents_train_both_models_on_the_mixture(load):
    latents = load("latents")
    asked = tyro.cli(latents.Latents, args=["--seeds", "1", "--steps", "30000"])
    plans = latents.plans(asked)
    assert {type(of[0].agent.algorithm.model).__name__ for of in plans.values()} == {"SetRSSMConfig", "RSSMConfig"}
    for of in plans.values():
        assert of[0].world.family == "mixed"
        fits(of[0])


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_standard_rivals_have_as_many_steps_as_dreamer(load, tmp_path, scale):
    standard = load("standard")
    asked = tyro.cli(standard.Standard, args=["--runs", str(tmp_path), "--seeds", "2", "--scale", scale])
    dreamers = standard.dreamers(asked)
    assert [plan.seed for plan in dreamers] == [0, 1]
    assert dreamers[0].loop.steps == preset("dreamer", "cpu").loop.steps * (10 if scale == "gpu" else 1)
    run = FinishedRun([{"cpu_seconds": 90.0}])
    rivals = standard.rivals(asked, [run, FinishedRun([{"cpu_seconds": 150.0}])])
    named = {plan.name: plan for plan in rivals if plan.seed == 0}
    assert set(named) == {
        *(f"{agent}-equal-steps" for agent in ("a2c", "ppo", "a2c-rl2", "ppo-rl2")),
        *(f"{agent}-equal-time" for agent in ("a2c", "ppo")),
    }
    for name, plan in named.items():
        fits(plan)
        if name.endswith("steps"):
            assert plan.loop.steps == dreamers[0].loop.steps
            assert plan.world == dreamers[0].world
        else:
            assert (plan.loop.steps, plan.loop.cpu_minutes) == (None, 2.0)


def test_hidden_rivals_see_what_dreamer_sees(load, tmp_path):
    adaptive = load("adaptive")
    asked = tyro.cli(adaptive.Adaptive, args=["--runs", str(tmp_path), "--episodes", "3", "--jobs", "40"])
    (dreamer, *_) = adaptive.hidden_dreamers(asked)
    for plan in adaptive.hidden_rivals(asked)[:: asked.seeds]:
        assert plan.world == dataclasses.replace(dreamer.world, reward="admission")
        assert plan.loop.steps == dreamer.loop.steps
        assert plan.agent.algorithm.network.memory == adaptive.MEMORY
        fits(plan)
    assert [setting.tasks.mask.shape[:-1] for setting in asked.seen()][:3] == [(2, 3), (4, 3), (2, 3)]


def test_the_strongest_rival_is_the_best_of_all_that_see_no_more(load):
    strongest = load("strongest")
    rng = np.random.default_rng(0)
    luck = np.exp(rng.normal(0, 0.2, 50))  # of an episode, the same for all

    def played(agent: str, mean: float, p99: float, role: str = "agent", seeds=(0, 1, 2)) -> list[dict[str, object]]:
        shared = {"experiment": "standard", "task": "hard", "level": None, "agent": agent, "role": role, "episode": 0}
        shared |= {"sees": "full", "jobs": 100, "mean_size": 1.0}
        return [
            shared | {"training_seed": s, "evaluation_seed": e, "mean": mean * x * noise, "p99": p99 * x * noise}
            for s in seeds
            for e, x in enumerate(luck)
            for noise in [np.exp(rng.normal(0, 0.01))]
        ]

    results = [
        *played("dreamer", 0.9, 1.2, seeds=range(5)),
        *played("tuned", 0.8, 1.1),
        *played("a2c", 1.0, 1.3),
        *played("jsq", 1.4, 0.8, "rule", (None,)),
        *played("sed", 1.1, 1.5, "rule", (None,)),
        *played("told", 0.1, 0.1, "oracle", (None,)),
    ]
    for metric, rival, ratio in (("mean", "tuned", 0.9 / 0.8), ("p99", "jsq", 1.2 / 0.8)):
        rows = {row["agent"]: row for row in strongest.standing(results, "dreamer", metric)}
        assert set(rows) == {"dreamer", "tuned", "a2c", "sed" if metric == "mean" else "jsq"}
        assert {row["against"] for row in rows.values()} == {rival}
        assert rows["dreamer"]["ratio"] == pytest.approx(ratio, rel=0.01)
        assert rows["dreamer"]["low"] < ratio < rows["dreamer"]["high"]
        assert rows["dreamer"]["p"] < 1e-3
        assert rows["a2c"]["p"] is None

    pairs = {row["rival"]: row for row in strongest.beside(results, "dreamer", "mean")}
    assert {rival: row["against"] for rival, row in pairs.items()} == {
        "tuned": "tuned",
        "a2c": "a2c",
        "best rule": "sed",
    }
    assert pairs["a2c"]["ratio"] == pytest.approx(0.9, rel=0.01)
    rows = [{"metric": m, "p": p} for m in strongest.METRICS for p in (0.04, None, 0.01)]
    found = [row["p"] for row in strongest.corrected(rows, "metric")]
    assert found == [pytest.approx(0.04), None, pytest.approx(0.02)] * 2


def test_a_specialist_differs_from_the_generalist_in_its_traffic_alone(load, tmp_path):
    specialists = load("specialists")
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival,size\n" + "".join(f"{i},{1 + i % 3}\n" for i in range(1000)))
    words = ["--trace", str(trace), "--episodes", "3", "--jobs", "40", "--runs", str(tmp_path)]
    asked = tyro.cli(specialists.Specialists, args=words)
    grounds = asked.grounds()
    assert [ground.world.trace or ground.world.family for ground in grounds] == ["hard", "levels", trace]
    assert grounds[-1].judged.name == "mine (second half) at load 0.8"
    for generalists in (specialists.dreamers(asked), specialists.informed(asked)):
        for ground in grounds:
            plans = specialists.specialised(generalists, ground, "here")
            assert [plan.seed for plan in plans] == [0, 1, 2]
            for plan, general in zip(plans, generalists, strict=True):
                assert (plan.world.family, plan.world.trace) == (ground.world.family, ground.world.trace)
                assert (plan.world.jobs, plan.world.view) == (general.world.jobs, general.world.view)
                assert dataclasses.replace(plan, world=general.world, label=general.label) == general
        fits(plans[0])


def test_ablations_change_one_thing_and_can_be_built(load):
    ablations = load("ablations")
    plans = {plan.label: plan for plan in ablations.variants(100_000)}
    base = plans["queue"]
    for plan in plans.values():
        fits(plan)
        assert plan.loop.steps == 100_000
    assert plans["queue-memory-0"].agent.algorithm == dataclasses.replace(base.agent.algorithm, memory=0)
    assert plans["queue-park-sizes"].agent == base.agent
    assert plans["queue-any-elapsed"].world.reward == "elapsed"


def test_fleets_of_all_sizes_have_the_load_that_is_asked_for(load, tmp_path):
    sizes = load("fleet_sizes")
    asked = tyro.cli(sizes.FleetSizes, args=["--runs", str(tmp_path), "--episodes", "2"])
    for servers in asked.servers:
        task = jax.tree.map(lambda leaf: leaf[0], asked.setting(servers, 0.5).tasks)
        assert task.mask.shape == (servers,)
        assert offered_load(task) == pytest.approx(0.5, rel=1e-3)


class FinishedRun(NamedTuple):
    """What experiments ask of a run that is done."""

    lines: list[dict[str, float]]

    def metrics(self) -> list[dict[str, float]]:
        return self.lines


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_games_are_learned_at_both_scales(load, scale):
    games = load("games")
    asked = tyro.cli(games.Games, args=["--scale", scale, "--seeds", "2"])
    assert set(games.CPU_GAMES) <= {*asked.games, "memory_length/100"}
    for game in asked.games:
        first, second = asked.plans(game)
        assert dataclasses.replace(first, seed=1) == second
        updates = first.loop.steps / first.agent.experience.env_steps
        assert first.agent.algorithm.optimiser.decay == pytest.approx(updates, abs=1)  # the fall of the step size
        build(first)


def test_a_gpu_changes_the_size_of_what_plays_a_game_and_not_what_it_is(load):
    games = load("games")
    small, large = (
        tyro.cli(games.Games, args=["--scale", scale]).plans("memory_length/100")[0].agent.algorithm.model
        for scale in ("cpu", "gpu")
    )
    sizes = {"units", "layers", "state", "deter", "stoch", "classes", "reward_layers", "continue_layers"}
    differ = {f.name for f in dataclasses.fields(small) if getattr(small, f.name) != getattr(large, f.name)}
    assert differ == sizes
    assert large.product
    assert large.modes == "ring"


def test_each_ablation_of_r2i_changes_one_thing(load):
    r2i = load("r2i")
    asked = tyro.cli(r2i.R2I, args=["--seeds", "1"])
    base, *others = asked.plans()
    described = [str(dataclasses.replace(plan, label=None)) for plan in (base, *others)]
    assert len(set(described)) == len(described)
    for plan in others:
        build(plan)


def test_a_policy_learns_from_data_and_from_a_model_that_stay_as_they_are(load, monkeypatch):
    """In a world model that is put back after each update, nothing but actor and critic moves."""
    r2i = load("r2i")
    tiny = {"units": 16, "state": 8, "deter": 16, "stoch": 4, "classes": 4, "recall": 2, "blocks": 2}

    def small(game):
        plan = r2i.with_model_changes(game_plan(game), **tiny)
        experience = dataclasses.replace(plan.agent.experience, streams=2, batch=2, length=8, ratio=4.0, capacity=200)
        algorithm = dataclasses.replace(plan.agent.algorithm, units=8, layers=1, dream_length=3, starts=4)
        agent = dataclasses.replace(plan.agent, algorithm=algorithm, experience=experience)
        return dataclasses.replace(plan, agent=agent, curve=dataclasses.replace(plan.curve, episodes=2))

    monkeypatch.setattr(r2i, "game_plan", small)
    asked = tyro.cli(r2i.R2I, args=["--fixed-updates", "4", "--fixed-game", "memory_length/3"])
    for fixed in ("data", "model"):
        rows = r2i.of_fixed(asked, fixed, "hidden", 0, parts=2)
        assert [row["updates"] for row in rows] == [2, 4]
    trainer = build(small("memory_length/3"))
    state = r2i.random_play(trainer.agent, small("memory_length/3"), 0)
    assert int(state.replay.filled) == 100
    before = state.learner.networks
    frozen, moved = (
        # the programs of above
        jax.jit(partial(r2i.learn, trainer.agent, trainer.config, updates=2, frozen=frozen), donate_argnums=0)(
            jax.tree.map(jnp.copy, state)
        )
        for frozen in (True, False)
    )

    def same(part, after):
        old, new = (jax.tree.leaves(getattr(networks, part)) for networks in (before, after.learner.networks))
        return all((a == b).all() for a, b in zip(old, new, strict=True))

    assert (same("model", frozen), same("model", moved)) == (True, False)
    assert not same("actor", frozen)
    assert not same("critic", frozen)


def test_long_memory_compares_models_that_read_what_is_shown(load):
    long_memory = load("long_memory")
    asked = tyro.cli(long_memory.LongMemory, args=["--seeds", "1"])
    plans = asked.plans("learned", long_memory.SETS | long_memory.FLAT) + asked.plans("hidden", long_memory.SETS)
    assert len({plan.name for plan in plans}) == 6
    for plan in plans:
        fits(plan)


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_chains_are_learned_by_dreamer_as_published(load, scale):
    """An RSSM, and nothing that is ours: no recurrent policy, no siblings."""
    chains = load("chains")
    asked = tyro.cli(chains.Chains, args=["--scale", scale])
    for game in asked.games:
        plan = asked.plans(game)[0]
        algorithm = plan.agent.algorithm
        assert (type(algorithm.model), algorithm.memory, algorithm.siblings) == (RSSMConfig, 0, 1)
        build(plan)


@pytest.mark.parametrize(
    ("game", "returns", "rates"),
    [("memory_length/5", [-1, 0, 0.5, 1], [-1, 0, 0.5, 1]), ("discounting_chain/10", [1, 1.05, 1.1], [0, 0.5, 1])],
)
def test_success_is_0_for_what_takes_no_learning_and_1_at_best(load, game, returns, rates):
    np.testing.assert_allclose(load("chains").success(game, np.array(returns)), rates, atol=1e-9)


def test_games_keep_their_seeds_and_their_place_in_a_table(load, monkeypatch, tmp_path):
    study = load("study")
    plan = game_plan("memory_length/5")
    plans = {game: [dataclasses.replace(plan, label=game, seed=seed) for seed in (0, 1)] for game in "ab"}
    monkeypatch.setattr(study.Study, "train", lambda self, plans, under: [(p.label, p.seed, under) for p in plans])
    asked = study.Study(runs=tmp_path)
    runs = asked.train_games(plans, "games")
    assert runs == {game: [(game, seed, "games") for seed in (0, 1)] for game in "ab"}
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    asked.publish_games("scores", [{"game": "a", "mean": 1.0}, {"game": "b", "mean": 2.0}])
    asked.publish_games("scores", [{"game": "c", "mean": 4.0}, {"game": "a", "mean": 3.0}])
    assert (tmp_path / "scores.csv").read_text().split() == ["game,mean", "a,3.0", "b,2.0", "c,4.0"]


def test_a_quick_try_leaves_what_the_docs_show(load, monkeypatch, tmp_path):
    study, games = load("study"), load("games")
    monkeypatch.setattr(study, "RESULTS", tmp_path / "docs" / "results")
    for words in ("--seeds 1", "--scale gpu"):
        asked = tyro.cli(games.Games, args=["--runs", str(tmp_path / "runs"), "--game", "maze/9x9", *words.split()])
        asked.publish_games("scores", [{"game": "a", "mean": 1.0}])
        assert (tmp_path / "runs" / asked.scale / "results" / "scores.csv").exists()
    assert not (tmp_path / "docs").exists()
    tyro.cli(games.Games, args=["--runs", str(tmp_path), "--game", "maze/9x9"]).publish("scores", [{"mean": 1.0}])
    assert (tmp_path / "docs" / "results" / "scores.csv").exists()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("chains", ["--game", "repeat_previous/easy"], "one of bsuite's chains"),
        ("control", ["--game", "dmc:humanoid_dance"], "no published scores of 'dmc:humanoid_dance'"),
        ("atari", ["--game", "Tetris"], "no published scores of 'Tetris'"),
        ("r2i", ["--steps", "70000"], "--steps must be at most 60000"),
    ],
)
def test_what_an_experiment_cannot_do_is_said_before_it_trains(load, name, words, message):
    experiment = load(name)
    kind = {"atari": "Atari", "chains": "Chains", "control": "Control", "r2i": "R2I"}[name]
    asked = tyro.cli(getattr(experiment, kind), args=words)
    with pytest.raises(ValueError, match=message):
        asked.plans(*asked.games) if words[0] == "--game" else asked.plans()


@pytest.mark.parametrize("words", [["--scale", "gpu"], ["--workers", "2"]])
def test_the_mixture_is_measured_at_one_scale_and_in_one_program(load, words):
    mixture = load("mixture")
    with pytest.raises(ValueError, match="no --scale or --workers"):
        mixture.plans(tyro.cli(mixture.Mixtures, args=words), "ensemble", 0)


def test_all_arms_of_the_mixture_see_as_much_of_each_task_and_learn_as_often(load):
    mixture = load("mixture")
    asked = mixture.Mixtures()
    alone, together = (mixture.plans(asked, arm, 0) for arm in ("ensemble", "mixture"))
    (whole,), count = together, len(alone)
    assert {plan.loop.steps * count for plan in alone} == {whole.loop.steps}
    for name in ("streams", "batch", "capacity"):
        assert {getattr(plan.agent.experience, name) * count for plan in alone} == {
            getattr(whole.agent.experience, name)
        }
    assert {(plan.agent.experience.ratio, plan.agent.experience.length) for plan in (*alone, whole)} == {
        (whole.agent.experience.ratio, whole.agent.experience.length)
    }


def test_new_tasks_begin_from_the_runs_of_known_ones_of_the_same_networks(load, tmp_path):
    new = load("new_tasks")
    known = {name: new.of_known(new.NewTasks(), name, 1) for name in new.ARMS.values() if name is not None}
    assert {plan.suite.learned for plan in known.values()} == {new.KNOWN}
    assert sorted((*new.KNOWN, *new.NEW)) == sorted(known["known"].suite.names)
    for arm in (arm for arm in new.ARMS if arm not in new.AT_ONCE):
        begin = new.ARMS[arm]
        plan = new.of_new(arm, new.NEW[2], 1, tmp_path, 1_000)
        assert plan.suite.learned == (new.NEW[2],)
        assert plan.start == (None if begin is None else tmp_path / f"{known[begin].name}-1")
        if begin is not None:
            assert new.size(new.networks(plan)) == new.size(new.networks(known[begin]))
    of_place, of_all = (new.learned(new.of_new(arm, new.NEW[0], 0, tmp_path, 1_000), arm) for arm in ("place", "all"))
    assert of_place < 1_000 < of_all


def test_a_stream_goes_on_from_stage_to_stage_with_networks_as_large(load, tmp_path):
    stream, mixture = load("stream"), load("mixture")
    sizes = []
    for arm in ("mixture", "shared", "apart"):
        plans = {stage: stream.of_stage(arm, stage, 1, tmp_path, 8_000) for stage in stream.STAGES}
        starts = [plan.start and plan.start.name for plan in plans.values()]
        assert starts == [None, *(f"{plans[stage].name}-1" for stage in ("first", "other"))]
        networks = mixture.networks(plans["first"])
        sizes.append(mixture.size(networks))
        assert jax.tree.structure(networks) == jax.tree.structure(mixture.networks(plans["other"]))
    assert max(sizes) < 1.01 * min(sizes)
    apart = build(plans["first"]).agent.init(jax.random.key(0)).networks.model
    first, other = (plans[stage].suite.names.index(stream.STAGES[stage]) for stage in ("first", "other"))
    assert not {*apart.chance[first].tolist()} & {*apart.chance[other].tolist()}
    assert apart.clusters[first] != apart.clusters[other]


def test_what_is_looked_into_is_what_was_ruined(load, tmp_path):
    mixture, ruined = load("mixture"), load("ruined")
    proxy = ruined.of_case("proxy", 1, 8_000)
    ensemble = mixture.plans(mixture.Mixtures(suite="schemas"), "ensemble", 1)
    assert proxy in [dataclasses.replace(plan, label="proxy") for plan in ensemble]
    first = ruined.stream.of_stage("shared", "first", 5, tmp_path, 8_000)
    assert ruined.of_case("horizon-333", 5, 8_000) == dataclasses.replace(first, label="horizon-333")
    for known, changed in (("proxy", "wide"), ("horizon-333", "horizon-33")):
        before, after = (ruined.of_case(arm, 5, 8_000).agent.algorithm.model for arm in (known, changed))
        assert after == dataclasses.replace(before, **ruined.CASES[changed].changes) != before


def test_orders_agree_by_rank_where_the_server_matters(load):
    agreement = load("ruined").agreement
    came = np.array([[-1.0, -2.0, -3.0], [-5.0, -5.0, -5.0], [-1.0, -2.0, -3.0]])
    assert agreement(came, came**3) == pytest.approx(1)
    assert agreement(came, np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [7.0, 7.0, 7.0]])) == pytest.approx(0.5)


def test_what_z_says_of_servers_is_a_share_of_the_variance_of_symlogs(load):
    explained, seen = load("ruined").explained, np.array([[0.0, 9.0], [99.0, 0.0]])
    usual = np.expm1(np.log1p(seen).mean())
    assert explained(seen, seen) == pytest.approx(1)
    assert explained(seen, np.full((2, 2), usual)) == pytest.approx(0)
    half = np.expm1((np.log1p(seen) + np.log1p(usual)) / 2)
    assert explained(seen, half) == pytest.approx(0.75)


def test_what_a_stream_lost_is_taken_in_each_seed(load):
    scores = {"first": [[1.0, 0.2], [0.8, 0.0]], "other": [[0.5, 0.9], [0.7, 0.9]]}
    scores |= {"soon": [[0.9, 0.8], [0.8, 0.8]], "again": [[1.1, 0.7], [0.9, 0.9]]}
    rows = load("stream").rows_of("shared", {at: np.array(of) for at, of in scores.items()})
    found = {row["measure"]: row["value"] for row in rows}
    assert found["first lost"] == pytest.approx(-0.3)
    assert found["other lost"] == pytest.approx(-0.1)
    assert found["first soon against before"] == pytest.approx(-0.05)
    assert found["first again against before"] == pytest.approx(0.1)
    assert found["other after first"] == pytest.approx(0.1)


def test_metadreamer_and_what_it_is_held_to_are_as_large_and_updated_as_often(load):
    metadreamer = load("metadreamer")
    for game, streams in (("merging", 10), ("dispatch", 12)):
        plans = {plan.name: plan for plan in tyro.cli(metadreamer.Samples, args=["--game", game, "--grid"]).plans()}
        claim = metadreamer.CLAIMS[game]
        points = [each for steps in claim.steps.values() for each in steps]
        assert len(plans) == len(points) + 21 + 10 + len(metadreamer.ON_POLICY[game])
        few = metadreamer.learner(game, "metadreamer", metadreamer.FEW, "")
        assert metadreamer.learner(game, "metadreamer", metadreamer.FEW, "", **metadreamer.GRID[claim.itself]) == few
        for decoder in ("physics", "free"):
            once, twice = (plans[name].agent.experience for name in (f"none-{decoder}-product", f"twice-{decoder}"))
            assert (twice.batch, twice.ratio, twice.repeats) == (2 * once.batch, 2 * once.ratio, once.repeats)
        for name in [name for name in plans if not name.startswith(("dreamer", *metadreamer.ON_POLICY[game]))]:
            plan = plans[name]
            algorithm, experience = plan.agent.algorithm, plan.agent.experience
            inner = getattr(algorithm, "pearl", getattr(algorithm, "sac", algorithm))
            assert inner.units == 64, name
            if "sac" not in name:
                rounds = (plan.loop.steps - experience.first_steps) / experience.env_steps
                assert rounds % plan.agent.chunk == 0
                assert inner.encoder_units == 64, name
                times = metadreamer.LONGER if name == "pearl-longer" else 1
                assert rounds * experience.repeats == max(rounds, times * claim.updates)
        assert plans["sac-told"].loop.steps / 16 >= claim.updates
        few, many = plans[f"metadreamer-{300 * streams}"], plans[f"pearl-{4_100 * streams}"]
        assert (
            few.loop.steps == plans[f"pearl-{300 * streams}"].loop.steps == plans["none-physics-recurrent"].loop.steps
        )
        assert many.loop.steps > 13 * few.loop.steps
    larger = {p.name: p for p in tyro.cli(metadreamer.Samples, args=["--scale", "gpu", "--grid"]).plans()}
    assert larger["metadreamer-1500"].agent.algorithm.pearl.units == larger["pearl-1500"].agent.algorithm.units == 256
    assert larger["rsac"].agent.algorithm.sac.units == 256
    assert larger["metadreamer-1500"].loop.steps == larger["pearl-1500"].loop.steps == 15_000
    for name in ("metadreamer-1800", "pearl-dense"):
        build(plans[name])


def test_curves_of_both_worlds_are_drawn_from_the_tables_that_stand_there(load):
    pictures = load("metadreamer_pictures")
    for game, shown in pictures.SHOWN.items():
        rows = pictures.read_csv(pictures.RESULTS / f"{pictures.TABLES[game]}.csv")
        figure = pictures.learning(game, rows)
        for axis, tasks in zip(figure.axes, pictures.TESTS, strict=True):
            for agent in ("metadreamer", "pearl"):
                (line,) = (c.lines[0] for c in axis.containers if c.get_label() == agent)
                drawn = shown.sign * line.get_ydata()
                np.testing.assert_allclose(drawn, [row[tasks] for row in pictures.curve(rows, agent)])
                assert min(shown.ticks) < min(line.get_ydata()) <= max(line.get_ydata()) < max(shown.ticks)


def test_rows_of_metadreamers_table_can_be_trained_alone(load):
    """The others stay as they were, and differences are those of all seeds' returns."""
    metadreamer = load("metadreamer")
    asked = tyro.cli(metadreamer.Samples, args=["--only", "structured", "pearl-3000"])
    assert asked.as_published
    plans = [(plan.name, plan.seed) for plan in asked.plans()]
    assert sorted(plans) == [("pearl-3000", seed) for seed in range(5)] + [("structured", seed) for seed in range(3)]
    with pytest.raises(ValueError, match="no rows \\['structure'\\]"):
        tyro.cli(metadreamer.Samples, args=["--only", "structure"]).plans()
    rng = np.random.default_rng(0)
    returns = {"metadreamer-3000": rng.normal(10, 1, 5), "pearl-3000": rng.normal(5, 3, 3), "structured": np.ones(1)}
    before = []
    for name, each in returns.items():
        row = {"agent": name, "seeds": len(each)}
        for tasks in metadreamer.TESTS:
            row |= metadreamer.interval(tasks, *metadreamer.over_seeds(each))
        before.append(row)
    kept = dict(before[2])
    rows = metadreamer.compared(asked, before[1:2], before)
    low, high = scipy.stats.ttest_ind(*list(returns.values())[:2], equal_var=False).confidence_interval(0.95)
    assert (rows[1]["interpolated_ahead_low"], rows[1]["extrapolated_ahead_high"]) == pytest.approx((low, high))
    assert rows[2] == kept
    (_, _, alone) = metadreamer.compared(asked, before, before)
    assert alone["interpolated_ahead_low"] is None
    assert alone["interpolated_ahead"] == pytest.approx(returns["metadreamer-3000"].mean() - 1)


def test_where_pearl_earns_as_much_as_metadreamer_is_read_off_a_straight_line_between_its_means(load):
    """With intervals that are next to nothing; and as wide as they are, from below PEARL's fewest steps to never."""
    metadreamer = load("metadreamer")

    def rows(width: float) -> list[dict]:
        earned = {("metadreamer", 100): 5.0, ("metadreamer", 200): 25.0, ("metadreamer", 300): -1.0}
        earned |= {("pearl", 100): 7.0, ("pearl", 1_000): 0.0, ("pearl", 10_000): 10.0}  # what came too early is luck
        ends = {"": 0.0, "_low": -width, "_high": width}
        return [
            {"agent": f"{agent}-{steps}", "seeds": 3, "real_steps": steps}
            | {f"{tasks}{end}": mean + by for tasks in metadreamer.TESTS for end, by in ends.items()}
            for (agent, steps), mean in earned.items()
        ]

    found = metadreamer.crossings("dispatch", rows(1e-6))
    assert [row["tasks"] for row in found] == ["interpolated"] * 3 + ["extrapolated"] * 3
    half, never, less = found[:3]
    for end in ("", "_low", "_high"):
        assert half[f"pearl_steps{end}"] == pytest.approx(10**3.5, rel=1e-3)
        assert never[f"pearl_steps{end}"] is None
        assert less[f"pearl_steps{end}"] == pytest.approx(100)
    assert [(row["more"], row["never"]) for row in found[:3]] == [(1, 0), (1, 1), (0, 0)]
    half, *_ = metadreamer.crossings("dispatch", rows(20.0))
    assert (half["pearl_steps_low"], half["pearl_steps_high"]) == (pytest.approx(100), None)
    assert half["pearl_steps"] == pytest.approx(10**3.5)
    assert metadreamer.crossings("dispatch", [row | {"seeds": 1} for row in rows(1.0)]) == []
    assert 0 < half["never"] < half["more"] < 1


def test_by_chance_two_agents_play_alike_until_they_have_inferred_their_task(load):
    metadreamer = load("metadreamer")
    plan = game_plan("dispatch", "pearl")
    agent, world, tasks = build(plan).agent, plan.world.world(4), plan.world.drawn(4)
    policies = [agent.policy(agent.init(jax.random.key(seed)).networks, greedy=True) for seed in (0, 1)]
    for kind, alike in ((metadreamer.ByChance, True), (lambda policy: policy, False)):
        one, other = (metadreamer.returns(world, kind(policy), tasks, metadreamer.KEY, 3) for policy in policies)
        assert bool((one[:, :2] == other[:, :2]).all()) == alike
        assert (one[:, 2] != other[:, 2]).any()


def test_what_is_imagined_and_known_differs_and_real_steps_do_not(load):
    imagined = load("imagined_tasks")
    plans = {plan.name: plan for plan in tyro.cli(imagined.Imagined, args=[]).plans()}
    of_dispatch = [plan for plan in plans.values() if plan.world.game.startswith("dispatch")]
    assert {(plan.loop.steps, plan.agent.experience.streams) for plan in of_dispatch} == {(3_600, 12)}
    assert plans["metadreamer-hidas"].loop.steps == plans["pearl-hidas"].loop.steps == 5_400
    assert len(plans) == len(of_dispatch) + 2
    for game, known in imagined.KNOWN.items():
        assert len(plans[f"known-{known}-8"].world.tasks) == known
        agent = build(plans[f"known-{known}-8"]).agent
        assert len(agent.interpolation.tasks) == 8 * (known - 1), game
    larger = {plan.name: plan for plan in tyro.cli(imagined.Imagined, args=["--scale", "gpu"]).plans()}
    assert larger["beyond-skew"].agent.algorithm.pearl.units == larger["pearl-skew"].agent.algorithm.units == 256
    row = {"agent": "known-2-none"}
    assert imagined.described(row, plans["known-2-none"], [None])["density"] == 0
    assert imagined.described(row, plans["beyond-skew"], [0.2, 0.4])["beyond"] == 1
    assert imagined.described(row, plans["beyond-skew"], [0.2, 0.4])["new"] == pytest.approx(0.3)
    assert imagined.described(row, plans["pearl-skew"], [None])["density"] is None
    skew = np.array([-1.5, -1.3, -0.75, 0.1, 0.5, 2.0], np.float32)  # known are -1.5, 0 and 1.5: half are new
    speed, *_ = Dispatch(("skew",)).laws(jnp.asarray(skew[:, None]))
    assert imagined.new_among(np.asarray(speed), np.array([0.0, 1.5, -1.5])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("game", "factors"), [("dispatch/told", ("load", "tail", "skew")), ("dispatch/skew", ("skew",))]
)
def test_one_factor_goes_ever_farther_outside_and_the_others_stay_between(load, monkeypatch, game, factors):
    metadreamer = load("metadreamer")
    monkeypatch.setattr(metadreamer, "TRIALS", 64)
    sets = metadreamer.judged_on(metadreamer.GameConfig(game))
    between = np.asarray(sets["interpolated"])
    for k, name in enumerate(factors):
        for far in metadreamer.FARTHER[name]:
            outside = np.array(sets[f"{name}_{far:g}"])
            assert np.abs(outside[:, k]) == pytest.approx(np.float32(far))
            assert (np.sign(outside[:, k]) == np.sign(between[:, k])).all()
            assert (np.delete(outside, k, 1) == np.delete(between, k, 1)).all()
    assert len(sets) == 2 + sum(len(metadreamer.FARTHER[name]) for name in factors)


def test_rules_in_dispatch_stand_by_what_they_are_told(load, monkeypatch):
    """Likely speeds are as good as told ones in the third episode, and better than equal ones, more so outside."""
    metadreamer = load("metadreamer")
    monkeypatch.setattr(metadreamer, "TRIALS", 64)
    told, likely, equal = metadreamer.rules(metadreamer.GameConfig("dispatch"))
    assert likely["interpolated"] == pytest.approx(told["interpolated"], rel=1e-3)
    assert told["interpolated"] - equal["interpolated"] > 5
    assert told["extrapolated"] - equal["extrapolated"] > 2 * (told["interpolated"] - equal["interpolated"])


def test_published_scores_are_there_for_every_task_of_control(load):
    control = load("control")
    asked = tyro.cli(control.Control, args=["--scale", "gpu"])
    assert len(asked.games) == 18
    for game in (*asked.games, *control.CPU_TASKS):
        frames, mean, low, high = control.published(game).T
        assert frames[-1] == 490_000
        assert ((low <= mean) & (mean <= high)).all()


def test_scores_of_atari_are_normalised_and_aggregated_as_published(load):
    """Means and medians of STORM, DIAMOND and REM as their papers and our recomputation have them; of EfficientZero one
    seed is public, so its IQM is that over runs too."""
    atari = load("atari")
    rows = {row["agent"]: row for row in atari.aggregates(atari.PUBLISHED["scores"]["STORM"])}
    assert rows[atari.OURS] | {"agent": ""} == rows["STORM"] | {"agent": ""}
    found = {
        name: (round(rows[name]["mean"], 3), round(rows[name]["median"], 3)) for name in ("STORM", "DIAMOND", "REM")
    }
    assert found == {"STORM": (1.222, 0.425), "DIAMOND": (1.459, 0.373), "REM": (1.222, 0.280)}
    assert rows["EZv1"]["iqm"] == pytest.approx(1.047, abs=5e-4)
    for name, value in (("random", 0), ("human", 1)):
        assert set(atari.normalised(atari.PUBLISHED[name]).values()) == {value}
    asked = tyro.cli(atari.Atari, args=["--scale", "gpu", "--all"])
    assert (len(asked.games), len(tyro.cli(atari.Atari, args=["--scale", "gpu"]).games)) == (26, 3)
    (plan,) = asked.plans("Pong")
    assert (plan.agent.algorithm.model.acts, plan.loop.steps, plan.world.limit) == ("prior", 102_000, 27_000)


def test_tasks_of_the_suite_of_fleets_are_clustered_by_their_fleet(load):
    """By the gradients of a fresh model; 500 groupings by chance agree with neither truth."""
    clusters = load("clusters")
    chance, seen, gradients = clusters.measure(clusters.Clusters(updates=(0,), copies=1, length=8), 0)
    assert (chance["by"], seen["by"], gradients["by"]) == ("chance", "what is seen", "gradients")
    assert abs(chance["fleet"]) < 0.05
    assert abs(chance["traffic"]) < 0.05
    assert gradients["fleet"] > 0.5


def test_the_point_robot_is_measured_where_each_episode_ends(load):
    """A policy that knows the goal ends there, from the second episode of a trial on if it sleeps through the first."""

    class Sleeper:
        def initial_state(self, batch):
            return np.zeros(batch)

        def act(self, state, timestep, key):
            awake = (state > 20)[:, None]
            aim = (timestep.observation["factors"] - timestep.observation["position"]) / 0.1
            return jax.numpy.where(awake, aim, 0.0), state + 1

    point_robot = load("point_robot")
    pearl, oracle = tyro.cli(point_robot.PointRobots, args=[]).plans()
    assert (pearl.curve.trial, oracle.curve.trial) == (21, 1)
    assert pearl.loop.steps == oracle.loop.steps
    assert pearl.agent.algorithm.units == oracle.agent.algorithm.units
    world, tasks = oracle.world.world(30), oracle.world.drawn(30, "interpolated")
    slept, walked = point_robot.final_distances(world, Sleeper(), tasks, 2)
    np.testing.assert_allclose(slept, np.linalg.norm(tasks, axis=1), rtol=1e-5)
    np.testing.assert_allclose(walked, 0.0, atol=1e-5)
    build(oracle)


def test_the_truth_about_servers_is_that_of_the_moment_and_formulas_that_are_told_begin_at_the_speeds(load):
    weights, task, shown = told_of_servers(load)
    third = float(task.speed.start[0, 2])  # speeds change at that time
    for moment, segment in ((0.0, 0), (third - 1, 1), (third + 1, 2)):
        seen, speed = shown(moment), task.speed.value[:, segment]
        np.testing.assert_allclose(seen.observation["speed"][0], speed)
        for name in ("told speeds", "told everything"):
            formula = zero(weights, name)
            word, _ = formula.act(formula.initial_state(1), seen, jax.random.key(0))
            np.testing.assert_allclose(word[0], weights.action_of(speed), atol=1e-5)
    np.testing.assert_allclose(seen.observation["alone"][0] * task.sharing.a, 1)  # of k workers one has 1 / k
    np.testing.assert_allclose(seen.observation["crowded"][0], 1)


def test_formulas_of_what_a_proxy_tells_begin_at_the_rule(load):
    weights, _, shown = told_of_servers(load)
    rule = AdaptiveWeights(AdaptiveLeastConnections(np.ones(10), tau=weights.PATIENCE))
    formulas = [rule, *(zero(weights, name) for name in ("tuned", "richer", "knows slots"))]
    states = [each.initial_state(1) for each in formulas]
    for rows in np.random.default_rng(0).poisson(2.0, (5, 1, 10, 7)):
        observation = {"servers": jnp.asarray(rows, jnp.float32), "proxy": jnp.array([[4.0, 9.0, 500.0]])}
        seen = shown(0.0)._replace(observation=shown(0.0).observation | observation)
        acted = [each.act(state, seen, jax.random.key(0)) for each, state in zip(formulas, states, strict=True)]
        states = [state for _, state in acted]
        for word, _ in acted:
            np.testing.assert_allclose(word, acted[0][0], atol=1e-5)


def test_what_is_shown_besides_changes_nothing_for_who_does_not_look(load):
    """The rule in the world of a proxy, and the formula that begins there in the one that tells the truth besides."""
    weights = load("weights")
    tasks, key = weights.draw_tasks(weights.family("workers"), 2, 3), jax.random.key(1)
    rule = AdaptiveWeights(AdaptiveLeastConnections(np.ones(10), tau=weights.PATIENCE))
    played = weights.Tunable((), lambda _: rule, 1.0), jnp.zeros((1, 0)), tasks, key, 40, weights.mean_and_p99
    usual = weights.play(*played, weights.Proxy(hold=500.0))
    formula = weights.free(weights.ARMS["tuned"], 10)
    nothing = jnp.zeros((1, len(formula.names)))
    told = weights.play(formula, nothing, *played[2:], weights.Proxy(hold=500.0), weights.Open)
    assert usual.shape == (1, 2, 2)
    np.testing.assert_allclose(told, usual, rtol=1e-4)


def told_of_servers(load):
    """The experiment, a task of `workers`, and what is shown of it [1, ...] at a moment."""
    weights = load("weights")
    task = weights.family("workers")(np.random.default_rng(4))
    world = weights.Open(weights.WeightsEnv(10, 50))
    state, timestep = world.env.reset(task, jax.random.key(0))

    def shown(moment):
        at = state._replace(clock=weights.schedules.instant(moment))
        return jax.tree.map(lambda leaf: leaf[None], world._shown(task, at, timestep)[1])

    return weights, task, shown


def zero(weights, arm):
    names = weights.ARMS[arm].names
    return weights.free(weights.ARMS[arm], 10).make(jnp.zeros(len(names)))
