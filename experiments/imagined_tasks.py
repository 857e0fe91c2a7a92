"""What are imagined tasks worth when tasks differ in more or fewer factors, and few or many of them are known?

In `dispatch` (docs/metadreamer.md), at 3,600 real steps each: MetaDreamer and PEARL where skew of speeds alone decides
a task, and where load does too; then, where it is skew alone, MetaDreamer with 2, 3 and 6 known values of it (I) and
more or fewer imagined ones between two neighbours (D), none (`mdp`), or some beyond all of them. And both where two
factors say how drivers yield (`merging/hidas`), at 5,400. Judged as in `metadreamer.py`, whose table has the rows of
`merging`, and of all three factors of `dispatch`.

    python experiments/imagined_tasks.py
    python experiments/imagined_tasks.py --only metadreamer-skew pearl-skew   # rows that are trained anew
"""

from dataclasses import dataclass, replace

from metadreamer import FEW, TESTS, OfRows, difference, interval, learner, rows, rules, whole
from study import study

from reverie.agents.metadreamer import MetaDreamerConfig
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


def described(row: Row, plan: TrainConfig) -> Row:
    """A row, with what was known and what was imagined."""
    assert isinstance(plan.world, GameConfig)
    match plan.agent.algorithm:
        case MetaDreamerConfig(imagination="mdp"):
            more, beyond = 0, 0
        case MetaDreamerConfig(density=more, beyond=beyond):
            pass
        case _:
            more, beyond = None, None
    return {"agent": row["agent"], "game": plan.world.game, "density": more, "beyond": beyond} | row


def main() -> None:
    asked = study(Imagined, __doc__)
    plans = asked.plans()
    of = {plan.name: plan for plan in plans}
    found = rows(asked, "imagined", asked.train(plans, "imagined"))
    found = [described(row, of[str(row["agent"])]) for row in found]
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
