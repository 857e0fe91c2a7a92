"""Which task it is, and which experts a task has: the parts of a mixture that decide who is asked (`mixture.py`).

A task is known by its number, or is guessed: how like each known task it is, from a description of it or from what
happened lately. Only a guess serves a task that was never seen, as a blend of those it resembles.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import USE
from reverie.models.encoders import Encoder
from reverie.nn.distributions import Categorical, symlog
from reverie.nn.layers import GRU, Head, Linear, time_first


class Place(NamedTuple):
    """Which task it is taken to be."""

    task: Int[Array, "*B"]
    """Its number, or that of the known task that it is most like."""
    like: Float[Array, "*B K"] | None
    """The logarithm of the probability of each known task, where it is guessed."""


class Routing(NamedTuple):
    """Which experts tasks have, or steps."""

    chosen: Int[Array, "*B n"]
    """In the order of their index, so that none changes places when scores cross."""
    weight: Float[Array, "*B n"]
    """1, with the gradient of the score."""
    scores: Float[Array, "*B E"]
    taken: Float[Array, "*B E"]
    """1 where an expert is chosen, with the gradient of the score."""


def best(scores: Float[Array, "*B E"], active: int) -> Routing:
    """The `active` (n) experts with the highest scores."""
    chosen = jnp.sort(jax.lax.top_k(scores, active)[1])
    through = scores - stop_gradient(scores)
    taken = jax.nn.one_hot(chosen, scores.shape[-1]).sum(-2) + through
    return Routing(chosen, 1 + jnp.take_along_axis(through, chosen, -1), scores, taken)


def settled(chosen: Int[Array, "K n"], experts: int) -> Routing:
    """Experts that nothing is learned about."""
    taken = jax.nn.one_hot(chosen, experts).sum(-2)
    return Routing(chosen, jnp.ones(chosen.shape), taken / chosen.shape[-1], taken)


def by_chance(tasks: int, experts: int, active: int, key: Key[Array, ""]) -> Int[Array, "K n"]:
    """Experts for each task at random, each for as many tasks as any other, as far as that is possible."""
    task_key, expert_key = jax.random.split(key)
    place = jax.random.permutation(task_key, tasks)[:, None] * active + jnp.arange(active)
    return jnp.sort(jax.random.permutation(expert_key, experts)[place % experts])


def balance(routing: Routing, tasks: int) -> Float[Array, ""]:
    """How far the experts are from being chosen equally often: || sum of choices - K n / E ||^2; all steps that choose
    count for K tasks together."""
    taken = routing.taken.reshape(-1, routing.taken.shape[-1])
    counts = taken.sum(0) * (tasks / taken.shape[0])
    return jnp.square(counts - tasks * routing.chosen.shape[-1] / taken.shape[-1]).sum()


def used(routing: Routing) -> dict[str, Float[Array, ""]]:
    """Metrics: `model/router_entropy` (nats) and `model/experts_used` (the share that anybody has)."""
    entropy = Categorical(routing.scores, jnp.log(jnp.maximum(routing.scores, 1e-30))).entropy()
    taken = stop_gradient(routing.taken).reshape(-1, routing.taken.shape[-1])
    return {"model/router_entropy": entropy.mean(), "model/experts_used": (taken.sum(0) > 0.5).mean()}


def use(routing: Routing, task: Int[Array, "B T"], tasks: int) -> dict[str, Float[Array, ""]]:
    """Metrics `model/use/K/J` of each task K and expert J, by number: the share of the task's steps that pass the
    expert; NaN where there is no step of that task."""
    experts = routing.scores.shape[-1]
    passed = jax.nn.one_hot(routing.chosen, experts).sum(-2).reshape(-1, experts)
    total, steps = (jax.ops.segment_sum(x, task.reshape(-1), tasks) for x in (passed, jnp.ones(task.size)))
    share = total / jnp.where(steps > 0, steps, jnp.nan)[:, None]
    return {f"{USE}{k}/{j}": share[k, j] for k in range(tasks) for j in range(experts)}


def switching(routing: Routing, begins: Bool[Array, "B T"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far scores move from one step [B, T] of an episode to the next (squared), and the share of steps that have
    other experts than the one before."""
    goes_on = ~begins[:, 1:]
    moved = jnp.square(routing.scores[:, 1:] - routing.scores[:, :-1]).sum(-1)
    other = (routing.chosen[:, 1:] != routing.chosen[:, :-1]).any(-1)
    return (moved * goes_on).mean(), (other & goes_on).mean()


class History(eqx.Module):
    """How like each known task this is, by what was seen, done and paid since the episode began. Where servers are read
    as a set, what was done is not heard: the number of a server says nothing there."""

    encoder: Encoder
    gru: GRU
    output: Linear
    hears: int = eqx.field(static=True)
    """Numbers of an action that are heard."""

    def remember(
        self,
        heard: Float[Array, "B M"],
        observation: dict[str, Array],
        action: Float[Array, "B T A"],
        reward: Float[Array, "B T"],
        begins: Bool[Array, "B T"],
    ) -> Float[Array, "B T M"]:
        """What is remembered after each step; nothing passes where an episode begins."""
        paid = jnp.where(begins, 0.0, symlog(reward))[..., None]
        done = jnp.where(begins[..., None], 0.0, action[..., : self.hears])
        inputs = self.gru.project(jnp.concatenate([self.encoder(observation), done, paid], -1))
        return time_first(self.gru.over(heard, time_first(inputs), time_first(begins)))

    def __call__(self, heard: Float[Array, "*B M"]) -> Float[Array, "*B K"]:
        """Logits of the tasks."""
        return self.output(heard)


Guess = History | Head
"""From what happened, or from a description, to how like each task this is."""


def guesser(
    tells: Literal["number", "descriptor", "history"],
    spec: Mapping[str, ArraySpec],
    actions: int,
    tasks: int,
    units: int,
    depth: int,
    servers: Literal["flat", "set"] = "flat",
    *,
    key: Key[Array, ""],
) -> Guess | None:
    """What guesses the task; None where its number is known.

    Raises:
        ValueError: there is nothing to guess, or nothing to guess it from.
    """
    if tells == "number":
        return None
    if tasks == 1:
        raise ValueError(f"there is one task, and tells is {tells!r}: give it number")
    if tells == "history":
        encoder_key, gru_key, output_key = jax.random.split(key, 3)
        encoder, hears = Encoder(shown(spec), units, 1, depth, servers, key=encoder_key), actions * (servers == "flat")
        gru = GRU(encoder.size + hears + 1, units, key=gru_key)
        return History(encoder, gru, Linear(units, tasks, key=output_key), hears)
    if "descriptor" not in spec:
        raise ValueError("tells is 'descriptor', and no observation describes its task: give it number or history")
    return Head(spec["descriptor"].shape[0], tasks, units, 1, key=key)


def shown[V](observation: Mapping[str, V]) -> dict[str, V]:
    """What is seen, or its spec, without what says which task it is."""
    return {name: x for name, x in observation.items() if name not in ("task", "descriptor")}


def over(place: Place, steps: int) -> Place:
    """The same task at so many steps."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], steps, *x.shape[1:])), place)
