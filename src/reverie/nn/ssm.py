"""Linear state-space layers with resets: S5 (Smith et al., arXiv 2208.04933), S4 diagonal (Gu et al., 2206.11893) and
with its low-rank correction (2111.00396).

A layer carries a complex vector x through time, x_t = A x_{t-1} + B u_t with a diagonal A, and reads y_t = Re(C x_t)
+ D u_t from it. It is linear in x, so a sequence can be taken in a number of parallel steps that grows with the
logarithm of its length. Where an episode begins, the layer's learned start stands for the state before it (Lu et al.
2023, arXiv 2303.03982). Time leads in here, T x B x features. Nothing here knows of RL.

Parameters are real numbers, and the recurrence is float32 whatever the rest computes in: a memory that fades by one
part in a thousand at a step cannot be kept in half precision.
"""

import abc
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Key

from reverie.nn.layers import Linear, RMSNorm, truncated_normal

Scan = Literal["auto", "sequential", "parallel"]
Discretisation = Literal["bilinear", "zoh"]
Transition = Literal["diagonal", "dplr"]
Modes = Literal["legs", "ring"]

SLOWEST_DECAY = 1e-4
"""Real parts of eigenvalues stay below minus this, so that no mode can grow, whatever is learned."""
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1
"""Initial step sizes: with the real part -1/2, time constants of 20 to 2000 steps."""
SHORTEST_MEMORY, LONGEST_MEMORY = 20.0, 400.0
"""Initial time constants of the modes of a ring, in steps."""


# --- initial values ------------------------------------------------------------------------------------------------


def legs(size: int) -> tuple[Float[np.ndarray, "N N"], Float[np.ndarray, " N"]]:
    """HiPPO-LegS (Gu et al. 2020, arXiv 2008.07669, theorem 2): A and B of x' = A x + B u, whose x are the
    coefficients of the past, stretched over [0, 1], in the first N Legendre polynomials."""
    root = np.sqrt(2 * np.arange(size) + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(np.arange(size) + 1.0), root


def legs_modes(size: int) -> tuple[Complex[np.ndarray, " N"], Complex[np.ndarray, "N N"]]:
    """Eigenvalues and orthonormal eigenvectors (columns) of the normal part of HiPPO-LegS, A + P P^T with
    P_n = sqrt(n + 1/2), by increasing imaginary part. It is skew-symmetric but for -1/2 on the diagonal.

    Source: S4 (Gu et al. 2022, arXiv 2111.00396, theorem 1).
    """
    a, _ = legs(size)
    p = np.sqrt(np.arange(size) + 0.5)
    skew = a + np.outer(p, p) + 0.5 * np.eye(size)
    frequency, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequency, vectors


def _modes(size: int, blocks: int, symmetric: bool) -> tuple[Complex[np.ndarray, " S"], Complex[np.ndarray, "N S"]]:
    """`legs_modes` of a block-diagonal matrix; with `symmetric`, only those of positive frequency."""
    values, vectors = legs_modes(size // blocks)
    kept = slice(len(values) // 2 if symmetric else 0, None)
    return np.tile(values[kept], blocks), np.kron(np.eye(blocks), vectors[:, kept])


def check_size(size: int, blocks: int, symmetric: bool, modes: Modes) -> None:
    """Errors: ValueError where a state of `size` cannot be cut into blocks, which a ring has none of, and pairs."""
    each = (1 if modes == "ring" else blocks) * (1 + symmetric)
    if each < 1 or size % each:
        unit = "2" if modes == "ring" else f"{'2 x ' if symmetric else ''}blocks = {each}"
        raise ValueError(f"the state of an SSM must be a multiple of {unit}, got {size}")


def ring(key: Key[Array, ""], shape: tuple[int, ...], symmetric: bool = True) -> Complex[Array, "*H S"]:
    """Factors of one step: evenly spaced angles, time constants log-uniform in 20 to 400 steps.

    LegS hears slow things; in white noise, such as cards that are drawn, all frequencies count alike: two layers of 64
    such modes learn to repeat what was 64 steps ago in updates after which those of LegS are half wrong. They are those
    of the linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349) but for the angles, which are drawn there.
    Without `symmetric` each angle comes with its negative, of a time constant of its own.
    """
    half = shape[-1] if symmetric else -(-shape[-1] // 2)
    angle = math.pi * (np.arange(half) + 0.5) / half
    angle = angle if symmetric else np.concatenate([angle, -angle])[: shape[-1]]
    draws = jax.random.uniform(key, shape, minval=math.log(SHORTEST_MEMORY), maxval=math.log(LONGEST_MEMORY))
    return jnp.exp(jax.lax.complex(-jnp.exp(-draws), jnp.broadcast_to(jnp.asarray(angle, jnp.float32), shape)))


# --- the recurrence ------------------------------------------------------------------------------------------------


def sequential_scan(
    transition: Complex[Array, " S"],
    inputs: Complex[Array, "T B S"],
    state: Complex[Array, "B S"],
    is_first: Bool[Array, "T B"],
    start: Complex[Array, " S"],
) -> Complex[Array, "T B S"]:
    """x_t = transition * x_{t-1} + inputs_t, where x_{-1} is `state`, and x_{t-1} is `start` where `is_first`."""

    def step(x, now):
        drive, begins = now
        x = transition * jnp.where(begins[:, None], start, x) + drive
        return x, x

    return jax.lax.scan(step, state, (inputs, is_first))[1]


def parallel_scan(
    transition: Complex[Array, " S"],
    inputs: Complex[Array, "T B S"],
    state: Complex[Array, "B S"],
    is_first: Bool[Array, "T B"],
    start: Complex[Array, " S"],
) -> Complex[Array, "T B S"]:
    """`sequential_scan` in O(log T) steps.

    Where an episode begins, the transition is 0 and what `start` becomes is added to the input: these are ordinary
    elements of a linear recurrence, hence the operator below stays associative.
    """
    begins = is_first[..., None]
    a = jnp.where(begins, 0, transition)  # [T, B, S]
    b = inputs + jnp.where(begins, transition * start, 0)
    b = b.at[0].add(a[0] * state)

    def join(earlier, later):
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    return jax.lax.associative_scan(join, (a, b))[1]


def scan_by_platform(scan: Scan) -> Literal["sequential", "parallel"]:
    """`auto` is the parallel scan on accelerators and the sequential one on CPUs, where the parallel one takes longer
    (83 ms against 72 for a layer's forward and backward pass over 4 x 1024 steps) and 10 s to compile."""
    if scan == "auto":
        return "sequential" if jax.default_backend() == "cpu" else "parallel"
    return scan


# --- layers --------------------------------------------------------------------------------------------------------


class SSM(eqx.Module):
    """What MIMO and SISO share: eigenvalues that cannot become unstable, their discretisation, and the recurrence.

    With `symmetric`, the states stand for themselves and their complex conjugates, which is what a real system has:
    half of the work for the same output.
    """

    decay: Float[Array, "..."]
    """Logarithm of how far the real part of an eigenvalue lies below -`SLOWEST_DECAY`."""
    frequency: Float[Array, "..."]
    """Imaginary part of an eigenvalue."""
    log_step: Float[Array, "..."]
    B: Float[Array, "2 ..."]
    """Real and imaginary part; C likewise."""
    C: Float[Array, "2 ..."]
    D: Float[Array, " H"]
    start: Float[Array, "S 2"]
    """The state before an episode, real and imaginary part."""
    Q: Float[Array, "2 S"] | None
    """What is taken off a diagonal transition, Q Q^* in each block: with it the continuous system starts as HiPPO-LegS
    itself, without it as its normal part. It makes no system unstable."""
    blocks: int = eqx.field(static=True)
    """Blocks of the S states that Q Q^* couples."""
    symmetric: bool = eqx.field(static=True)
    discretisation: Discretisation = eqx.field(static=True)

    def __call__(
        self, u: Float[Array, "T B H"], state: Float[Array, "B S 2"], is_first: Bool[Array, "T B"], scan: Scan = "auto"
    ) -> tuple[Float[Array, "T B H"], Float[Array, "T B S 2"]]:
        """Outputs and states of a sequence that begins right after `state`, the start taking over where `is_first`."""
        u = u.astype(jnp.float32)
        given = as_complex(state), is_first, as_complex(self.start)
        if self.Q is None:
            transition, gain = self.discrete()
            run = sequential_scan if scan_by_platform(scan) == "sequential" else parallel_scan
            x = run(transition, gain * self.drive(u), *given)
        else:
            x = self._corrected_scan(self.drive(u), *given)
        y = (1 + self.symmetric) * self.read(x) + self.D * u
        return y, as_pair(x)

    def eigenvalues(self) -> Complex[Array, "..."]:
        """Of the continuous system; their real part is below -`SLOWEST_DECAY`."""
        return jax.lax.complex(-jnp.exp(self.decay) - SLOWEST_DECAY, self.frequency)

    def discrete(self) -> tuple[Complex[Array, " S"], Complex[Array, " S"]]:
        """The transition of one step, and what B u is multiplied by.

        Bilinear (the trapezoidal rule): (1 + z / 2) / (1 - z / 2) and step / (1 - z / 2), with z = eigenvalue * step.
        Zero-order hold (u constant within a step): exp(z) and (exp(z) - 1) / eigenvalue.
        """
        eigenvalue, step = self.eigenvalues(), jnp.exp(self.log_step)
        z = eigenvalue * step
        if self.discretisation == "bilinear":
            transition, gain = (1 + z / 2) / (1 - z / 2), step / (1 - z / 2)
        else:
            transition, gain = jnp.exp(z), jnp.expm1(z) / eigenvalue
        return transition.reshape(-1), gain.reshape(-1)

    def _corrected_scan(
        self,
        driven: Complex[Array, "T B S"],
        state: Complex[Array, "B S"],
        is_first: Bool[Array, "T B"],
        start: Complex[Array, " S"],
    ) -> Complex[Array, "T B S"]:
        """The bilinear recurrence of x' = (diagonal - Q Q^*) x + B u, one step after the other.

        With M = 1 - step / 2 (diagonal - Q Q^*), a step is M^-1 (2 x + step B u) - x. M is diagonal but for a product
        of two vectors, so M^-1 costs a division and a sum over each block (Sherman and Morrison).
        """
        assert self.Q is not None
        step = jnp.broadcast_to(jnp.exp(self.log_step), self.decay.shape).reshape(-1)
        q = jax.lax.complex(self.Q[0], self.Q[1])
        inverse = 1 / (1 - self.eigenvalues().reshape(-1) * step / 2)
        back = inverse * step / 2 * q

        def along(x: Complex[Array, "*B S"]) -> Complex[Array, "*B S"]:
            """Q^* x of each block, the conjugates that x stands for included, beside each of its states."""
            cut = (q.conj() * x).reshape(*x.shape[:-1], self.blocks, -1)
            total = cut.sum(-1, keepdims=True)
            total = 2 * total.real + 0j if self.symmetric else total
            return jnp.broadcast_to(total, cut.shape).reshape(x.shape)

        back = back / (1 + along(back))

        def advance(x, now):
            drive, begins = now
            x = jnp.where(begins[:, None], start, x)
            y = inverse * (2 * x + drive)
            x = y - back * along(y) - x
            return x, x

        return jax.lax.scan(advance, state, (step * driven, is_first))[1]

    @abc.abstractmethod
    def drive(self, u: Float[Array, "*T H"]) -> Complex[Array, "*T S"]:
        """B u."""

    @abc.abstractmethod
    def read(self, x: Complex[Array, "*T S"]) -> Float[Array, "*T H"]:
        """Re(C x)."""


class MIMO(SSM):
    """S5: one state of P modes, which all H inputs drive and all outputs read. Each mode has its own step size."""

    def __init__(
        self,
        width: int,
        size: int,
        blocks: int = 1,
        symmetric: bool = True,
        discretisation: Discretisation = "bilinear",
        transition: Transition = "diagonal",
        modes: Modes = "legs",
        *,
        key: Key[Array, ""],
    ):
        """`width` is H, `size` is P, conjugates included; A starts as `blocks` blocks of HiPPO-LegS, or as a `ring`.

        Raises:
            ValueError: P cannot be cut into the blocks, or the transition is not for the discretisation or the modes.
        """
        check_transition(transition, discretisation, modes)
        b_key, c_key, d_key, step_key = jax.random.split(key, 4)
        check_size(size, blocks, symmetric, modes)
        states = size // (1 + symmetric)
        self.Q = None
        if modes == "ring":
            factors = ring(step_key, (states,), symmetric)
            self.decay, self.frequency, gain = _ring_parameters(factors, discretisation)
            self.log_step = jnp.zeros(states)
            # Inputs of variance 1 make states of variance 1, and these outputs of variance 1.
            norm = jnp.sqrt((1 - jnp.abs(factors) ** 2) / 2) / gain
            self.B = truncated_normal(b_key, (2, width, states), width) * norm  # [2, H, S]
            self.C = truncated_normal(c_key, (2, states, width), (1 + symmetric) * size)  # [2, S, H]
        else:
            values, vectors = _modes(size, blocks, symmetric)
            self.decay, self.frequency = _parameters(values)
            self.log_step = _log_steps(step_key, (states,))
            # Drawn as the real matrices of the real system, then turned into the coordinates of its modes.
            self.B = _pair(truncated_normal(b_key, (width, size), width), vectors.conj())  # [2, H, S]
            self.C = _pair(truncated_normal(c_key, (width, size), size), vectors).swapaxes(1, 2)  # [2, S, H]
            self.Q = _correction(size, blocks, vectors) if transition == "dplr" else None
        self.D = jax.random.normal(d_key, (width,))
        self.start = jnp.zeros((states, 2))
        self.blocks, self.symmetric, self.discretisation = blocks, symmetric, discretisation

    def drive(self, u: Float[Array, "*T H"]) -> Complex[Array, "*T S"]:
        return jax.lax.complex(u @ self.B[0], u @ self.B[1])

    def read(self, x: Complex[Array, "*T S"]) -> Float[Array, "*T H"]:
        return x.real @ self.C[0] - x.imag @ self.C[1]


class SISO(SSM):
    """Diagonal S4: each of the H channels has a state of its own, of N modes, and its own step size."""

    def __init__(
        self,
        width: int,
        size: int,
        blocks: int = 1,
        symmetric: bool = True,
        discretisation: Discretisation = "bilinear",
        transition: Transition = "diagonal",
        modes: Modes = "legs",
        *,
        key: Key[Array, ""],
    ):
        """`width` is H, `size` is N, conjugates included; A starts as `blocks` blocks of HiPPO-LegS, B as theirs, or
        as a `ring`.

        Raises:
            ValueError: N cannot be cut into the blocks, or the transition is not for the discretisation or the modes.
        """
        check_transition(transition, discretisation, modes)
        c_key, d_key, step_key = jax.random.split(key, 3)
        check_size(size, blocks, symmetric, modes)
        states = size // (1 + symmetric)
        self.Q = None
        if modes == "ring":
            factors = ring(step_key, (width, states), symmetric)
            self.decay, self.frequency, gain = _ring_parameters(factors, discretisation)
            self.log_step = jnp.zeros((width, 1))
            b = jnp.sqrt(1 - jnp.abs(factors) ** 2) / gain
            self.B = jnp.stack([b, jnp.zeros_like(b)])  # [2, H, S]
            self.C = truncated_normal(c_key, (2, *factors.shape), (1 + symmetric) * size)  # [2, H, S]
        else:
            values, vectors = _modes(size, blocks, symmetric)
            _, b = legs(size // blocks)
            repeated = (width, 1)
            self.decay, self.frequency = (jnp.tile(x, repeated) for x in _parameters(values))
            self.log_step = _log_steps(step_key, (width, 1))
            b = jnp.tile(jnp.asarray(np.tile(b, blocks), jnp.float32), repeated)  # [H, N]
            self.B = _pair(b, vectors.conj())  # [2, H, S]
            self.C = _pair(jax.random.normal(c_key, (width, size)), vectors)  # [2, H, S]
            self.Q = jnp.tile(_correction(size, blocks, vectors), width) if transition == "dplr" else None
        self.D = jax.random.normal(d_key, (width,))
        self.start = jnp.zeros((width * states, 2))
        self.blocks, self.symmetric, self.discretisation = width * blocks, symmetric, discretisation

    def convolve(self, u: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
        """The outputs of an episode from its start on, by a convolution with what one impulse leads to (S4's way to
        train): there are no states and no resets within.

        Errors: ValueError where the transition has a low-rank correction.
        """
        if self.Q is not None:
            raise ValueError("a state-space layer with a low-rank correction has no convolution here: scan it")
        steps, u = u.shape[0], u.astype(jnp.float32)
        transition, gain = self.discrete()
        powers = jnp.exp(jnp.arange(steps)[:, None] * jnp.log(transition))  # [T, S]
        twice, (b, c) = 1 + self.symmetric, (jax.lax.complex(*pair).reshape(-1) for pair in (self.B, self.C))

        def heard(amplitude: Complex[Array, " S"]) -> Float[Array, "T H"]:
            """What is read, in time, of modes that begin with this amplitude."""
            return twice * (powers * (c * amplitude)).real.reshape(steps, self.D.shape[0], -1).sum(-1)

        kernel = jnp.fft.rfft(heard(gain * b), 2 * steps, 0)
        y = jnp.fft.irfft(jnp.fft.rfft(u, 2 * steps, 0) * kernel[:, None], axis=0)[:steps]
        return y + heard(transition * as_complex(self.start))[:, None] + self.D * u

    def drive(self, u: Float[Array, "*T H"]) -> Complex[Array, "*T S"]:
        driven = u[..., None] * jax.lax.complex(self.B[0], self.B[1])
        return driven.reshape(*u.shape[:-1], -1)

    def read(self, x: Complex[Array, "*T S"]) -> Float[Array, "*T H"]:
        x = x.reshape(*x.shape[:-1], *self.C.shape[1:])
        return (x.real * self.C[0] - x.imag * self.C[1]).sum(-1)


class Block(eqx.Module):
    """A state-space layer, GELU, a gated linear unit, and post-norm of the sum with what came in (R2I's layer)."""

    ssm: SSM
    value: Linear
    gate: Linear
    norm: RMSNorm

    def __init__(self, ssm: SSM, *, key: Key[Array, ""]):
        value_key, gate_key = jax.random.split(key)
        width = ssm.D.shape[0]
        self.ssm = ssm
        self.value = Linear(width, width, key=value_key)
        self.gate = Linear(width, width, key=gate_key)
        self.norm = RMSNorm(width)

    def __call__(
        self, x: Float[Array, "T B H"], state: Float[Array, "B S 2"], is_first: Bool[Array, "T B"], scan: Scan = "auto"
    ) -> tuple[Float[Array, "T B H"], Float[Array, "T B S 2"]]:
        """Outputs, in the type of x, and states of a sequence that begins right after `state`."""
        y, states = self.ssm(x, state, is_first, scan)
        y = jax.nn.gelu(y.astype(x.dtype))
        return self.norm(x + self.value(y) * jax.nn.sigmoid(self.gate(y))), states


class SSMCell(eqx.Module):
    """A MIMO layer with the interface of a GRU (`nn/layers.py`): its state h of even width is x, real and imaginary
    parts, which others read as it is. What is told passes a norm and SiLU, what was told before nothing but the linear
    recurrence."""

    inputs: Linear
    norm: RMSNorm
    ssm: MIMO

    def __init__(self, inputs: int, units: int, *, key: Key[Array, ""]):
        """Errors: ValueError where `units` is odd."""
        if units % 2:
            raise ValueError(
                f"the state of a state-space cell holds pairs of numbers: its width must be even, got {units}"
            )
        inputs_key, ssm_key = jax.random.split(key)
        self.inputs = Linear(inputs, units, key=inputs_key)
        self.norm = RMSNorm(units)
        unread = [None] * 3
        self.ssm = eqx.tree_at(lambda ssm: (ssm.C, ssm.D, ssm.start), MIMO(units, units, key=ssm_key), unread)

    def project(self, x: Float[Array, "*B I"]) -> Float[Array, "*B U"]:
        return self.inputs(x)

    def step(self, h: Float[Array, "*B U"], projected: Float[Array, "*B U"]) -> Float[Array, "*B U"]:
        """The next state from the state h and a row of `project`."""
        transition, gain = self.ssm.discrete()
        u = jax.nn.silu(self.norm(projected)).astype(jnp.float32)
        x = transition * as_complex(h.reshape(*h.shape[:-1], -1, 2)) + gain * self.ssm.drive(u)
        return as_pair(x).reshape(h.shape)

    def __call__(self, h: Float[Array, "*B U"], x: Float[Array, "*B I"]) -> Float[Array, "*B U"]:
        return self.step(h, self.project(x))


# --- small things --------------------------------------------------------------------------------------------------


def as_complex(pair: Float[Array, "*B 2"]) -> Complex[Array, "*B"]:
    return jax.lax.complex(pair[..., 0], pair[..., 1])


def as_pair(x: Complex[Array, "*B"]) -> Float[Array, "*B 2"]:
    return jnp.stack([x.real, x.imag], -1)


def check_transition(transition: Transition, discretisation: Discretisation, modes: Modes) -> None:
    """Errors: ValueError where there is no such combination."""
    if transition == "dplr" and discretisation != "bilinear":
        raise ValueError(f"transition 'dplr' needs the discretisation 'bilinear', got {discretisation!r}")
    if transition == "dplr" and modes != "legs":
        raise ValueError(f"transition 'dplr' corrects modes 'legs' and no others, got {modes!r}")


def _correction(size: int, blocks: int, vectors: Complex[np.ndarray, "N S"]) -> Float[Array, "2 S"]:
    """The P of S4 (theorem 1): HiPPO-LegS is its normal part minus P P^T. In the coordinates of the modes."""
    p = np.tile(np.sqrt(np.arange(size // blocks) + 0.5), blocks)
    modes = vectors.conj().T @ p
    return jnp.asarray(np.stack([modes.real, modes.imag]), jnp.float32)


def _parameters(values: Complex[np.ndarray, " S"]) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """`decay` and `frequency` of eigenvalues."""
    return jnp.asarray(np.log(-values.real - SLOWEST_DECAY), jnp.float32), jnp.asarray(values.imag, jnp.float32)


def _ring_parameters(
    factors: Complex[Array, "*H S"], discretisation: Discretisation
) -> tuple[Float[Array, "*H S"], Float[Array, "*H S"], Float[Array, "*H S"]]:
    """`decay` and `frequency` of a system whose factors of a step of size 1 are these, and the size of its gain."""
    if discretisation == "bilinear":
        z = 2 * (factors - 1) / (factors + 1)
        gain = 1 / (1 - z / 2)
    else:
        z = jnp.log(factors)
        gain = jnp.expm1(z) / z
    return jnp.log(-z.real - SLOWEST_DECAY), z.imag, jnp.abs(gain)


def _log_steps(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, minval=math.log(SHORTEST_STEP), maxval=math.log(LONGEST_STEP))


def _pair(real: Float[Array, "H N"], turn: Complex[np.ndarray, "N S"]) -> Float[Array, "2 H S"]:
    """Real and imaginary part of `real @ turn`."""
    return jnp.stack([real @ jnp.asarray(part, jnp.float32) for part in (turn.real, turn.imag)])
