"""Configurations: presets survive a round trip, names say what is trained, impossible values are refused by name."""

import json
from dataclasses import replace

import pytest

from reverie.agents.a2c import A2CConfig
from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.models.rssm import RSSMConfig
from reverie.runs.build import build
from reverie.runs.config_json import config_differences, config_from_json, config_to_json, with_changes
from reverie.settings.config import CurveConfig, OffPolicyRun, OnPolicyRun, TrainConfig, WorldConfig, stream_seed
from reverie.settings.presets import PRESETS, preset
from reverie.train.trainers import WorldTrainer

EVERY_PRESET = [(algorithm, name) for algorithm, named in PRESETS.items() for name in named]


@pytest.mark.parametrize(("algorithm", "name"), EVERY_PRESET)
def test_a_preset_comes_back_from_json_as_it_was(algorithm, name):
    config = preset(algorithm, name)
    assert config_from_json(TrainConfig, config_to_json(config)) == config


@pytest.mark.parametrize(("algorithm", "name"), EVERY_PRESET)
def test_a_preset_is_named_after_its_algorithm(algorithm, name):
    assert preset(algorithm, name).agent.name.startswith(algorithm)


def test_the_paper_preset_is_dreamerv3_at_its_smallest_size_with_a_memory_of_256_units():
    run = preset("dreamer", "paper").agent
    assert run.algorithm == DreamerConfig(model=RSSMConfig(units=64), memory=256)
    assert run.experience == OffPolicyRun().experience


def test_the_name_tells_the_world_model_and_whether_there_is_a_memory():
    names = {name: preset("dreamer", name).name for name in ("paper", "learned", "cpu", "hidden")}
    assert names == {
        "paper": "dreamer-rl2",
        "learned": "dreamer-set-rl2",
        "cpu": "dreamer-queue-rl2",
        "hidden": "dreamer-counts-rl2",
    }
    assert OffPolicyRun(DreamerConfig(memory=0)).name == "dreamer"
    assert OffPolicyRun(DreamerConfig(memory=8)).name == "dreamer-rl2"
    assert OnPolicyRun(A2CConfig()).name == "a2c"
    assert OnPolicyRun(A2CConfig(network=NetworkConfig(memory=8))).name == "a2c-rl2"


def test_a_preset_that_an_algorithm_lacks_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"a2c has no preset 'paper'; it has cpu"):
        preset("a2c", "paper")


def test_an_unknown_family_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"did you mean 'hard'"):
        WorldConfig(family="hrad")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: WorldConfig(jobs=0), "jobs"),
        (lambda: WorldConfig(tasks=0), "tasks"),
        (lambda: CurveConfig(episodes=0), "episodes"),
        (lambda: OffPolicyRun(chunk=0), "chunk"),
        (lambda: OnPolicyRun(chunk=0), "chunk"),
        (lambda: TrainConfig(OffPolicyRun(), seed=-1), "seed"),
    ],
)
def test_an_impossible_value_is_refused_by_name(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_the_pool_of_tasks_depends_on_the_seed_and_has_the_size_asked_for():
    config = replace(preset("dreamer", "cpu"), world=WorldConfig(family="continuous", tasks=3, jobs=5))
    one, same, other = (build(c) for c in (config, config, replace(config, seed=1)))
    assert isinstance(one, WorldTrainer)
    assert one.pool.mask.shape[0] == 3
    assert (one.pool.speed.value == same.pool.speed.value).all()
    assert (one.pool.speed.value != other.pool.speed.value).any()


def test_streams_of_one_seed_differ_and_stay_the_same():
    assert stream_seed(3, "a") == stream_seed(3, "a")
    assert len({stream_seed(3, "a"), stream_seed(3, "b"), stream_seed(4, "a")}) == 3


def test_a_run_that_was_stored_under_an_older_name_of_a_field_is_read_and_goes_on():
    plan = preset("dreamer", "cpu")
    now = json.loads(json.dumps(config_to_json(plan)))
    old = json.loads(json.dumps(now))
    old["agent"]["algorithm"]["horizon"] = old["agent"]["algorithm"].pop("dream_length")
    assert config_from_json(TrainConfig, old) == plan
    assert config_differences(old, now) == []
    old["agent"]["algorithm"]["horizon"] = 7
    assert config_differences(old, now) == ["agent.algorithm.dream_length: 7, now 64"]


def test_the_older_name_of_how_long_a_proxys_numbers_count_is_read():
    plan = preset("sac", "weights")
    old = json.loads(json.dumps(config_to_json(plan)))
    old["world"]["proxy"]["memory"] = old["world"]["proxy"].pop("span")
    assert config_from_json(TrainConfig, old) == plan
    assert with_changes(plan, {"world": {"proxy": {"memory": 7.0}}}).fleet.proxy.span == 7


def test_a_run_from_before_a_rule_was_shown_is_read_but_where_agents_saw_other_columns():
    plan = preset("dreamer", "cpu")
    now = config_to_json(plan)
    assert config_from_json(TrainConfig, older(plan)) == plan
    assert config_differences(older(plan), now) == []
    with pytest.raises(ValueError, match=r"^world: WorldConfig lacks gain, correction; .* another version of Reverie$"):
        config_from_json(TrainConfig, older(preset("sac", "weights")))


def older(plan: TrainConfig) -> dict:
    """As it was stored before worlds had a gain and a correction."""
    data = json.loads(json.dumps(config_to_json(plan)))
    del data["world"]["gain"], data["world"]["correction"]
    return data
