"""One world model for many tasks: a mixture of STORM's parts ("Mixture of World Models", arXiv 2602.01270).

Each task k has an embedding e_k of length 1. Encoder, decoder and heads are *modules*, one for each cluster of tasks.
What carries the past is a set of *experts*, Transformers of which a router picks a few for each task, never for single
steps, and a *trunk*, one more Transformer, that reads what those say:

    z_t ~ q_c(z | o_t, e_k)      l_t = [expert_j(stem_j(z_{t-1}, a_{t-1}, e_k), ...) for j in J_k]
    h_t = trunk(l_t, e_k, ...)   z_t ~ p_c(z | h_t, e_k), and the heads of reward and continuation

All experts are one program whose cost grows with those that are active (`nn/grouped.py`). Which task it is, a `Suite`
says in each observation, or it is guessed (`routing.py`); without a suite there is one task. With one task, one module,
one expert and no trunk this is STORM (`storm.py`), bit for bit.

Where the paper is silent the choice is ours (docs/storm.md): experts share how they see distances; weights of the
router are 1 and pass its gradient; experts are ordered by index; scales of losses are learned faster than weights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, BFloat16, Bool, Float, Int, Key, PyTree

from reverie.envs.core import ArraySpec
from reverie.models import routing as routes
from reverie.models.core import Features, Sequence, WorldModel, shifted
from reverie.models.harmony import over_tasks, scales_of, together
from reverie.models.latents import DiscreteLatents, kl_losses
from reverie.models.recall import Recall
from reverie.models.routing import Guess, History, Place, Routing, over, shown
from reverie.models.rows import Lead
from reverie.models.storm import Kept, StormState, compress, expand, features, flat, initial, over_variables
from reverie.models.storm_parts import Heads, Senses, Stem, StormConfig
from reverie.nn.attention import Past, Transformer, slide, slides
from reverie.nn.distributions import Bernoulli, Categorical, SquaredError, TwoHot
from reverie.nn.grouped import each, stacked
from reverie.nn.layers import Head, Linear
from reverie.ranges import Count, Positive, Weight, Whole, checked


@dataclass(frozen=True)
@checked
class MixtureConfig(StormConfig):
    """Sizes and weights of the model; those of STORM are those of each of its parts."""

    kind: ClassVar[str] = "mixture"
    tells: Literal["number", "descriptor", "history"] = "number"
    """How the task is known: by its number; or guessed, as a blend of the tasks that were learned, from a description
    in the observation or from what happened since the episode began. A guess serves new tasks too."""
    modules: Count = 1
    """Encoders, decoders and sets of heads (N_m)."""
    clusters: tuple[Whole, ...] = ()
    """The module of each task of the suite; in turn where not given."""
    experts: Count = 1
    """Transformers among which the router chooses (N_e)."""
    active: Count = 1
    """How many of them it chooses for each task (n_k)."""
    routing: Literal["task", "chance", "token"] = "task"
    """How they are chosen: by a router that reads the task; by chance, once and for all, as often each; or anew at each
    step, by a router that reads the step's token too."""
    switching: Weight = 0.0
    """Weight of keeping to the same experts from step to step, where these may change."""
    trunk: Whole = 2
    """Blocks of the shared Transformer that reads the experts; 0 is none, and h the mean of what they say."""
    embedding: Count = 64
    """Numbers of a task's embedding, where there are several tasks."""
    temperature: Positive = 4.0
    """Temperature of the router at first; it falls to 1."""
    settle: Count = 10_000
    """Updates over which it does."""
    task_scale: Weight = 1.0
    """Weight of naming the task by h."""
    balance: Weight = 0.1
    """Weight of choosing all experts equally often over the tasks."""
    harmony: Literal["none", "task", "groups"] = "task"
    """Losses that are divided by a learned scale: those of each task together, as published, or also its
    reconstruction, reward and KL each by themselves (ours). With one task, `task` is none."""

    def __post_init__(self):
        super().__post_init__()
        if self.active > self.experts:
            raise ValueError(f"MixtureConfig: active must be at most experts={self.experts}, got {self.active}")
        if any(not 0 <= module < self.modules for module in self.clusters):
            raise ValueError(
                f"MixtureConfig: clusters must name modules from 0 to {self.modules - 1}, got {self.clusters}"
            )
        changes = self.routing == "token" or (self.routing == "task" and self.tells == "history")
        if self.switching and not (changes and self.active < self.experts):
            raise ValueError(
                f"MixtureConfig: switching is {self.switching}, and no task changes its experts, or none by what it "
                "learns: give it 0, or routing token and fewer active experts than there are"
            )

    @property
    def rows_lent(self) -> int:
        return (self.layers + self.trunk) * (self.window - 1) + 1 if self.lent is None else self.lent


class MixtureState(NamedTuple):
    """What is known of a batch."""

    place: Place
    heard: Float[Array, "*B M"] | None
    """Of what happened lately, where the task is guessed from that."""
    storm: StormState
    """Its past holds the layers of the active experts, side by side [B, S, n D], then those of the trunk."""


class MixtureKept(NamedTuple):
    """What replay keeps."""

    place: Place
    heard: BFloat16[Array, "*B M"] | None
    storm: Kept


class Mixture(WorldModel):
    """The mixture of world models."""

    embeddings: Float[Array, "K E"] | None
    senses: Senses
    """N_m, stacked."""
    heads: Heads
    """N_m, stacked."""
    lead: Lead
    stems: Stem
    """N_e, stacked."""
    experts: Transformer
    """Its blocks N_e, stacked; how distances are seen is common to all."""
    router: Head | None
    chance: Int[Array, "K n"] | None
    """The experts of each task, where they are chosen by chance."""
    guess: Guess | None
    """From what happened, or from a description, to how like each task this is."""
    into_trunk: Linear | None
    trunk: Transformer | None
    which: Linear | None
    """Names the task by h."""
    rec: Recall | None
    scales: Float[Array, "K G"] | None
    """Of losses, as `harmony.py` has them."""
    updates: Int[Array, ""]
    """How often it was updated."""
    config: MixtureConfig = eqx.field(static=True)
    tasks: int = eqx.field(static=True)
    latents: DiscreteLatents = eqx.field(static=True)

    def __init__(
        self, config: MixtureConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a suite of tasks, or of a world of one; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded, or there are not as many tasks as clusters.
        """
        senses_key, stem_key, experts_key, heads_key, rest_key = jax.random.split(key, 5)
        keys = iter(jax.random.split(jax.random.fold_in(rest_key, 1), 5))
        more = iter(jax.random.split(jax.random.fold_in(rest_key, 2), 2))
        c, d, rows = config, config.deter, config.rows(observation_spec)
        counts = [entry.categories or 1 for entry in observation_spec.values() if entry.kind == "task"]
        self.config, self.tasks, self.updates = config, max([1, *counts]), jnp.int32(0)
        if c.clusters and len(c.clusters) != self.tasks:
            raise ValueError(
                f"clusters must name the module of each of {self.tasks} tasks, got {len(c.clusters)} of them"
            )
        if self.tasks == 1 and c.experts > c.active and c.routing == "task":
            raise ValueError(f"one task has nothing to be routed by: experts must be {c.active}, got {c.experts}")
        several = self.tasks > 1
        told = c.embedding if several else 0
        self.latents = c.latents(rows)
        self.lead = Lead(c.stoch_size, c.own_size, c.carried, rows, actions, key=jax.random.fold_in(key, 1))
        led = self.lead.size + told
        self.embeddings = jax.random.normal(next(keys), (self.tasks, told)) if several else None

        def experts(key: Key[Array, ""]) -> Transformer:
            return Transformer(d, 2 * d, c.layers, c.heads, c.window, c.dropout, key=key)

        self.senses = stacked(lambda key: Senses(observation_spec, c, told, key=key), c.modules, senses_key)
        self.heads = stacked(lambda key: Heads(c, told, rows, key=key), c.modules, heads_key)
        self.stems = stacked(lambda key: Stem(led, d, key=key), c.experts, stem_key)
        made = stacked(experts, c.experts, experts_key)
        common = made.distance[0], made.content_bias[0], made.distance_bias[0]
        self.experts = eqx.tree_at(lambda t: (t.distance, t.content_bias, t.distance_bias), made, common)
        routed = c.experts > c.active and c.routing != "chance"
        reads = led if c.routing == "token" else told
        self.router = Head(reads, c.experts, c.embedding, 1, key=next(keys)) if routed else None
        self.chance = routes.by_chance(self.tasks, c.experts, c.active, next(more)) if c.routing == "chance" else None
        known = observation_spec, actions, self.tasks
        self.guess = routes.guesser(c.tells, *known, c.units, c.depth, c.servers, key=next(more))
        self.into_trunk = Linear(c.active * d + told, d, key=next(keys)) if c.trunk else None
        self.trunk = Transformer(d, 2 * d, c.trunk, c.heads, c.window, c.dropout, key=next(keys)) if c.trunk else None
        self.which = Linear(d, self.tasks, key=next(keys)) if several else None
        sizes = c.units, c.decoder_layers, c.depth
        self.rec = Recall(observation_spec, c.recall, d + told, *sizes, key=rest_key) if c.recall else None
        groups = {"none": 0, "task": int(several), "groups": 3}[c.harmony]
        self.scales = jnp.zeros((self.tasks, groups)) if groups else None

    @property
    def rows_lent(self) -> int:
        return self.config.rows_lent

    @property
    def critics(self) -> int:
        return self.config.modules

    @property
    def placing(self) -> tuple[PyTree, ...]:
        return super().placing if self.embeddings is None else (self.embeddings, *jax.tree.leaves(self.router))

    @property
    def clusters(self) -> Int[Array, " K"]:
        """The module of each task."""
        c = self.config
        return jnp.asarray(c.clusters) if c.clusters else jnp.arange(self.tasks) % c.modules

    def initial(self, batch: int) -> MixtureState:
        c = self.config
        past = self.experts.nothing(batch, c.dtype, c.active)
        if self.trunk is not None:
            past = past._replace(layers=past.layers + self.trunk.nothing(batch, c.dtype).layers)
        storm = initial(c, self.latents, self.lead, batch, past)
        like = None if self.guess is None else jnp.full((batch, self.tasks), -math.log(self.tasks))
        heard = jnp.zeros((batch, c.units)) if isinstance(self.guess, History) else None
        return MixtureState(Place(jnp.zeros((batch,), jnp.int32), like), heard, storm)

    def observe(
        self, state: MixtureState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[MixtureState, MixtureState]:
        states, *_ = self._observe(state, sequence, key)
        last = jax.tree.map(lambda x: x[:, -1], states)
        past = slide(state.storm.past, states.storm.past)
        return last._replace(storm=last.storm._replace(past=past)), states

    def imagine(self, state: MixtureState, action: Float[Array, "B A"], key: Key[Array, ""]) -> MixtureState:
        place, storm, no = state.place, state.storm, jnp.zeros((action.shape[0], 1), bool)
        led, servers = self.lead(storm.stoch, action, storm.servers and storm.servers.mask)
        deter, past, _ = self._carry(led[:, None], over(place, 1), storm.past, no)
        after = StormState(deter[:, 0], storm.stoch, None, servers, slide(storm.past, past))
        stoch = self._foretell(state._replace(storm=after), key)
        foretold = stoch if self.config.acts == "prior" else None
        return state._replace(storm=after._replace(stoch=stoch, foretold=foretold))

    def features(self, state: MixtureState) -> Features:
        """h, the z that the policy sees, and the task's embedding, side by side; the critic is the cluster's."""
        read = features(self.config, state.storm)
        critic = self.clusters[state.place.task] if self.critics > 1 else None
        return read._replace(context=self._told(read.context, state.place), critic=critic)

    def decoded(self, state: MixtureState) -> dict[str, Categorical | SquaredError]:
        """What z says is seen, images left out; servers flat [*B, N * F]."""
        z = self._told(flat(state.storm.stoch), state.place)
        return each(Senses.decoded, self.senses, self.clusters[state.place.task], z)

    def reward(self, state: MixtureState) -> Float[Array, "*B"]:
        return TwoHot(self._head("rew", state)).mean()

    def continues(self, state: MixtureState) -> Float[Array, "*B"]:
        return Bernoulli(self._head("con", state)[..., 0]).mean()

    def loss(
        self, state: MixtureState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[MixtureState, dict[str, Float[Array, ""]]]]:
        """STORM's losses and naming the task, averaged over the steps of each task and harmonised; summed over tasks;
        and the balance of the router.

        Metrics as in `storm.py`, averaged over the tasks that there are, and `model/task`, `model/balance`,
        `model/scale` (of losses), `model/guess` and `model/guessed` (the loss and the share of tasks guessed right),
        `model/switched` (the share of steps at which experts change) and those of `used` and, where experts are chosen
        among several, of `use`.
        """
        c, (draw_key, dropout_key, recall_key, foretold_key) = self.config, jax.random.split(key, 4)
        states, logits, of_steps = self._observe(state, sequence, draw_key, dropout_key)
        place, _, storm = states
        task, module = self._number(sequence), self.clusters[place.task]
        z = self._told(flat(storm.stoch), place)
        seen_now = shown(sequence.observation)
        goes_on = self.discount * (1.0 - sequence.is_terminal)
        posterior, prior = (self.latents.distribution(x) for x in (logits, self._prior(states)))
        terms = {
            "model/reconstruction": each(Senses.loss, self.senses, module, z, seen_now),
            "model/reward": TwoHot(self._head("rew", states)).loss(sequence.reward),
            "model/continue": Bernoulli(self._head("con", states)[..., 0]).loss(goes_on),
        }
        if self.which is not None:
            terms["model/task"] = Categorical.from_logits(self.which(storm.deter)).loss(task)
        if place.like is not None:
            terms["model/guess"] = Categorical.from_logits(place.like).loss(task)
        if self.rec is not None:
            foretold = self._told(flat(self._foretell(states, foretold_key)), place)
            surprise = stop_gradient(each(Senses.loss, self.senses, module, foretold, seen_now))
            begins = self.borders(sequence)
            terms["model/recall"] = self.rec.loss(
                self._told(storm.deter, place), seen_now, begins, surprise, recall_key
            )
        whole = partial(over_variables, c.stoch, storm.servers)
        kl = whole(posterior.kl(prior))
        present = over_tasks(jnp.ones_like(kl), task, self.tasks)  # [K] 1 or 0
        losses = {name: over_tasks(term, task, self.tasks) for name, term in terms.items()}
        _, pulls = kl_losses(lambda p, q: over_tasks(whole(p.kl(q)), task, self.tasks), posterior, prior, c.free_nats)
        losses |= {name: present * pull for name, pull in pulls.items()}
        routing = of_steps if c.routing == "token" else self.route()
        metrics = {name: loss.sum() / present.sum() for name, loss in losses.items()}
        metrics |= {"model/kl": kl.mean(), "model/balance": routes.balance(routing, self.tasks)} | routes.used(routing)
        moved, metrics["model/switched"] = routes.switching(of_steps, self.borders(sequence))
        if self.tasks > 1 and c.experts > c.active:
            metrics |= routes.use(of_steps, task, self.tasks)
        if place.like is not None:
            metrics["model/guessed"] = (place.task == task).mean()
        metrics |= {
            "model/entropy_posterior": whole(posterior.entropy()).mean(),
            "model/entropy_prior": whole(prior.entropy()).mean(),
        }
        if self.scales is not None:
            metrics["model/scale"] = scales_of(self.scales).mean()
        weights = {"dyn": c.dyn_scale, "rep": c.rep_scale, "task": c.task_scale}
        of_tasks = together(losses, self.scales, c.harmony == "groups", **weights)
        total = (present * of_tasks).sum() + c.balance * metrics["model/balance"]
        if c.switching:
            total += c.switching * moved
        return total, (states, metrics)

    def updated(self) -> "Mixture":
        """After an update: the temperature of the router has fallen."""
        return eqx.tree_at(lambda model: model.updates, self, self.updates + 1)

    def compress(self, state: MixtureState) -> MixtureKept:
        heard = None if state.heard is None else state.heard.astype(jnp.bfloat16)
        return MixtureKept(state.place, heard, compress(self.latents, state.storm))

    def expand(self, stored: MixtureKept) -> MixtureState:
        heard = None if stored.heard is None else stored.heard.astype(jnp.float32)
        return MixtureState(stored.place, heard, expand(self.latents, self.config.dtype, stored.storm))

    def resume(self, stored: MixtureKept, lent: Sequence, key: Key[Array, ""]) -> MixtureState:
        """h and z as they were; the past of the model of now, made from what was lent, by the experts of the task that
        it was taken to be in the end."""
        kept = self.expand(stored)
        past = self.initial(kept.place.task.shape[0]).storm.past
        if self.rows_lent:
            place = None if self.guess is None else over(kept.place, self.rows_lent)
            states, *_ = self._observe(self.initial(kept.place.task.shape[0]), lent, key, place=place)
            past = slide(past, states.storm.past)
        return stop_gradient(kept._replace(storm=kept.storm._replace(past=past)))

    def starts(self, before: MixtureState, states: MixtureState, index: Int[Array, " n"]) -> MixtureState:
        begun, past = super().starts(before, states, index), slides(before.storm.past, states.storm.past, index)
        return begun._replace(storm=begun.storm._replace(past=past))

    # --- the router -------------------------------------------------------------------------------------------------

    def embedded(self) -> Float[Array, "K E"]:
        """Of each task, of length 1."""
        assert self.embeddings is not None, "one task needs none"
        return self.embeddings / jnp.linalg.norm(self.embeddings, axis=-1, keepdims=True)

    def route(self) -> Routing:
        """The experts of each task."""
        c = self.config
        if self.chance is not None:
            return routes.settled(self.chance, c.experts)
        if self.router is None:
            return routes.settled(jnp.broadcast_to(jnp.arange(c.experts), (self.tasks, c.experts)), c.experts)
        return routes.best(self._scores(self.embedded()), c.active)

    def _choose(self, place: Place, led: Float[Array, "*B I"]) -> Routing:
        """The experts of each step, `led` by z and action."""
        if self.router is None or (self.config.routing == "task" and place.like is None):
            return jax.tree.map(lambda x: x[place.task], self.route())
        reads = led if self.config.routing == "token" else self._embedding(place)
        return routes.best(self._scores(reads), self.config.active)

    def _scores(self, reads: Float[Array, "*B I"]) -> Float[Array, "*B E"]:
        assert self.router is not None, "there is something to choose"
        c, left = self.config, jnp.maximum(0.0, 1 - self.updates / self.config.settle)
        return jax.nn.softmax(self.router(reads) / (1 + (c.temperature - 1) * left))

    # --- which task it is -------------------------------------------------------------------------------------------

    def _number(self, sequence: Sequence) -> Int[Array, "B T"]:
        """Of the task, as the suite says it."""
        return sequence.observation["task"] if self.tasks > 1 else jnp.zeros(sequence.reward.shape, jnp.int32)

    def _placed(self, state: MixtureState, sequence: Sequence) -> tuple[Place, Float[Array, "B T M"] | None]:
        """Which task each step is taken to be of, and what is remembered to that end."""
        match self.guess:
            case None:
                return Place(self._number(sequence), None), None
            case History():
                assert state.heard is not None
                seen_now, begins = shown(sequence.observation), self.borders(sequence)
                heard = self.guess.remember(state.heard, seen_now, sequence.action, sequence.reward, begins)
                like = jax.nn.log_softmax(self.guess(heard))
            case Head():
                heard, like = None, jax.nn.log_softmax(self.guess(sequence.observation["descriptor"]))
        return Place(like.argmax(-1), like), heard

    def _embedding(self, place: Place) -> Float[Array, "*B E"]:
        """Of the task, or the blend of those that it is like."""
        if place.like is None:
            return self.embedded()[place.task]
        blend = jnp.exp(place.like) @ self.embedded()
        return blend / jnp.maximum(jnp.linalg.norm(blend, axis=-1, keepdims=True), 1e-6)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _observe(
        self,
        state: MixtureState,
        sequence: Sequence,
        key: Key[Array, ""],
        dropout: Key[Array, ""] | None = None,
        place: Place | None = None,
    ) -> tuple[MixtureState, Float[Array, "B T Z"], Routing]:
        """The states of a sequence, what the posterior says of their z, and their experts; `place`, which task it is,
        where that is known better."""
        c, begins, storm = self.config, self.borders(sequence), state.storm
        stoch_key, foretold_key = jax.random.split(key)
        seen_now, (seems, heard) = shown(sequence.observation), self._placed(state, sequence)
        place = seems if place is None else place

        told = self._told(jnp.zeros((*begins.shape, 0)), place)
        read = partial(Senses.__call__, dtype=c.dtype)
        logits = each(read, self.senses, self.clusters[place.task], seen_now, told)
        stoch = self.latents.sample(logits, self.latents.noise(begins.shape, stoch_key)).astype(c.dtype)
        before = shifted(storm.stoch, stoch)
        before = jnp.where(begins[..., None, None], 1 / c.classes, before)
        action = jnp.where(begins[..., None], 0, sequence.action)
        led, servers = self.lead(before, action, self.senses.present(seen_now))
        deter, past, routing = self._carry(led, place, storm.past, begins, dropout)
        states = MixtureState(place, heard, StormState(deter, stoch, None, servers, past))
        if c.acts == "prior":
            foretold = self._foretell(states, foretold_key)
            states = states._replace(storm=states.storm._replace(foretold=foretold))
        return states, logits, routing

    def _carry(
        self,
        led: Float[Array, "B T I"],
        place: Place,
        past: Past,
        begins: Bool[Array, "B T"],
        dropout: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Past, Routing]:
        """h of each step, what is to be remembered of it, and its experts."""
        c, task = self.config, place.task
        led = self._told(led, place)
        routing = self._choose(place, led)
        chosen = routing.chosen  # [B, T, n]

        def through(call: Callable[..., Any], module: eqx.Module, *x: Any) -> Any:
            """Each of the active experts of a token on its part of it."""
            if c.experts == 1:
                return each(call, module, task, *x)
            parts = jax.tree.map(lambda leaf: leaf.reshape(*chosen.shape, -1), x)
            done = each(call, module, chosen, *parts)
            return jax.tree.map(lambda leaf: leaf.reshape(*task.shape, -1), done)

        tokens = through(Stem.__call__, self.stems, jnp.tile(led, c.active))
        own, common = past.layers[: c.layers], past.layers[c.layers :]
        said, made = self.experts(tokens, Past(own, past.known), begins, dropout, through)
        if c.experts > 1:
            weight = routing.weight.astype(said.dtype)
            said = (said.reshape(*chosen.shape, -1) * weight[..., None]).reshape(said.shape)
        if self.trunk is None or self.into_trunk is None:
            return said.reshape(*task.shape, c.active, -1).mean(-2) if c.active > 1 else said, made, routing
        tokens = self.into_trunk(self._told(said, place))
        trunk_key = None if dropout is None else jax.random.fold_in(dropout, c.layers)
        deter, after = self.trunk(tokens, Past(common, past.known), begins, trunk_key)
        return deter, made._replace(layers=made.layers + after.layers), routing

    def _told(self, x: Float[Array, "*B D"], place: Place) -> Float[Array, "*B F"]:
        """`x` and beside it, where there are several tasks, the embedding of the task."""
        return x if self.embeddings is None else jnp.concatenate([x, self._embedding(place).astype(x.dtype)], -1)

    def _head(self, name: Literal["rew", "con"], state: MixtureState) -> Float[Array, "*B O"]:
        """What a head of the task's cluster says."""
        read, module = self._told(state.storm.deter, state.place), self.clusters[state.place.task]
        return each(lambda heads, read: getattr(heads, name)(read), self.heads, module, read)

    def _prior(self, state: MixtureState) -> Float[Array, "*B Z"]:
        """Logits of the prior of z."""
        read, module = self._told(state.storm.deter, state.place), self.clusters[state.place.task]
        return each(Heads.foretell, self.heads, module, read, state.storm.servers)

    def _foretell(self, state: MixtureState, key: Key[Array, ""]) -> Float[Array, "*B S C"]:
        """z drawn from the prior."""
        deter = state.storm.deter
        noise = self.latents.noise(deter.shape[:-1], key)
        return self.latents.sample(self._prior(state), noise).astype(deter.dtype)
