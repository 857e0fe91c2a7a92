"""Merging onto a highway: how far the others yield is the task, and has to be found out from what they do.

A vectorised kinematic simulator in the spirit of MetaDreamer's (arXiv 2311.06673), whose own is not public: what
drives is theirs as far as it is known (constant acceleration within a step, accelerations of at most 3 m/s²; one factor
in [-1, 1] that says how the others respond, or the two factors of Hidas 2002), the numbers are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec, Continuous, TimeStep, first, later
from reverie.envs.factors import Certain
from reverie.ranges import Count, checked

STEP = 0.2  # s
STRONGEST = 3.0  # m/s², in either direction
LENGTH = 5.0  # m, of a car
RAMP = 150.0  # m from where the ramp is entered to where it ends
CRUISE, FASTEST = 25.0, 35.0  # m/s
OTHERS = 3
"""Cars on the lane that is merged into."""
CRASH = -20.0
"""What a crash pays."""

Drivers = Literal["proportional", "hidas"]


class Road(NamedTuple):
    """Positions along the road [m], 0 where the ramp ends, and speeds [m/s]; car 0 is the one that merges, the others
    follow in the order in which they drive."""

    position: Float[Array, "*B C"]
    speed: Float[Array, "*B C"]


class MergingState(NamedTuple):
    """The road, and how many steps were driven."""

    road: Road
    time: Int[Array, "*B"]


@dataclass(frozen=True)
@checked
class Merging(Certain):
    """Accelerate or brake (action -1 .. 1) along the ramp so as to be between two cars, or before or behind all of
    them, where it ends.

    Each step pays how fast one drives beside cruising speed, less what acceleration costs in comfort; the merge itself
    pays 10 and ends the episode, a crash pays -20 and ends it too. Who has not arrived after `limit` steps is cut off.

    Drivers are `proportional` (one factor in [-1, 1]: at 1 the car behind the gap brakes for the merging one as for
    one ahead of it, at 0 it ignores it, at -1 it closes the gap as hard) or `hidas` (two factors: it yields where that
    costs at most `speed_decrease` m/s and `deceleration` m/s², else it ignores the merging car).
    """

    drivers: Drivers = "proportional"
    """How the others respond."""
    limit: Count = 60
    """Steps of an episode, each of 0.2 s."""

    observation_spec: ClassVar[Mapping[str, ArraySpec]] = {"road": ArraySpec((2 * (OTHERS + 1),))}
    action_spec: ClassVar[Continuous] = Continuous(1)
    unknowns: ClassVar[int] = OTHERS
    """Accelerations of the others: what of a step the factors decide."""
    bound: ClassVar[float] = STRONGEST
    constant: ClassVar[bool] = False

    @property
    def factors(self) -> tuple[str, ...]:
        """What the numbers of a task are called."""
        return ("yielding",) if self.drivers == "proportional" else ("speed_decrease", "deceleration")

    def reset(self, task: Float[Array, " K"], key: Key[Array, ""]) -> tuple[MergingState, TimeStep]:
        own_key, gap_key, speed_key = jax.random.split(key, 3)
        own = jax.random.uniform(own_key, (1,), minval=18.0, maxval=22.0)
        gaps = jax.random.uniform(gap_key, (OTHERS,), minval=12.0, maxval=30.0) + LENGTH
        lead = -RAMP + 25.0 + gaps[0] / 2  # the first is some way ahead, so that one begins beside the second
        position = jnp.concatenate([jnp.array([-RAMP]), lead - jnp.cumsum(gaps) + gaps[0]])
        speed = jnp.concatenate([own, CRUISE - 3 + jax.random.uniform(speed_key, (OTHERS,), minval=-1.0, maxval=1.0)])
        state = MergingState(Road(position, speed), jnp.int32(0))
        return state, first({"road": seen(state.road)})

    def step(
        self, task: Float[Array, " K"], state: MergingState, action: Float[Array, "1"], key: Key[Array, ""]
    ) -> tuple[MergingState, TimeStep]:
        road, reward, ended = go_on(state.road, action, self.responses(task, state.road))
        time = state.time + 1
        return MergingState(road, time), later({"road": seen(road)}, reward, ended, time >= self.limit)

    def advance(
        self,
        observation: dict[str, Array],
        action: Float[Array, "*B 1"],
        unknown: Float[Array, "*B O"],
        chance: Float[Array, "*B 0"],
    ) -> tuple[dict[str, Array], Float[Array, "*B"], Bool[Array, "*B"]]:
        """What is observed next, the reward, and whether the episode ends, given what the others do [m/s²]: `Physics`,
        as MetaDreamer's decoder has it."""
        road, reward, ended = go_on(unseen(observation["road"]), action, unknown)
        return {"road": seen(road)}, reward, ended

    def responses(self, task: Float[Array, " K"], road: Road) -> Float[Array, " O"]:
        """Accelerations of the other cars [m/s²]."""
        position, speed = road.position[1:], road.speed[1:]
        ahead = jnp.concatenate([jnp.array([jnp.inf]), position[:-1]])
        ahead_speed = jnp.concatenate([jnp.array([FASTEST]), speed[:-1]])
        alone = follow(speed, ahead - position - LENGTH, speed - ahead_speed)
        # The merging car concerns the one right behind the gap that it is beside.
        beside = road.position[0]
        concerned = (position < beside) & (ahead >= beside)
        polite = follow(speed, jnp.maximum(beside - position - LENGTH, 0.5), speed - road.speed[0])
        if self.drivers == "proportional":
            yields = alone + jnp.maximum(task[0], 0) * jnp.minimum(polite - alone, 0)
            response = yields + jnp.maximum(-task[0], 0) * (STRONGEST - jnp.maximum(alone, 0)) * 0.5
        else:
            decrease = jnp.maximum(speed - road.speed[0], 0)
            willing = (decrease <= task[0]) & (polite >= -task[1])
            response = jnp.where(willing, jnp.minimum(polite, alone), alone)
        return jnp.clip(jnp.where(concerned, response, alone), -STRONGEST, STRONGEST)


def go_on(
    road: Road, action: Float[Array, "*B 1"], responses: Float[Array, "*B O"]
) -> tuple[Road, Float[Array, "*B"], Bool[Array, "*B"]]:
    """The road after one step, what it pays, and whether the episode ends there."""
    pressed = STRONGEST * jnp.clip(action, -1, 1)
    road = drive(road, jnp.concatenate([pressed, responses], -1))
    return road, *judge(road, pressed[..., 0])


def drive(road: Road, acceleration: Float[Array, "*B C"]) -> Road:
    """One step of constant acceleration; nobody drives backwards or beyond the fastest speed."""
    speed = jnp.clip(road.speed + STEP * acceleration, 0, FASTEST)
    return Road(road.position + STEP * (road.speed + speed) / 2, speed)


def follow(speed: Float[Array, "*B"], gap: Float[Array, "*B"], closing: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The intelligent driver model (Treiber, Hennecke and Helbing 2000): acceleration behind a car `gap` metres ahead
    that one comes nearer to at `closing` m/s."""
    wanted = 2.0 + jnp.maximum(0.0, speed * 1.2 + speed * closing / (2 * jnp.sqrt(2.0 * 2.0)))
    acceleration = 2.0 * (1 - (speed / CRUISE) ** 4 - jnp.square(wanted / jnp.maximum(gap, 0.5)))
    return jnp.clip(acceleration, -STRONGEST, STRONGEST)


def judge(road: Road, pressed: Float[Array, "*B"]) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
    """The reward of having come to `road` by an acceleration of `pressed` m/s², and whether the episode ends there."""
    arrived = road.position[..., 0] >= 0
    room = jnp.abs(road.position[..., 1:] - road.position[..., :1]).min(-1) - LENGTH
    crashed = arrived & (room < 2.0)
    pace = road.speed[..., 0] / CRUISE - 1 - 0.02 * jnp.square(pressed)
    end = jnp.where(crashed, CRASH, 10.0 + jnp.minimum(room, 10.0) / 5)
    return 0.1 * pace + jnp.where(arrived, end, 0.0), arrived


def seen(road: Road) -> Float[Array, "*B V"]:
    """What is observed of a road: how far the ramp goes on, where the others are beside oneself, and all speeds, in
    units of 50 m and of cruising speed."""
    own = road.position[..., :1]
    places = jnp.concatenate([own, road.position[..., 1:] - own], -1) / 50
    return jnp.concatenate([places, road.speed / CRUISE], -1)


def unseen(observation: Float[Array, "*B V"]) -> Road:
    """The road that an observation shows: the inverse of `seen`."""
    places, speed = jnp.split(observation, 2, -1)
    own = 50 * places[..., :1]
    return Road(jnp.concatenate([own, 50 * places[..., 1:] + own], -1), CRUISE * speed)
