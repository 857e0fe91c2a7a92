"""Losses of many tasks, each over a scale that is learned, so that none drowns the others.

Source: HarmonyDream (Ma et al. 2024, arXiv 2310.00344), which has a scale for each kind of loss; "Mixture of World
Models" (arXiv 2602.01270) has one for each task.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FAST = 100.0
"""How much faster than weights the scales are learned: with Adam at 1e-4, a factor of e in 100 updates."""


def scales_of(learned: Float[Array, "*K"]) -> Float[Array, "*K"]:
    """The scales, from the numbers that are learned: their logarithms over `FAST`."""
    return jnp.exp(FAST * learned)


def harmonised(loss: Float[Array, " K"], learned: Float[Array, " K"]) -> Float[Array, " K"]:
    """L / sigma + ln(1 + sigma): small losses count as their root, large ones as nearly 1."""
    log = FAST * learned
    return loss * jnp.exp(-log) + jax.nn.softplus(log)


def together(
    losses: Mapping[str, Float[Array, " K"]],
    scales: Float[Array, "K G"] | None,
    kinds: bool,
    *,
    dyn: float,
    rep: float,
    task: float,
) -> Float[Array, " K"]:
    """All losses of each task over its scale; where there is one for each of three `kinds`, reconstruction, reward and
    KL over theirs, and the others as they are. The weights are those of the losses of that name."""
    groups = [losses["model/reconstruction"], losses["model/reward"], dyn * losses["model/dyn"]]
    groups[2] += rep * losses["model/rep"]
    rest = [losses[name] for name in ("model/continue", "model/recall", "model/guess") if name in losses]
    rest += [task * losses[name] for name in ("model/task",) if name in losses]
    if scales is not None and kinds:
        groups = [harmonised(loss, scales[:, i]) for i, loss in enumerate(groups)]
    *seen_and_paid, kl = groups
    total = sum([*seen_and_paid, *rest, kl], jnp.zeros_like(kl))
    return total if scales is None or kinds else harmonised(total, scales[:, 0])


def over_tasks(term: Float[Array, "B T"], task: Int[Array, "B T"], tasks: int) -> Float[Array, " K"]:
    """The mean over the steps of each task; 0 where there is none."""
    if tasks == 1:
        return term.mean()[None]
    total, count = (jax.ops.segment_sum(x.reshape(-1), task.reshape(-1), tasks) for x in (term, jnp.ones_like(term)))
    return total / jnp.maximum(1, count)
