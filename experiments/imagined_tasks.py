"""What are imagined tasks worth when tasks differ in more or fewer factors, and few or many of them are known?

In `dispatch` (docs/metadreamer.md), at 3,600 real steps each: MetaDreamer and PEARL where skew of speeds alone decides
a task, and where load does too; then, where it is skew alone, MetaDreamer with 2, 3 and 6 known values of it (I) and
more or fewer imagined ones between two neighbours (D), none (`mdp`), or some beyond all of them. And both where two
factors say how drivers yield (`merging/hidas`), at 5,400. Judged as in `metadreamer.py`, whose table has the rows of
`merging`, and of all three factors of `dispatch`.

    python experiments/imagined_tasks.py
    python experiments/imagined_tasks.py --only metadreamer-skew pearl-skew   # rows that are trained anew
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from metadreamer import FEW, KEY, TESTS, TRIALS, OfRows, difference, interval, learner, rows, rules, whole
from study import study

from reverie.agents.metadreamer import MetaDreamer, MetaDreamerConfig
from reverie.envs.dispatch import apart
from reverie.models.tasks import find_dimensions
from reverie.runs import loop
from reverie.runs.build import build
from reverie.runs.folder import RunFolder
from reverie.settings.config import GameConfig, TrainConfig
from reverie.settings.games import Player
from reverie.tables import Row

FACTORS = ("dispatch/skew", "dispatch/load-skew", "merging/hidas")
"""Worlds with fewer factors than `dispatch`, and one with more than `merging`, whose rows stand in the other tables."""
KNOWN = {"dispatch/skew/sparse": 2, "dispatch/skew": 3, "dispatch/skew/dense": 6}
"""Known values of skew, by game. All have twelve streams."""
DENSITIES = (1, 2, 8)
"""Imagined values between two neighbours; two is the agent's own."""


@dataclass(frozen=True)
class Imagined(OfRows):
    """The options of this experiment."""

    seeds: int = 3
    """Training seeds."""

    def plans(self) -> list[TrainConfig]:
        """All that are asked for, one seed after the other."""
        found = [
            learner(game, agent, FEW, of_game(agent, game)) for game in FACTORS for agent in ("metadreamer", "pearl")
        ]
        for game, known in KNOWN.items():
            found.append(learner(game, "metadreamer", FEW, f"known-{known}-none", imagination="mdp"))
            found += [
                learner(game, "metadreamer", FEW, f"known-{known}-{density}", density=density)
                for density in DENSITIES
                if (known, density) != (3, 2)  # metadreamer-skew
            ]
        found.append(learner("dispatch/skew", "metadreamer", FEW, "beyond-skew", beyond=1))
        if strange := sorted(set(self.only) - {plan.name for plan in found}):
            raise ValueError(f"the table has no rows {strange}")
        return [
            self.larger(replace(plan, seed=seed))
            for seed in range(self.seeds)
            for plan in found
            if not self.only or plan.name in self.only
        ]


def of_game(agent: Player, game: str) -> str:
    """The row of an agent in a world of some factors."""
    return f"{agent}-{game.partition('/')[2]}"


def share_that_is_new(run: RunFolder) -> float | None:
    """Of the tasks that a run of MetaDreamer imagines where skew alone decides, the share whose skew, by the speeds
    that its decoder makes of their codes, is at least a quarter of a gap away from all known ones."""
    trainer = build(run.config(TrainConfig))
    match trainer.agent:
        case MetaDreamer(factors=("skew",), config=MetaDreamerConfig(imagination="both")) as agent:
            learned = loop.newest_state(trainer, run)[1].learning.learner
        case _:
            return None
    known = jnp.array(agent.tasks)
    dimensions, _ = find_dimensions(learned.codes, known, learned.known)
    z = agent.interpolation.codes(learned.codes, dimensions, agent.config.epsilon, TRIALS, KEY)
    speed = apart(learned.networks.model.unknown(z, z, z))[0]  # of a world whose unknowns z alone decides
    return new_among(np.asarray(speed), np.asarray(known)[:, 0])


def new_among(speed: Float[np.ndarray, "B N"], known: Float[np.ndarray, " K"]) -> float:
    """The share of fleets of such speeds whose skew is at least a quarter of a gap away from all `known` ones."""
    skew = np.log(speed[:, -1] / speed[:, 0]) / 2
    gap = np.diff(np.sort(known)).min()
    return float((np.abs(skew[:, None] - known).min(1) > gap / 4).mean())


def described(row: Row, plan: TrainConfig, new: Sequence[float | None]) -> Row:
    """A row, with what was known and what was imagined, and how much of that is `new`, by seed."""
    assert isinstance(plan.world, GameConfig)
    match plan.agent.algorithm:
        case MetaDreamerConfig(imagination="mdp"):
            more, beyond = 0, 0
        case MetaDreamerConfig(density=more, beyond=beyond):
            pass
        case _:
            more, beyond = None, None
    share = None if None in new else float(np.mean([each for each in new if each is not None]))
    return {"agent": row["agent"], "game": plan.world.game, "density": more, "beyond": beyond, "new": share} | row


def main() -> None:
    asked = study(Imagined, __doc__)
    plans = asked.plans()
    of = {plan.name: plan for plan in plans}
    runs = asked.train(plans, "imagined")
    new: dict[str, list[float | None]] = {}
    for run in runs:
        new.setdefault(run.config(TrainConfig).name, []).append(share_that_is_new(run))
    found = rows(asked, "imagined", runs)
    found = [described(row, of[name], new[name]) for row in found for name in [str(row["agent"])]]
    for game in dict.fromkeys(plan.world.game for plan in plans if plan.world.game.startswith("dispatch")):
        found += [{**row, "agent": f"{row['agent']} in {game}", "game": game} for row in rules(GameConfig(game))]
    together = asked.with_others("imagined_tasks", found, "agent")
    named = {row["agent"]: row for row in together}
    for game in FACTORS:
        both = [of_game(agent, game) for agent in ("metadreamer", "pearl")]
        if named.keys() >= set(both):
            ours, theirs = (named[name] for name in both)
            for tasks in TESTS:
                theirs |= interval(f"{tasks}_ahead", *difference(ours, theirs, tasks))
    asked.publish("imagined_tasks", whole(together))


if __name__ == "__main__":
    main()
