"""How much faster could a rule be? One step of policy iteration by rollouts in the true simulator, with common luck.

At each job the rule's first choices are tried out: each is followed by the rule itself on the same futures, drawn from
the true workload. Another server than the rule's is taken where the sum of response times of what follows is smaller by
two standard errors. A rule that this leaves as it is cannot be improved by changing single decisions, as far as so many
futures can tell; a rule that has room to be better is the control.

    python experiments/attainable.py
"""

from dataclasses import dataclass, field, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from study import ExamOptions, Study, study
from tuned import Tuned

from reverie.envs.core import TimeStep
from reverie.envs.fleet.env import FleetEnv, FleetState, Task
from reverie.evaluate.examination import Exam, of_family, rules_of
from reverie.evaluate.statistics import ratio, ratio_of_means
from reverie.policies.core import Policy
from reverie.report.output import say
from reverie.tables import Row

CONTROLS = ("shortest-wait", "wait-plus-service")


@dataclass(frozen=True)
class Attainable(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=16, jobs=400))
    seeds: int = 2
    """Searches for a tuned rule, as `tuned.py` makes them."""
    family: str = "hard"
    """The tasks, seen in view `full`."""
    futures: int = 128
    """Of each decision."""
    ahead: int = 150
    """Jobs of a future."""
    choices: int = 3
    """Servers that are tried: the rule's first choice, what it would take if that one were not there, and so on."""


@dataclass(frozen=True)
class Rollouts:
    """A rule that has no memory, and the same improved by one step. Hashable: it is part of the compiled program."""

    env: FleetEnv
    futures: int
    ahead: int
    choices: int

    def first(self, rule: Policy, seen: TimeStep) -> Int[Array, " C"]:
        """The servers that the rule would choose, each without those before it."""

        def next_(mask: Bool[Array, " N"], _: None) -> tuple[Bool[Array, " N"], Int[Array, ""]]:
            server = choice(rule, seen._replace(observation=seen.observation | {"mask": mask}))
            return mask & (jnp.arange(self.env.servers) != server), server

        return jax.lax.scan(next_, seen.observation["mask"], None, length=self.choices)[1]

    def better(
        self, rule: Policy, task: Task, state: FleetState, seen: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, ""], Bool[Array, ""]]:
        """The server to take, and whether it is another than the rule's."""
        servers = self.first(rule, seen)
        streams = jax.random.split(key, self.futures)
        of_all = jax.vmap(jax.vmap(self.total, (None, None, None, 0, None)), (None, None, None, None, 0))
        cost = of_all(rule, task, state, streams, servers)  # [C, M]
        more = cost - cost[0]
        mean, error = more.mean(1), more.std(1) / self.futures**0.5
        best = jnp.where(mean < -2 * error, mean, 0.0).argmin()
        return servers[best], best != 0

    def total(
        self, rule: Policy, task: Task, state: FleetState, stream: Key[Array, ""], server: Int[Array, ""]
    ) -> Float[Array, ""]:
        """The response times of a job that is sent to `server` and of all that follow it in one future."""
        endless = replace(self.env, jobs=10_000_000)
        state, seen = endless.step(task, state._replace(stream=stream), server, stream)

        def step(carry: tuple[FleetState, TimeStep], _: None) -> tuple[tuple[FleetState, TimeStep], Float[Array, ""]]:
            state, seen = endless.step(task, carry[0], choice(rule, carry[1]), stream)
            return (state, seen), seen.reward

        return -seen.reward - jax.lax.scan(step, (state, seen), None, length=self.ahead - 1)[1].sum()


def choice(rule: Policy, seen: TimeStep) -> Int[Array, ""]:
    """Of one observation."""
    action, _ = rule.act((), jax.tree.map(lambda leaf: leaf[None], seen), jax.random.key(0))
    return action[0]


@eqx.filter_jit
def played(
    how: Rollouts, rule: Policy, tasks: Task, key: Key[Array, ""], improve: bool
) -> tuple[Float[Array, "E J"], Float[Array, ""]]:
    """Response times of the rule, or of what rollouts make of it, on the same jobs; and how often they differ."""

    def episode(task: Task, key: Key[Array, ""]) -> tuple[Float[Array, " J"], Float[Array, ""]]:
        world, luck = jax.random.split(key)
        begin = how.env.reset(task, world)

        def step(carry: tuple[FleetState, TimeStep], key: Key[Array, ""]) -> tuple:
            state, seen = carry
            other = jnp.zeros((), bool)
            if improve:
                server, other = how.better(rule, task, state, seen, key)
            else:
                server = choice(rule, seen)
            state, seen = how.env.step(task, state, server, world)
            return (state, seen), (-seen.reward, other)

        response, other = jax.lax.scan(step, begin, jax.random.split(luck, how.env.jobs))[1]
        return response, other.mean()

    response, other = jax.vmap(episode)(tasks, jax.random.split(key, tasks.mask.shape[0]))
    return response, other.mean()


def row(asked: Attainable, name: str, rule: Policy) -> Row:
    """What one step of policy iteration makes of a rule."""
    say(f"{name}: {asked.futures} futures of {asked.ahead} jobs for each of {asked.choices} servers")
    exam, setting = asked.exam, of_family(asked.family, asked.exam)
    env = FleetEnv(setting.tasks.mask.shape[-1], exam.jobs)
    how = Rollouts(env, asked.futures, asked.ahead, asked.choices)
    key = jax.random.key(exam.stream)
    before, _ = played(how, rule, setting.tasks, key, False)
    after, changed = played(how, rule, setting.tasks, key, True)
    of_rule, of_better = (np.asarray(response, float).mean(1)[None] for response in (before, after))
    found: Row = {"rule": name, "episodes": exam.episodes, "response": float(of_rule.mean()), "changed": float(changed)}
    found |= dict(zip(("ratio", "low", "high"), ratio(of_better, of_rule), strict=True))
    found |= {"ratio_of_means": ratio_of_means(of_better, of_rule).value}
    return found | {"p99_ratio": float(np.quantile(after, 0.99) / np.quantile(before, 0.99))}


def main() -> None:
    asked = study(Attainable, __doc__)
    setting = of_family(asked.family, asked.exam)
    rules = {c.name: c.policy for c in rules_of(setting, "full", CONTROLS)}
    for seed in range(asked.seeds):
        tuned = Tuned(runs=asked.runs, scale=asked.scale).rule("scored-work", asked.family, seed)
        rules[f"tuned, search {seed}"] = tuned.policy
    table = []
    for name, rule in rules.items():
        kept = f"attainable-{asked.family}-{name.replace(', ', '-').replace(' ', '-')}"
        table += asked.kept(kept, lambda name=name, rule=rule: [row(asked, name, rule)], asked.exam)
    asked.publish("attainable", table)


if __name__ == "__main__":
    main()
