"""How sure we are: paired comparisons of policies that met the same jobs, and the verdict on each.

`verdict(rows)` turns the result rows of `trials.py` into one row per agent, task and level, in which every number has
its interval and its counts of seeds and episodes. `mean`, `iqm`, `ratio` and `difference` give single estimates from
arrays [S, E] (training seeds x evaluation episodes), `over_seeds` from one number a seed. Nothing here runs a policy,
prints or draws.

Intervals. Every training seed plays the same episodes, so seeds and episodes are resampled independently of one
another (the pigeonhole bootstrap for crossed factors: Owen, Annals of Applied Statistics 1(2), 2007; it errs on the
wide side where neither has an effect of its own); policies that are compared share the resampled episodes. Of n units
n - 1 are drawn, which makes the bootstrap variance unbiased (Rao and Wu, JASA 83, 1988), and the standard error is
multiplied by Student's quantile for the effective degrees of freedom (Satterthwaite, Biometrics 2, 1946): a percentile
bootstrap over five seeds would hold its 95 % only in about 88 % of the cases. Response times and ratios are handled as
logarithms. There is no correction for many comparisons: of twenty equal agents one is expected to seem better or worse.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from reverie.ranges import Seed, at_least, between, checked
from reverie.tables import Cell, Row

Values = Float[np.ndarray, "S E"]
"""One number per training seed and evaluation episode."""
Baseline = Float[np.ndarray, "Z F"]
"""The same for what it is compared with: other training seeds, the same episodes."""

BEST_RULE = "best rule"
SEEDS_FOR_A_CLAIM = 5
EPISODES_FOR_A_CLAIM = 200


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
@checked
class Bootstrap:
    """How intervals are made."""

    confidence: Annotated[float, *between(0, 1, low_open=True, high_open=True)] = 0.95
    """Probability that an interval holds the true value."""
    resamples: Annotated[int, *at_least(100, 1_000_000, "all are held in memory")] = 4000
    """How often seeds and episodes are drawn anew."""
    seed: Seed = 0
    """Of these draws: the same table gives the same intervals."""


DEFAULT = Bootstrap()


# --- estimates from values [S, E] ------------------------------------------------------------------------------------


def mean(values: Values, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """The mean of positive values over seeds and episodes."""
    draws = _weighted(_seeds(bootstrap, values), values, _episodes(bootstrap, values))
    return _of_positive(values.mean(), draws, values, bootstrap)


def iqm(values: Values, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """The interquartile mean of positive values: of the middle half of them (Agarwal et al., NeurIPS 2021).

    Where a quarter of the values is no whole number, the values at its border count in part.
    """
    ascending = values.argsort(axis=None)
    seed, episode = np.unravel_index(ascending, values.shape)
    seeds, episodes = _seeds(bootstrap, values), _episodes(bootstrap, values)

    def of_middle(weights: Float[np.ndarray, "R SE"]) -> Float[np.ndarray, " R"]:
        inside = np.diff(np.clip(weights.cumsum(-1), 0.25, 0.75), prepend=0.25)
        return 2 * inside @ values.ravel()[ascending]

    blocks = range(0, len(episodes), 250)  # all at once would need R x S x E numbers
    draws = [of_middle(seeds[i : i + 250, seed] * episodes[i : i + 250, episode]) for i in blocks]
    (point,) = of_middle(np.full((1, values.size), 1 / values.size))
    return _of_positive(point, np.concatenate(draws), values, bootstrap)


def ratio(values: Values, baseline: Baseline, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """The geometric mean of the per-episode ratios values / baseline.

    Arguments: positive `values` [S, E] and `baseline` [Z, E], of the same E episodes. Training seeds are not paired.
    """
    return _exp(difference(np.log(values), np.log(baseline), bootstrap))


def difference(values: Values, baseline: Baseline, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """The mean of the per-episode differences values - baseline, in their unit; arguments as for `ratio`."""
    if values.shape[1] != baseline.shape[1]:
        raise ValueError(
            "a paired comparison needs the same episodes on both sides, "
            f"got values {values.shape} and baseline {baseline.shape}"
        )
    episodes = _episodes(bootstrap, values)
    draws = _weighted(_seeds(bootstrap, values), values, episodes)
    draws = draws - _weighted(_seeds(bootstrap, baseline, stream=2), baseline, episodes)
    return _interval(values.mean() - baseline.mean(), draws, _freedom(values, baseline), bootstrap)


def over_seeds(values: Float[np.ndarray, " S"], confidence: float = 0.95) -> Estimate:
    """The mean of one number for each training seed, with Student's interval; NaN for its ends where S is 1."""
    if len(values) < 2:
        return Estimate(float(values.mean()), np.nan, np.nan)
    error = scipy.stats.sem(values)
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def _episodes(bootstrap: Bootstrap, values: Values) -> Float[np.ndarray, "R E"]:
    if values.shape[1] < 2:
        raise ValueError(f"an interval needs at least 2 evaluation episodes, got {values.shape[1]}")
    return _draw(bootstrap, 0, values.shape[1])


def _seeds(bootstrap: Bootstrap, values: Values, stream: int = 1) -> Float[np.ndarray, "R S"]:
    return _draw(bootstrap, stream, values.shape[0])


@lru_cache(maxsize=8)
def _draw(bootstrap: Bootstrap, stream: int, count: int) -> Float[np.ndarray, "R n"]:
    """How much each of `count` units weighs in each resample: count - 1 draws with replacement."""
    draws = max(count - 1, 1)
    rng = np.random.default_rng([bootstrap.seed, stream])
    return rng.multinomial(draws, np.full(count, 1 / count), bootstrap.resamples) / draws


def _weighted(
    seeds: Float[np.ndarray, "R S"], values: Values, episodes: Float[np.ndarray, "R E"]
) -> Float[np.ndarray, " R"]:
    return ((seeds @ values) * episodes).sum(-1)


def _freedom(a: Values, b: Float[np.ndarray, "Z E"] | None = None) -> float:
    """Satterthwaite's degrees of freedom of the mean of a, or of mean a - mean b: seeds and episodes both vary."""
    per_episode = a.mean(0) if b is None else a.mean(0) - b.mean(0)
    units = [per_episode, *(side.mean(1) for side in (a, b) if side is not None and len(side) > 1)]
    variances = [unit.var(ddof=1) / len(unit) for unit in units]
    if not any(variances):
        return np.inf
    return sum(variances) ** 2 / sum(v**2 / (len(unit) - 1) for v, unit in zip(variances, units, strict=True))


def _interval(point: float, draws: Float[np.ndarray, " R"], freedom: float, bootstrap: Bootstrap) -> Estimate:
    half = scipy.stats.t.ppf((1 + bootstrap.confidence) / 2, freedom) * draws.std()
    return Estimate(float(point), float(point - half), float(point + half))


def _of_positive(point: float, draws: Float[np.ndarray, " R"], values: Values, bootstrap: Bootstrap) -> Estimate:
    """The interval of an average of positive values, symmetric in its logarithm."""
    return _exp(_interval(np.log(point), np.log(draws), _freedom(np.log(values)), bootstrap))


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(*(float(np.exp(number)) for number in estimate))


# --- from tidy tables to values --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What one agent did in one task (at one level)."""

    role: str
    values: Values


class Group(NamedTuple):
    """The agents that met the same jobs."""

    experiment: Cell
    task: Cell
    level: Cell
    agents: dict[str, Sample]
    episodes: list[Cell]
    """Their evaluation seeds [E]."""
    jobs: Float[np.ndarray, " E"]
    """How many jobs each of them had (at this level)."""


def groups(rows: Sequence[Mapping[str, Cell]], metric: str = "mean") -> list[Group]:
    """Sort result rows into comparable groups and check that each is one: the same episodes, the same jobs.

    The episodes of one trial are not independent, as memory lives through them: their values are averaged, weighted by
    their jobs, and what is called an episode from here on is a trial. Agents without this metric (lower bounds have a
    mean only) are left out.

    Errors: ValueError where the table is empty, lacks a column, holds a row twice or a value that is not positive,
    where an agent lacks episodes that others have, or where the jobs of two agents differ.
    """
    if not rows:
        raise ValueError("the table of results is empty")
    wanted = ("experiment", "task", "level", "agent", "role", "training_seed", "evaluation_seed", "episode", "jobs")
    for column in (*wanted, "mean_size", metric):
        if column not in rows[0]:
            raise ValueError(f"the table of results has no column {column!r}; its columns are {', '.join(rows[0])}")
    if len({tuple(row[column] for column in wanted) for row in rows}) < len(rows):
        raise ValueError("the table of results holds rows of the same agent, seed, episode and level twice")
    sorted_rows = defaultdict(list)
    for row in rows:
        if row[metric] is not None:
            sorted_rows[row["experiment"], row["task"], row["level"]].append(row)
    return [_group(key, members, metric) for key, members in sorted_rows.items()]


def _group(key: tuple[Cell, Cell, Cell], rows: Sequence[Mapping[str, Cell]], metric: str) -> Group:
    where = ", ".join(f"{name} {value}" for name, value in zip(("experiment", "task", "level"), key, strict=True))
    agents: dict[str, dict[tuple[Cell, Cell], list[Mapping[str, Cell]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        agents[str(row["agent"])][row["training_seed"], row["evaluation_seed"]].append(row)
    episodes = list(dict.fromkeys(row["evaluation_seed"] for row in rows))

    samples: dict[str, Sample] = {}
    met: dict[str, Float[np.ndarray, "S E 2"]] = {}
    for agent, cells in agents.items():
        seeds = list(dict.fromkeys(seed for seed, _ in cells))
        missing = [(seed, episode) for seed in seeds for episode in episodes if (seed, episode) not in cells]
        if missing:
            raise ValueError(
                f"{where}: {agent} lacks {len(missing)} of {len(seeds) * len(episodes)} results, the first of them for "
                f"training seed {missing[0][0]} and evaluation seed {missing[0][1]}; "
                "a paired comparison needs the same episodes for all agents and seeds"
            )
        trials = np.array(
            [[_whole_trial(cells[seed, episode], metric) for episode in episodes] for seed in seeds]
        )  # [S, E, 3]
        values, met[agent] = trials[..., 0], trials[..., 1:]
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{where}: {agent} has values of {metric!r} that are not finite and positive")
        samples[agent] = Sample(str(cells[seeds[0], episodes[0]][0]["role"]), values)
    first = next(iter(met))
    for agent, jobs in met.items():
        if not np.allclose(jobs, met[first][:1], rtol=1e-3):
            raise ValueError(
                f"{where}: {agent} and {first} did not meet the same jobs (their number or mean size differ); "
                "compare only results of one evaluation, made with one key"
            )
    return Group(*key, samples, episodes, met[first][0, :, 0])


def _whole_trial(rows: Sequence[Mapping[str, Cell]], metric: str) -> tuple[float, float, float]:
    """The metric over the episodes of one trial, their jobs, and the mean size of these."""
    jobs, size, value = (np.array([row[name] for row in rows], float) for name in ("jobs", "mean_size", metric))
    return float(value @ jobs / jobs.sum()), float(jobs.sum()), float(size @ jobs / jobs.sum())


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict(
    rows: Sequence[Mapping[str, Cell]],
    against: str = BEST_RULE,
    metric: str = "mean",
    bootstrap: Bootstrap = DEFAULT,
) -> list[Row]:
    """Judge every agent in every task and level of a table of results.

    Arguments: `rows`, from `trials.py`; `against`, the opponent: an agent's name, or the best classical rule of each
    task and level; `metric`, a column of the results, for which less is better.
    Returns one row per (experiment, task, level, agent), the best first:

    - `seeds`, `episodes`: how many independent training seeds (1 for what is not trained) and evaluation episodes;
    - `ratio`, `low`, `high`: geometric mean of the per-episode ratios to `against` (`against_best_rule` says whether
      that is the best rule), and its interval of the probability `confidence`;
    - `verdict`: better (the whole interval lies below 1), worse (above), no difference (neither; it may exist and be
      smaller than the interval), baseline (the opponent itself) or bound (what no policy can go below);
    - `claim`: enough seeds (5, where something is trained) and episodes (200) to claim anything;
    - `mean`, `iqm` with `_low` and `_high`: of the `metric` over seeds and episodes;
    - `regret` with `_low` and `_high`: difference of means to the best rule *of each level*. For a whole trial with
      changing levels (level None) the opponent is made up of the best rules' results at each level;
    - `oracle`: the best of the policies that are told what is hidden, and `oracle_ratio` with `_low` and `_high`;
      None where nothing is hidden.

    The best rule and the best oracle are those of the lowest geometric mean on these same episodes. They had the choice
    after the fact, so each is a slightly harder opponent than a rule that was chosen in advance: the comparison errs
    against the agent.

    Errors: ValueError for an unpaired table (see `groups`), or where a group has no rule, or no agent of that name.
    """
    judged = groups(rows, metric)
    return [row for group in judged for row in _judge(group, _parts(group, judged), against, metric, bootstrap)]


def _geometric(sample: Sample) -> float:
    return float(np.log(sample.values).mean())


def _best(group: Group, role: str) -> str | None:
    of_role = {name: sample for name, sample in group.agents.items() if sample.role == role}
    return min(of_role, key=lambda name: _geometric(of_role[name]), default=None)


def _opponent(group: Group, against: str, rule: str | None) -> str:
    if against in group.agents:
        return against
    if against == BEST_RULE and rule is not None:
        return rule
    near = difflib.get_close_matches(against, group.agents, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    wanted = "classical rule" if against == BEST_RULE else f"agent {against!r}"
    raise ValueError(f"task {group.task}: there is no {wanted} in the results; {hint}found {', '.join(group.agents)}")


def _parts(group: Group, judged: Sequence[Group]) -> list[Group]:
    """The levels that a whole trial is made of; a level, and a trial without levels, is its own only part."""
    levels = [g for g in judged if (g.experiment, g.task) == (group.experiment, group.task) and g.level is not None]
    return levels if group.level is None and levels else [group]


def _regret(agent: str, group: Group, parts: Sequence[Group], bootstrap: Bootstrap) -> Estimate | None:
    """The difference to the best rule of each part, both put together into whole trials; None where that cannot be."""
    rules = [_best(part, "rule") for part in parts]
    if None in rules or any(agent not in part.agents for part in parts):
        return None

    def together(names: Sequence[str | None]) -> Values:
        values = [part.agents[name or ""].values for part, name in zip(parts, names, strict=True)]
        total, jobs = np.zeros((len(values[0]), len(group.episodes))), np.zeros(len(group.episodes))
        for part, of_part in zip(parts, values, strict=True):
            at = [group.episodes.index(episode) for episode in part.episodes]
            total[:, at] += of_part * part.jobs
            jobs[at] += part.jobs
        return total / jobs

    return difference(together([agent] * len(parts)), together(rules), bootstrap)


def _judge(group: Group, parts: Sequence[Group], against: str, metric: str, bootstrap: Bootstrap) -> list[Row]:
    rule = _best(group, "rule")
    opponent = _opponent(group, against, rule)
    shared: Row = {"against": opponent, "against_best_rule": opponent == rule}
    shared |= {"metric": metric, "confidence": bootstrap.confidence}
    oracle = _best(group, "oracle")
    told = None if oracle is None else group.agents[oracle].values
    rows: list[Row] = []
    for agent in sorted(group.agents, key=lambda name: _geometric(group.agents[name])):
        role, values = group.agents[agent]
        seeds, episodes = values.shape
        compared = ratio(values, group.agents[opponent].values, bootstrap)
        trained = [len(v) for r, v in (group.agents[agent], group.agents[opponent]) if r == "agent"]
        enough = episodes >= EPISODES_FOR_A_CLAIM and all(count >= SEEDS_FOR_A_CLAIM for count in trained)
        row: Row = {"experiment": group.experiment, "task": group.task, "level": group.level, "agent": agent}
        row |= {"role": role, "seeds": seeds, "episodes": episodes} | shared
        row |= {"ratio": compared.value, "low": compared.low, "high": compared.high}
        row |= {"verdict": _word(agent, role, opponent, compared), "claim": enough}
        row |= _columns("mean", mean(values, bootstrap)) | _columns("iqm", iqm(values, bootstrap))
        row |= _columns("regret", _regret(agent, group, parts, bootstrap))
        row |= {"oracle": oracle}
        row |= _columns("oracle_ratio", None if told is None else ratio(values, told, bootstrap))
        rows.append(row)
    return rows


def _word(agent: str, role: str, opponent: str, compared: Estimate) -> str:
    if agent == opponent:
        return "baseline"
    if role == "bound":
        return "bound"
    return "better" if compared.high < 1 else "worse" if compared.low > 1 else "no difference"


def _columns(name: str, estimate: Estimate | None) -> Row:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
