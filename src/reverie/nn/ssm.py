"""Linear state-space layers with resets: S5 (Smith et al., arXiv 2208.04933).

A layer carries a complex vector x through time, x_t = A x_{t-1} + B u_t with a diagonal A, and reads y_t = Re(C x_t)
+ D u_t from it. It is linear in x, so a sequence can be taken in a number of parallel steps that grows with the
logarithm of its length. Where an episode begins, the layer's learned start stands for the state before it (Lu et al.
2023, arXiv 2303.03982). Time leads in here, T x B x features. Nothing here knows of RL.

Parameters are real numbers, and the recurrence is float32 whatever the rest computes in: a memory that fades by one
part in a thousand at a step cannot be kept in half precision.
"""

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
Modes = Literal["legs", "ring"]

SLOWEST_DECAY = 1e-4
"""Real parts of eigenvalues stay below minus this, so that no mode can grow, whatever is learned."""
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1
"""Initial step sizes: with the real part -1/2, time constants of 20 to 2000 steps."""
SHORTEST_MEMORY, LONGEST_MEMORY = 20.0, 400.0
"""Initial time constants of the modes of a ring, in steps."""


# --- initial values ------------------------------------------------------------------------------------------------


def legs(size: int) -> Float[np.ndarray, "N N"]:
    """HiPPO-LegS (Gu et al. 2020, arXiv 2008.07669, theorem 2): A of x' = A x + B u, whose x are the coefficients of
    the past, stretched over [0, 1], in the first N Legendre polynomials."""
    root = np.sqrt(2 * np.arange(size) + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(np.arange(size) + 1.0)


def legs_modes(size: int) -> tuple[Complex[np.ndarray, " N"], Complex[np.ndarray, "N N"]]:
    """Eigenvalues and orthonormal eigenvectors (columns) of the normal part of HiPPO-LegS, A + P P^T with
    P_n = sqrt(n + 1/2), by increasing imaginary part. It is skew-symmetric but for -1/2 on the diagonal.

    Source: S4 (Gu et al. 2022, arXiv 2111.00396, theorem 1).
    """
    p = np.sqrt(np.arange(size) + 0.5)
    skew = legs(size) + np.outer(p, p) + 0.5 * np.eye(size)
    frequency, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequency, vectors


def check_size(size: int, blocks: int, modes: Modes) -> None:
    """Errors: ValueError where a state of `size` cannot be cut into blocks, which a ring has none of, and pairs."""
    each = 2 * (1 if modes == "ring" else blocks)
    if each < 1 or size % each:
        unit = "2" if modes == "ring" else f"2 x blocks = {each}"
        raise ValueError(f"the state of an SSM must be a multiple of {unit}, got {size}")


def ring(key: Key[Array, ""], count: int) -> Complex[Array, " S"]:
    """Factors of one step: evenly spaced angles, time constants log-uniform in 20 to 400 steps.

    LegS hears slow things; in white noise, such as cards that are drawn, all frequencies count alike: two layers of 64
    such modes learn to repeat what was 64 steps ago in updates after which those of LegS are half wrong. They are those
    of the linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349) but for the angles, which are drawn there.
    """
    angle = jnp.asarray(math.pi * (np.arange(count) + 0.5) / count, jnp.float32)
    draws = jax.random.uniform(key, (count,), minval=math.log(SHORTEST_MEMORY), maxval=math.log(LONGEST_MEMORY))
    return jnp.exp(jax.lax.complex(-jnp.exp(-draws), angle))


# --- the recurrence ------------------------------------------------------------------------------------------------


def sequential_scan(
    transition: Complex[Array, " S"],
    inputs: Complex[Array, "T B S"],
    state: Complex[Array, "B S"],
    is_first: Bool[Array, "T B"],
    x0: Complex[Array, " S"],
) -> Complex[Array, "T B S"]:
    """x_t = transition * x_{t-1} + inputs_t, where x_{-1} is `state`, and x_{t-1} is `x0` where `is_first`."""

    def step(x, now):
        drive, begins = now
        x = transition * jnp.where(begins[:, None], x0, x) + drive
        return x, x

    return jax.lax.scan(step, state, (inputs, is_first))[1]


def parallel_scan(
    transition: Complex[Array, " S"],
    inputs: Complex[Array, "T B S"],
    state: Complex[Array, "B S"],
    is_first: Bool[Array, "T B"],
    x0: Complex[Array, " S"],
) -> Complex[Array, "T B S"]:
    """`sequential_scan` in O(log T) steps.

    Where an episode begins, the transition is 0 and what `x0` becomes is added to the input: these are ordinary
    elements of a linear recurrence, hence the operator below stays associative.
    """
    begins = is_first[..., None]
    a = jnp.where(begins, 0, transition)  # [T, B, S]
    b = inputs + jnp.where(begins, transition * x0, 0)
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
    """One state of P modes, which all H inputs drive and all outputs read; each mode has its own step size.

    The S = P / 2 states stand for themselves and their complex conjugates, which is what a real system has: half of the
    work for the same output. Their eigenvalues cannot become unstable, whatever is learned.
    """

    decay: Float[Array, " S"]
    """Logarithm of how far the real part of an eigenvalue lies below -`SLOWEST_DECAY`."""
    frequency: Float[Array, " S"]
    """Imaginary part of an eigenvalue."""
    log_step: Float[Array, " S"]
    B: Float[Array, "2 H S"]
    """Real and imaginary part; C likewise."""
    C: Float[Array, "2 S H"]
    D: Float[Array, " H"]
    x0: Float[Array, "S 2"]
    """The state before an episode, real and imaginary part."""
    discretisation: Discretisation = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        size: int,
        blocks: int = 1,
        discretisation: Discretisation = "bilinear",
        modes: Modes = "legs",
        *,
        key: Key[Array, ""],
    ):
        """`width` is H, `size` is P, conjugates included; A starts as `blocks` blocks of HiPPO-LegS, or as a `ring`.

        Raises:
            ValueError: P cannot be cut into the blocks.
        """
        b_key, c_key, d_key, step_key = jax.random.split(key, 4)
        check_size(size, blocks, modes)
        self.discretisation, states = discretisation, size // 2
        if modes == "ring":
            factors = ring(step_key, states)
            self.decay, self.frequency, gain = _ring_parameters(factors, discretisation)
            self.log_step = jnp.zeros(states)
            # Inputs of variance 1 make states of variance 1, and these outputs of variance 1.
            norm = jnp.sqrt((1 - jnp.abs(factors) ** 2) / 2) / gain
            self.B = truncated_normal(b_key, (2, width, states), width) * norm
            self.C = truncated_normal(c_key, (2, states, width), 2 * size)
        else:
            values, vectors = legs_modes(size // blocks)
            kept = slice(len(values) // 2, None)  # of positive frequency
            values, vectors = np.tile(values[kept], blocks), np.kron(np.eye(blocks), vectors[:, kept])
            self.decay = jnp.asarray(np.log(-values.real - SLOWEST_DECAY), jnp.float32)
            self.frequency = jnp.asarray(values.imag, jnp.float32)
            steps = math.log(SHORTEST_STEP), math.log(LONGEST_STEP)
            self.log_step = jax.random.uniform(step_key, (states,), minval=steps[0], maxval=steps[1])
            # Drawn as the real matrices of the real system, then turned into the coordinates of its modes.
            self.B = _pair(truncated_normal(b_key, (width, size), width), vectors.conj())
            self.C = _pair(truncated_normal(c_key, (width, size), size), vectors).swapaxes(1, 2)
        self.D = jax.random.normal(d_key, (width,))
        self.x0 = jnp.zeros((states, 2))

    def __call__(
        self, u: Float[Array, "T B H"], state: Float[Array, "B S 2"], is_first: Bool[Array, "T B"], scan: Scan = "auto"
    ) -> tuple[Float[Array, "T B H"], Float[Array, "T B S 2"]]:
        """Outputs and states of a sequence that begins right after `state`, `x0` taking over where `is_first`."""
        u = u.astype(jnp.float32)
        transition, gain = self.discrete()
        run = sequential_scan if scan_by_platform(scan) == "sequential" else parallel_scan
        x = run(transition, gain * self.drive(u), as_complex(state), is_first, as_complex(self.x0))
        return 2 * self.read(x) + self.D * u, as_pair(x)

    def eigenvalues(self) -> Complex[Array, " S"]:
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
            return (1 + z / 2) / (1 - z / 2), step / (1 - z / 2)
        return jnp.exp(z), jnp.expm1(z) / eigenvalue

    def drive(self, u: Float[Array, "*T H"]) -> Complex[Array, "*T S"]:
        """B u."""
        return jax.lax.complex(u @ self.B[0], u @ self.B[1])

    def read(self, x: Complex[Array, "*T S"]) -> Float[Array, "*T H"]:
        """Re(C x)."""
        return x.real @ self.C[0] - x.imag @ self.C[1]


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
    """Such a layer with the interface of a GRU (`nn/layers.py`): its state h of even width is x, real and imaginary
    parts, which others read as it is. What is told passes a norm and SiLU, what was told before nothing but the linear
    recurrence."""

    inputs: Linear
    norm: RMSNorm
    ssm: SSM

    def __init__(self, inputs: int, units: int, *, key: Key[Array, ""]):
        """Errors: ValueError where `units` is odd."""
        if units % 2:
            raise ValueError(
                f"the state of a state-space cell holds pairs of numbers: its width must be even, got {units}"
            )
        inputs_key, ssm_key = jax.random.split(key)
        self.inputs = Linear(inputs, units, key=inputs_key)
        self.norm = RMSNorm(units)
        self.ssm = eqx.tree_at(lambda ssm: (ssm.C, ssm.D, ssm.x0), SSM(units, units, key=ssm_key), [None] * 3)

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


def _ring_parameters(
    factors: Complex[Array, " S"], discretisation: Discretisation
) -> tuple[Float[Array, " S"], Float[Array, " S"], Float[Array, " S"]]:
    """`decay` and `frequency` of a system whose factors of a step of size 1 are these, and the size of its gain."""
    if discretisation == "bilinear":
        z = 2 * (factors - 1) / (factors + 1)
        gain = 1 / (1 - z / 2)
    else:
        z = jnp.log(factors)
        gain = jnp.expm1(z) / z
    return jnp.log(-z.real - SLOWEST_DECAY), z.imag, jnp.abs(gain)


def _pair(real: Float[Array, "H N"], turn: Complex[np.ndarray, "N S"]) -> Float[Array, "2 H S"]:
    """Real and imaginary part of `real @ turn`."""
    return jnp.stack([real @ jnp.asarray(part, jnp.float32) for part in (turn.real, turn.imag)])
