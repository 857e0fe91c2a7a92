"""CartPole-v1, the dynamics of Gymnasium's classic control task, as pure functions on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from reverie.envs.core import ArraySpec, Discrete, Task, TimeStep, first

GRAVITY = 9.8  # m/s²
CART, POLE = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # m, of the pole
FORCE = 10.0  # N
STEP = 0.02  # s
TRACK = 2.4  # m, to either side
FALLEN = 12 * 2 * pi / 360  # rad


class CartPoleState(NamedTuple):
    """Position [m] and velocity of the cart, angle [rad] and angular velocity of the pole, and steps so far."""

    body: Float[Array, "*B 4"]
    time: Int[Array, "*B"]


@dataclass(frozen=True)
class CartPole:
    """Balance a pole on a cart by pushing it left (0) or right (1); each step pays 1, the one that fails included.

    The episode ends (is_terminal) where the pole leans by more than 12 degrees or the cart leaves the track, and is cut
    (is_last alone) after `limit` steps. There are no variants: the task is any array. Barto, Sutton & Anderson (1983).
    """

    limit: int = 500
    """Steps after which an episode is cut."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"vector": ArraySpec((4,))}
    action_spec: ClassVar[Discrete] = Discrete(2)

    def reset(self, task: Task, key: Key[Array, ""]) -> tuple[CartPoleState, TimeStep]:
        body = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return CartPoleState(body, jnp.int32(0)), first({"vector": body})

    def step(
        self, task: Task, state: CartPoleState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[CartPoleState, TimeStep]:
        _, v, angle, spin = state.body
        force = jnp.where(action == 1, FORCE, -FORCE)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        mass = CART + POLE
        push = (force + POLE * HALF_LENGTH * spin**2 * sin) / mass
        spin_up = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / mass))
        speed_up = push - POLE * HALF_LENGTH * spin_up * cos / mass
        body = state.body + STEP * jnp.stack([v, speed_up, spin, spin_up])

        time = state.time + 1
        fails = (jnp.abs(body[0]) > TRACK) | (jnp.abs(body[2]) > FALLEN)
        no = jnp.zeros((), bool)
        timestep = TimeStep(
            {"vector": body}, jnp.ones(()), is_first=no, is_last=fails | (time >= self.limit), is_terminal=fails
        )
        return CartPoleState(body, time), timestep
