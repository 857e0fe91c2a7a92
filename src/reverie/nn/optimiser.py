"""DreamerV3's optimiser: adaptive gradient clipping, then LaProp, then a warmed-up learning rate.

Its first public code, and R2I with it, had Adam behind a clip of the global norm, one for each group of parameters.
What optax has is taken from there; here are the order of the chains and the piece it lacks (clipping per whole tensor).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from reverie.ranges import Below1, Positive, Weight, Whole, checked


@dataclass(frozen=True)
@checked
class OptimiserConfig:
    """How gradients become updates."""

    learning_rate: Positive = 4e-5
    """Step size after the warm-up."""
    warmup: Whole = 1000
    """Updates over which the step size rises linearly from 0; 0 starts at full size."""
    decay: Whole = 0
    """Updates after the warm-up over which the step size falls linearly to 0; 0 keeps it as it is."""
    clip: Positive = 0.3
    """Largest norm of a tensor's gradient, as a fraction of the norm of the tensor itself."""
    clip_floor: Positive = 1e-3
    """Norm that a tensor is taken to have at least, so that one that starts at zero can leave it."""
    momentum: Below1 = 0.9
    """Decay of the running mean of the normalised gradients (beta 1)."""
    rms_decay: Below1 = 0.999
    """Decay of the running mean of the squared gradients (beta 2)."""
    epsilon: Positive = 1e-20
    """Added to the root mean square that gradients are divided by."""


def clip_by_tensor(clip: float, floor: float) -> optax.GradientTransformation:
    """Scale each tensor's gradient so that its norm is at most `clip * max(floor, norm of the tensor)`.

    Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171) with one norm per tensor, where
    `optax.adaptive_grad_clip` takes one per unit.
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        def leaf(gradient, param):
            limit = clip * jnp.maximum(floor, jnp.linalg.norm(param.ravel()))
            return gradient / jnp.maximum(1, jnp.linalg.norm(gradient.ravel()) / limit)

        return jax.tree.map(leaf, updates, params)

    return optax.stateless(update)


def optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """The whole chain. LaProp (arXiv 2002.04839) divides by the root mean square first and averages afterwards."""
    peak = config.learning_rate
    rise = optax.schedules.linear_schedule(0.0, peak, max(1, config.warmup))
    fall = optax.schedules.linear_schedule(peak, 0.0 if config.decay else peak, max(1, config.decay))
    rate = optax.schedules.join_schedules([rise, fall], [config.warmup])
    return optax.chain(
        clip_by_tensor(config.clip, config.clip_floor),
        optax.scale_by_rms(config.rms_decay, config.epsilon, bias_correction=True, eps_in_sqrt=False),
        optax.ema(config.momentum),
        optax.scale_by_learning_rate(rate),
    )


@dataclass(frozen=True)
@checked
class AdamConfig:
    """Adam for a group of parameters, behind a clip of the norm of the group's whole gradient."""

    learning_rate: Positive = 1e-4
    """Step size."""
    clip: Positive = 1000.0
    """Largest norm of the gradient of all parameters of the group together."""
    epsilon: Positive = 1e-8
    """Added to the root mean square that gradients are divided by."""
    weight_decay: Weight = 0.0
    """Share of each `weight` that a step of size 1 would take off; biases, scales and the like keep theirs."""


def adam(config: AdamConfig) -> optax.GradientTransformation:
    """Clip the group's norm, then Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101)."""

    def weights(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: parameter_names(path)[-1:] == ("weight",), params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, weights),
        optax.scale_by_learning_rate(config.learning_rate),
    )


def in_groups(groups: Mapping[str, AdamConfig]) -> optax.GradientTransformation:
    """`adam` for each group. A parameter belongs to the group that is named last in its path, such as `b` in `x.b.y`.

    Raises (when its state is made):
        ValueError: a parameter belongs to no group.
    """

    def group(path: tuple, _: object) -> str:
        names = parameter_names(path)
        for name in reversed(names):
            if name in groups:
                return name
        raise ValueError(f"parameter {'.'.join(names)} is in none of the groups {', '.join(groups)}")

    return optax.partition(
        {name: adam(config) for name, config in groups.items()},
        lambda params: jax.tree_util.tree_map_with_path(group, params),
    )


def parameter_names(path: tuple) -> tuple[str, ...]:
    """The names of attributes on the way to a leaf; places in tuples have none."""
    return tuple(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey))
