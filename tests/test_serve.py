"""Exported policies: without JAX they decide as with it, remember, and refuse what they cannot read."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reverie
from reverie import cli
from reverie.agents.heads import per_action
from reverie.envs.fleet.env import FleetEnv
from reverie.envs.fleet.families import draw_tasks, family
from reverie.runs import export, loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.serve.policy import ServedPolicy
from reverie.settings.config import TrainConfig, WorldConfig
from reverie.settings.presets import preset

STEPS = 60


def small(plan: TrainConfig) -> TrainConfig:
    """A preset's networks, with little experience and few tasks to draw."""
    experience = replace(plan.agent.experience, streams=4)
    if hasattr(experience, "capacity"):
        experience = replace(experience, capacity=400)
    return replace(plan, agent=replace(plan.agent, experience=experience), world=replace(plan.world, tasks=2))


def with_network(plan: TrainConfig, **changes) -> TrainConfig:
    algorithm = plan.agent.algorithm
    network = replace(algorithm.network, **changes)
    return replace(plan, agent=replace(plan.agent, algorithm=replace(algorithm, network=network)))


A2C = preset("a2c", "cpu")
PLANS = {
    "dreamer-cpu": preset("dreamer", "cpu"),
    "dreamer-hidden": preset("dreamer", "hidden"),
    "a2c-cpu": A2C,
    "ppo-cpu": preset("ppo", "cpu"),
    "a2c-set-memory": with_network(A2C, servers="set", memory=8),
    "a2c-queue": with_network(A2C, servers="queue"),
    "a2c-latency": with_network(replace(A2C, world=WorldConfig(view="latency")), servers="set", memory=8),
    "a2c-flat-memory": with_network(A2C, servers="flat", memory=8),
    "a2c-park": with_network(replace(A2C, world=WorldConfig(view="park")), servers="flat"),
}


def run_of(folder: Path, plan: TrainConfig) -> RunFolder:
    """A run whose only checkpoint holds networks in which every weight is random, so that none can be forgotten."""
    run, trainer = RunFolder.create(folder, plan), build(plan)
    rng = np.random.default_rng(1)

    def filled(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.zeros((*leaf.shape, 2), jnp.uint32))
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    state = jax.tree.map(filled, jax.eval_shape(trainer.init, jax.random.key(0)))
    saved = loop._Saved(state, 0, 0.0, 0.0)
    with run.writer(["test"]) as writer:
        writer.restore(saved)
        writer.log(1, {"updates": 0, "wall_seconds": 0.0, "cpu_seconds": 0.0})
        writer.save(1, saved)
    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("policies"), {}
    for name, plan in PLANS.items():
        found[name] = folder / f"{name}.safetensors"
        export.export_policy(run_of(folder / name, small(plan)), found[name])
    return found


def logits_by_jax(policy, state, observation):
    """Of one stream [N], after `act` has made the state."""
    networks = policy.networks
    if hasattr(networks, "model"):
        features = networks.model.features(state.model)
        context = jnp.concatenate([features.context, state.recurrent], -1)
        return networks.actor.head(networks.actor.shared(features.servers, context))[0, :, 0]
    features = networks.inputs.see(observation)
    if state is not None:
        features = networks.with_memory(features, state.recurrent)
    return per_action(networks.actor(features), networks.spec, networks.inputs.as_set)[0][0]


@pytest.mark.parametrize("name", PLANS)
def test_without_jax_it_decides_as_with_jax(name, files):
    """One episode, a server forbidden, memory kept throughout: logits equal to 1e-5, and the same actions, but for ties
    between servers that look alike."""
    config, policy = export.load_policy(files[name])
    served = reverie.load_policy(files[name])
    fleet = config.fleet
    env = FleetEnv(10, 500, fleet.view, fleet.reward)
    task = jax.tree.map(lambda leaf: leaf[0], draw_tasks(family("hard"), 1, 3))
    task = task._replace(mask=task.mask.at[7].set(False))

    @eqx.filter_jit
    def decide(state, timestep):
        batch = jax.tree.map(lambda x: x[None], timestep)
        action, state = policy.act(state, batch, jax.random.key(0))
        return action[0], state, logits_by_jax(policy, state, batch.observation)

    step = eqx.filter_jit(env.step)
    world, timestep = env.reset(task, jax.random.key(5))
    state, all_wanted = policy.initial_state(1), []
    for number in range(STEPS):
        action, state, wanted = decide(state, timestep)
        seen = {entry: np.asarray(value) for entry, value in timestep.observation.items()}
        reward, mask = None if number == 0 else float(timestep.reward), seen.pop("mask")
        got, _ = served._logits(seen, reward, mask)
        np.testing.assert_allclose(got[mask], np.asarray(wanted)[mask], rtol=1e-5, atol=1e-5)
        best = np.flatnonzero(mask & (got >= got[mask].max() - 1e-5))
        assert int(action) in best
        all_wanted.append(np.asarray(wanted)[mask])
        served._twin.done(int(action))
        world, timestep = step(task, world, action, jax.random.key(0))
    assert np.ptp(all_wanted, 0).min() > 0.01  # one that always says the same would agree by chance


@pytest.mark.parametrize("name", PLANS)
def test_all_are_allowed_where_nothing_is_said_and_the_numbers_given_may_be_overwritten(name, files):
    """Beside a policy that is told that all are allowed, and given new arrays each time."""
    told, untold = (reverie.load_policy(files[name]) for _ in range(2))
    shapes = {entry: spec["shape"] for entry, spec in told.described["observation"].items() if entry != "mask"}
    rng, buffers = np.random.default_rng(0), {entry: np.zeros(shape, np.float32) for entry, shape in shapes.items()}
    for number in range(6):
        seen = {entry: rng.integers(1, 9, shape).astype(np.float32) for entry, shape in shapes.items()}
        for entry, buffer in buffers.items():
            buffer[...] = seen[entry]
        reward = None if number == 0 else -100.0
        one, _ = told._logits(seen, reward, np.ones(10, bool))
        other, _ = untold._logits(buffers, reward, None)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        for policy in (told, untold):
            policy._twin.done(number)
        for buffer in buffers.values():
            buffer[...] = 0


def test_acting_is_what_was_compared_and_reset_forgets(files):
    served = reverie.load_policy(files["dreamer-cpu"])
    rng = np.random.default_rng(0)
    seen = [
        {"servers": np.stack([rng.exponential(500, 10), rng.uniform(0.5, 1, 10)], -1), "job": rng.exponential(300, 2)}
        for _ in range(30)
    ]

    def decide():
        return [(served._logits(each, None, None)[0], served.act(each)) for each in seen]

    first, on = decide(), decide()
    served.reset()
    again = decide()
    assert [action for _, action in again] == [action for _, action in first]
    np.testing.assert_array_equal(again[-1][0], first[-1][0])
    assert (on[0][0] != first[0][0]).any()  # it remembered
    lists = {name: value.tolist() for name, value in seen[0].items()}
    served.reset()
    assert served._logits(lists, None, None)[0].tolist() == first[0][0].tolist()  # plain numbers


def test_a_policy_that_knows_queues_reckons_the_reward_itself(files):
    """With constant speeds its own account of the job placed last is the reward of the fleet."""
    told, untold = (reverie.load_policy(files["dreamer-cpu"]) for _ in range(2))
    env = FleetEnv(10, 500, "full", "admission")
    task = jax.tree.map(lambda leaf: leaf[0], draw_tasks(family("calm"), 1, 3))
    step = eqx.filter_jit(env.step)
    world, timestep = env.reset(task, jax.random.key(5))
    for number in range(20):
        seen = {name: np.asarray(value) for name, value in timestep.observation.items() if name != "mask"}
        one, _ = told._logits(seen, None if number == 0 else float(timestep.reward), None)
        other, _ = untold._logits(seen, None, None)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        action = int(one.argmax())
        told._twin.done(action)
        untold._twin.done(action)
        world, timestep = step(task, world, jnp.int32(action), jax.random.key(0))


def test_jax_is_not_imported(files):
    code = f"""
import sys, reverie
policy = reverie.load_policy({str(files["dreamer-cpu"])!r})
action = policy.act({{"servers": [[300.0 * i, 1.0] for i in range(10)], "job": [200.0, 40.0]}})
assert 0 <= action < 10
sys.exit("jax" in sys.modules or "equinox" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("observation", "options", "said"),
    [
        ({"servers": [[1.0, 1.0]] * 10}, {}, "reads 'job'"),
        ({"servers": [[1.0, 1.0]] * 9, "job": [1.0, 1.0]}, {}, "shape [10, 2]"),
        ({"servers": [[1.0, float("nan")]] * 10, "job": [1.0, 1.0]}, {}, "finite"),
        ({"servers": [[1.0, 1.0]] * 10, "job": [1.0, 1.0]}, {"allowed": [False] * 10}, "allow one"),
    ],
)
def test_what_it_cannot_read_is_refused_with_the_reason(files, observation, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        reverie.load_policy(files["dreamer-cpu"]).act(observation, **options)


def test_a_memory_of_rewards_that_nobody_tells_is_refused(files):
    served = reverie.load_policy(files["a2c-flat-memory"])
    seen = {"servers": [[1.0, 1.0]] * 10, "job": [1.0, 1.0]}
    served.act(seen)
    with pytest.raises(ValueError, match="remembers rewards"):
        served.act(seen)
    assert served.act(seen, reward=-3.0) in range(10)


def test_rewards_that_are_no_response_times_have_to_be_told(tmp_path):
    """As those of lateness: what a job cost is for its world to say."""
    dreamer = PLANS["dreamer-cpu"].agent.algorithm
    algorithm = replace(dreamer, model=replace(dreamer.model, rewards="any"))
    world = replace(PLANS["dreamer-cpu"].world, reward="lateness", deadline=900.0)
    plan = replace(PLANS["dreamer-cpu"], agent=replace(PLANS["dreamer-cpu"].agent, algorithm=algorithm), world=world)
    export.export_policy(run_of(tmp_path / "late", plan), tmp_path / "late.safetensors")
    served = reverie.load_policy(tmp_path / "late.safetensors")
    seen = {"servers": [[1.0, 1.0]] * 10, "job": [1.0, 1.0]}
    served.act(seen)
    with pytest.raises(ValueError, match="no response times"):
        served.act(seen)
    assert served.act(seen, reward=-3.0) in range(10)


def test_what_is_no_policy_is_named(tmp_path, files):
    run = files["a2c-cpu"].parent / "a2c-cpu"
    checkpoint = next((run / "checkpoints").iterdir())
    for load in (reverie.load_policy, export.load_policy):
        with pytest.raises(ValueError, match="no exported policy"):
            load(checkpoint)
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "nowhere.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    with pytest.raises(ValueError, match="damaged"):
        reverie.load_policy(tmp_path / "noise.safetensors")


@pytest.mark.parametrize(
    ("kind", "reads", "said"),
    [
        ("SACConfig", "servers", "a policy of SACConfig that reads servers decides by JAX alone"),
        ("A2CConfig", "proxy", "sets weights and sends no job: `reverie serve` takes it"),
    ],
)
def test_a_policy_without_a_twin_says_that_it_has_none(kind, reads, said):
    described = {"config": {"agent": {"algorithm": {"class": kind}}}, "observation": {reads: {"shape": [2, 2]}}}
    with pytest.raises(ValueError, match=said):
        ServedPolicy({**described, "actions": 2}, {})


def test_the_file_says_where_it_comes_from(files):
    served = reverie.load_policy(files["dreamer-hidden"])
    assert served.described["provenance"]["env_steps"] == 1
    assert served.described["provenance"]["run"].endswith("dreamer-hidden")
    assert "reverie" in served.described["provenance"]["written_by"][0]["versions"]
    assert set(served.units) == {"servers", "job"}


def test_compare_and_evaluate_take_a_file_where_they_take_a_run(files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run, file = files["a2c-cpu"].parent / "a2c-cpu", files["a2c-cpu"]
    exam = ["--episodes", "3", "--jobs", "20", "--output", "json"]

    def answer(*words: str) -> list[dict]:
        assert cli.main([*words, *exam]) == 0
        return json.loads(capsys.readouterr().out)["rows"]

    assert answer("compare", "--run", str(run), "--policy", "sed") == answer(
        "compare", "--run", str(file), "--policy", "sed"
    )
    rows = answer("evaluate", str(file))
    assert {row["agent"] for row in rows if row["role"] == "agent"} == {"a2c"}


def test_export_leaves_trainer_and_replay_behind(files, tmp_path, capsys):
    run = files["dreamer-cpu"].parent / "dreamer-cpu"
    assert cli.main(["export", str(run), str(tmp_path / "mine.safetensors")]) == 0
    written = (tmp_path / "mine.safetensors").stat().st_size
    assert written < sum(path.stat().st_size for path in (run / "checkpoints").iterdir()) / 2
    assert cli.main(["export", str(run), str(tmp_path / "mine.txt")]) == 1
    assert ".safetensors" in capsys.readouterr().err


def test_the_example_in_the_readme_runs(files, monkeypatch, tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(import reverie\n.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("policy.safetensors").write_bytes(files["dreamer-cpu"].read_bytes())
    known: dict = {}
    exec(example, known)
    assert known["server"] in range(10)
