"""The contract of world models (`models/core.py`), the same for each of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes

from reverie.envs.core import ArraySpec
from reverie.models.build import build_model
from reverie.models.core import Sequence, WorldModel
from reverie.models.counts import CountsConfig
from reverie.models.mixture import MixtureConfig
from reverie.models.queue import QueueConfig
from reverie.models.set_rssm import SetRSSMConfig

KEY = jax.random.key(11)
B, T, N = 3, 10, 3
BORDER = 6


def fleet(numbers: int, tasks: int, n: int = N) -> dict[str, ArraySpec]:
    """A view with so many numbers of each server, and of the job that waits; in a suite, if there are tasks."""
    servers, job, mask = ArraySpec((n, numbers), "servers"), ArraySpec((numbers,)), ArraySpec((n,), "mask")
    suite = {"task": ArraySpec((), "task", tasks)} if tasks else {}
    return {"servers": servers, "job": job, "mask": mask} | suite


def recipe() -> dict[str, Any]:
    """The model that docs/how-it-works.md shows how to add, as printed there."""
    page = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text()
    code, names = page.split("### Add a world model")[1].split("```python\n")[1].split("```")[0], {"__name__": "drift"}
    exec(compile(code, "how-it-works.md", "exec"), names)
    return names


class Case(NamedTuple):
    """A model under test. Without free nats, so that both KL losses have a gradient."""

    config: Any
    numbers: int = 1
    """What a server shows, and a job."""
    tasks: int = 0
    """Of the suite that it is told of, if there is one."""
    build: Callable = build_model


FLAT = dataclasses.replace(sizes.RSSM, free_nats=0.0)
SET = SetRSSMConfig(units=16, deter=16, stoch=4, world_deter=16, world_stoch=4, classes=4, free_nats=0.0)
LONG = dataclasses.replace(sizes.S3M, free_nats=0.0)
STORM = dataclasses.replace(sizes.STORM, window=2, free_nats=0.0)
MIXTURE = MixtureConfig(
    **{f.name: getattr(STORM, f.name) for f in dataclasses.fields(STORM)} | {"layers": 1},
    modules=2,
    experts=3,
    active=2,
    trunk=1,
    embedding=8,
    harmony="groups",
)
DRIFT = recipe()
QUEUE = QueueConfig(units=16, deter=16, unit=1.0)
MODELS = {
    "rssm": Case(FLAT),
    "rssm-gaussian": Case(dataclasses.replace(FLAT, latent="gaussian", servers="set")),
    "set_rssm": Case(SET),
    "set_rssm-gaussian-ssm": Case(dataclasses.replace(SET, latent="gaussian", cell="ssm")),
    "s3m": Case(LONG),
    "s3m-full-parallel": Case(dataclasses.replace(LONG, policy="full", scan="parallel", discretisation="zoh")),
    "s3m-all-of-ours": Case(dataclasses.replace(LONG, modes="ring", posterior="recurrent", product=True, recall=3)),
    "storm": Case(dataclasses.replace(STORM, recall=3)),
    "storm-foretold": Case(dataclasses.replace(STORM, acts="prior", window=3, servers="set")),
    "mixture": Case(MIXTURE, tasks=B + 1),
    "mixture-guessing": Case(
        dataclasses.replace(MIXTURE, tells="history", routing="token", servers="set"), tasks=B + 1
    ),
    "queue": Case(QUEUE, 2),
    "queue-any": Case(dataclasses.replace(QUEUE, rewards="any"), 2),
    "counts": Case(CountsConfig(units=16, deter=16, unit=1.0)),
    "counts-trial": Case(CountsConfig(units=16, deter=16, unit=1.0, forgets="trial")),
    "recipe": Case(DRIFT["DriftConfig"](), build=DRIFT["Drift"]),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request) -> tuple[WorldModel, dict[str, ArraySpec]]:
    """Parameters are moved off their start, where reward heads are zero and pass no gradient."""
    (config, numbers, tasks, build), rng = MODELS[request.param], np.random.default_rng(0)
    spec = fleet(numbers, tasks)
    model = eqx.filter_jit(build)(config, spec, N, key=KEY)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), x.dtype), model), spec


@pytest.fixture
def luck(monkeypatch):
    """What is drawn hangs on the distribution alone: a key that draws for one step draws the same for a sequence."""
    for law in ("uniform", "normal"):
        monkeypatch.setattr(jax.random, law, lambda key, shape=(), *_, **__: jnp.full(shape, 0.37))


def play(spec: dict[str, ArraySpec], seed: int = 0) -> Sequence:
    """Random numbers of each kind that a fleet shows [B, T]; a trial begins at `BORDER`, an episode two steps on."""
    rng = np.random.default_rng(seed)
    first = np.zeros((B, T), bool)
    trial = first.copy()
    first[:, [BORDER, BORDER + 2]], trial[:, BORDER] = True, True
    last = np.roll(first, -1, 1)
    action = np.eye(N)[rng.integers(N, size=(B, T))] * ~first[..., None]
    seen = {
        "servers": rng.integers(4, size=(B, T, *spec["servers"].shape)),
        "job": rng.integers(1, 9, size=(B, T, *spec["job"].shape)),
        "mask": np.ones((B, T, N)),
    }
    kinds = {"servers": np.float32, "job": np.float32, "mask": bool, "task": np.int32}
    if "task" in spec:
        seen["task"] = np.cumsum(trial, 1) + np.arange(B)[:, None]
    observation = {name: jnp.asarray(x.astype(kinds[name])) for name, x in seen.items()}
    reward = -rng.random((B, T)).astype(np.float32)
    rest = (jnp.asarray(x) for x in (action.astype(np.float32), reward, first, last, last, trial))
    return Sequence(observation, *rest, task=jnp.zeros((B, T), jnp.int32))


def part(tree, start: int, stop: int):
    """Steps `start` to `stop` of leaves [B, T, ...]."""
    return jax.tree.map(lambda x: x[:, start:stop], tree)


def at(tree, step: int):
    return jax.tree.map(lambda x: x[:, step], tree)


def close(left, right, tolerance: float = 2e-5):
    """Up to rounding of the largest number of each kind."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()), rtol=tolerance)


def read(model: WorldModel, state):
    """All that others may know of a state."""
    return model.features(state), model.reward(state), model.continues(state)


# Compiled once for each model; traced under `luck`.
@jax.jit
def observe(model: WorldModel, state, sequence: Sequence):
    after, states = model.observe(state, sequence, KEY)
    return after, states, read(model, states)


@jax.jit
def imagine(model: WorldModel, state, action):
    state = model.imagine(state, action, KEY)
    return state, read(model, state)


def step_by_step(model: WorldModel, sequence: Sequence) -> tuple[list, list]:
    """The complete state after each step, as one who acts holds it, and what may be known of it."""
    state, held, known = model.initial(B), [], []
    for t in range(sequence.reward.shape[1]):
        state, _, seen = observe(model, state, part(sequence, t, t + 1))
        held.append(state)
        known.append(at(seen, 0))
    return held, known


def test_a_sequence_at_once_is_acting_step_by_step(case, luck):
    model, spec = case
    sequence = play(spec)
    after, _, together = observe(model, model.initial(B), sequence)
    held, known = step_by_step(model, sequence)
    close(together, jax.tree.map(lambda *x: jnp.stack(x, 1), *known))
    close(after, held[-1])


def test_nothing_passes_its_border(case, luck):
    """Neither what was seen and done before it, nor the action into it, nor the state before the sequence."""
    model, spec = case
    clean, other = play(spec), play(spec, seed=9)
    before = jax.tree.map(lambda a, b: jnp.concatenate([b[:, :BORDER], a[:, BORDER:]], 1), clean, other)
    flags = {name: getattr(clean, name) for name in ("is_first", "is_last", "is_terminal", "is_trial_first")}
    dirty = before._replace(action=before.action.at[:, : BORDER + 1].add(7.0), **flags)
    start = jax.tree.map(lambda x: x if x.dtype == bool else x + 1e3, model.initial(B))
    one, two = observe(model, model.initial(B), clean), observe(model, start, dirty)
    changed = []
    for a, b in zip(jax.tree.leaves(one[1:]), jax.tree.leaves(two[1:]), strict=True):
        np.testing.assert_array_equal(a[:, BORDER:], b[:, BORDER:])
        changed.append((a[:, :BORDER] != b[:, :BORDER]).any())
    assert any(changed)
    close(one[0], two[0], 0.0)


def test_an_episodes_border_is_passed_by_those_alone_that_forget_at_trials(case, luck):
    model, spec = case
    one, other = play(spec), play(spec, seed=4)
    episode = slice(BORDER, BORDER + 2)
    two = jax.tree.map(lambda a, b: a.at[:, episode].set(b[:, episode]), one, other)
    known = [observe(model, model.initial(B), sequence)[2] for sequence in (one, two)]
    same = jax.tree.map(lambda a, b: bool((a[:, BORDER + 2 :] == b[:, BORDER + 2 :]).all()), *known)
    assert all(jax.tree.leaves(same)) == (model.forgets == "episode")


def test_a_state_remembers_an_earlier_step(case, luck):
    model, spec = case
    one, other = play(spec), play(spec, seed=4)
    two = jax.tree.map(lambda a, b: a.at[:, 2].set(b[:, 2]), one, other)
    known = [observe(model, model.initial(B), sequence)[2] for sequence in (one, two)]
    for t, expected in ((1, False), (2, True), (BORDER - 1, True), (BORDER, False)):
        changed = jax.tree.map(lambda a, b, t=t: bool((a[:, t] != b[:, t]).any()), *known)
        assert any(jax.tree.leaves(changed)) == expected, t


def test_no_state_depends_on_the_index_of_the_task(case, luck):
    model, spec = case
    sequence = play(spec)
    one, two = (observe(model, model.initial(B), s) for s in (sequence, sequence._replace(task=sequence.task - 1)))
    close(one, two, 0.0)


def test_gradients_reach_every_parameter(case):
    model, spec = case
    sequence = play(spec)

    @eqx.filter_jit
    @eqx.filter_grad
    def pull(model):
        return model.loss(model.initial(B), sequence, KEY)[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(pull(model)):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert (leaf != 0).any(), jax.tree_util.keystr(path)


def test_a_loss_names_its_metrics_and_gives_the_states_it_saw(case, luck):
    model, spec = case
    sequence = play(spec)
    loss, (states, metrics) = jax.jit(lambda m: m.loss(m.initial(B), sequence, KEY))(model)
    close(states, observe(model, model.initial(B), sequence)[1])
    assert {"model/reward", "model/continue"} <= set(metrics)
    assert all(name.startswith("model/") and x.shape == () and jnp.isfinite(x) for name, x in metrics.items())
    assert jnp.isfinite(loss)


def test_what_replay_keeps_of_a_state_comes_back(case, luck):
    model, spec = case
    sequence = play(spec)
    _, states, _ = observe(model, model.initial(B), sequence)
    stored = model.compress(states)
    back = model.expand(stored)
    close(read(model, back), read(model, states), 2.0**-6)
    if not model.rows_lent:  # a model to which rows are lent makes the rest of them (`resume`)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), back) == jax.tree.map(lambda x: (x.shape, x.dtype), states)
        close(back, states, 2.0**-8)
    bits = [sum(x.nbytes for x in jax.tree.leaves(tree) if x.dtype != bool) for tree in (stored, states)]
    assert bits[0] <= 0.6 * bits[1]


def test_a_replayed_sequence_begins_where_acting_stood(case, luck):
    model, spec = case
    sequence = play(spec)
    held, _ = step_by_step(model, part(sequence, 0, 5))
    _, states, _ = observe(model, model.initial(B), sequence)
    lent = model.rows_lent
    resumed = model.resume(at(model.compress(states), 4), part(sequence, 5 - lent, 5), KEY)
    stood = held[4]
    if getattr(model.config, "tells", "number") == "history":
        # Keys and values are those of the experts of the task that it was taken to be in the end.
        resumed, stood = (state._replace(storm=state.storm._replace(past=())) for state in (resumed, stood))
    close(resumed, stood, 2.0**-8)


def test_dreams_begin_where_the_sequence_stood(case, luck):
    """Complete states, from which a dream goes on as one would that began while acting."""
    model, spec = case
    sequence = play(spec)
    before = model.initial(B)
    _, states, _ = observe(model, before, sequence)
    held, _ = step_by_step(model, sequence)
    began = model.starts(before, states, jnp.array([4, T + 9, 2 * T]))
    expected = jax.tree.map(lambda *x: jnp.stack([x[4][0], x[9][1], x[0][2]]), *held)
    close(began, expected)
    action = jnp.eye(N)
    close(imagine(model, began, action), imagine(model, expected, action), 1e-4)


def test_dreams_depend_on_the_action_and_may_be_read_like_states(case, luck):
    model, spec = case
    state = step_by_step(model, part(play(spec), 0, 4))[0][-1]
    (dream, (features, reward, continues)), (_, (other, _, _)) = (
        imagine(model, state, jnp.tile(jnp.eye(N)[server], (B, 1))) for server in range(2)
    )
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (dream, state)]
    assert shapes[0] == shapes[1]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(features), jax.tree.leaves(other), strict=True))
    assert reward.shape == (B,)
    assert ((continues > 0) & (continues < 1)).all()
    assert model.discount == pytest.approx(1 - 1 / model.config.horizon)


def test_a_set_of_servers_has_no_order_and_no_absent_ones(case, luck):
    model, spec = case
    if model.features(model.initial(1)).servers is None:
        pytest.skip("it shows no servers one by one")
    sequence, order = play(spec), jnp.array([2, 0, 1])
    rows = ("servers", "mask")
    turned = {name: x[:, :, order] if name in rows else x for name, x in sequence.observation.items()}
    other = sequence._replace(observation=turned, action=sequence.action[..., order])
    one, two = (observe(model, model.initial(B), s)[2] for s in (sequence, other))
    close(one[0].servers[:, :, order], two[0].servers)
    close((one[0].context, one[1:]), (two[0].context, two[1:]))
    absent = sequence.observation | {"mask": sequence.observation["mask"].at[..., 2].set(False)}
    junk = absent | {"servers": absent["servers"].at[..., 2, :].set(99.0)}
    action = sequence.action.at[..., 2].set(0.0)
    seen, same = (observe(model, model.initial(B), Sequence(o, action, *sequence[2:]))[2] for o in (absent, junk))
    assert not seen[0].mask[..., 2].any()
    dreamt = imagine(model, observe(model, model.initial(B), Sequence(absent, action, *sequence[2:]))[0], action[:, -1])
    assert not dreamt[1][0].mask[..., 2].any(), "a dream has servers that are not there"
    close(jax.tree.map(lambda x: x[:, :, :2], seen[0].servers), jax.tree.map(lambda x: x[:, :, :2], same[0].servers))
    close((seen[0].context, seen[1:]), (same[0].context, same[1:]))


def test_a_loss_is_that_of_a_fleet_without_those_who_are_absent(request, case, luck):
    """The same weights in a fleet of one server less."""
    model, spec = case
    if model.features(model.initial(1)).servers is None:
        pytest.skip("it shows no servers one by one")
    config, numbers, tasks, build = MODELS[request.node.callspec.params["case"]]
    fewer = eqx.filter_eval_shape(build, config, fleet(numbers, tasks, N - 1), N - 1, key=KEY)
    fewer = jax.tree.unflatten(jax.tree.structure(fewer), jax.tree.leaves(model))
    sequence = play(spec)
    action = jnp.where(sequence.action[..., 2:] > 0, jnp.eye(N)[0], sequence.action)
    rows = ("servers", "mask")
    absent = sequence.observation | {"mask": sequence.observation["mask"].at[..., 2].set(False)}
    gone = {name: x[:, :, :2] if name in rows else x for name, x in sequence.observation.items()}
    padded, short = (
        sequence._replace(observation=absent, action=action),
        sequence._replace(observation=gone, action=action[..., :2]),
    )
    losses = [eqx.filter_jit(type(m).loss)(m, m.initial(B), s, KEY) for m, s in ((model, padded), (fewer, short))]
    close(*((total, metrics) for total, (_, metrics) in losses))


def test_models_batch_under_vmap(case, luck):
    """Seeds and experts are a `vmap` over models."""
    model, _ = case
    inputs = model.initial(B), jnp.eye(N)
    models = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), model)
    together = jax.vmap(lambda model: imagine(model, *inputs))(models)
    close(jax.tree.map(lambda x: x[0], together), imagine(model, *inputs))
