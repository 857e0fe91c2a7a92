"""One world model for many tasks: a mixture of STORM's parts ("Mixture of World Models", arXiv 2602.01270).

Each task k has an embedding e_k of length 1. Encoder, decoder and heads are *modules*, one for each cluster of tasks.
What carries the past is a set of *experts*, Transformers of which a router picks a few for each task, never for single
steps, and a *trunk*, one more Transformer, that reads what those say:

    z_t ~ q_c(z | o_t, e_k)      l_t = [expert_j(stem_j(z_{t-1}, a_{t-1}, e_k), ...) for j in J_k]
    h_t = trunk(l_t, e_k, ...)   z_t ~ p_c(z | h_t, e_k), and the heads of reward and continuation

All experts are one program whose cost grows with those that are active (`nn/grouped.py`). The task is what a `Suite`
says in each observation; without one there is one task. With one task, one module, one expert and no trunk this is
STORM (`storm.py`), bit for bit.

Where the paper is silent the choice is ours (docs/storm.md): experts share how they see distances; weights of the
router are 1 and pass its gradient; experts are ordered by index; scales of losses are learned faster than weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key

from reverie.envs.core import ArraySpec
from reverie.models.core import Border, Features, Sequence, WorldModel
from reverie.models.recall import Recall
from reverie.models.storm import Heads, Kept, Senses, Stem, StormConfig, StormState, compress, expand, flat, seen
from reverie.nn.attention import Past, Transformer, slide, slides
from reverie.nn.distributions import Bernoulli, Categorical, TwoHot
from reverie.nn.grouped import each, stacked
from reverie.nn.layers import Head, Linear
from reverie.ranges import Count, Positive, Weight, Whole, checked

FAST = 100.0
"""How much faster than weights the scales of losses are learned: with Adam at 1e-4, a factor of e in 100 updates."""


@dataclass(frozen=True)
@checked
class MixtureConfig(StormConfig):
    """Sizes and weights of the model; those of STORM are those of each of its parts."""

    kind: ClassVar[str] = "mixture"
    modules: Count = 1
    """Encoders, decoders and sets of heads (N_m)."""
    clusters: tuple[Whole, ...] = ()
    """The module of each task of the suite; in turn where not given."""
    experts: Count = 1
    """Transformers among which the router chooses (N_e)."""
    active: Count = 1
    """How many of them it chooses for each task (n_k)."""
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

    @property
    def context(self) -> int:
        return (self.layers + self.trunk) * (self.window - 1) + 1 if self.lent is None else self.lent


class MixtureState(NamedTuple):
    """What is known of a batch."""

    task: Int[Array, "*B"]
    storm: StormState
    """Its past holds the layers of the active experts, side by side [B, S, n D], then those of the trunk."""


class MixtureKept(NamedTuple):
    """What replay keeps."""

    task: Int[Array, "*B"]
    storm: Kept


class Routing(NamedTuple):
    """Which experts each task has."""

    chosen: Int[Array, "K n"]
    """In the order of their index, so that none changes places when scores cross."""
    weight: Float[Array, "K n"]
    """1, with the gradient of the score."""
    scores: Float[Array, "K E"]
    taken: Float[Array, "K E"]
    """1 where an expert is chosen, with the gradient of the score."""


class Mixture(WorldModel):
    """The mixture of world models."""

    forgets: ClassVar[Border] = "episode"
    embeddings: Float[Array, "K E"] | None
    senses: Senses
    """N_m, stacked."""
    heads: Heads
    """N_m, stacked."""
    stems: Stem
    """N_e, stacked."""
    experts: Transformer
    """Its blocks N_e, stacked; how distances are seen is common to all."""
    router: Head | None
    into_trunk: Linear | None
    trunk: Transformer | None
    which: Linear | None
    """Names the task by h."""
    rec: Recall | None
    scales: Float[Array, "K G"] | None
    """Logarithms of the scales of losses, over `FAST`."""
    updates: Int[Array, ""]
    """How often it was updated."""
    config: MixtureConfig = eqx.field(static=True)
    tasks: int = eqx.field(static=True)

    def __init__(
        self, config: MixtureConfig, observation_spec: Mapping[str, ArraySpec], actions: int, *, key: Key[Array, ""]
    ):
        """A fresh model of a suite of tasks, or of a world of one; `actions` is the width of an encoded action (A).

        Raises:
            ValueError: an entry of `observation_spec` cannot be encoded, or there are not as many tasks as clusters.
        """
        senses_key, stem_key, experts_key, heads_key, rest_key = jax.random.split(key, 5)
        keys = iter(jax.random.split(jax.random.fold_in(rest_key, 1), 5))
        c, d = config, config.deter
        counts = [entry.categories or 1 for entry in observation_spec.values() if entry.kind == "task"]
        self.config, self.tasks, self.updates = config, max([1, *counts]), jnp.int32(0)
        if c.clusters and len(c.clusters) != self.tasks:
            raise ValueError(
                f"clusters must name the module of each of {self.tasks} tasks, got {len(c.clusters)} of them"
            )
        if self.tasks == 1 and c.experts > c.active:
            raise ValueError(
                f"one task has nothing to be routed by: experts must be active={c.active}, got {c.experts}"
            )
        several = self.tasks > 1
        told = c.embedding if several else 0
        self.embeddings = jax.random.normal(next(keys), (self.tasks, told)) if several else None

        def experts(key: Key[Array, ""]) -> Transformer:
            return Transformer(d, 2 * d, c.layers, c.heads, c.window, c.dropout, key=key)

        self.senses = stacked(lambda key: Senses(observation_spec, c, told, key=key), c.modules, senses_key)
        self.heads = stacked(lambda key: Heads(c, told, key=key), c.modules, heads_key)
        self.stems = stacked(lambda key: Stem(c.stoch_size + actions + told, d, key=key), c.experts, stem_key)
        made = stacked(experts, c.experts, experts_key)
        common = made.distance[0], made.content_bias[0], made.distance_bias[0]
        self.experts = eqx.tree_at(lambda t: (t.distance, t.content_bias, t.distance_bias), made, common)
        self.router = Head(told, c.experts, c.embedding, 1, key=next(keys)) if c.experts > c.active else None
        self.into_trunk = Linear(c.active * d + told, d, key=next(keys)) if c.trunk else None
        self.trunk = Transformer(d, 2 * d, c.trunk, c.heads, c.window, c.dropout, key=next(keys)) if c.trunk else None
        self.which = Linear(d, self.tasks, key=next(keys)) if several else None
        sizes = c.units, c.decoder_layers, c.depth
        self.rec = Recall(observation_spec, c.recall, d + told, *sizes, key=rest_key) if c.recall else None
        groups = {"none": 0, "task": int(several), "groups": 3}[c.harmony]
        self.scales = jnp.zeros((self.tasks, groups)) if groups else None

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def critics(self) -> int:
        return self.config.modules

    @property
    def clusters(self) -> Int[Array, " K"]:
        """The module of each task."""
        c = self.config
        return jnp.asarray(c.clusters) if c.clusters else jnp.arange(self.tasks) % c.modules

    def initial(self, batch: int) -> MixtureState:
        c = self.config
        stoch = jnp.full((batch, c.stoch, c.classes), 1 / c.classes, c.dtype)
        foretold = jnp.copy(stoch) if c.acts == "prior" else None
        past = self.experts.nothing(batch, c.dtype, c.active)
        if self.trunk is not None:
            past = past._replace(layers=past.layers + self.trunk.nothing(batch, c.dtype).layers)
        storm = StormState(jnp.zeros((batch, c.deter), c.dtype), stoch, foretold, past)
        return MixtureState(jnp.zeros((batch,), jnp.int32), storm)

    def observe(
        self, state: MixtureState, sequence: Sequence, key: Key[Array, ""]
    ) -> tuple[MixtureState, MixtureState]:
        states, _ = self._observe(state, sequence, key)
        last = jax.tree.map(lambda x: x[:, -1], states)
        past = slide(state.storm.past, states.storm.past)
        return last._replace(storm=last.storm._replace(past=past)), states

    def imagine(self, state: MixtureState, action: Float[Array, "B A"], key: Key[Array, ""]) -> MixtureState:
        task, storm, no = state.task, state.storm, jnp.zeros((action.shape[0], 1), bool)
        led = storm.stoch[:, None], action[:, None], task[:, None]
        deter, past = self._carry(*led, storm.past, no)
        stoch = self._foretell(deter[:, 0], task, key)
        foretold = stoch if self.config.acts == "prior" else None
        return MixtureState(task, StormState(deter[:, 0], stoch, foretold, slide(storm.past, past)))

    def features(self, state: MixtureState) -> Features:
        """h, the z that the policy sees, and the task's embedding, side by side; the critic is the cluster's."""
        context = self._told(jnp.concatenate([state.storm.deter, flat(seen(state.storm))], -1), state.task)
        return Features(context, critic=self.clusters[state.task] if self.critics > 1 else None)

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
        `model/scale` (of losses), `model/router_entropy` (nats, of a task) and `model/experts_used` (the share that
        any task has).
        """
        c, (draw_key, dropout_key, recall_key, foretold_key) = self.config, jax.random.split(key, 4)
        states, logits = self._observe(state, sequence, draw_key, dropout_key)
        task, storm = states
        module = self.clusters[task]
        z = self._told(flat(storm.stoch), task)
        shown = {name: x for name, x in sequence.observation.items() if name != "task"}
        goes_on = self.discount * (1.0 - sequence.is_terminal)
        posterior, prior = (c.latents.distribution(x) for x in (logits, self._head("prior", states)))
        terms = {
            "model/reconstruction": each(Senses.loss, self.senses, module, z, shown),
            "model/reward": TwoHot(self._head("rew", states)).loss(sequence.reward),
            "model/continue": Bernoulli(self._head("con", states)[..., 0]).loss(goes_on),
        }
        if self.which is not None:
            terms["model/task"] = Categorical.from_logits(self.which(storm.deter)).loss(task)
        if self.rec is not None:
            foretold = self._told(flat(self._foretell(storm.deter, task, foretold_key)), task)
            surprise = stop_gradient(each(Senses.loss, self.senses, module, foretold, shown))
            begins = self.borders(sequence)
            terms["model/recall"] = self.rec.loss(self._told(storm.deter, task), shown, begins, surprise, recall_key)
        kl = posterior.kl(prior).sum(-1)
        present = self._over_tasks(jnp.ones_like(kl), task)  # [K] 1 or 0
        losses = {name: self._over_tasks(term, task) for name, term in terms.items()}
        dyn = self._over_tasks(stop_gradient(posterior).kl(prior).sum(-1), task)
        rep = self._over_tasks(posterior.kl(stop_gradient(prior)).sum(-1), task)
        losses |= {
            "model/dyn": present * jnp.maximum(c.free_nats, dyn),
            "model/rep": present * jnp.maximum(c.free_nats, rep),
        }
        routing = self.route()
        metrics = {name: loss.sum() / present.sum() for name, loss in losses.items()}
        metrics |= {"model/kl": kl.mean(), "model/balance": balance(routing)} | used(routing)
        metrics |= {
            "model/entropy_posterior": posterior.entropy().sum(-1).mean(),
            "model/entropy_prior": prior.entropy().sum(-1).mean(),
        }
        if self.scales is not None:
            metrics["model/scale"] = jnp.exp(FAST * self.scales).mean()
        total = (present * self._harmonised(losses)).sum() + c.balance * metrics["model/balance"]
        return total, (states, metrics)

    def updated(self) -> "Mixture":
        """After an update: the temperature of the router has fallen."""
        return eqx.tree_at(lambda model: model.updates, self, self.updates + 1)

    def compress(self, state: MixtureState) -> MixtureKept:
        return MixtureKept(state.task, compress(self.config, state.storm))

    def expand(self, stored: MixtureKept) -> MixtureState:
        return MixtureState(stored.task, expand(self.config, stored.storm))

    def resume(self, stored: MixtureKept, lent: Sequence, key: Key[Array, ""]) -> MixtureState:
        """h and z as they were; the past of the model of now, made from what was lent."""
        before, kept = self.initial(stored.task.shape[0]), self.expand(stored)
        if self.context:
            before, _ = self.observe(before, lent, key)
        return stop_gradient(kept._replace(storm=kept.storm._replace(past=before.storm.past)))

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
        if self.router is None:
            chosen = jnp.broadcast_to(jnp.arange(c.experts), (self.tasks, c.experts))
            even = jnp.ones((self.tasks, c.experts))
            return Routing(chosen, jnp.ones(chosen.shape), even / c.experts, even)
        left = jnp.maximum(0.0, 1 - self.updates / c.settle)
        temperature = 1 + (c.temperature - 1) * left
        scores = jax.nn.softmax(self.router(self.embedded()) / temperature)
        chosen = jnp.sort(jax.lax.top_k(scores, c.active)[1])
        through = scores - stop_gradient(scores)
        weight = 1 + jnp.take_along_axis(through, chosen, 1)
        taken = jax.nn.one_hot(chosen, c.experts).sum(1) + through
        return Routing(chosen, weight, scores, taken)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _observe(
        self, state: MixtureState, sequence: Sequence, key: Key[Array, ""], dropout: Key[Array, ""] | None = None
    ) -> tuple[MixtureState, Float[Array, "B T Z"]]:
        """The states of a sequence, and what the posterior says of their z."""
        c, begins, storm = self.config, self.borders(sequence), state.storm
        stoch_key, foretold_key = jax.random.split(key)
        shown = {name: x for name, x in sequence.observation.items() if name != "task"}
        task = sequence.observation["task"] if self.tasks > 1 else jnp.zeros(begins.shape, jnp.int32)

        def read(senses: Senses, shown: dict[str, Array], told: Float[Array, "*B E"]) -> Float[Array, "*B Z"]:
            return senses(shown, c.dtype, told)

        logits = each(read, self.senses, self.clusters[task], shown, self._told(jnp.zeros((*begins.shape, 0)), task))
        stoch = c.latents.sample(logits, c.latents.noise(begins.shape, stoch_key)).astype(c.dtype)
        before = jnp.concatenate([storm.stoch[:, None], stoch[:, :-1]], 1)
        before = jnp.where(begins[..., None, None], 1 / c.classes, before)
        led = before, jnp.where(begins[..., None], 0, sequence.action), task
        deter, past = self._carry(*led, storm.past, begins, dropout)
        foretold = self._foretell(deter, task, foretold_key) if c.acts == "prior" else None
        return MixtureState(task, StormState(deter, stoch, foretold, past)), logits

    def _carry(
        self,
        stoch: Float[Array, "B T S C"],
        action: Float[Array, "B T A"],
        task: Int[Array, "B T"],
        past: Past,
        begins: Bool[Array, "B T"],
        dropout: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Past]:
        """h of each step, and what is to be remembered of it."""
        c, routing = self.config, self.route()
        chosen = routing.chosen[task]  # [B, T, n]
        action = action / stop_gradient(jnp.maximum(1, jnp.abs(action)))
        led = self._told(jnp.concatenate([flat(stoch), action.astype(stoch.dtype)], -1), task)

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
            weight = routing.weight[task].astype(said.dtype)
            said = (said.reshape(*chosen.shape, -1) * weight[..., None]).reshape(said.shape)
        if self.trunk is None or self.into_trunk is None:
            return said.reshape(*task.shape, c.active, -1).mean(-2) if c.active > 1 else said, made
        tokens = self.into_trunk(self._told(said, task))
        trunk_key = None if dropout is None else jax.random.fold_in(dropout, c.layers)
        deter, after = self.trunk(tokens, Past(common, past.known), begins, trunk_key)
        return deter, made._replace(layers=made.layers + after.layers)

    def _told(self, x: Float[Array, "*B D"], task: Int[Array, "*B"]) -> Float[Array, "*B F"]:
        """`x` and beside it, where there are several tasks, the embedding of the task."""
        return x if self.embeddings is None else jnp.concatenate([x, self.embedded()[task].astype(x.dtype)], -1)

    def _head(self, name: Literal["prior", "rew", "con"], state: MixtureState) -> Float[Array, "*B O"]:
        """What a head of the task's cluster says."""
        return self._foretold(name, state.storm.deter, state.task)

    def _foretold(
        self, name: Literal["prior", "rew", "con"], deter: Float[Array, "*B D"], task: Int[Array, "*B"]
    ) -> Float[Array, "*B O"]:
        read = self._told(deter, task)
        return each(lambda heads, read: getattr(heads, name)(read), self.heads, self.clusters[task], read)

    def _foretell(
        self, deter: Float[Array, "*B D"], task: Int[Array, "*B"], key: Key[Array, ""]
    ) -> Float[Array, "*B S C"]:
        """z drawn from the prior."""
        noise = self.config.latents.noise(deter.shape[:-1], key)
        return self.config.latents.sample(self._foretold("prior", deter, task), noise).astype(deter.dtype)

    # --- losses -----------------------------------------------------------------------------------------------------

    def _over_tasks(self, term: Float[Array, "B T"], task: Int[Array, "B T"]) -> Float[Array, " K"]:
        """The mean over the steps of each task; 0 where there is none."""
        if self.tasks == 1:
            return term.mean()[None]
        total, count = (
            jax.ops.segment_sum(x.reshape(-1), task.reshape(-1), self.tasks) for x in (term, jnp.ones_like(term))
        )
        return total / jnp.maximum(1, count)

    def _harmonised(self, losses: Mapping[str, Float[Array, " K"]]) -> Float[Array, " K"]:
        """The loss of each task: L / sigma + ln(1 + sigma) of what has a scale sigma, as it is of what has none.

        Source: HarmonyDream (Ma et al. 2024, arXiv 2310.00344), which has one for each kind of loss.
        """
        c = self.config
        kl = c.dyn_scale * losses["model/dyn"] + c.rep_scale * losses["model/rep"]
        groups = [losses["model/reconstruction"], losses["model/reward"], kl]
        rest = [losses["model/continue"], *(losses[name] for name in ("model/recall",) if name in losses)]
        rest += [c.task_scale * losses[name] for name in ("model/task",) if name in losses]
        if self.scales is not None and c.harmony == "groups":
            groups = [harmonised(loss, self.scales[:, i]) for i, loss in enumerate(groups)]
        *seen_and_paid, kl = groups
        total = sum([*seen_and_paid, *rest, kl], jnp.zeros(self.tasks))
        return total if self.scales is None or c.harmony == "groups" else harmonised(total, self.scales[:, 0])


def harmonised(loss: Float[Array, " K"], scale: Float[Array, " K"]) -> Float[Array, " K"]:
    """`loss` over a scale that is learned: small ones count as their root, large ones as nearly 1."""
    log = FAST * scale
    return loss * jnp.exp(-log) + jax.nn.softplus(log)


def balance(routing: Routing) -> Float[Array, ""]:
    """How far the experts are from being chosen by equally many tasks: || sum of choices - K n / E ||^2."""
    tasks, experts = routing.taken.shape
    return jnp.square(routing.taken.sum(0) - tasks * routing.chosen.shape[1] / experts).sum()


def used(routing: Routing) -> dict[str, Float[Array, ""]]:
    """Metrics of the router."""
    entropy = Categorical(routing.scores, jnp.log(jnp.maximum(routing.scores, 1e-30))).entropy()
    share = (stop_gradient(routing.taken).sum(0) > 0.5).mean()
    return {"model/router_entropy": entropy.mean(), "model/experts_used": share}
