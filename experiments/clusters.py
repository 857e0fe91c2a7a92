"""Are tasks that share a fleet, or traffic, found by how they pull a world model? (docs/mixture.md)

The suite of 16 fleets is played at random, STORM is trained for a while on all of it without being told of tasks, and
tasks are put into four clusters by the gradients of its autoencoder and heads: tasks whose gradients point the same way
want the same changes and can share a module ("Mixture of World Models", arXiv 2602.01270). What the paper says no more
of is ours: a tensor's gradient is averaged over all its axes but the last, each of these averages counts alike, and
tasks are grouped by spherical k-means in which no cluster has more than so many. Rivals: clusters by means and spreads
of what is seen, and at random. The truth is known twice: which fleet it is, and which traffic.

    python experiments/clusters.py
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, PyTree
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from reverie.envs.core import Numbered
from reverie.envs.fleet.env import View
from reverie.envs.fleet.families import PARK_MEAN_SIZE
from reverie.envs.fleet.suites import FLEETS, TRAFFIC, fleet_suite, suite_fleets
from reverie.models.build import build_model
from reverie.models.core import Sequence
from reverie.models.storm import Storm, StormConfig
from reverie.nn.distributions import symlog
from reverie.nn.optimiser import OptimiserConfig, optimiser
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules
from reverie.tables import Row

MODEL = StormConfig(units=64, deter=64, heads=4, window=8, dropout=0.0, stoch=8, classes=8, servers="set")
TRUTHS = {"fleet": FLEETS, "traffic": TRAFFIC}
RESTARTS = 20
"""Random beginnings of k-means of which the best is taken."""


@dataclass(frozen=True)
class Clusters:
    """The options of this experiment."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of play, of the model and of what it is trained on."""
    updates: tuple[int, ...] = (0, 100, 1_000)
    """Updates after which tasks are clustered."""
    view: View = "full"
    """What is seen of a fleet."""
    copies: int = 4
    """Streams of each task."""
    length: int = 32
    """Steps of a sequence; a stream has 8 of them."""
    batch: int = 16
    """Sequences of an update."""


def directions(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]], parameters: PyTree[Array], batches: PyTree[Array]
) -> Float[np.ndarray, "K F"]:
    """The direction in which each task pulls, of length 1.

    Arguments: `loss(parameters, batch)`; `parameters` all inexact, those that are to be shared or not; `batches`,
    leaves [K, M, ...], M of each task, whose gradients are averaged.
    """

    def of_task(batches: PyTree[Array]) -> PyTree[Array]:
        return jax.grad(lambda p: jax.vmap(lambda batch: loss(p, batch))(batches).mean())(parameters)

    def of_layer(gradient: Float[Array, "K *D"]) -> Float[Array, "K F"]:
        mean = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1] if gradient.ndim > 1 else 1).mean(1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    gradients = jax.jit(jax.vmap(of_task))(batches)
    together = np.concatenate([np.asarray(of_layer(x), np.float64) for x in jax.tree.leaves(gradients)], -1)
    return together / np.maximum(np.linalg.norm(together, axis=-1, keepdims=True), 1e-12)


def clustered(vectors: Float[np.ndarray, "K F"], count: int, most: int, seed: int = 0) -> tuple[int, ...]:
    """The cluster of each task: `count` of them by cosine, of no more than `most` tasks each. Clusters are numbered by
    their first task.

    Raises:
        ValueError: so many tasks do not fit, or there are fewer tasks than clusters.
    """
    tasks = len(vectors)
    if not count <= tasks <= count * most:
        raise ValueError(f"{tasks} tasks cannot be put into {count} clusters of 1 to {most} tasks")
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    rng, best, found = np.random.default_rng(seed), -np.inf, np.zeros(tasks, int)
    for _ in range(RESTARTS):
        centres, before = vectors[rng.choice(tasks, count, replace=False)], None
        while True:
            # A place costs its cluster's distance; the first place of each cluster has to be taken.
            cost = -np.repeat(vectors @ centres.T, most, 1)  # [K, count * most]
            cost[:, ::most] -= 4.0
            place = linear_sum_assignment(cost)[1] // most
            if before is not None and (place == before).all():
                break
            before = place
            means = np.stack([vectors[place == c].mean(0) for c in range(count)])
            centres = means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)
        score = (vectors * centres[place]).sum()
        if score > best + 1e-9:
            best, found = score, place
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(int(c), len(numbers)) for c in found)


def play(asked: Clusters, seed: int) -> tuple[dict, Sequence]:
    """The specs of the world, and sequences [K, M, T, ...] of random play of each task."""
    steps = 8 * asked.length
    fleets = suite_fleets("fleets", asked.copies, seed)
    world, tasks = fleet_suite("fleets", fleets, jobs=steps, view=asked.view)
    servers = world.action_spec.width
    policy = rules([1.0] * servers, [1.0], ["random"])["random"]
    plain = Numbered(*tasks)
    _, (timestep, action) = jax.jit(
        lambda key: rollout(world, policy, plain, key, steps, lambda state, timestep, action: (timestep, action))
    )(jax.random.key(seed))

    def cut(x: Array) -> Array:  # [T, B, ...] -> [K, M, T, ...]
        return jnp.swapaxes(x, 0, 1).reshape(len(world.names), -1, asked.length, *x.shape[2:])

    timestep, action = jax.tree.map(cut, (timestep, action))
    seen = {name: x for name, x in timestep.observation.items() if name not in ("task", "descriptor")}
    done = jnp.where(timestep.is_first[..., None], 0.0, world.action_spec.encode(action))
    flags = timestep.is_first, timestep.is_last, timestep.is_terminal, timestep.is_first
    reward = timestep.reward / PARK_MEAN_SIZE
    spec = {name: entry for name, entry in world.observation_spec.items() if name in seen}
    return {"observation_spec": spec, "actions": servers}, Sequence(
        seen, done, reward, *flags, timestep.observation["task"]
    )


def trained(asked: Clusters, model: Storm, played: Sequence, seed: int) -> Iterator[tuple[int, Storm]]:
    """The model after each number of updates on sequences of all tasks alike."""
    chain = optimiser(OptimiserConfig(learning_rate=1e-3, warmup=50))
    mixed = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played)
    count = mixed.reward.shape[0]

    @eqx.filter_jit
    def train(model: Storm, state: PyTree, keys: Array) -> tuple[Storm, PyTree]:
        def update(carry: PyTree, key: Array) -> tuple[PyTree, None]:
            model, state = carry
            draw_key, loss_key = jax.random.split(key)
            batch = jax.tree.map(lambda x: x[jax.random.choice(draw_key, count, (asked.batch,))], mixed)
            gradient = jax.grad(lambda m: m.loss(m.initial(asked.batch), batch, loss_key)[0])(model)
            step, state = chain.update(gradient, state, model)
            return (optax.apply_updates(model, step), state), None

        return jax.lax.scan(update, (model, state), keys)[0]

    state, done = chain.init(model), 0
    for updates in sorted(asked.updates):
        if updates > done:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), done), updates - done)
            (model, state), done = train(model, state, keys), updates
        yield updates, model


def pulls(model: Storm, played: Sequence) -> np.ndarray:
    """The direction [K, F] in which each task pulls the autoencoder and the heads."""

    def parts(model: Storm) -> PyTree:
        return model.senses, model.heads

    def loss(parameters: PyTree, batch: Sequence) -> Array:
        whole = eqx.tree_at(parts, model, parameters)
        return whole.loss(whole.initial(batch.reward.shape[0]), batch, jax.random.key(0))[0]

    batches = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, 8, *x.shape[2:]), played)
    return directions(loss, parts(model), batches)


def looks(played: Sequence) -> np.ndarray:
    """Means and spreads [K, F] of all that is seen of each task, standardised."""
    numbers = [symlog(x) for name, x in played.observation.items() if name != "mask"]
    flat = np.concatenate([np.asarray(x).reshape(*x.shape[:3], -1) for x in numbers], -1)
    found = np.concatenate([flat.mean((1, 2)), flat.std((1, 2))], -1)
    return (found - found.mean(0)) / np.maximum(found.std(0), 1e-6)


def measure(asked: Clusters, seed: int) -> list[Row]:
    """A row for each way of clustering: how well it agrees with either truth."""
    sizes, played = play(asked, seed)
    tasks, count = played.reward.shape[0], 4
    truths = {name: np.arange(tasks) // 4 if name == "fleet" else np.arange(tasks) % 4 for name in TRUTHS}
    rng = np.random.default_rng(seed)

    def row(by: str, updates: int, groupings: list[tuple[int, ...]]) -> Row:
        agreement = {
            name: float(np.mean([adjusted_rand_score(truth, g) for g in groupings])) for name, truth in truths.items()
        }
        return {"seed": seed, "by": by, "updates": updates} | agreement

    most = 2 * tasks // count
    rows = [
        row("chance", 0, [tuple((rng.permutation(tasks) % count).tolist()) for _ in range(500)]),
        row("what is seen", 0, [clustered(looks(played), count, most, seed)]),
    ]
    model = eqx.filter_jit(build_model)(MODEL, **sizes, key=jax.random.key(seed))
    for updates, after in trained(asked, model, played, seed):
        rows.append(row("gradients", updates, [clustered(pulls(after, played), count, most, seed)]))
    return rows


def main() -> None:
    asked = tyro.cli(Clusters)
    print(f"{'seed':>4} {'clusters by':<14} {'updates':>7} {'fleet':>7} {'traffic':>7}")
    for seed in asked.seeds:
        for row in measure(asked, seed):
            print(
                f"{row['seed']:4} {row['by']:<14} {row['updates']:7} {row['fleet']:7.2f} {row['traffic']:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
