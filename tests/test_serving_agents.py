"""Agents that set weights decide without JAX as their world lets them, from what a proxy tells."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving import config, counts, serve_toml, stack, until

from reverie.agents.sac import SAC
from reverie.envs.fleet import weights as world
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import constant_speeds, fleet_task
from reverie.envs.fleet.sharing import sharing
from reverie.envs.fleet.weights import Proxy, WeightsEnv
from reverie.runs import export
from reverie.runs.config_json import config_to_json
from reverie.serve import audit, settings, trained
from reverie.serve.decide import decide, fresh
from reverie.serve.live import poisson_plan
from reverie.serve.load import load_rule
from reverie.settings.presets import preset

SPEEDS, JOBS, HOLD = [2.0, 1.0, 3.0], 300, 600.0


def plan(correction: float | None, late: int):
    """Small networks for servers of which a proxy holds back jobs."""
    chosen = preset("sac", "weights")
    algorithm = replace(chosen.agent.algorithm, units=8)
    proxy = Proxy(hold=HOLD, caps=(2, 1, 3), late=late, span=3.0)
    return replace(
        chosen,
        agent=replace(chosen.agent, algorithm=algorithm),
        world=replace(chosen.fleet, tasks=1, jobs=JOBS, proxy=proxy, correction=correction),
    )


def exported(path: Path, correction: float | None, late: int):
    """A file, and the policy that it holds, of networks that are not near uniform."""
    chosen = plan(correction, late)
    env = replace(chosen.fleet.env, servers=3)
    agent = SAC(chosen.agent.algorithm, env.observation_spec, env.action_spec)
    rng = np.random.default_rng(1)
    shapes = eqx.filter_eval_shape(agent.init, jax.random.key(0)).networks
    networks = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    actor = networks.actor
    networks = eqx.tree_at(
        lambda n: (n.actor.summary.norm.scale, n.actor.rows.norm.scale, n.actor.rows.rows.weight, n.actor.output),
        networks,
        (
            1 + actor.summary.norm.scale,
            1 + actor.rows.norm.scale,
            5 * actor.rows.rows.weight,
            # What all units have in common would send every server to the same end of the scale.
            jax.tree.map(lambda x: 3 * (x - x.mean(0)) if x.ndim == 2 else 0 * x, actor.output),
        ),
    )
    export.write_policy(path, chosen, env, networks, {})
    return env, agent.policy(networks, greedy=True)


def played(env: WeightsEnv, policy):
    """An episode: what was shown, the weights that were held, and what became of the jobs."""
    task = fleet_task(constant_speeds(SPEEDS), workloads.poisson(60.0, workloads.exponential(250.0)))
    task = task._replace(sharing=sharing(np.ones(3), np.array([0.2, 0.0, 0.4]), np.array([2, 1, 3])))

    @eqx.filter_jit
    def run():
        def one(carry, _):
            state, timestep = carry
            batch = jax.tree.map(lambda x: x[None], timestep)
            action = policy.act(None, batch, jax.random.key(0))[0][0]
            after = env.step(task, state, action, jax.random.key(0))
            return after, (timestep.observation, action)

        (ended, _), seen = jax.lax.scan(one, env.reset(task, jax.random.key(5)), None, length=45)
        return ended.waiting, ended.record, seen

    waiting, record, (observation, actions) = jax.tree.map(np.asarray, run())
    return waiting, record, observation, actions


def looks(waiting, record, weights, ticks: int):
    """What a proxy would say of these jobs, so many times in an interval."""
    came, sent = record.arrival.astype(float), (record.arrival + waiting.waited).astype(float)
    left = record.arrival.astype(float) + record.response
    at = [record.server == i for i in range(3)]
    for number in range(ticks * 20 + 1):
        now = number * HOLD / ticks
        here = [mine & (sent <= now) for mine in at]
        yield counts(
            now / 1000,
            in_progress=tuple(int((mine & (left > now)).sum()) for mine in here),
            started=tuple(int(mine.sum()) for mine in here),
            weights=tuple(np.rint(256 * weights[max(number - 1, 0) // ticks]).astype(int).tolist()),
            waiting=int((came <= now).sum() - (sent <= now).sum()),
        )


@pytest.mark.parametrize(("correction", "late", "ticks"), [(None, 1, 1), (2.0, 1, 6), (3.0, 0, 2)])
def test_what_a_proxy_tells_is_what_the_world_shows_and_weights_follow_from_it(tmp_path, correction, late, ticks):
    path = tmp_path / "agent.safetensors"
    env, policy = exported(path, correction, late)
    waiting, record, observation, actions = played(env, policy)
    weights = np.asarray(jax.vmap(env._weights)(jnp.asarray(observation["servers"][..., -1]), jnp.asarray(actions)))
    rule = load_rule(config(policy=str(path), unit=1e-3))
    known, last, words = None, None, []
    for number, look in enumerate(looks(waiting, record, weights, ticks)):
        known = rule.fresh(look) if known is None else rule.watch(known, last, look)
        last = look
        if number % ticks:
            continue
        shown, proxy = known.told[0]
        interval = number // ticks
        np.testing.assert_allclose(shown, observation["servers"][interval], rtol=1e-4, atol=2e-2)
        np.testing.assert_allclose(proxy, observation["proxy"][interval])
        word = rule.weigh(known, np.ones(3))
        words.append(word if correction is None else np.maximum(word / word.max(), world.LEAST))
        np.testing.assert_allclose(words[-1], weights[interval], atol=0.6 / 256)
    assert np.ptp(np.log(words), 0).max() > 0.2, "it always says the same"
    assert record.arrival.max() > 20 * HOLD, "the episode was over before"


def test_what_an_agent_decided_is_decided_again_from_the_log_but_not_by_another_file(tmp_path):
    path, log = tmp_path / "agent.safetensors", tmp_path / "audit.jsonl"
    exported(path, 2.0, 0)
    own = config(policy=str(path), unit=1e-3)
    rule, written, seen = load_rule(own), audit.Audit(log, 10**8), counts()
    written.begin(audit.Begin(0.0, own, rule))
    known, words = fresh(seen.at, seen), []
    for _ in range(20):
        done = tuple(s + d for s, d in zip(seen.started, (5, 3, 1), strict=True))
        seen = replace(seen, at=seen.at + 0.1, started=done, failed=(0, seen.failed[1] + 1, 0))
        before = known
        decision, known = decide(own, rule, known, seen, seen.at)
        change = audit.Change(0.0, own.sha, "shadow", "policy", False, seen.at, before, seen, decision, {}, "")
        written.change(change)
        words.append(decision.raw)
    written.close()
    assert [each.same for each in audit.replay(log)] == [True] * 20
    assert len(set(words)) == 4  # one for each interval of six looks, and that for an unknown fleet
    log.write_text(older(log.read_text(), own.sha))
    assert [each.same for each in audit.replay(log)] == [True] * 20
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match="its contents have changed"):
        list(audit.replay(log))


def older(log: str, sha: str) -> str:
    """The same log as it was written while memories were more than those of policies."""
    words = {"span": "memory", "forgets": "memory", "Known": "Memory", "before": "memory", "learned": "known"}
    for now, then in words.items():
        assert f'"{now}"' in log
        log = log.replace(f'"{now}"', f'"{then}"')
    return log.replace(sha, settings.sha(json.loads(log.splitlines()[0])["config"]))


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for JAX in the maps of a process, which Linux has")
def test_an_agent_in_front_of_a_real_proxy_sets_weights_that_follow_what_it_sees(tmp_path):
    """The command and the file alone: without JAX, and in a way that its log repeats."""
    path = tmp_path / "agent.safetensors"
    exported(path, 2.0, 1)
    with stack(speeds=(1.0, 0.5, 0.25)) as running:
        file = serve_toml(running, "active", f'policy = "{path}"\nunit = {0.3 / HOLD}\n', slice=1000.0, active=10_000)
        command = [sys.executable, "-m", "reverie", "serve", "--config", str(file)]
        with (tmp_path / "log").open("w+") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                until(running.config.audit.exists, 20)
                assert running.play(poisson_plan(100.0, 2.0, 0.016, seed=1)).failed == 0, (tmp_path / "log").read_text()
                assert "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text()
            finally:
                process.terminate()
                process.wait(10)
        until(lambda: running.driver.observe().at_defaults, 5)
        changes = list(audit.replay(running.config.audit))
    assert all(each.same for each in changes)
    assert len({each.change.decision.raw for each in changes}) > 4  # an interval of three looks each has a word
    sent = [each.change.sent for each in changes if each.change.sent]
    assert len({tuple(weights.items()) for weights in sent}) > 3
    busy = [each.change.before.learned for each in changes if each.change.before.learned]
    assert any(max(known.answered) > 5 for known in busy), "it saw nobody answer"


@pytest.mark.parametrize(
    ("changes", "said"), [({}, "say with `unit`"), ({"unit": 1e-5}, "at least as long as a decision, 0.1 s; got 1e-05")]
)
def test_a_clock_that_nobody_told_is_refused(tmp_path, changes, said):
    exported(tmp_path / "agent.safetensors", None, 1)
    with pytest.raises(ValueError, match=said):
        load_rule(config(policy=str(tmp_path / "agent.safetensors"), **changes))


def test_an_agent_that_reads_servers_in_order_is_refused_by_name(tmp_path):
    described = {"kind": "policy", "observation": {"servers": {"shape": [3, trained.FEATURES]}, "proxy": {}}}
    described["config"] = {"agent": {"algorithm": {"class": "SACConfig", "servers": "flat"}}, "world": {"gain": 0.5}}
    with pytest.raises(ValueError, match="SACConfig that reads servers as flat decides by JAX alone"):
        trained.trained(tmp_path / "agent.safetensors", described, config())


def test_an_agent_that_saw_the_columns_of_an_older_version_is_refused_by_name(tmp_path):
    described = {"kind": "policy", "observation": {"servers": {"shape": [3, trained.FEATURES]}, "proxy": {}}}
    described["config"] = config_to_json(plan(None, 1))
    del described["config"]["world"]["gain"], described["config"]["world"]["correction"]
    with pytest.raises(ValueError, match=r"agent\.safetensors is of an older version.*train one anew"):
        trained.trained(tmp_path / "agent.safetensors", described, config(unit=1e-3))


def test_an_agent_that_was_stored_with_the_older_name_of_its_span_is_read(tmp_path):
    (path := tmp_path / "agent.safetensors").write_bytes(b"")
    described = {"kind": "policy", "observation": {"servers": {"shape": [3, trained.FEATURES]}, "proxy": {}}}
    described["config"] = config_to_json(plan(2.0, 1))
    now = trained.trained(path, described, config(unit=1e-3))
    proxy = described["config"]["world"]["proxy"]
    proxy["memory"] = proxy.pop("span")
    assert trained.trained(path, described, config(unit=1e-3)) == now
    assert (now.span, now.tau) == (3.0, pytest.approx(3 * HOLD * 1e-3))


def test_jax_is_not_imported(tmp_path):
    exported(tmp_path / "agent.safetensors", None, 1)
    code = f"""
import sys, pathlib
from reverie.serve.agent import load_rule
from reverie.serve.settings import Server, ServeConfig
from reverie.serve.balancer import Counts
rule = load_rule(ServeConfig((Server("s0", "", 1),), policy={str(tmp_path / "agent.safetensors")!r}, unit=1e-3))
known = rule.fresh(Counts(0.0, "1", ("s0",), (1,), (2,), (0,), (128,), (128,), (True,)))
assert known.weights[0] > 0
sys.exit("jax" in sys.modules or "equinox" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_numbers_of_the_world_and_of_its_twin_are_the_same():
    assert (world.LEAST, len(world.FEATURES)) == (trained.LEAST, trained.FEATURES)
