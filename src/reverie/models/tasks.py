"""Imagined tasks: where in the space of z the factors of tasks lie, and codes between and beyond those of known tasks.

MetaDreamer (arXiv 2311.06673) places them between neighbouring values of a factor, in the number of z that is about
it. How it finds that number, and what becomes of the others, is not public and ours; so are tasks beyond the outermost
values, which it leaves to future work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

MOST = 200_000
"""Imagined tasks that can be told apart."""
EQUAL = 1e-4
"""R² are rounded to this: what differs by less is rounding, where two tasks are known and any number explains all."""


@dataclass(frozen=True)
class Interpolation:
    """Which tasks are imagined: made of known ones by `Interpolation.between`."""

    values: tuple[Float[np.ndarray, "_ K"], ...]
    """[I_k, K] for each factor (k): of each of its values among known tasks, the share of each of these in its mean."""
    between: tuple[Float[np.ndarray, "_ _"], ...]
    """[C_k, I_k] for each factor: of each of its coordinates, known and imagined, the share of each of its values;
    beyond all of them one has more than all, and its neighbour less than nothing."""
    tasks: Int[np.ndarray, "N F"]
    """Of each imagined task, the coordinate of each factor; no known task is among them."""

    @classmethod
    def of(
        cls, factors: Float[np.ndarray, "K F"], density: int, along: Sequence[int], beyond: int = 0
    ) -> "Interpolation":
        """All combinations of coordinates: the I_k values of each factor among known tasks and `density` (D) more,
        evenly spaced, between any two neighbours.

        Arguments: `along`, the factors that are interpolated; of the others, the known values are combined. `beyond`,
        how many gaps as wide as the outermost one, and filled as densely, follow on either side of all values.

        Errors: ValueError where there are none, or too many.
        """
        values, between, places = [], [], []
        for k, column in enumerate(factors.T):
            known, index = np.unique(column, return_inverse=True)
            member = index == np.arange(len(known))[:, None]
            values.append(member / member.sum(1, keepdims=True))
            more, out = (density, beyond) if k in along and len(known) > 1 else (0, 0)
            last = len(known) - 1
            at = np.arange((last + 2 * out) * (more + 1) + 1) / (more + 1) - out  # those known are 0 .. I_k - 1
            upper = np.clip(np.ceil(at), 1, max(1, last))[:, None]  # of the two that it lies between, or beyond
            part, value = at[:, None] - upper + 1, np.arange(len(known))
            between.append(np.select([value == upper, value == upper - 1], [part, 1 - part]))
            places.append((index + out) * (more + 1))
        counts = [len(each) for each in between]
        if (size := np.prod(counts, dtype=float)) > MOST:
            raise ValueError(
                f"{size:,.0f} tasks lie between those known, and beyond, more than {MOST:,}: lower density, now "
                f"{density}, or beyond, now {beyond}, or imagine what happens in known tasks alone (mdp)"
            )
        all_of_them = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, len(counts))
        ours = np.ravel_multi_index(np.stack(places), counts)
        tasks = np.delete(all_of_them, ours, 0)
        if not len(tasks):
            raise ValueError("no tasks lie between those known: each factor that is interpolated has one value")
        return cls(tuple(values), tuple(between), tasks)

    def factors(self, known: Float[np.ndarray, "K F"]) -> Float[np.ndarray, "N F"]:
        """What the imagined tasks would be, if the codes were the factors."""
        axes = [
            shares @ (value @ column) for shares, value, column in zip(self.between, self.values, known.T, strict=True)
        ]
        return np.stack([axis[place] for axis, place in zip(axes, self.tasks.T, strict=True)], -1)

    def codes(
        self,
        codes: Float[Array, "K Z"],
        dimensions: Int[Array, " F"],
        epsilon: float,
        count: int,
        key: Key[Array, ""],
    ) -> Float[Array, "count Z"]:
        """z of imagined tasks, drawn evenly.

        Arguments: `codes`, of the known tasks; `dimensions`, the number of z that each factor is in (f); `epsilon`,
        deviation of the noise on imagined coordinates, in units of the gap that they lie in. The other numbers of z are
        those of a known task, drawn evenly.
        """
        task_key, base_key, noise_key = jax.random.split(key, 3)
        chosen = jnp.asarray(self.tasks)[jax.random.randint(task_key, (count,), 0, len(self.tasks))]
        z = codes[jax.random.randint(base_key, (count,), 0, codes.shape[0])]
        noise = epsilon * jax.random.normal(noise_key, chosen.shape)
        for k, (values, between) in enumerate(zip(self.values, self.between, strict=True)):
            known = jnp.asarray(values) @ codes[:, dimensions[k]]  # [I_k]
            at = jnp.asarray(between)[chosen[:, k]] @ known
            lower = jnp.floor(jnp.asarray(between)[chosen[:, k]] @ jnp.arange(len(values))).astype(int)
            lower = jnp.clip(lower, 0, max(0, len(values) - 2))  # beyond, the outermost gap
            is_imagined = (jnp.asarray(between)[chosen[:, k]] == 1).sum(-1) == 0
            gap = known[jnp.minimum(lower + 1, len(values) - 1)] - known[lower]
            z = z.at[:, dimensions[k]].set(at + jnp.where(is_imagined, noise[:, k] * jnp.abs(gap), 0.0))
        return z


def find_dimensions(
    codes: Float[Array, "K Z"], factors: Float[Array, "K F"], known: Bool[Array, " K"]
) -> tuple[Int[Array, " F"], Float[Array, " F"]]:
    """In which number of z each factor is (f), another for each, and how much of the factor it explains by a straight
    line over the codes of `known` tasks (R²). The best explained factor chooses first; of numbers that explain it
    equally well (`EQUAL`), as all do where two tasks are known, it takes the one that differs most between tasks."""
    weight = known / jnp.maximum(1, known.sum())

    def centred(x: Float[Array, "K X"]) -> Float[Array, "K X"]:
        return (x - weight @ x) * jnp.sqrt(weight)[:, None]

    a, b = centred(codes), centred(factors)
    spread = jnp.square(a).sum(0)  # [Z]
    size = spread[:, None] * jnp.square(b).sum(0)
    explained = jnp.square(a.T @ b) / jnp.maximum(size, 1e-12)  # [Z, F]
    found, share = jnp.zeros(factors.shape[1], int), jnp.zeros(factors.shape[1])
    free = jnp.round(explained / EQUAL) + 0.5 * (spread / jnp.maximum(spread.sum(), 1e-12))[:, None]
    for _ in range(factors.shape[1]):
        m, k = jnp.unravel_index(free.argmax(), free.shape)
        found, share = found.at[k].set(m), share.at[k].set(explained[m, k])
        free = free.at[m].set(-1.0).at[:, k].set(-1.0)
    return found, share
