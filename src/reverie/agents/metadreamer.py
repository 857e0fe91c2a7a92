"""MetaDreamer: infer the task from a context, imagine tasks between the known ones, imagine what happens in them.

Wen, Tseng, Peng and Zhang 2024 (arXiv 2311.06673), whose code and values are not public: docs/metadreamer.md says what
is theirs and what is ours. PEARL's actor, critics and policy (`pearl.py`) are told z, which here comes from

- a context encoder and a generative model that learn together, as a beta-VAE whose codes of one task are pulled
  together and of different tasks pushed apart, and nothing from the critics;
- *meta-imagination*: z of tasks between those that are known, and beyond them where that is asked for, in the number of
  z that each of their factors is in;
- *MDP-imagination*: what the present policy would live through in known and in imagined tasks, as the generative model
  has it, from states that were real. Actor and critics learn from real and imagined steps alike.

The factors of the tasks to learn from are known, those of other tasks are not. With `encoder` product, `teacher`
critics, one context of single transitions (`contexts`, `stretch` 1) and no imagination it is PEARL.

Metrics: those of PEARL, and `model/loss`, `model/seen` (root mean squared error of an observation's numbers one step
ahead), `model/reward` (of the reward), `task/intra`, `task/inter`, `imagined/reward` (of a step), `imagined/steps` (of
an episode), and for each factor `dimension/FACTOR/z`, how often it is found in number z, and `explained/FACTOR`, how
much of it (R²).

Axes: M tasks of an update, n contexts of each, S sequences, T steps; K known tasks, F factors, Z numbers of z; R
imagined episodes of H steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Key
from tyro.conf import arg

from reverie.agents import pearl
from reverie.agents.core import Evidence, Row, Studied
from reverie.agents.heads import Flat, SetTower
from reverie.agents.pearl import PEARLConfig, PEARLPolicy, PEARLState, Steps, draw, from_prior, soft_losses
from reverie.agents.soft import followed
from reverie.envs.core import ActionSpec, ArraySpec, Task, TimeStep, World
from reverie.envs.factors import Physics, WithFactors
from reverie.models.context import EncoderKind
from reverie.models.generative import DecoderKind, GenerativeModel
from reverie.models.tasks import Interpolation, find_dimensions
from reverie.ranges import Count, Share, Weight, Whole, at_least, between, checked

Imagination = Literal["none", "mdp", "meta", "both"]
Teacher = Literal["reconstruction", "critics"]


@dataclass(frozen=True)
@checked
class MetaDreamerConfig:
    """Ours, where the paper's values are not public, which is nearly everywhere."""

    name: ClassVar[str] = "metadreamer"
    """What tables call the agent."""
    pearl: Annotated[PEARLConfig, arg(name="")] = field(default_factory=PEARLConfig)
    """What it shares with PEARL. `kl` is beta: the KL of a context's belief counts beside the loss of each of its
    transitions (`evidence`, so many), or as PEARL's where the critics teach."""
    encoder: EncoderKind = "recurrent"
    """How contexts are read."""
    teacher: Teacher = "reconstruction"
    """What the encoder learns from: what its z lets the generative model foretell, or what z is worth to the critics,
    and then neither clusters nor structure."""
    contexts: Count = 2
    """Contexts of each task in an update (n)."""
    stretch: Count = 64
    """Transitions in a row; a context is as many stretches as `evidence` holds."""
    decoder: DecoderKind = "free"
    """The generative model: `free` learns all, `physics` what the world does not tell of itself."""
    coarse: Weight = 0.0
    """The least deviation that the generative model's errors are counted in, and then by symlogs; 0 sets none. For
    worlds whose laws of chance depend on the task too: else the model foretells the rest ever better, and no z says
    them."""
    intra: Weight = 1.0
    """Weight of the squared distance between codes of one task."""
    inter: Weight = 1.0
    """Weight of the squared distance by which codes of two tasks come too near to each other."""
    apart: Weight = 1.0
    """How far these should be apart, in units of the prior's deviation."""
    structure: Weight = 0.0
    """Weight of the squared distance between the first numbers of z and the factors, in deviations of these: one number
    for each factor. 0 leaves it to the program to find where the factors are."""
    imagination: Imagination = "both"
    """Episodes in known tasks (`mdp`), in imagined ones (`meta`), as many in either (`both`), or in none."""
    density: Annotated[int, *at_least(1, 1_000)] = 2
    """Imagined values between two neighbouring values of a factor (D)."""
    beyond: Annotated[int, *at_least(0, 100)] = 0
    """Gaps beyond the outermost values of a factor, as wide as the last one and as dense, in which tasks are imagined
    too, by the line through its two values."""
    along: tuple[str, ...] = ()
    """The factors that are interpolated; all unless given."""
    epsilon: Weight = 0.1
    """Deviation of noise on imagined codes, beside the gap that they lie in."""
    rollouts: Annotated[int, *at_least(2, 1_000_000, "all are imagined at once")] = 256
    """Imagined episodes (R) that are kept; the next ones replace them all."""
    dream_length: Count = 20
    """Steps of an imagined episode (H); those that end sooner are shorter."""
    initial: Share = 0.5
    """Share of them that begins where real episodes do; the others begin in any real state."""
    share: Annotated[float, *between(0, 1, low_open=True, high_open=True)] = 0.5
    """Share of imagined steps in those that actor and critics learn from."""
    renew: Count = 20
    """Updates after which all imagined episodes are imagined anew."""
    warmup: Whole = 500
    """Updates before the first are imagined: the model has to know something."""

    def __post_init__(self):
        c = self.pearl
        if c.evidence % self.stretch:
            raise ValueError(
                "MetaDreamerConfig: evidence, the transitions of a context, must be a multiple of stretch, "
                f"{self.stretch}; got {c.evidence}"
            )
        if self.encoder == "recurrent" and self.stretch < 2:
            raise ValueError(
                "MetaDreamerConfig: a context is too short: a recurrent encoder reads transitions in a row, so stretch "
                f"must be at least 2; got {self.stretch}"
            )
        if self.teacher == "critics" and self.structure:
            raise ValueError("MetaDreamerConfig: structure is learned beside reconstruction, and teacher is 'critics'")
        if (self.along or self.beyond) and self.imagination not in ("meta", "both"):
            raise ValueError(
                f"MetaDreamerConfig: along and beyond say which tasks are imagined, and imagination is "
                f"{self.imagination!r}: give it meta or both"
            )

    @property
    def test_episodes(self) -> int:
        return self.pearl.test_episodes


class Networks(eqx.Module):
    """Everything that is learned by gradient."""

    acting: pearl.Networks
    """Encoder, actor, critics and value."""
    model: GenerativeModel


class Imagined(NamedTuple):
    """Imagined steps, laid flat."""

    steps: Steps
    """Leaves [H R, ...]; those after the end of an episode do not count."""
    z: Float[Array, "HR Z"]


class Learner(NamedTuple):
    """All that training changes."""

    networks: Networks
    target: Flat | SetTower
    """The value, following slowly."""
    optimiser: optax.OptState
    codes: Float[Array, "K Z"]
    """Of each known task the mean of its contexts, when it was last part of an update."""
    known: Bool[Array, " K"]
    """Whether it ever was."""
    imagined: Imagined | None
    updates: Int[Array, ""]


@dataclass(frozen=True)
class MetaDreamer:
    """The algorithm, for one kind of world and the tasks in it that are learned from.

    Errors: ValueError where the world lacks what is asked for.
    """

    config: MetaDreamerConfig
    observation_spec: Mapping[str, ArraySpec]
    action_spec: ActionSpec
    factors: tuple[str, ...]
    """What the numbers of a task are called."""
    tasks: tuple[tuple[float, ...], ...]
    """Those that are learned from [K, F]."""
    physics: Physics | None
    """What the world tells of how it goes on."""

    rows_lent = 1

    @classmethod
    def of(cls, config: MetaDreamerConfig, world: World, tasks: Task) -> "MetaDreamer":
        """For a world and its tasks [K, F].

        Errors: ValueError where its tasks are no factors.
        """
        factors = world.factors if isinstance(world, WithFactors) else ()
        if not factors:
            raise ValueError(f"metadreamer imagines tasks by their factors, and {type(world).__name__} names none")
        physics = world if isinstance(world, Physics) else None
        numbers = tuple(map(tuple, np.asarray(tasks).tolist()))
        specs = world.observation_spec, world.action_spec
        if config.decoder == "physics" and physics is None:
            raise ValueError(
                f"decoder='physics' needs a world that tells how it goes on, and {type(world).__name__} does not: "
                "use decoder='free'"
            )
        return cls(config, *specs, tuple(factors), numbers, physics if config.decoder == "physics" else None)

    def __post_init__(self):
        c = self.config
        if c.pearl.latent < len(self.factors):
            raise ValueError(
                f"latent must be at least the number of factors, {len(self.factors)} ({', '.join(self.factors)}); got "
                f"{c.pearl.latent}"
            )
        if c.pearl.evidence < len(self.factors):
            raise ValueError(
                f"a context is too short: evidence must be at least the number of factors, {len(self.factors)} "
                f"({', '.join(self.factors)}); got {c.pearl.evidence} transitions"
            )
        if strange := sorted(set(c.along) - set(self.factors)):
            raise ValueError(
                f"along names factors that the world does not have, {', '.join(strange)}; "
                f"it has {', '.join(self.factors)}"
            )
        if c.imagination in ("meta", "both"):
            len(self.interpolation.tasks)  # there are tasks to imagine

    @cached_property
    def interpolation(self) -> Interpolation:
        """Which tasks are imagined."""
        along = [k for k, name in enumerate(self.factors) if name in (self.config.along or self.factors)]
        return Interpolation.of(np.array(self.tasks, np.float32), self.config.density, along, self.config.beyond)

    @property
    def evidence(self) -> Evidence:
        """Stretches for all contexts of a task."""
        c = self.config
        stretches = c.contexts * c.pearl.evidence // c.stretch
        return Evidence(c.pearl.tasks, stretches, c.stretch + 1, c.pearl.recent)

    def init(self, key: Key[Array, ""]) -> Learner:
        """Fresh networks, and nothing imagined."""
        acting_key, model_key = jax.random.split(key)
        c, specs = self.config.pearl, (self.observation_spec, self.action_spec)
        acting = pearl.Networks(c, *specs, self.config.encoder, key=acting_key)
        shape = c.latent, c.encoder_units, c.encoder_layers
        model = GenerativeModel(*specs, *shape, self.physics, self.config.coarse, key=model_key)
        networks = Networks(acting, model)
        target = jax.tree.map(jnp.copy, acting.value)  # its own buffers, so that training may donate them
        optimiser = self.optimiser.init(eqx.filter(networks, eqx.is_inexact_array))
        codes = jnp.zeros((len(self.tasks), c.latent))
        imagined = None
        if self.config.imagination != "none":
            count = self.config.rollouts
            begun = {name: jnp.zeros((count, *spec.shape)) for name, spec in self.observation_spec.items()}
            off = jnp.zeros(networks.model.numbers.width + 1)
            shapes = jax.eval_shape(self.live, networks, begun, jnp.zeros((count, c.latent)), off, key)
            imagined = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # none of it counts
        return Learner(networks, target, optimiser, codes, jnp.zeros(len(codes), bool), imagined, jnp.int32(0))

    def policy(self, networks: Networks, greedy: bool = False) -> PEARLPolicy:
        """PEARL's: k episodes with z of the prior, then with z of the belief."""
        c = self.config.pearl
        return PEARLPolicy(networks.acting, greedy, c.test_episodes if greedy else c.prior_episodes)

    def keep(self, networks: Networks, state: PEARLState) -> Bool[Array, " B"]:
        """Whether a step was taken with z drawn from the prior: these are what tasks are inferred from."""
        return state.is_prior

    def update(
        self, learner: Learner, rows: Studied, key: Key[Array, ""]
    ) -> tuple[Learner, None, dict[str, Float[Array, ""]]]:
        """One step of Adam on real and imagined steps; from time to time all that is imagined is imagined anew."""
        c = self.config
        loss_key, draw_key, renew_key = jax.random.split(key, 3)
        steps = None if learner.imagined is None else self.drawn(learner.imagined, rows.rows, draw_key)
        gradient, (metrics, means, off) = eqx.filter_grad(self.loss, has_aux=True)(
            learner.networks, learner.target, rows, steps, loss_key
        )
        step, optimiser = self.optimiser.update(gradient, learner.optimiser)
        networks = eqx.apply_updates(learner.networks, step)
        target = followed(learner.target, networks.acting.value, c.pearl.slow_rate)
        codes, known = self.coded(learner, rows.evidence.task[:, 0, 0], means)
        updates, imagined = learner.updates + 1, learner.imagined
        dimensions, explained = find_dimensions(codes, jnp.array(self.tasks), known)
        if imagined is not None:
            ready = known.all() | (c.imagination == "mdp")  # a task without a code has no neighbours
            imagined = jax.lax.cond(
                ready & (updates >= c.warmup) & (updates % c.renew == 0),
                lambda: self.imagine(networks, rows, codes, dimensions, off, renew_key),
                lambda: learner.imagined,
            )
            lived = imagined.steps.counts
            paid = jnp.where(lived, imagined.steps.reward, 0.0).sum() / jnp.maximum(1, lived.sum())
            metrics |= {"imagined/reward": paid, "imagined/steps": lived.sum() / c.rollouts}
        found = jax.nn.one_hot(dimensions, c.pearl.latent)  # [F, Z], whose mean over updates is how often
        for k, name in enumerate(self.factors):
            metrics |= {f"dimension/{name}/{z}": found[k, z] for z in range(c.pearl.latent)}
            metrics[f"explained/{name}"] = explained[k]
        metrics |= {"gradient/norm": optax.tree.norm(gradient)}
        return Learner(networks, target, optimiser, codes, known, imagined, updates), None, metrics

    # --- learning -----------------------------------------------------------------------------------------------------

    def loss(
        self,
        networks: Networks,
        target: Flat | SetTower,
        given: Studied,
        imagined: Imagined | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Float[Array, "M n Z"], Float[Array, " E"]]]:
        """The sum of all losses; metrics, the posterior means of all contexts, and how far the generative model is
        off in each number of an observation and in the reward (`GenerativeModel.imagine`)."""
        c, shared, acting = self.config, self.config.pearl, networks.acting
        task_key, act_key = jax.random.split(key)

        # The task, once for each context.
        mean, variance = acting.encoder.gaussian(acting.believe(self.contexts(given.evidence)))  # [M, n, Z]
        z = draw(mean, variance, task_key)
        kl = from_prior(mean, variance)  # [M, n]
        metrics = {"task/kl": kl.mean(), "task/deviation": jnp.sqrt(variance).mean()}

        # The generative model, and the encoder through z.
        steps, taught = Steps.of(given.rows), c.teacher == "reconstruction"
        model_loss, squared = self.foretell(networks.model, steps, z if taught else stop_gradient(z))
        task = given.evidence.task[:, 0, 0]
        total, clusters = self.clusters(mean, task)
        if taught:
            total += model_loss + shared.kl * kl.mean() / shared.evidence + self.structured(mean, task)
        else:
            total = model_loss + shared.kl * kl.mean(1).sum()  # as PEARL's, which has one context of each task
        seen, paid = jnp.sqrt(squared[:-1].mean()), jnp.sqrt(squared[-1])
        metrics |= clusters | {"model/loss": model_loss, "model/seen": seen, "model/reward": paid}

        # Actor, critics and value, on real and imagined steps.
        sequences = steps.reward.shape[1]
        z = (stop_gradient(z) if taught else z)[:, jnp.arange(sequences) % c.contexts, None]  # [M, S, 1, Z]
        z = jnp.broadcast_to(z, (*steps.reward.shape, shared.latent))
        if imagined is not None:
            steps, z = jax.tree.map(
                lambda real, dreamt: jnp.concatenate([real.reshape(-1, *dreamt.shape[1:]), dreamt]),
                Imagined(steps, z),
                imagined,
            )
        learned, more = soft_losses(shared, acting, target, steps, z, act_key)
        return total + learned, (metrics | more, mean, jnp.sqrt(squared))

    def contexts(self, evidence: Row) -> Row:
        """Stretches [M, n g, L, ...] as those of each context [M, n, g, L, ...]."""
        return jax.tree.map(lambda x: x.reshape(x.shape[0], self.config.contexts, -1, *x.shape[2:]), evidence)

    def foretell(
        self, model: GenerativeModel, steps: Steps, z: Float[Array, "M n Z"]
    ) -> tuple[Float[Array, ""], Float[Array, " E"]]:
        """The generative model's loss where each context of a task has to explain all of its steps, and mean
        squared errors."""
        n = z.shape[1]
        flat, (counts, action, reward, ended) = (
            model.numbers.flat,
            (
                jnp.broadcast_to(x[:, None], (x.shape[0], n, *x.shape[1:]))
                for x in (steps.counts, steps.action, steps.reward, steps.is_terminal)
            ),
        )
        before, after = (
            jnp.broadcast_to(x[:, None], (x.shape[0], n, *x.shape[1:]))
            for x in map(flat, (steps.observation, steps.after))
        )
        z = jnp.broadcast_to(z[:, :, None, None], (*counts.shape, z.shape[-1]))
        return model.loss(before, action, z, after, reward, ended.astype(jnp.float32), counts.astype(jnp.float32))

    def clusters(
        self, mean: Float[Array, "M n Z"], task: Int[Array, " M"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Codes of one task are pulled together, those of two tasks pushed apart, up to a distance."""
        c = self.config
        codes = mean.reshape(-1, mean.shape[-1])
        task = jnp.repeat(task, mean.shape[1])
        same = task[:, None] == task
        squared = jnp.square(codes[:, None] - codes).sum(-1)
        distance = jnp.sqrt(jnp.where(same, 1.0, squared) + 1e-8)  # the root of 0 has no slope
        intra = jnp.where(same, squared, 0.0).sum() / same.sum()
        inter = jnp.where(same, 0.0, jnp.square(jnp.maximum(0, c.apart - distance))).sum() / jnp.maximum(
            1, (~same).sum()
        )
        return c.intra * intra + c.inter * inter, {"task/intra": intra, "task/inter": inter}

    def structured(self, mean: Float[Array, "M n Z"], task: Int[Array, " M"]) -> Float[Array, ""]:
        """How far the first numbers of z are from the factors."""
        factors = np.array(self.tasks, np.float32)
        standard = (factors - factors.mean(0)) / np.maximum(factors.std(0), 1e-6)
        wanted = jnp.asarray(standard)[task][:, None]
        return self.config.structure * jnp.square(mean[..., : len(self.factors)] - wanted).sum(-1).mean()

    def coded(
        self, learner: Learner, task: Int[Array, " M"], mean: Float[Array, "M n Z"]
    ) -> tuple[Float[Array, "K Z"], Bool[Array, " K"]]:
        """The codes of known tasks, with those of this update."""
        count = jax.ops.segment_sum(jnp.ones(task.shape), task, len(self.tasks))
        summed = jax.ops.segment_sum(mean.mean(1), task, len(self.tasks))
        new = summed / jnp.maximum(1, count)[:, None]
        return jnp.where(count[:, None] > 0, new, learner.codes), learner.known | (count > 0)

    # --- imagination --------------------------------------------------------------------------------------------------

    def imagine(
        self,
        networks: Networks,
        given: Studied,
        codes: Float[Array, "K Z"],
        dimensions: Int[Array, " F"],
        off: Float[Array, " E"],
        key: Key[Array, ""],
    ) -> Imagined:
        """Episodes of the present policy in known tasks (MDP-imagination) and in imagined ones (meta-imagination)."""
        c, acting = self.config, networks.acting
        task_key, context_key, z_key, between_key, start_key, live_key = jax.random.split(key, 6)
        task = jax.random.randint(task_key, (c.rollouts,), 0, c.pearl.tasks)  # of this update
        mean, variance = acting.encoder.gaussian(acting.believe(self.contexts(given.evidence)))
        context = jax.random.randint(context_key, task.shape, 0, c.contexts)
        real = draw(mean, variance, z_key)[task, context]
        imaginary = {"mdp": 0, "meta": c.rollouts, "both": c.rollouts // 2}[c.imagination]
        z = real
        if imaginary:
            between_them = self.interpolation.codes(codes, dimensions, c.epsilon, imaginary, between_key)
            z = jnp.concatenate([between_them, real[imaginary:]])
        return self.live(networks, self.seen_states(given, task, start_key), z, off, live_key)

    def seen_states(self, given: Studied, task: Int[Array, " R"], key: Key[Array, ""]) -> dict[str, Array]:
        """Real observations [R, ...] of the tasks with these numbers in the update: a share of them open an episode
        (or are any, where none of that task does), the others are any but the last."""
        flat = [jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), part.timestep) for part in given]
        seen: TimeStep = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *flat)  # [M, N, ...]
        open_key, key = jax.random.split(key)
        opens = jax.random.uniform(open_key, task.shape) < self.config.initial
        unwanted = jnp.where(opens[:, None] & ~seen.is_first[task], -1e6, 0.0)
        place = jax.random.categorical(key, jnp.where(seen.is_last[task], -jnp.inf, unwanted))
        return jax.tree.map(lambda x: x[task, place], seen.observation)

    def live(
        self,
        networks: Networks,
        observation: dict[str, Array],
        z: Float[Array, "R Z"],
        off: Float[Array, " E"],
        key: Key[Array, ""],
    ) -> Imagined:
        """Episodes of the present policy, as the generative model has them."""
        acting, model = networks.acting, networks.model

        def step(now: tuple[Array, Array], key: Key[Array, ""]) -> tuple[tuple[Array, Array], Steps]:
            numbers, going = now
            act_key, end_key, chance_key = jax.random.split(key, 3)
            seen = model.numbers.apart(numbers)
            action = acting.policy(acting.with_task(seen, z), seen).sample(act_key)
            led = model.imagine(numbers, action, z, off, chance_key)
            ends = jax.random.bernoulli(end_key, led.ends)
            return (led.observation, going & ~ends), Steps(
                seen, action, led.reward, model.numbers.apart(led.observation), ends, going
            )

        begun = model.numbers.flat(observation), jnp.ones(len(z), bool)
        _, steps = jax.lax.scan(step, begun, jax.random.split(key, self.config.dream_length))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
        return stop_gradient(Imagined(flat, jnp.tile(z, (self.config.dream_length, 1))))

    def drawn(self, imagined: Imagined, rows: Row, key: Key[Array, ""]) -> Imagined:
        """Some of the imagined steps that count, each as likely: as many as their share beside real `rows` is to be."""
        share, (tasks, sequences, length) = self.config.share, rows.timestep.reward.shape
        count = round(tasks * sequences * (length - 1) * share / (1 - share))
        ends = jnp.cumsum(imagined.steps.counts.astype(jnp.float32))
        at = jnp.searchsorted(ends, jax.random.uniform(key, (count,)) * ends[-1], side="right")
        return jax.tree.map(lambda x: x[jnp.minimum(at, len(ends) - 1)], imagined)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.config.pearl.learning_rate)
