"""From observations to tokens and back: one encoder and one decoder for whatever entries an observation has.

Vectors and servers pass through a perceptron, images through a small convolutional net (DreamerV3). The `mask` entry is
not encoded, but servers that it marks as absent are neither read nor reconstructed. Nothing here recurs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Key

from reverie.envs.core import ArraySpec
from reverie.nn.distributions import Categorical, SquaredError, symlog
from reverie.nn.layers import MLP, BlockLinear, Conv, Dense, Linear, RMSNorm, SetEncoder, merge_blocks, split_blocks

CNN_KERNEL = 5
CNN_STAGES = (2, 3, 4, 4)
"""Channels of each stage, in multiples of the base depth; each stage halves height and width."""
CNN_SHRINK = 2 ** len(CNN_STAGES)

Spec = tuple[tuple[str, ArraySpec], ...]


@dataclass(frozen=True)
class Entries:
    """What an observation consists of, by kind; each kind is sorted by name, so no order of a dictionary matters."""

    vectors: Spec
    servers: Spec
    images: Spec
    mask: str | None

    def one_set_and_job(self, servers: tuple[int, int], job: int) -> bool:
        """Whether there are one set of servers [N, F] and one vector of so many numbers, and no image."""
        shapes = [[entry.shape for _, entry in kind] for kind in (self.servers, self.vectors)]
        return shapes == [[servers], [(job,)]] and not self.images

    @classmethod
    def of(cls, spec: Mapping[str, ArraySpec]) -> "Entries":
        """Sort and check `spec`.

        Raises:
            ValueError: an entry has the wrong rank or a size that the nets cannot take, or there is nothing to encode.
        """
        spec = {name: entry for name, entry in spec.items() if entry.kind not in ("task", "descriptor")}
        axes = {"vector": "[D]", "servers": "[N, F]", "image": "[H, W, C]", "mask": "[A]"}
        for name, entry in spec.items():
            if len(entry.shape) != len(axes[entry.kind].split(",")):
                raise ValueError(
                    f"observation {name!r} of kind {entry.kind!r} has shape {entry.shape}, expected {axes[entry.kind]}"
                )
        vectors, servers, images, masks = (
            tuple((name, entry) for name, entry in sorted(spec.items()) if entry.kind == kind) for kind in axes
        )
        if not (vectors or servers or images):
            raise ValueError(f"the observation has nothing to encode: its entries are {sorted(spec)}")
        if len(masks) > 1:
            raise ValueError(f"an observation has at most one mask, got {[name for name, _ in masks]}")
        for (name, entry), (_, mask) in ((s, m) for s in servers for m in masks):
            if mask.shape[0] != entry.shape[0]:
                raise ValueError(
                    f"observation {name!r} has {entry.shape[0]} servers but the mask has {mask.shape[0]} entries; "
                    "a mask beside servers must have one entry for each of them"
                )
        for name, entry in images:
            if any(side % CNN_SHRINK or not 3 <= side // CNN_SHRINK <= 16 for side in entry.shape[:2]):
                raise ValueError(
                    f"image {name!r} has height and width {entry.shape[:2]}; "
                    f"both must be multiples of {CNN_SHRINK} from {3 * CNN_SHRINK} to {16 * CNN_SHRINK}"
                )
            if entry.shape[:2] != images[0][1].shape[:2]:
                raise ValueError(
                    f"image {name!r} has height and width {entry.shape[:2]}, but {images[0][0]!r} has "
                    f"{images[0][1].shape[:2]}; the images of an observation must have one size"
                )
        return cls(vectors, servers, images, masks[0][0] if masks else None)

    @property
    def channels(self) -> int:
        """Channels of all images together."""
        return sum(entry.shape[-1] for _, entry in self.images)

    def small_map(self, depth: int) -> tuple[int, int, int]:
        """Height, width and channels of what the CNN makes of the images (and makes them of)."""
        height, width, _ = self.images[0][1].shape
        return height // CNN_SHRINK, width // CNN_SHRINK, CNN_STAGES[-1] * depth

    def present(self, observation: dict[str, Array], name: str) -> Bool[Array, "*B N"]:
        """Which of the servers in the entry `name` exist."""
        if self.mask is None:
            return jnp.ones(observation[name].shape[:-1], bool)
        return observation[self.mask].astype(bool)


class Encoder(eqx.Module):
    """An observation as one vector [*B, E]: what vectors and servers say, then sets, then images."""

    mlp: MLP | None
    sets: dict[str, SetEncoder]
    cnn: tuple[tuple[Conv, RMSNorm], ...]
    entries: Entries = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(
        self,
        spec: Mapping[str, ArraySpec],
        units: int,
        layers: int,
        depth: int,
        servers: Literal["flat", "set"],
        *,
        key: Key[Array, ""],
    ):
        """`depth` is the base depth of the CNN; `servers` tells whether to read them in order or as sets."""
        mlp_key, sets_key, cnn_key = jax.random.split(key, 3)
        self.entries = entries = Entries.of(spec)
        self.mlp, self.sets, self.cnn = None, {}, ()
        flat = entries.vectors if servers == "set" else entries.vectors + entries.servers
        if servers == "set":
            keys = jax.random.split(sets_key, len(entries.servers))
            self.sets = {
                name: SetEncoder(entry.shape[-1], units, layers, key=k)
                for (name, entry), k in zip(entries.servers, keys, strict=True)
            }
        if flat:
            width = sum(math.prod(entry.shape) * (entry.categories or 1) for _, entry in flat)
            self.mlp = MLP(width, units, layers, key=mlp_key)
        self.size = units * bool(flat) + 2 * units * len(self.sets)
        if entries.images:
            self.cnn = _cnn([entries.channels] + [depth * multiple for multiple in CNN_STAGES], key=cnn_key)
            self.size += math.prod(entries.small_map(depth))

    def __call__(self, observation: dict[str, Array], dtype: DTypeLike = jnp.float32) -> Float[Array, "*B E"]:
        """Encode an observation with any leading axes, computing in `dtype`."""
        flat, tokens = [], []
        for name, entry in self.entries.vectors:
            x = observation[name]
            flat.append(symlog(x) if entry.categories is None else _flat(jax.nn.one_hot(x, entry.categories), 2))
        for name, _ in self.entries.servers:
            present = self.entries.present(observation, name)
            rows = symlog(jnp.where(present[..., None], observation[name], 0))
            if name in self.sets:
                tokens.append(self.sets[name](rows.astype(dtype), present))
            else:
                flat.append(_flat(rows, 2))
        if self.mlp is not None:
            tokens.insert(0, self.mlp(jnp.concatenate(flat, -1).astype(dtype)))
        if self.cnn:
            x = jnp.concatenate([observation[name] for name, _ in self.entries.images], -1).astype(dtype) / 255 - 0.5
            for conv, norm in self.cnn:
                x = jax.nn.silu(norm(_half_the_size(conv(x))))
            tokens.append(_flat(x, 3))
        return jnp.concatenate(tokens, -1)


class ImageDecoder(eqx.Module):
    """From h and z to pixels in [0, 1]: a small map, then twice the size and a convolution, four times."""

    from_deter: BlockLinear
    from_stoch: tuple[Dense, Linear]
    norm: RMSNorm
    stages: tuple[tuple[Conv, RMSNorm], ...]
    output: Conv
    shape: tuple[int, int, int] = eqx.field(static=True)
    deter: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        deter: int,
        stoch: int,
        blocks: int,
        units: int,
        *,
        key: Key[Array, ""],
    ):
        """`shape` is that of the small map, `channels` counts those of the images, `deter` and `stoch` are widths."""
        deter_key, hidden_key, stoch_key, stages_key, output_key = jax.random.split(key, 5)
        self.shape, self.deter = shape, deter
        self.from_deter = BlockLinear(deter, math.prod(shape), blocks, key=deter_key)
        self.from_stoch = (
            Dense(stoch, 2 * units, key=hidden_key),
            Linear(2 * units, math.prod(shape), key=stoch_key),
        )
        self.norm = RMSNorm(shape[-1])
        widths = [multiple * shape[-1] // CNN_STAGES[-1] for multiple in reversed(CNN_STAGES)]
        self.stages = _cnn(widths, key=stages_key)
        self.output = Conv(widths[-1], channels, CNN_KERNEL, key=output_key)

    def __call__(self, features: Float[Array, "*B D"]) -> Float[Array, "*B H W C"]:
        deter, stoch = features[..., : self.deter], features[..., self.deter :]
        height, width, channels = self.shape
        blocks = self.from_deter.weight.shape[0]
        hidden, linear = self.from_stoch
        x = self.from_deter(split_blocks(deter, blocks))
        x = merge_blocks(x.reshape(*x.shape[:-1], height, width, channels // blocks))
        x = jax.nn.silu(self.norm(x + linear(hidden(stoch)).reshape(x.shape)))
        for conv, norm in self.stages:
            x = jax.nn.silu(norm(conv(_twice_the_size(x))))
        return jax.nn.sigmoid(self.output(_twice_the_size(x)))


class Decoder(eqx.Module):
    """From features [h, flat z] to a prediction of every entry that is encoded."""

    mlp: MLP | None
    outputs: dict[str, Linear]
    cnn: ImageDecoder | None
    entries: Entries = eqx.field(static=True)

    def __init__(
        self,
        spec: Mapping[str, ArraySpec],
        deter: int,
        stoch: int,
        blocks: int,
        units: int,
        layers: int,
        depth: int,
        *,
        key: Key[Array, ""],
    ):
        """`deter` and `stoch` are the widths of h and z, `blocks` cuts h, `depth` is the base depth of the CNN."""
        mlp_key, outputs_key, cnn_key = jax.random.split(key, 3)
        self.entries = entries = Entries.of(spec)
        self.mlp, self.cnn = None, None
        flat = entries.vectors + entries.servers
        self.outputs = {
            name: Linear(units, math.prod(entry.shape) * (entry.categories or 1), key=k)
            for (name, entry), k in zip(flat, jax.random.split(outputs_key, len(flat)), strict=True)
        }
        if flat:
            self.mlp = MLP(deter + stoch, units, layers, key=mlp_key)
        if entries.images:
            shape = entries.small_map(depth)
            if shape[-1] % blocks:
                raise ValueError(
                    f"the image decoder cannot cut its {shape[-1]} channels into {blocks} blocks; "
                    f"give a CNN depth that makes {CNN_STAGES[-1]} x depth a multiple of the blocks"
                )
            self.cnn = ImageDecoder(shape, entries.channels, deter, stoch, blocks, units, key=cnn_key)

    def __call__(self, features: Float[Array, "*B D"]) -> dict[str, Categorical | SquaredError]:
        """What each entry is expected to be; images in [0, 1], servers flat [*B, N * F]."""
        predictions = {}
        if self.mlp is not None:
            hidden = self.mlp(features)
            for name, entry in self.entries.vectors + self.entries.servers:
                output = self.outputs[name](hidden)
                if entry.categories is None:
                    predictions[name] = SquaredError(output, squash=True)
                else:
                    logits = output.reshape(*output.shape[:-1], *entry.shape, entry.categories)
                    predictions[name] = Categorical.from_logits(logits)
        if self.cnn is not None:
            pixels, start = self.cnn(features), 0
            for name, entry in self.entries.images:
                stop = start + entry.shape[-1]
                predictions[name], start = SquaredError(pixels[..., start:stop]), stop
        return predictions

    def loss(self, features: Float[Array, "*B D"], observation: dict[str, Array]) -> Float[Array, "*B"]:
        """Squared errors (of symlogs, or of pixels in [0, 1]) and cross-entropies, summed over all entries."""
        predictions = self(features)
        total = jnp.zeros(features.shape[:-1])
        for name, _ in self.entries.vectors:
            total += predictions[name].loss(observation[name]).sum(-1)
        for name, _ in self.entries.servers:
            present = self.entries.present(observation, name)[..., None]
            rows = jnp.where(present, observation[name], 0)
            error = predictions[name].loss(_flat(rows, 2)).reshape(rows.shape)
            total += jnp.where(present, error, 0).sum((-2, -1))
        for name, _ in self.entries.images:
            total += predictions[name].loss(observation[name].astype(jnp.float32) / 255).sum((-3, -2, -1))
        return total


def _flat(x: Array, axes: int) -> Array:
    """Merge the last `axes` axes."""
    return x.reshape(*x.shape[:-axes], -1)


def _cnn(widths: list[int], *, key: Key[Array, ""]) -> tuple[tuple[Conv, RMSNorm], ...]:
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(
        (Conv(inputs, outputs, CNN_KERNEL, key=k), RMSNorm(outputs))
        for inputs, outputs, k in zip(widths[:-1], widths[1:], keys, strict=True)
    )


def _half_the_size(x: Float[Array, "*B H W C"]) -> Float[Array, "*B h w C"]:
    *batch, height, width, channels = x.shape
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).max((-4, -2))


def _twice_the_size(x: Float[Array, "*B h w C"]) -> Float[Array, "*B H W C"]:
    return x.repeat(2, -2).repeat(2, -3)
