"""How few real steps does it take to act well in tasks that were not learned from, if tasks are imagined too?

In `merging` among drivers who yield as none before did, in `dispatch` before servers of unknown speeds and loads: a
sparse grid of tasks to learn from; judged on others between them, and outside, in the third episode on a task. All
that infer tasks have networks of the same sizes and as many updates, of which more or fewer fall to a real step: so
MetaDreamer (arXiv 2311.06673) and PEARL are learned from several numbers of real steps. Beside them stand SAC in any
tasks of the same box, which does not ask which it is (domain randomisation); SAC that is told; PPO with RL2's memory
and MAML; and in `dispatch` rules that are told speeds, or estimate them by maximum likelihood. Judged are the networks
after the last update.

    python experiments/metadreamer.py
    python experiments/metadreamer.py --game dispatch --grid
    python experiments/metadreamer.py --only structured rsac   # rows that are trained anew; the others stay
    python experiments/metadreamer_pictures.py                 # of both, once they are trained
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.stats import t
from study import Study, study

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.agents.pearl import PEARLConfig, PEARLPolicy, PEARLState
from reverie.agents.rsac import RSACConfig
from reverie.envs.core import Task, TimeStep
from reverie.envs.games import find_game
from reverie.evaluate.contexts import anything, codes_of, foretold, midpoints
from reverie.evaluate.disentanglement import dci, mig, sap, scatter
from reverie.evaluate.returns import returns
from reverie.evaluate.statistics import over_seeds
from reverie.policies.likely import LikelyDelay
from reverie.report.output import say
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, LoopConfig, OffPolicyRun, TrainConfig
from reverie.settings.games import Player, game_plan
from reverie.tables import Row

LONGER = 3
"""Times as many updates, for PEARL, each of whose updates costs less than MetaDreamer's."""
SAC_STEPS = 200_000
"""Which are 12,500 updates of SAC; of recurrent SAC half of that."""
POINTS = 10
"""Of a learning curve."""
TRIALS = 1_000
"""Of each set of tasks, and tasks that codes are measured on."""
TESTS = ("interpolated", "extrapolated")
FARTHER = MappingProxyType({"load": (0.9, 0.97), "tail": (1.6, 2.0), "skew": (1.5, 2.0, 2.5, 3.0)})
"""Values of one factor of `dispatch` alone, ever farther outside of what is learned from; of skew from its edge on."""
KEY = jax.random.key(1)
DRAWS = 10_000
"""Of all means at once, where curves cross."""
AHEAD = 10
"""Steps after which the generative model is judged, besides one."""


GameName = Literal["merging", "dispatch"]
FEW = 300
"""Real steps of each stream, of which there are two or one for each task, in the grid."""
STRUCTURED = {"structure": 1.0, "apart": 0.5}
GRID = MappingProxyType(
    {
        f"{imagination}-{decoder}-{encoder}": {"imagination": imagination, "decoder": decoder, "encoder": encoder}
        for imagination in ("none", "mdp", "meta", "both")
        for decoder in ("physics", "free")
        for encoder in ("recurrent", "product")
    }
    | {"structured": STRUCTURED, "beyond": {"beyond": 1}, "beyond-structured": {"beyond": 1, **STRUCTURED}}
    | {"critics": {"imagination": "none", "decoder": "free", "encoder": "product", "teacher": "critics"}}
    | {
        f"twice-{decoder}": {"imagination": "none", "decoder": decoder, "encoder": "product", "batch": 2}
        for decoder in ("physics", "free")
    }
)
"""What of MetaDreamer is changed in the grid. From `critics` PEARL differs in contexts alone: how many of a task there
are, and which. `twice` imagines nothing, and has as many steps in an update as those that imagine: all real."""


@dataclass(frozen=True)
class Claim:
    """What is trained in a world by the bare command."""

    updates: int
    """Of those who infer tasks."""
    steps: Mapping[Player, tuple[int, ...]]
    """Real steps of each stream that agents learn from, for all seeds."""
    itself: str
    """The row of the grid that the claim is about, which is not trained twice."""
    nothing: str
    """The row of the grid that imagines nothing: the bare command has all seeds of it, as it says what imagining is
    worth."""
    parts: tuple[str, ...]
    """Rows of the grid for fewer seeds."""


CLAIMS: Mapping[GameName, Claim] = MappingProxyType(
    {
        "merging": Claim(
            12_000,
            {"metadreamer": (150, 300, 900, 4_100), "pearl": (150, 300, 900, 4_100)},
            "both-physics-recurrent",
            "none-physics-recurrent",
            (
                "mdp-physics-recurrent",
                "meta-physics-recurrent",
                "both-physics-product",
                "both-free-recurrent",
                "none-free-recurrent",
            ),
        ),
        "dispatch": Claim(  # a seed was no better after 12,000 updates (docs/experiments/metadreamer.md)
            4_000,
            {"metadreamer": (110, 150, 300, 900, 4_100), "pearl": (110, 150, 300, 900, 4_100, 30_000)},
            "both-physics-product",
            "none-physics-product",
            ("both-free-product", "none-free-product"),
        ),
    }
)
TABLES: Mapping[GameName, str] = MappingProxyType({"merging": "metadreamer", "dispatch": "metadreamer_dispatch"})
FEWER_SEEDS = 3
"""Of what else the claim is held to."""
ON_POLICY: Mapping[GameName, tuple[Player, ...]] = MappingProxyType({"merging": ("ppo",), "dispatch": ("ppo", "maml")})
"""Of PPO with RL2's memory and MAML, with the settings that games have for them, those that can play a world."""
DREAMT = (10_800, 49_200)
"""Real steps of Dreamer with RL2's memory: those of PEARL in `dispatch`."""


def learner(
    game: str, agent: Player, each: int, label: str = "", times: int = 1, batch: int = 1, **changes: object
) -> TrainConfig:
    """An agent that makes as many updates as the claim in its world, so many `times`, on so many real steps of each
    stream, 100 of which come before the first, and at least one for each later one of them; `batch` times as many
    steps in an update; `changes` are of MetaDreamer."""
    plan = game_plan(game, agent)
    assert isinstance(plan.agent, OffPolicyRun)
    before, algorithm = plan.agent.experience, plan.agent.algorithm
    if isinstance(algorithm, MetaDreamerConfig):
        algorithm = replace(algorithm, **changes)
        if algorithm.teacher == "critics":  # their weight of the KL
            algorithm = replace(algorithm, pearl=replace(algorithm.pearl, kl=PEARLConfig().kl))
    steps, rounds, prefill = each * before.streams, each - 100, 100 * before.streams
    repeats = max(1, times * CLAIMS[game.partition("/")[0]].updates // rounds)
    size = batch * before.batch
    experience = replace(before, batch=size, repeats=repeats, ratio=size * repeats / before.streams, prefill=prefill)
    run = replace(plan.agent, algorithm=algorithm, experience=experience, chunk=rounds // POINTS)
    paced = LoopConfig(steps=steps, evaluate_every=steps // POINTS)
    return replace(plan, label=label or f"{agent}-{steps}", agent=run, loop=paced)


def unhindered(game: str, agent: Player, tasks: str) -> TrainConfig:
    """SAC, or recurrent SAC, of PEARL's size and with experience to spare, in a game's tasks of that name."""
    plan = game_plan(f"{game}/{tasks}" if tasks else game, agent)
    algorithm = plan.agent.algorithm
    match algorithm:
        case RSACConfig(sac=sac):
            algorithm = replace(algorithm, sac=replace(sac, units=64))
        case _:
            algorithm = replace(algorithm, units=64)
    paced = LoopConfig(steps=SAC_STEPS, evaluate_every=SAC_STEPS // POINTS)
    label = f"{agent}-{tasks}" if tasks else agent
    return replace(plan, label=label, agent=replace(plan.agent, algorithm=algorithm), loop=paced)


def remembering(game: str, steps: int) -> TrainConfig:
    """Dreamer with RL2's memory, which lives through trials of three episodes, with the settings that games of many
    tasks have for it, on so many real steps."""
    plan = game_plan(game)
    return replace(plan, label=f"dreamer-{steps}", loop=LoopConfig(steps=steps, evaluate_every=steps // POINTS))


@dataclass(frozen=True)
class OfRows(Study):
    """The options of experiments whose table's rows are trained alone where that is asked for."""

    only: tuple[str, ...] = ()
    """The rows of the table to train, of the grid too; all others stay as they were published."""

    def larger(self, plan: TrainConfig) -> TrainConfig:
        """A plan at the scale of this study; what MetaDreamer shares with PEARL grows as PEARL does, and of recurrent
        SAC what it shares with SAC."""
        match plan.agent.algorithm:
            case MetaDreamerConfig(pearl=shared) as ours if self.scale == "gpu":
                part, whole = shared, lambda larger: replace(ours, pearl=larger)
            case RSACConfig(sac=shared) as ours if self.scale == "gpu":
                part, whole = shared, lambda larger: replace(ours, sac=larger)
            case _:
                return super().larger(plan)
        found = super().larger(replace(plan, agent=replace(plan.agent, algorithm=part)))
        return replace(found, agent=replace(found.agent, algorithm=whole(found.agent.algorithm)))


@dataclass(frozen=True)
class Samples(OfRows):
    """The options of this experiment."""

    game: GameName = "merging"
    """Which world."""
    grid: bool = False
    """Besides, PEARL with as many real tasks as MetaDreamer has real and imagined ones, PEARL with more updates, PEARL
    that is told, recurrent SAC and PPO, in the game's tasks and in any of the box (in `dispatch` MAML too), Dreamer
    with RL2's memory, and all of the grid: every imagination with both decoders and both encoders, larger updates in
    its place, an encoder that the critics teach, structured latents, and tasks imagined beyond those known."""

    def plans(self) -> list[TrainConfig]:
        """What the claim is about for all seeds, then what it is held to, for fewer."""
        game, claim = self.game, CLAIMS[self.game]
        learners = [learner(game, agent, each) for agent, steps in claim.steps.items() for each in steps]
        grid = {name: learner(game, "metadreamer", FEW, name, **changes) for name, changes in GRID.items()}
        nothing, _ = grid.pop(claim.nothing), grid.pop(claim.itself)
        controls = [
            *(grid.pop(name) for name in claim.parts),
            unhindered(game, "sac", "told"),
            unhindered(game, "sac", "box"),
        ]
        if self.grid or self.only:
            controls += [learner(f"{game}/dense", "pearl", FEW, "pearl-dense"), unhindered(game, "rsac", "")]
            controls += [learner(game, "pearl", FEW, "pearl-longer", LONGER)]
            controls += [learner(f"{game}/told", "pearl", 900, "pearl-told")]
            controls += [remembering(game, each) for each in DREAMT]
            controls += [replace(game_plan(game, agent), label=agent) for agent in ON_POLICY[game]]
            # Who is given the physics may draw its tasks from the whole box, and then needs no real step at all.
            controls += [unhindered(game, "rsac", "box"), replace(game_plan(f"{game}/box", "ppo"), label="ppo-box")]
            controls += grid.values()
        groups = ([*learners, nothing], self.seeds), (controls, min(self.seeds, FEWER_SEEDS))
        if strange := sorted(set(self.only) - {plan.name for plans, _ in groups for plan in plans}):
            raise ValueError(f"the table has no rows {strange}")
        return [
            self.larger(replace(plan, seed=seed))
            for plans, seeds in groups
            for seed in range(seeds)
            for plan in plans
            if not self.only or plan.name in self.only
        ]


def judged_on(game: GameConfig) -> Mapping[str, Task]:
    """The tests of a game, and in `dispatch` those between known tasks with one factor ever farther outside."""
    found = {name: game.drawn(TRIALS, name) for name in TESTS}
    if game.game.startswith("dispatch"):
        factors = find_game(game.game.removesuffix("/told")).world.factors
        between = np.asarray(found["interpolated"])
        for k, name in enumerate(factors):
            for far in FARTHER[name]:
                outside = between.copy()
                outside[:, k] = np.copysign(far, between[:, k])
                found[f"{name}_{far:g}"] = jnp.asarray(outside)
    return found


class ByChance(eqx.Module):
    """An agent that infers its task from any actions, drawn evenly, where its own would be by the prior."""

    policy: PEARLPolicy

    def initial_state(self, batch: int) -> PEARLState:
        return self.policy.initial_state(batch)

    def act(self, state: PEARLState, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Array, PEARLState]:
        spec = self.policy.networks.spec
        own, state = self.policy.act(state, timestep, key)
        any_ = anything(spec, len(own), jax.random.fold_in(key, 1))
        action = jnp.where(state.is_prior.reshape(-1, *[1] * (own.ndim - 1)), any_, own)
        return action, state._replace(action=spec.encode(action))


def judged(run: RunFolder) -> Row:
    """What one agent brings home, and what its codes and its model are worth."""
    config = run.config(TrainConfig)
    assert isinstance(config.world, GameConfig)
    trainer = build(config)
    _, state = loop.newest_state(trainer, run)
    networks = state.learning.learner.networks  # those of the last update, not their average
    policy, found = trainer.agent.policy(networks, greedy=True), {}
    for name, tasks in judged_on(config.world).items():
        found[name] = float(returns(config.world.world(TRIALS), policy, tasks, KEY, 3)[:, -1].mean())
        match policy:
            case PEARLPolicy() if name in TESTS:
                after = returns(config.world.world(TRIALS), ByChance(policy), tasks, KEY, 3)[:, -1]
                found[f"{name}_by_chance"] = float(after.mean())
    match trainer.agent:
        case MetaDreamer() as agent:
            found |= imagination(agent, trainer.env, networks, policy)
            updates = int(run.metrics()[-1]["updates"])
            lines = [line["imagined/steps"] for line in run.metrics() if "imagined/steps" in line]
            renew, before = agent.config.renew, max(agent.config.warmup, 1) - 1
            renewals = updates // renew - before // renew
            found["imagined_steps"] = float(np.mean(lines[1:])) * renewals * agent.config.rollouts if lines else 0.0
    return found


def imagination(agent: MetaDreamer, world, networks, policy: PEARLPolicy) -> Mapping[str, float]:
    """Codes of tasks that were not learned from, and how far the model is off half way between two that were, and
    that differ in one factor, or in several (`by`)."""
    low, high = np.min(agent.tasks, 0), np.max(agent.tasks, 0)
    dense = np.random.default_rng(2).uniform(low, high, (TRIALS, len(low))).astype(np.float32)
    steps = agent.config.pearl.evidence
    codes = np.asarray(codes_of(world, policy, jnp.asarray(dense), 4, steps, KEY))
    mean = codes[:, 0]
    known = np.asarray(agent.tasks, np.float32)
    of_known = np.asarray(codes_of(world, policy, jnp.asarray(known), 64, steps, KEY)).mean(1)
    errors: dict[str, float] = {}
    for factors, pairs in midpoints(known).items():
        between = jnp.asarray(np.repeat([known[[a, b]].mean(0) for a, b in pairs], 64, 0))
        z = jnp.asarray(np.repeat([of_known[[a, b]].mean(0) for a, b in pairs], 64, 0))
        by = "" if factors == 1 else f"_by_{factors}"
        for how, told in (("off", z), ("unknowing", jnp.zeros_like(z))):
            error = foretold(world, networks.model, between, told, AHEAD, KEY).error
            errors |= {f"{how}_1{by}": float(error[0]), f"{how}_{AHEAD}{by}": float(error[-1])}
    said = dci(mean, dense)
    return {
        "scatter": scatter(codes),
        "disentanglement": said.disentanglement,
        "completeness": said.completeness,
        "informativeness": said.informativeness,
        "sap": sap(mean, dense),
        "mig": mig(mean, dense),
    } | errors


class Expected(eqx.Module):
    """Shortest expected delay by given speeds."""

    speed: Float[Array, "E N"]

    def initial_state(self, batch: int) -> Float[Array, " E"]:
        return jnp.zeros(batch)

    def act(self, state: Array, timestep: TimeStep, key: Key[Array, ""]) -> tuple[Int[Array, " E"], Array]:
        work = timestep.observation["servers"][..., 0] + timestep.observation["job"][:, :1]
        return (work / self.speed).argmin(-1), state


def rules(game: GameConfig) -> list[Row]:
    """What rules bring home in a game of `dispatch`, on the same jobs as agents: by speeds that are told, of maximum
    likelihood, and all alike."""
    found: dict[str, Row] = {}
    world = game.world(TRIALS)
    for name, tasks in judged_on(game).items():
        speed = world.laws(tasks)[0]
        each = {"told-speeds": Expected(speed), "likely-speeds": LikelyDelay(speed.shape[1])}
        for rule, policy in (each | {"equal-speeds": Expected(jnp.ones_like(speed))}).items():
            row = found.setdefault(rule, {"agent": rule})
            row[name] = float(returns(world, policy, tasks, KEY, 3)[:, -1].mean())
    return list(found.values())


def rows(asked: Study, under: str, runs: list[RunFolder]) -> list[Row]:
    """Means over seeds, with intervals of returns, of runs that are kept under that name."""
    found: dict[str, list[tuple[RunFolder, Row]]] = {}
    for run in runs:
        say(run.path.name)
        (row,) = asked.kept(f"{under}-{run.path.name}", lambda run=run: [judged(run)])
        found.setdefault(run.config(TrainConfig).name, []).append((run, row))
    made = []
    for name, each in found.items():
        config, last = each[0][0].config(TrainConfig), [run.metrics()[-1] for run, _ in each]
        row: Row = {
            "agent": name,
            "tasks": len(config.world.tasks),
            "seeds": len(each),
            "real_steps": int(last[0]["step"]),
        }
        row["cpu_seconds"] = float(np.mean([line["cpu_seconds"] for line in last]))
        after = [f"{tasks}_by_chance" for tasks in TESTS]
        by_chance = after if all(measured.keys() >= set(after) for _, measured in each) else []
        sets = [name for name in judged_on(config.world) if all(name in measured for _, measured in each)]
        for tasks in (*sets, *by_chance):
            row |= interval(tasks, *over_seeds(np.array([measured[tasks] for _, measured in each])))
        for measure in MEASURES:
            values = [measured.get(measure) for _, measured in each]  # tables kept of old may lack it
            row[measure] = None if None in values else float(np.mean(values))
        made.append(row)
    return made


def compared(asked: Samples, found: list[Row], rows: list[Row]) -> list[Row]:
    """Rows, of which some were just found, with how far MetaDreamer, of as many real steps as the grid, is ahead of
    each: Welch's interval, of what the table says itself, as runs of what was published may be gone."""
    plan = learner(asked.game, "metadreamer", FEW)
    (ours,) = (row for row in rows if row["agent"] == plan.name)
    for row in rows if ours in found else found:
        if row is ours or not row.get("seeds"):
            continue
        for tasks in TESTS:
            row |= interval(f"{tasks}_ahead", *difference(ours, row, tasks))
    return rows


def difference(one: Row, other: Row, tasks: str) -> tuple[float, float, float]:
    """Of the mean returns of two agents, with its ends; NaN where one has a single seed."""
    mean, error, free = [], [], []
    for row in (one, other):
        mean.append(row[tasks])
        free.append(row["seeds"] - 1)
        above = np.nan if row[f"{tasks}_high"] is None else row[f"{tasks}_high"] - row[tasks]
        error.append(above / t.ppf(0.975, free[-1]))
    squared = np.square(error)
    either = t.ppf(0.975, squared.sum() ** 2 / (squared**2 / free).sum()) * np.sqrt(squared.sum())
    return (ahead := mean[0] - mean[1]), ahead - either, ahead + either


def curve(rows: list[Row], agent: Player) -> list[Row]:
    """The rows of an agent that differ by nothing but real steps, the fewest first; without those of a single seed."""
    named = ((str(row["agent"]).rpartition("-"), row) for row in rows if (row.get("seeds") or 0) > 1)
    return sorted(
        (row for (name, _, steps), row in named if name == agent and steps.isdigit()), key=lambda row: row["real_steps"]
    )


def crossings(game: GameName, rows: list[Row]) -> list[Row]:
    """From how many real steps on PEARL earns what MetaDreamer earns after some: by straight lines between PEARL's
    means over the logarithm of steps. Ends are of draws of all means, each by Student's distribution; `more` and
    `never` are the shares of them in which PEARL takes more steps, and does not earn as much with its most, where steps
    are empty. None are fewer than PEARL's fewest, and there are none where it has no two points."""
    rng, found = np.random.default_rng(0), []

    def draws(row: Row, tasks: str) -> np.ndarray:
        """The mean, and others that it might be."""
        free = row["seeds"] - 1
        error = (row[f"{tasks}_high"] - row[tasks]) / t.ppf(0.975, free)
        return row[tasks] + error * np.append(0.0, rng.standard_t(free, DRAWS))

    theirs = curve(rows, "pearl")
    for tasks in TESTS if len(theirs) > 1 else ():
        at, earned = np.log([row["real_steps"] for row in theirs]), np.stack([draws(row, tasks) for row in theirs], 1)
        for row in curve(rows, "metadreamer"):
            wanted = draws(row, tasks)
            less = earned < wanted[:, None]
            after = len(at) - less[:, ::-1].argmax(1)  # the first from which on all earn as much
            after = np.where(less.any(1), after, 0)
            upper = np.clip(after, 1, len(at) - 1)
            low, high = (np.take_along_axis(earned, i[:, None], 1)[:, 0] for i in (upper - 1, upper))
            part = np.clip((wanted - low) / np.where(high > low, high - low, np.inf), 0, 1)
            between = at[upper - 1] + part * (at[upper] - at[upper - 1])
            first = np.select([after == 0, after == len(at)], [at[0], np.inf], between)
            mean, others = first[0], first[1:]
            low, high = np.quantile(others, (0.025, 0.975), method="nearest")
            steps = {"pearl_steps": mean, "pearl_steps_low": low, "pearl_steps_high": high}
            more, never = (others > np.log(row["real_steps"])).mean(), np.isinf(others).mean()
            found.append(
                {"game": game, "tasks": tasks, "real_steps": row["real_steps"], "return": row[tasks]}
                | {name: float(np.exp(value)) if np.isfinite(value) else None for name, value in steps.items()}
                | {"more": float(more), "never": float(never)}
            )
    return found


def interval(name: str, mean: float, low: float, high: float) -> Row:
    """Columns of an estimate; empty where there is no interval."""
    ends = {f"{name}_low": low, f"{name}_high": high}
    return {name: float(mean)} | {end: None if np.isnan(value) else float(value) for end, value in ends.items()}


def whole(rows: list[Row]) -> list[Row]:
    """With all columns in each row, in their order."""
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


MEASURES = (
    "imagined_steps",
    "scatter",
    "disentanglement",
    "completeness",
    "informativeness",
    "sap",
    "mig",
    *(f"{how}_{ahead}{by}" for by in ("", "_by_2", "_by_3") for how in ("off", "unknowing") for ahead in (1, AHEAD)),
)
"""Of MetaDreamer alone."""


def main() -> None:
    asked = study(Samples, __doc__)
    runs = asked.train(asked.plans(), asked.game)
    found = rows(asked, asked.game, runs)
    name = TABLES[asked.game]
    if asked.game == "dispatch":
        found += rules(GameConfig("dispatch"))
    together = whole(compared(asked, found, asked.with_others(name, found, "agent")))
    asked.publish(name, together)
    if crossed := crossings(asked.game, together):  # of single seeds there are none
        asked.publish_games("metadreamer_crossings", crossed, "game", "tasks", "real_steps")


if __name__ == "__main__":
    main()
