"""The convolutional nets of STORM and of earlier Dreamers: each stage halves, or doubles, the image by its stride.

Kernels of 4, strides of 2, channels that double with each of four stages. STORM has batch norms; here each pixel's
channels are normed instead, by as many parameters: what one image is taken for does not hang on the others of a batch.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from reverie.nn.attention import LayerNorm
from reverie.nn.layers import truncated_normal

KERNEL, STAGES = 4, 4


class StridedEncoder(eqx.Module):
    """[*B, H, W, C] -> [*B, H/16, W/16, 8 depth]."""

    kernels: tuple[Float[Array, "k k I O"], ...]
    norms: tuple[LayerNorm, ...]

    def __init__(self, channels: int, depth: int, *, key: Key[Array, ""]):
        """`depth` counts the channels of the first stage."""
        widths = [channels] + [depth * 2**stage for stage in range(STAGES)]
        self.kernels = tuple(
            truncated_normal(k, (KERNEL, KERNEL, inputs, outputs), KERNEL * KERNEL * inputs)
            for inputs, outputs, k in zip(widths[:-1], widths[1:], jax.random.split(key, STAGES), strict=True)
        )
        self.norms = tuple(LayerNorm(width) for width in widths[1:])

    def __call__(self, x: Float[Array, "*B H W C"]) -> Float[Array, "*B h w D"]:
        batch, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            x = jax.nn.relu(norm(_convolve(x, kernel, window_strides=(2, 2), padding=[(1, 1)] * 2)))
        return x.reshape(*batch, *x.shape[1:])


class StridedDecoder(eqx.Module):
    """The mirror image, [*B, h, w, 8 depth] -> [*B, H, W, C]: pixels, in no range."""

    norms: tuple[LayerNorm, ...]
    kernels: tuple[Float[Array, "k k I O"], ...]
    offset: Float[Array, " C"]

    def __init__(self, channels: int, depth: int, *, key: Key[Array, ""]):
        widths = [depth * 2**stage for stage in reversed(range(STAGES))] + [channels]
        self.norms = tuple(LayerNorm(width) for width in widths[:-1])
        self.kernels = tuple(  # of 4 x 4 places of a kernel, every second falls between pixels
            truncated_normal(k, (KERNEL, KERNEL, inputs, outputs), KERNEL * KERNEL * inputs // 4)
            for inputs, outputs, k in zip(widths[:-1], widths[1:], jax.random.split(key, STAGES), strict=True)
        )
        self.offset = jnp.zeros(channels)

    def __call__(self, x: Float[Array, "*B h w D"]) -> Float[Array, "*B H W C"]:
        batch, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            x = jax.nn.relu(norm(x))
            x = _convolve(x, kernel, window_strides=(1, 1), padding=[(2, 2)] * 2, lhs_dilation=(2, 2))
        return (x + self.offset.astype(x.dtype)).reshape(*batch, *x.shape[1:])


def _convolve(x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], **how) -> Float[Array, "B h w O"]:
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), **how, dimension_numbers=("NHWC", "HWIO", "NHWC"))
