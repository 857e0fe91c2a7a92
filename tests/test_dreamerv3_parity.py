"""Dreamer against the official DreamerV3: losses, gradients and five updates from the same weights on the same batch.

`golden/dreamerv3_updates.npz` holds what danijar/dreamerv3 at commit e3f0224 (MIT; jax 0.4.33, float32, CPU) made of
them: its own `Agent.loss` and optimiser, called with every sample fixed by a formula (below), so that no random number
matters. Sizes are small (units 16, deter 64, 8 variables of 4 classes, 8 blocks), the rest are the public defaults, at
a learning rate of 1e-2 after a warm-up of 3 updates. B = 4 sequences of T = 16 steps, after one row of context.

    params/NAME     weights before the first update, by official name    data/...        the batch, 17 rows
    gradient/NAME   of the total loss at the first update                after5/NAME     weights after five updates
    metrics/U/NAME  of update U = 1 ... 5                                states/deter    h of the first update
"""

from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.agents.dreamer import Batch, Critic, Dreamer, DreamerConfig, Learner, Networks
from reverie.envs.core import ArraySpec, Discrete
from reverie.models.core import Sequence
from reverie.models.latent import LatentState
from reverie.models.rssm import RSSMConfig
from reverie.nn.distributions import Categorical
from reverie.nn.layers import Dense, Head, Linear
from reverie.nn.optimiser import OptimiserConfig

B, T, DETER, STOCH, CLASSES, ACTIONS = 4, 16, 64, 8, 4, 2
METRICS = {
    "loss/vector": "model/reconstruction",
    "loss/rew": "model/reward",
    "loss/con": "model/continue",
    "loss/dyn": "model/dyn",
    "loss/rep": "model/rep",
    "loss/policy": "actor/loss",
    "loss/value": "critic/loss",
    "loss/repval": "critic/replay_loss",
    "ent/action": "actor/entropy",
    "opt/grad_norm": "gradient/norm",
}
"""Official names and ours."""

DREAMER = Dreamer(
    DreamerConfig(
        model=RSSMConfig(units=16, deter=DETER, stoch=STOCH, classes=CLASSES, blocks=8),
        optimiser=OptimiserConfig(learning_rate=1e-2, warmup=3),
        memory=0,
        units=16,
        unimix=0.0,  # the official code has the option and does not use it
    ),
    {"vector": ArraySpec((4,))},
    Discrete(ACTIONS),
)


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "dreamerv3_updates.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def _fixed_samples(monkeypatch):
    """Class (3 i + 5 s + (i s) % 7) % K of variable s in row i, and action ((7 i + 3) % 5) % K."""

    def stoch(self, noise):
        i, s = np.ogrid[: self.probs.shape[0], : self.probs.shape[1]]
        chosen = (3 * i + 5 * s + (i * s) % 7) % self.probs.shape[2]
        return jax.nn.one_hot(chosen, self.probs.shape[2]) + (self.probs - jax.lax.stop_gradient(self.probs))

    def action(self, key):
        return jnp.asarray(((7 * np.arange(len(self.probs)) + 3) % 5) % self.probs.shape[1], jnp.int32)

    monkeypatch.setattr(Categorical, "straight_through", stoch)
    monkeypatch.setattr(Categorical, "sample", action)


def linear(name: str, layer: Linear) -> Iterator[tuple[str, jax.Array]]:
    yield f"{name}/kernel", layer.weight
    yield f"{name}/bias", layer.bias


def dense(name: str, norm: str, layer: Dense) -> Iterator[tuple[str, jax.Array]]:
    yield from linear(name, layer.linear)
    yield f"{norm}/scale", layer.norm.scale


def hidden(name: str, layers: tuple[Dense, ...]) -> Iterator[tuple[str, jax.Array]]:
    for i, layer in enumerate(layers):
        yield from dense(f"{name}/mlp/linear{i}", f"{name}/mlp/norm{i}", layer)


def head(name: str, output: str, module: Head) -> Iterator[tuple[str, jax.Array]]:
    yield from hidden(name, module.mlp.layers)
    yield from linear(f"{name}/head/{output}", module.output)


def named(networks: Networks) -> dict[str, jax.Array]:
    """Every parameter by its official name."""
    enc, dyn, dec = networks.model.enc, networks.model.dyn, networks.model.dec
    parts = [dense(f"enc/mlp{i}", f"enc/mlp{i}norm", layer) for i, layer in enumerate(enc.mlp.layers)]
    parts += [
        dense(f"dyn/{name}", f"dyn/{name}norm", layer)
        for name, layer in (
            ("dynin0", dyn.deter_in),
            ("dynin1", dyn.stoch_in),
            ("dynin2", dyn.action_in),
            ("obs0", dyn.posterior_in),
            *((f"prior{i}", layer) for i, layer in enumerate(dyn.prior_head.mlp.layers)),
        )
    ]
    parts += [
        linear(f"dyn/{name}", layer)
        for name, layer in (
            ("dynhid0", dyn.mix),
            ("dyngru", dyn.gates),
            ("obslogit", dyn.posterior_out),
            ("priorlogit", dyn.prior_head.output),
        )
    ]
    parts += [hidden("dec", dec.mlp.layers), linear("dec/vec/vector/pred", dec.outputs["vector"])]
    parts += [head("rew", "logits", networks.model.rew), head("con", "logit", networks.model.con)]
    parts += [head("pol", "action/logits", networks.actor.head), head("val", "logits", networks.critic.head)]
    return dict(pair for part in parts for pair in part) | {"dyn/dynhid0norm/scale": dyn.mix_norm.scale}


def ours(name: str, values: np.ndarray, like: jax.Array) -> np.ndarray:
    """An official array as we keep it: biases of blocks in blocks; the decoder reads h before z, the official one z
    before h."""
    values = np.roll(values, -STOCH * CLASSES, 0) if name == "dec/mlp/linear0/kernel" else values
    return values.reshape(like.shape)


@pytest.fixture(scope="module")
def begun(official) -> tuple[Learner, Batch]:
    learner = DREAMER.init(jax.random.key(0))
    mine = named(learner.networks)
    given = {name.removeprefix("params/"): values for name, values in official.items() if name.startswith("params/")}
    assert sum(x.size for x in jax.tree.leaves(learner.networks)) == sum(given[name].size for name in mine)
    networks = eqx.tree_at(
        lambda x: list(named(x).values()),
        learner.networks,
        [jnp.asarray(ours(name, given[name], leaf)) for name, leaf in mine.items()],
    )
    slow: Critic = eqx.tree_at(
        lambda x: [leaf for _, leaf in head("val", "logits", x.head)],
        learner.slow_critic,
        [
            jnp.asarray(given[name.replace("val/", "slowval/")])
            for name, _ in head("val", "logits", networks.critic.head)
        ],
    )
    rows = {name.removeprefix("data/"): jnp.asarray(x) for name, x in official.items() if name.startswith("data/")}
    sequence = Sequence(
        observation={"vector": rows["vector"][:, 1:]},
        action=jax.nn.one_hot(
            rows["action"][:, :-1], ACTIONS
        ),  # official actions follow what was seen, ours lead to it
        reward=rows["reward"][:, 1:],
        is_first=rows["is_first"][:, 1:],
        is_last=rows["is_last"][:, 1:],
        is_terminal=rows["is_terminal"][:, 1:],
        is_trial_first=jnp.zeros((B, T), bool),
        task=jnp.zeros((B, T), int),
    )
    before = LatentState(rows["dyn/deter"][:, 0], rows["dyn/stoch"][:, 0].argmax(-1).astype(jnp.uint8))
    batch = Batch(sequence, jax.tree.map(lambda x: x[:, :0], sequence), before, jnp.zeros((B, 0)))
    return learner._replace(networks=networks, slow_critic=slow), batch


def test_the_loss_and_its_gradient_are_the_official_ones(official, begun):
    """To 1e-6 of the loss, and to 1e-4 of the largest entry of each of the tensors: the rounding of float32."""
    learner, batch = begun
    differentiate = eqx.filter_jit(eqx.filter_value_and_grad(DREAMER.loss, has_aux=True))
    (loss, (_, (states, _), _)), gradient = differentiate(learner.networks, learner, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, official["metrics/1/opt/loss"], rtol=1e-6)
    np.testing.assert_allclose(states.deter, official["states/deter"], atol=1e-5)
    for name, values in named(gradient).items():
        expected = ours(name, official[f"gradient/{name}"], values)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_five_updates_lead_to_the_official_weights(official, begun):
    """Metrics to 3e-4; weights to 1e-3 of the way that their tensor went, the median tensor to 1e-5."""
    learner, batch = begun
    update = eqx.filter_jit(DREAMER.learn)
    for number in range(1, 6):
        learner, _, metrics = update(learner, batch, jax.random.key(0))
        for theirs, mine in METRICS.items():
            expected = official[f"metrics/{number}/{theirs}"]
            np.testing.assert_allclose(metrics[mine], expected, rtol=3e-4, atol=1e-6, err_msg=f"{number} {theirs}")
    wrong = []
    for name, values in named(learner.networks).items():
        before, after = (ours(name, official[f"{when}/{name}"], values) for when in ("params", "after5"))
        moved = np.linalg.norm(after - before)
        assert moved > 0, name
        wrong.append(np.linalg.norm(values - after) / moved)
    assert max(wrong) < 1e-3
    assert np.median(wrong) < 1e-5
    for name, leaf in head("val", "logits", learner.slow_critic.head):
        expected = official[f"after5/{name.replace('val/', 'slowval/')}"]
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        [*learner.low, *learner.high], [official[f"after5/retnorm/{x}/value"] for x in ("lo", "hi")], rtol=1e-3
    )
