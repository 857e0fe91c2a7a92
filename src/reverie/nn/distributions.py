"""Distributions that heads output, and the squashing functions they share.

One small interface: `mean`, `mode`, `sample`, `log_prob` and `entropy` where they have a meaning, and `loss(target)`,
what a head pays for predicting this when `target` came true. They take a head's raw output, of any leading axes, and
compute in float32. Nothing here is learned.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


def symlog(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """`sign(x) log(1 + |x|)`: compresses large numbers of either sign (DreamerV3, arXiv 2301.04104)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class Categorical(eqx.Module):
    """One of K classes, as probabilities [*B, K] and their logarithms (finite where the probability is 0)."""

    probs: Float[Array, "*B K"]
    log_probs: Float[Array, "*B K"]

    @classmethod
    def from_logits(
        cls, logits: Float[Array, "*B K"], unimix: float = 0.0, mask: Bool[Array, "*B K"] | None = None
    ) -> "Categorical":
        """Normalise `logits`, mix in the uniform distribution with weight `unimix`, forbid classes where not `mask`.

        Forbidden classes have probability exactly 0 and no share of the uniform part; each row must allow one class.
        """
        # Classes lead in here: with few of them, reductions over the last axis are not vectorised on CPU.
        logits = jnp.moveaxis(logits.astype(jnp.float32), -1, 0)  # [K, *B]
        uniform = 1 / logits.shape[0]
        if mask is not None:
            allowed = jnp.moveaxis(mask, -1, 0)
            logits = jnp.where(allowed, logits, -1e30)
            uniform = allowed / allowed.sum(0)
        log_probs = jax.nn.log_softmax(logits, 0)
        probs = jnp.exp(log_probs)
        if unimix:
            probs = (1 - unimix) * probs + unimix * uniform
            log_probs = jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))
        return cls(jnp.moveaxis(probs, 0, -1), jnp.moveaxis(log_probs, 0, -1))

    def mode(self) -> Int[Array, "*B"]:
        return self.log_probs.argmax(-1)

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*B"]:
        return jax.random.categorical(key, self.log_probs)

    def straight_through(self, noise: Float[Array, "*B"]) -> Float[Array, "*B K"]:
        """A one-hot sample whose gradient is that of the probabilities (Bengio et al. 2013, arXiv 1308.3432).

        The sample is the class in whose share of [0, 1) the uniform `noise` falls. That takes one random number per
        variable; the usual Gumbel trick takes K and two logarithms of each.
        """
        ends = jnp.cumsum(jnp.moveaxis(self.probs, -1, 0)[:-1], 0)  # [K - 1, *B]
        sample = jax.nn.one_hot((noise >= ends).sum(0), self.probs.shape[-1])
        return sample + (self.probs - jax.lax.stop_gradient(self.probs))

    def log_prob(self, index: Int[Array, "*B"]) -> Float[Array, "*B"]:
        return jnp.take_along_axis(self.log_probs, index[..., None], -1)[..., 0]

    def loss(self, target: Int[Array, "*B"]) -> Float[Array, "*B"]:
        return -self.log_prob(target)

    def entropy(self) -> Float[Array, "*B"]:
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: "Categorical") -> Float[Array, "*B"]:
        """KL(self || other) in nats."""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)


class Bernoulli(eqx.Module):
    """True or false, from the logit of true [*B]."""

    logit: Float[Array, "*B"]

    def mean(self) -> Float[Array, "*B"]:
        return jax.nn.sigmoid(self.logit.astype(jnp.float32))

    def mode(self) -> Bool[Array, "*B"]:
        return self.logit > 0

    def sample(self, key: Key[Array, ""]) -> Bool[Array, "*B"]:
        return jax.random.bernoulli(key, self.mean())

    def log_prob(self, value: Bool[Array, "*B"]) -> Float[Array, "*B"]:
        return -self.loss(value.astype(jnp.float32))

    def loss(self, target: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Cross-entropy to the probability `target` in [0, 1]."""
        logit = self.logit.astype(jnp.float32)
        return -target * jax.nn.log_sigmoid(logit) - (1 - target) * jax.nn.log_sigmoid(-logit)

    def entropy(self) -> Float[Array, "*B"]:
        return self.loss(self.mean())


class TwoHot(eqx.Module):
    """A number, as a categorical over bins that grow exponentially to both sides of 0, from logits [*B, K].

    A target is spread over the two bins beside it, with weights linear in the distance of the raw numbers, so that the
    expectation reproduces it. Source: DreamerV3 (arXiv 2301.04104), "symexp twohot loss".
    """

    logits: Float[Array, "*B K"]

    BINS = 255
    """How many bins DreamerV3's heads have: 0 in the middle, 127 to each side, the outermost at about 4.85e8."""

    @staticmethod
    def bins(count: int) -> Float[np.ndarray, " K"]:
        """The values of `count` bins (odd), mirrored around an exact 0."""
        if count < 3 or count % 2 == 0:
            raise ValueError(f"TwoHot needs an odd number of at least 3 bins, so that 0 is one of them; got {count}")
        positive = np.expm1(np.linspace(0.0, 20.0, count // 2 + 1)).astype(np.float32)
        return np.concatenate([-positive[:0:-1], positive])

    def mean(self) -> Float[Array, "*B"]:
        """The expectation; exactly 0 for a uniform distribution.

        The bins sum to 0, so that a constant taken off all probabilities does not change it. Taking off that of the
        outermost bins lets equal tails cancel before they meet bins of 1e8 and leave their rounding behind. The paper
        adds mirrored bins in pairs to that end, which takes three times as long on CPU.
        """
        probs = jnp.exp(self.centred())
        tail = jax.lax.stop_gradient(jnp.minimum(probs[..., :1], probs[..., -1:]))
        return ((probs - tail) * self.bins(probs.shape[-1])).sum(-1) / probs.sum(-1)

    def mode(self) -> Float[Array, "*B"]:
        return jnp.asarray(self.bins(self.logits.shape[-1]))[self.logits.argmax(-1)]

    def loss(self, target: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Cross-entropy to the two-hot `target`; a target beyond the outermost bin counts as that bin."""
        logits = self.centred()
        lower, share = self.between(target, logits.shape[-1])
        below, above = (jnp.take_along_axis(logits, i[..., None], -1)[..., 0] for i in (lower, lower + 1))
        return jnp.log(jnp.exp(logits).sum(-1)) - (1 - share) * below - share * above

    def centred(self) -> Float[Array, "*B K"]:
        """The logits less the largest of them, in float32, so that neither they nor their gradients are rounded to
        the head's precision before they are summed."""
        logits = self.logits.astype(jnp.float32)
        return logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))

    @classmethod
    def between(cls, target: Float[Array, "*B"], count: int) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
        """Which bin is the last at or below `target`, and the next one's share of the two-hot vector, which falls
        linearly with the distance. The rest is the former's: to read these two entries is cheaper than a product with
        the vector."""
        bins = jnp.asarray(cls.bins(count))
        target = jnp.clip(target.astype(jnp.float32), bins[0], bins[-1])
        lower = jnp.clip(jnp.searchsorted(bins, target, side="right") - 1, 0, count - 2)
        return lower, (target - bins[lower]) / (bins[lower + 1] - bins[lower])


class BoundedNormal(eqx.Module):
    """Independent normals over the A entries of a continuous action, from two unbounded outputs per entry.

    The mean is squashed by tanh into [-1, 1], the standard deviation by a sigmoid into [0.1, 1] (DreamerV3's bounded
    normal). A sample may leave [-1, 1]: clip what is done, not what `log_prob` is asked about. Entries that `mask` says
    are not there are 0 and count for nothing.
    """

    center: Float[Array, "*B A"]
    width: Float[Array, "*B A"]
    mask: Bool[Array, "*B A"] | None = None

    def mean(self) -> Float[Array, "*B A"]:
        return present(jnp.tanh(self.center.astype(jnp.float32)), self.mask)

    def mode(self) -> Float[Array, "*B A"]:
        return self.mean()

    def deviation(self) -> Float[Array, "*B A"]:
        return 0.9 * jax.nn.sigmoid(self.width.astype(jnp.float32) + 2) + 0.1

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*B A"]:
        return self.mean() + present(self.deviation() * jax.random.normal(key, self.center.shape), self.mask)

    def log_prob(self, value: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log-density of the whole action."""
        return present(jax.scipy.stats.norm.logpdf(value, self.mean(), self.deviation()), self.mask).sum(-1)

    def loss(self, target: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        return -self.log_prob(target)

    def entropy(self) -> Float[Array, "*B"]:
        return present(jnp.log(self.deviation()) + 0.5 * math.log(2 * math.pi * math.e), self.mask).sum(-1)


def present(x: Float[Array, "*B A"], mask: Bool[Array, "*B A"] | None) -> Float[Array, "*B A"]:
    """`x`, and 0 for entries that are not there."""
    return x if mask is None else jnp.where(mask, x, 0.0)


class TanhNormal(eqx.Module):
    """Independent normals squashed by tanh into (-1, 1), over the A entries of a continuous action.

    Source: SAC (Haarnoja et al. 2018, arXiv 1812.05905, appendix C). There is no closed form of the entropy: minus the
    mean of `log_prob` estimates it. Entries that `mask` says are not there are 0 and count for nothing.
    """

    center: Float[Array, "*B A"]
    deviation: Float[Array, "*B A"]
    mask: Bool[Array, "*B A"] | None = None

    @classmethod
    def from_outputs(
        cls, center: Float[Array, "*B A"], width: Float[Array, "*B A"], mask: Bool[Array, "*B A"] | None = None
    ) -> "TanhNormal":
        """From two unbounded outputs per entry: the mean, and the logarithm of the deviation, cut to [-20, 2]."""
        return cls(center.astype(jnp.float32), jnp.exp(jnp.clip(width.astype(jnp.float32), -20.0, 2.0)), mask)

    def mode(self) -> Float[Array, "*B A"]:
        """The median, which is what acts when nothing is drawn."""
        return present(jnp.tanh(self.center), self.mask)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*B A"]:
        return self.reparameterised(jax.random.normal(key, self.center.shape))[0]

    def reparameterised(self, noise: Float[Array, "*B A"]) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """The sample that standard normal `noise` decides, and its log-density; gradients reach mean and spread."""
        raw = self.center + self.deviation * noise
        return present(jnp.tanh(raw), self.mask), self._log_prob(raw)

    def log_prob(self, value: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log-density of the whole action; an entry beside 1 or -1 counts as the last number before them."""
        most = 1 - jnp.finfo(jnp.float32).epsneg
        return self._log_prob(jnp.arctanh(jnp.clip(value, -most, most)))

    def _log_prob(self, raw: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Of tanh(raw). Its slope 1 - tanh(x)^2 is 4 / (e^x + e^-x)^2: a logarithm that needs no difference of ones."""
        slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
        each = jax.scipy.stats.norm.logpdf(raw, self.center, self.deviation) - slope
        return present(each, self.mask).sum(-1)


class Normal(eqx.Module):
    """Independent normals over the K entries of the last axis, by mean and standard deviation."""

    center: Float[Array, "*B K"]
    deviation: Float[Array, "*B K"]

    LEAST = 0.1
    """Floor of the deviation in PlaNet (arXiv 1811.04551) and DreamerV1 (arXiv 1912.01603): no density grows without
    bound."""

    @classmethod
    def from_outputs(cls, center: Float[Array, "*B K"], width: Float[Array, "*B K"]) -> "Normal":
        """From two unbounded outputs per entry: the mean, and what softplus and the floor make a deviation."""
        return cls(center.astype(jnp.float32), jax.nn.softplus(width.astype(jnp.float32)) + cls.LEAST)

    def mean(self) -> Float[Array, "*B K"]:
        return self.center

    def mode(self) -> Float[Array, "*B K"]:
        return self.center

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*B K"]:
        return self.reparameterised(jax.random.normal(key, self.center.shape))

    def reparameterised(self, noise: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
        """The sample that standard normal `noise` decides; gradients reach mean and spread (Kingma and Welling 2014,
        arXiv 1312.6114)."""
        return self.center + self.deviation * noise

    def log_prob(self, value: Float[Array, "*B K"]) -> Float[Array, "*B"]:
        """Log-density of all entries together."""
        return jax.scipy.stats.norm.logpdf(value, self.center, self.deviation).sum(-1)

    def loss(self, target: Float[Array, "*B K"]) -> Float[Array, "*B"]:
        return -self.log_prob(target)

    def entropy(self) -> Float[Array, "*B"]:
        return (jnp.log(self.deviation) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: "Normal") -> Float[Array, "*B"]:
        """KL(self || other) in nats."""
        ratio = self.deviation / other.deviation
        distance = (self.center - other.center) / other.deviation
        return (0.5 * (jnp.square(ratio) + jnp.square(distance) - 1) - jnp.log(ratio)).sum(-1)


class SquaredError(eqx.Module):
    """A point prediction that pays its squared distance per entry; with `squash`, the distance of the symlogs."""

    value: Float[Array, "*B"]
    squash: bool = eqx.field(static=True, default=False)

    def mode(self) -> Float[Array, "*B"]:
        """The prediction in the units of the target."""
        value = self.value.astype(jnp.float32)
        return symexp(value) if self.squash else value

    def loss(self, target: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return jnp.square(self.value.astype(jnp.float32) - (symlog(target) if self.squash else target))
