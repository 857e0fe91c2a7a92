"""Layers: Equinox modules that hold parameters and act on the last axis, whatever axes lead.

Parameters are float32; a layer computes in the type of its input, norms always in float32. Weights follow DreamerV3:
a normal truncated at two standard deviations, variance 1 / fan-in, biases zero. Nothing here knows of RL.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

UNIT_VARIANCE = 1.1368
"""A standard normal truncated at two standard deviations times this has variance 1 (DreamerV3's rounding)."""


def truncated_normal(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Draw weights of variance 1 / `fan_in`."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (UNIT_VARIANCE / math.sqrt(fan_in))


def rms_norm(
    x: Float[Array, "..."], scale: Float[Array, "..."], axis: int | tuple[int, ...] = -1
) -> Float[Array, "..."]:
    """Divide `x` by its root mean square over `axis` (float32, epsilon 1e-4) and multiply by `scale`.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), with DreamerV3's epsilon.
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis, keepdims=True) + 1e-4)
    return (wide * inverse * scale).astype(x.dtype)


class Linear(eqx.Module):
    """`x @ weight + bias`, [*B, I] -> [*B, O]."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"]

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, key: Key[Array, ""]):
        """`scale` multiplies the initial weights; output layers that should start near zero pass less than 1."""
        self.weight = scale * truncated_normal(key, (inputs, outputs), inputs)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)


def time_first(x: Shaped[Array, "B T *D"]) -> Shaped[Array, "T B *D"]:
    """Swap the axes of batch and time."""
    return jnp.swapaxes(x, 0, 1)


def holding_little(step: Callable) -> Callable:
    """A step of a scan. On CPU, to hold all that its gradient needs takes longer than to compute it once more from what
    the step was given: DreamerV3's model at size1m takes 98 ms for loss and gradient of 16 x 64 steps with it all, 70
    without. An accelerator has the memory, and waits for each small program."""
    return jax.checkpoint(step, prevent_cse=False) if jax.default_backend() == "cpu" else step


def over_time(step: Callable, state: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` of `step(state, row) -> (state, output)` along the second axis of rows [B, T, ...]: the state
    after the last, and the outputs [B, T, ...]."""
    state, outputs = jax.lax.scan(holding_little(step), state, jax.tree.map(time_first, rows))
    return state, jax.tree.map(time_first, outputs)


def split_blocks(x: Float[Array, "*B D"], blocks: int) -> Float[Array, "G *B d"]:
    """Cut the last axis into G equal blocks and lead with them."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, -1), -2, 0)


def merge_blocks(x: Float[Array, "G *B d"]) -> Float[Array, "*B D"]:
    """Undo `split_blocks`."""
    # Without the barrier, XLA on CPU fuses the transposition into what computes x, which then is no longer vectorised.
    x = jnp.moveaxis(jax.lax.optimization_barrier(x), 0, -2)
    return x.reshape(*x.shape[:-2], -1)


class BlockLinear(eqx.Module):
    """G independent linear maps, [G, *B, I/G] -> [G, *B, O/G]: a linear layer whose matrix is block diagonal.

    The blocks lead (see `split_blocks`), which makes it one batched matrix product; with the blocks beside the
    features, XLA on CPU takes two to three times as long.

    The fan-in of the initial weights is the input width of *all* blocks. That is a quirk of DreamerV3's public code,
    kept because its learning rate was tuned with it.
    """

    weight: Float[Array, "G i o"]
    bias: Float[Array, "G o"]

    def __init__(self, inputs: int, outputs: int, blocks: int, *, key: Key[Array, ""]):
        """`inputs` and `outputs` are total widths and must be multiples of `blocks`."""
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"BlockLinear cannot cut widths {inputs} -> {outputs} into {blocks} equal blocks")
        self.weight = truncated_normal(key, (blocks, inputs // blocks, outputs // blocks), inputs)
        self.bias = jnp.zeros((blocks, outputs // blocks))

    def __call__(self, x: Float[Array, "G *B i"]) -> Float[Array, "G *B o"]:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        y = rows @ self.weight.astype(x.dtype) + self.bias[:, None].astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


class Conv(eqx.Module):
    """Convolution of stride 1 that keeps the image size, [*B, H, W, I] -> [*B, H, W, O]."""

    weight: Float[Array, "k k I O"]
    bias: Float[Array, " O"]

    def __init__(self, inputs: int, outputs: int, kernel: int, *, key: Key[Array, ""]):
        self.weight = truncated_normal(key, (kernel, kernel, inputs, outputs), kernel * kernel * inputs)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*B H W I"]) -> Float[Array, "*B H W O"]:
        images = x.reshape(-1, *x.shape[-3:])
        y = jax.lax.conv_general_dilated(
            images, self.weight.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(*x.shape[:-1], -1) + self.bias.astype(x.dtype)


class RMSNorm(eqx.Module):
    """`rms_norm` over the last axis with a learned scale and no offset."""

    scale: Float[Array, " D"]

    def __init__(self, size: int):
        self.scale = jnp.ones(size)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.scale)


@jax.checkpoint
def normed_silu(x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """SiLU of `rms_norm`. Its gradient computes both once more, so that `x` is all that waits for it: on CPU, holding
    what stands between takes longer than computing it."""
    return jax.nn.silu(rms_norm(x, scale))


class Dense(eqx.Module):
    """A hidden layer: linear, norm, SiLU."""

    linear: Linear
    norm: RMSNorm

    def __init__(self, inputs: int, units: int, *, key: Key[Array, ""]):
        self.linear = Linear(inputs, units, key=key)
        self.norm = RMSNorm(units)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B U"]:
        return normed_silu(self.linear(x), self.norm.scale)


class MLP(eqx.Module):
    """One or more hidden layers and no output layer, [*B, I] -> [*B, U]."""

    layers: tuple[Dense, ...]

    def __init__(self, inputs: int, units: int, layers: int, *, key: Key[Array, ""]):
        if layers < 1:
            raise ValueError(f"MLP needs at least one layer, got layers={layers}")
        widths = [inputs] + [units] * (layers - 1)
        self.layers = tuple(Dense(w, units, key=k) for w, k in zip(widths, jax.random.split(key, layers), strict=True))

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B U"]:
        for layer in self.layers:
            x = layer(x)
        return x


class Head(eqx.Module):
    """Hidden layers and a linear output, [*B, I] -> [*B, O]."""

    mlp: MLP
    output: Linear

    def __init__(self, inputs: int, outputs: int, units: int, layers: int, *, scale: float = 1.0, key: Key[Array, ""]):
        """`scale` multiplies the initial weights of the output layer."""
        mlp_key, output_key = jax.random.split(key)
        self.mlp = MLP(inputs, units, layers, key=mlp_key)
        self.output = Linear(units, outputs, scale=scale, key=output_key)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.output(self.mlp(x))


class GRU(eqx.Module):
    """A gated recurrent cell whose candidate passes through SiLU, with the gate equations of Dreamer's core.

    `h' = u * silu(r * c) + (1 - u) * h`, where r and u are sigmoids and u starts near sigmoid(-1), so that a fresh cell
    remembers. SiLU has no upper bound, and a candidate that reads h could grow without end. So the pre-activations
    [r, c, u] share one RMSNorm: none exceeds `scale * sqrt(3 U)`, hence neither does h, an average of candidates,
    whatever the weights and however long the sequence.
    """

    inputs: Linear
    recurrent: Linear
    norm: RMSNorm

    def __init__(self, inputs: int, units: int, *, key: Key[Array, ""]):
        inputs_key, recurrent_key = jax.random.split(key)
        self.inputs = Linear(inputs, 3 * units, key=inputs_key)
        self.recurrent = Linear(units, 3 * units, key=recurrent_key)
        self.norm = RMSNorm(3 * units)

    def project(self, x: Float[Array, "*B I"]) -> Float[Array, "*B C"]:
        """The inputs' share of the pre-activations: it does not recur, so a sequence takes it in one product."""
        return self.inputs(x)

    def step(self, h: Float[Array, "*B U"], projected: Float[Array, "*B C"]) -> Float[Array, "*B U"]:
        """The next state from the state h and a row of `project`."""
        reset, candidate, update = jnp.split(self.norm(projected + self.recurrent(h)), 3, -1)
        update = jax.nn.sigmoid(update - 1)
        return update * jax.nn.silu(jax.nn.sigmoid(reset) * candidate) + (1 - update) * h

    def over(
        self, h: Float[Array, "B *N U"], projected: Float[Array, "T B *N C"], anew: Bool[Array, "T B"] | None = None
    ) -> Float[Array, "T B *N U"]:
        """The state after each row of a sequence, time first, that follows state h; it is emptied before rows where
        something begins `anew`."""

        def step(h: Array, now: tuple[Array, Array | None]) -> tuple[Array, Array]:
            row, begins = now
            if begins is not None:
                h = jnp.where(begins.reshape(-1, *[1] * (h.ndim - 1)), 0.0, h)
            h = self.step(h, row)
            return h, h

        return jax.lax.scan(holding_little(step), h, (projected, anew))[1]

    def __call__(self, h: Float[Array, "*B U"], x: Float[Array, "*B I"]) -> Float[Array, "*B U"]:
        return self.step(h, self.project(x))


def masked_pool(rows: Float[Array, "*B N U"], mask: Bool[Array, "*B N"]) -> Float[Array, "*B V"]:
    """Mean and maximum over the rows that count, side by side [*B, 2 U]; zeros where none does."""
    chosen = mask[..., None]
    mean = jnp.where(chosen, rows, 0).sum(-2) / jnp.maximum(1, chosen.sum(-2)).astype(rows.dtype)
    highest = jnp.where(chosen, rows, -jnp.inf).max(-2)
    return jnp.concatenate([mean, jnp.where(chosen.any(-2), highest, 0)], -1)


class SharedRows(eqx.Module):
    """Hidden layers that every row passes, each row joined by the same context: [*B, N, G], [*B, D] -> [*B, N, U].

    The first layer multiplies the context once and not once per row.
    """

    rows: Linear
    context: Linear
    norm: RMSNorm
    deeper: MLP | None

    def __init__(self, rows: int, context: int, units: int, layers: int, *, key: Key[Array, ""]):
        rows_key, context_key, deeper_key = jax.random.split(key, 3)
        self.rows = Linear(rows, units, key=rows_key)
        self.context = Linear(context, units, key=context_key)
        self.norm = RMSNorm(units)
        self.deeper = MLP(units, units, layers - 1, key=deeper_key) if layers > 1 else None

    def __call__(self, rows: Float[Array, "*B N G"], context: Float[Array, "*B D"]) -> Float[Array, "*B N U"]:
        x = jax.nn.silu(self.norm(self.rows(rows) + self.context(context)[..., None, :]))
        return x if self.deeper is None else self.deeper(x)


class SetEncoder(eqx.Module):
    """A set as one vector, [*B, N, F] -> [*B, 2 U]: every row through the same MLP, then `masked_pool`.

    Neither the order of the rows matters nor what stands in those that the mask leaves out.
    """

    mlp: MLP

    def __init__(self, inputs: int, units: int, layers: int, *, key: Key[Array, ""]):
        self.mlp = MLP(inputs, units, layers, key=key)

    def __call__(self, rows: Float[Array, "*B N F"], mask: Bool[Array, "*B N"]) -> Float[Array, "*B V"]:
        return masked_pool(self.mlp(rows), mask)


def masked_mean(x: Float[Array, "*B"], counts: Float[Array, "*B"]) -> Float[Array, ""]:
    """The mean over what counts, 1 or 0."""
    return (x * counts).sum() / jnp.maximum(1, counts.sum())
