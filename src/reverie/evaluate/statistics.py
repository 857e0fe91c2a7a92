"""How sure we are: paired comparisons of policies that met the same jobs, and the verdict on each.

`verdict(rows)` turns the result rows of `trials.py` into one row per agent, task and level, in which every number has
its interval and its counts of seeds and episodes. `mean`, `ratio`, `ratio_of_means` and `difference` give single
estimates from arrays [S, E] (training seeds x evaluation episodes), `over_seeds` from one number a seed. Nothing here
runs a policy, prints or draws.

Intervals. Every training seed plays the same episodes, so seeds and episodes are crossed random factors with one value
in each cell. The variance of a mean is that of the seeds' means, plus that of the episodes' means, minus that of what
is left in the cells, which the first two both hold. Each part has few degrees of freedom of its own, so each is
multiplied by its own Student's quantile, squared, before they are added (Howe, "Approximate confidence limits on the
mean of X + Y where X and Y are two tabled independent random variables", JASA 69, 1974); Satterthwaite's formula for
all parts holds its 95 % only in 89 % of the cases where there are two seeds. The seeds of two agents that are compared
are one part, with Satterthwaite's degrees of freedom (Welch's test). Averages of positive values and ratios are handled
as logarithms, by the delta method. Seen in simulations of nominal 95 %: 93 to 98 % for one, three and five seeds, on
one side or both; two seeds give up to 99 %, and two beside five of an agent that varies ten times less 91 to 93 %.

The words of a table follow Holm's correction for its rows (Scandinavian Journal of Statistics 6, 1979): of agents that
all equal the opponent, in 19 of 20 tables none is called better or worse. The intervals are those of single rows.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from reverie.tables import Cell, Row

Values = Float[np.ndarray, "S E"]
"""One number per training seed and evaluation episode."""
Baseline = Float[np.ndarray, "Z F"]
"""The same for what it is compared with: other training seeds, the same episodes."""

BEST_RULE = "best rule"
SEEDS_FOR_A_CLAIM = 5
EPISODES_FOR_A_CLAIM = 200
WINDOWS_FOR_A_CLAIM = 5
"""Of a recording, which cannot be drawn anew, and tasks that a game is tested on: few, but long and independent."""
ROUNDING = 1e-6
"""Values come from sums of 32-bit numbers, which are that far off, of the largest of them: two agents that always do as
well have no spread, and means that differ in the last digit."""
METRICS = ("mean", "median", "p95", "p99", "mean_slowdown")
"""What every verdict says of response times, beside what was asked for."""


class Estimate(NamedTuple):
    """A number and its confidence interval; NaN at its ends where there is one episode (or seed) only."""

    value: float
    low: float
    high: float


# --- estimates from values [S, E] ------------------------------------------------------------------------------------


def mean(values: Values, confidence: float = 0.95) -> Estimate:
    """The mean of positive values over seeds and episodes."""
    point = values.mean()
    return _exp(_interval(np.log(point), _spread(values / point), confidence))


def ratio(values: Values, baseline: Baseline, confidence: float = 0.95) -> Estimate:
    """The geometric mean of the per-episode ratios values / baseline.

    Arguments: positive `values` [S, E] and `baseline` [Z, E], of the same E episodes. Training seeds are not paired.
    """
    return _exp(difference(np.log(values), np.log(baseline), confidence))


def ratio_of_means(values: Values, baseline: Baseline, confidence: float = 0.95) -> Estimate:
    """The mean of `values` over that of `baseline`; arguments as for `ratio`. It weighs slow episodes by their time."""
    above, below = values.mean(), baseline.mean()
    return _exp(_interval(np.log(above / below), _spread(values / above, baseline / below), confidence))


def over_episodes(values: Values, confidence: float = 0.95) -> Estimate:
    """The mean of values of any sign over seeds and episodes."""
    return _interval(float(values.mean()), _spread(values), confidence)


def difference(values: Values, baseline: Baseline, confidence: float = 0.95) -> Estimate:
    """The mean of the per-episode differences values - baseline, in their unit; arguments as for `ratio`."""
    return _interval(float(values.mean() - baseline.mean()), _spread(values, baseline), confidence)


def over_seeds(values: Float[np.ndarray, " S"], confidence: float = 0.95) -> Estimate:
    """The mean of one number for each training seed, with Student's interval; NaN for its ends where S is 1."""
    return _interval(float(values.mean()), _spread(values[None]), confidence)


class _Spread(NamedTuple):
    """The parts of the variance of a mean, and the degrees of freedom of each; that of episodes is the first."""

    variance: Float[np.ndarray, " K"]
    freedom: Float[np.ndarray, " K"]

    def half_width(self, confidence: float) -> float:
        """Of the interval that holds the mean with probability `confidence`."""
        parts = scipy.special.stdtrit(self.freedom, (1 + confidence) / 2) ** 2 * self.variance
        return float(np.sqrt(max(parts.sum(), parts[0])))

    def p_value(self, distance: float) -> float:
        """1 - the largest confidence whose interval leaves out what lies `distance` away; 1 where none can be made."""
        from scipy.optimize import brentq  # here, as it takes half a second to import

        least, most = 1e-12, 1 - 1e-12
        if not self.half_width(least) < abs(distance):  # NaN where there is one episode
            return 1.0
        if self.half_width(most) < abs(distance):
            return 1 - most
        return 1 - float(brentq(lambda c: self.half_width(c) - abs(distance), least, most))


def _spread(values: Values, baseline: Baseline | None = None) -> _Spread:
    """How the mean of `values`, or of `values` - `baseline`, varies from seeds to seeds and episodes to episodes."""
    sides = [values] if baseline is None else [values, baseline]
    if baseline is not None and values.shape[1] != baseline.shape[1]:
        raise ValueError(
            "a paired comparison needs the same episodes on both sides, "
            f"got values {values.shape} and baseline {baseline.shape}"
        )
    episodes = values.shape[1]
    if episodes < 2:
        return _Spread(np.array([np.nan]), np.array([1.0]))
    of_episodes = values.mean(0) - (0 if baseline is None else baseline.mean(0))
    many = [side for side in sides if len(side) > 1]
    of_seeds = [(float(side.mean(1).var(ddof=1)) / len(side), len(side) - 1.0) for side in many]
    parts = [(of_episodes.var(ddof=1) / episodes, episodes - 1), *_pooled(of_seeds)]
    for side in many:
        left = side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()
        parts.append((-np.square(left).sum() / (f := (len(side) - 1) * (episodes - 1)) / side.size, f))
    variance, freedom = np.array(parts, float).T
    return _Spread(variance, freedom)


def _pooled(parts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The seeds' parts of the two sides of a comparison as one, with Satterthwaite's degrees of freedom."""
    largest = max((v for v, _ in parts), default=0.0)
    if not largest > 0:
        return list(parts)
    shares = [(v / largest, f) for v, f in parts]  # whose squares are numbers
    total = sum(v for v, _ in shares)
    return [(largest * total, total**2 / sum(v**2 / f for v, f in shares))]


def _interval(point: float, spread: _Spread, confidence: float) -> Estimate:
    half = spread.half_width(confidence)
    return Estimate(float(point), float(point - half), float(point + half))


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(*(float(np.exp(number)) for number in estimate))


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold for all of them together (Holm 1979): the k-th smallest of n times n - k + 1, and not below
    those of smaller ones."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.minimum(np.array(p)[order] * np.arange(len(p), 0, -1), 1))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted.tolist()


def is_claim(values: Values, baseline: Baseline) -> bool:
    """Whether there are training seeds and episodes enough to claim anything of two trained agents."""
    return min(len(values), len(baseline)) >= SEEDS_FOR_A_CLAIM and values.shape[1] >= EPISODES_FOR_A_CLAIM


def decided(
    values: Mapping[str, Values], opponent: str, confidence: float = 0.95, *, more: bool = False
) -> dict[str, tuple[float | None, str]]:
    """How the mean of each stands to that of the `opponent` on the same episodes: p by Holm's correction for all of
    them, and better, worse or no difference, which what 32 bits round away is. Less is better, unless `more` is."""
    rival = values[opponent]
    distances = {name: float(own.mean() - rival.mean()) for name, own in values.items() if name != opponent}

    def p_value(name: str, distance: float) -> float:
        rounded = ROUNDING * max(np.abs(values[name]).max(), np.abs(rival).max())
        return _spread(values[name], rival).p_value(distance) if abs(distance) > rounded else 1.0

    p = holm([p_value(name, distance) for name, distance in distances.items()])
    words: dict[str, tuple[float | None, str]] = {opponent: (None, "baseline")}
    for (name, distance), probability in zip(distances.items(), p, strict=True):
        word = "better" if (distance > 0) == more else "worse"
        words[name] = probability, word if probability <= 1 - confidence else "no difference"
    return words


# --- from tidy tables to values --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What one agent did in one task (at one level)."""

    role: str
    values: dict[str, Values]
    """By metric; those that its rows have (lower bounds have a mean only)."""


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
    windows: int | None
    """How many disjoint windows of a recording they are; None where they were drawn independently."""


def groups(rows: Sequence[Mapping[str, Cell]], metrics: Sequence[str] = ("mean",)) -> list[Group]:
    """Sort result rows into comparable groups and check that each is one: the same episodes, the same jobs.

    The episodes of one trial are not independent, as memory lives through them: their values are averaged, weighted by
    their jobs, and what is called an episode from here on is a trial. Agents without the first metric are left out.

    Errors: ValueError where the table is empty, lacks a column, holds a row twice or a value that is not positive (a
    share, `late`, may be 0), where an agent lacks episodes that others have, or where the jobs of two agents differ.
    """
    if not rows:
        raise ValueError("the table of results is empty")
    wanted = ("experiment", "task", "level", "agent", "role", "training_seed", "evaluation_seed", "episode", "jobs")
    for column in (*wanted, "mean_size", metrics[0]):
        if column not in rows[0]:
            raise ValueError(f"the table of results has no column {column!r}; its columns are {', '.join(rows[0])}")
    if len({tuple(row[column] for column in wanted) for row in rows}) < len(rows):
        raise ValueError("the table of results holds rows of the same agent, seed, episode and level twice")
    sorted_rows = defaultdict(list)
    for row in rows:
        if row[metrics[0]] is not None:
            sorted_rows[row["experiment"], row["task"], row["level"]].append(row)
    place = {key[:2]: number for number, key in enumerate(reversed(sorted_rows))}
    in_order = sorted(sorted_rows, key=lambda key: (-place[key[:2]], key[2] is not None, key[2] or 0))
    return [_group(key, sorted_rows[key], metrics) for key in in_order]


def _group(key: tuple[Cell, Cell, Cell], rows: Sequence[Mapping[str, Cell]], metrics: Sequence[str]) -> Group:
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
        example = cells[seeds[0], episodes[0]][0]
        known = [metric for metric in metrics if example.get(metric) is not None]
        trials = np.array(
            [[_whole_trial(cells[seed, episode], known) for episode in episodes] for seed in seeds]
        )  # [S, E, 2 + metrics]
        met[agent], values = trials[..., :2], dict(zip(known, np.moveaxis(trials[..., 2:], -1, 0), strict=True))
        for metric, numbers in values.items():
            least = 0 if metric == SHARE else np.finfo(float).tiny
            if not (np.isfinite(numbers).all() and (numbers >= least).all()):
                raise ValueError(f"{where}: {agent} has values of {metric!r} that are not finite and positive")
        samples[agent] = Sample(str(example["role"]), values)
    first = next(iter(met))
    for agent, jobs in met.items():
        if not np.allclose(jobs, met[first][:1], rtol=1e-3):
            raise ValueError(
                f"{where}: {agent} and {first} did not meet the same jobs (their number or mean size differ); "
                "compare only results of one evaluation, made with one key"
            )
    windows = rows[0].get("windows")
    return Group(*key, samples, episodes, met[first][0, :, 0], None if windows is None else int(windows))


def _whole_trial(rows: Sequence[Mapping[str, Cell]], metrics: Sequence[str]) -> list[float]:
    """The jobs of one trial, their mean size, and the metrics over its episodes."""
    numbers = np.array([[row[name] for name in ("jobs", "mean_size", *metrics)] for row in rows], float)
    jobs = numbers[:, 0]
    return [jobs.sum(), *(jobs @ numbers[:, 1:] / jobs.sum())]


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict(
    rows: Sequence[Mapping[str, Cell]],
    against: str = BEST_RULE,
    metric: str = "mean",
    confidence: float = 0.95,
) -> list[Row]:
    """Judge every agent in every task and level of a table of results.

    Arguments: `rows`, from `trials.py`; `against`, the opponent: an agent's name, or the best classical rule of each
    task and level; `metric`, the objective: a column of the results, for which less is better.
    Returns one row per (experiment, task, level, agent), the best first:

    - `sees`: what is known to it of the fleet;
    - `seeds`, `episodes`: how many independent training seeds (1 for what is not trained) and evaluation episodes;
      `windows`, the same number where they are windows of a recording, else None;
    - `ratio`, `low`, `high`: geometric mean of the per-episode ratios to `against` (`against_best_rule` says whether
      that is the best rule), and its interval of the probability `confidence`; `means_ratio` with `_low` and `_high`:
      the ratio of the means. Of a share that can be 0 there is only the second, and it stands in both places;
    - `p`: the probability of so large a difference if there were none, by Holm's correction for the rows of the group;
    - `verdict`: better or worse (`p` is at most 1 - confidence), no difference (it may exist and be too small to be
      seen), no claim (too few windows to say), baseline (the opponent itself) or bound (what no policy can go below);
    - `p99_verdict` and `mean_verdict`: the same word for the slowest jobs and for the mean, each with a correction of
      its own. Where they contradict one another, `disagree` is true;
    - `claim`: enough seeds (5, where something is trained) and episodes (200; 5 windows) to claim anything;
    - `value` with `_low` and `_high`: the `metric`, averaged over seeds and episodes;
    - each of `METRICS` with `_low` and `_high`, and its geometric mean ratio to `against` as `_ratio`, `_ratio_low`
      and `_ratio_high`;
    - `regret` with `_low` and `_high`: difference of means to the best rule *of each level*. For a whole trial with
      changing levels (level None) the opponent is made up of the best rules' results at each level;
    - `oracle`: the best of the policies that are told what is hidden, and `oracle_ratio` with `_low` and `_high`;
      None where nothing is hidden.

    The best rule and the best oracle are those of the lowest geometric mean on these same episodes. They had the choice
    after the fact, so each is a slightly harder opponent than a rule that was chosen in advance: the comparison errs
    against the agent.

    Errors: ValueError for an unpaired table (see `groups`), or where a group has no rule, or no agent of that name.
    """
    judged = groups(rows, tuple(dict.fromkeys((metric, *METRICS))))
    sees = {str(row["agent"]): row.get("sees") for row in rows}
    return [row for group in judged for row in _judge(group, _parts(group, judged), against, metric, confidence, sees)]


SHARE = "late"
"""The metric that can be 0: the share of jobs beyond a deadline."""


def _order(values: Values, metric: str) -> float:
    return float(values.mean() if metric == SHARE else np.log(values).mean())


def _best(group: Group, role: str, metric: str) -> str | None:
    of_role = {name: sample.values[metric] for name, sample in group.agents.items() if sample.role == role}
    return min(of_role, key=lambda name: _order(of_role[name], metric), default=None)


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


def _regret(agent: str, group: Group, parts: Sequence[Group], metric: str, confidence: float) -> Estimate | None:
    """The difference to the best rule of each part, both put together into whole trials; None where that cannot be."""
    rules = [_best(part, "rule", metric) for part in parts]
    if None in rules or any(agent not in part.agents for part in parts):
        return None

    def together(names: Sequence[str | None]) -> Values:
        values = [part.agents[name or ""].values[metric] for part, name in zip(parts, names, strict=True)]
        total, jobs = np.zeros((len(values[0]), len(group.episodes))), np.zeros(len(group.episodes))
        for part, of_part in zip(parts, values, strict=True):
            at = [group.episodes.index(episode) for episode in part.episodes]
            total[:, at] += of_part * part.jobs
            jobs[at] += part.jobs
        return total / jobs

    return difference(together([agent] * len(parts)), together(rules), confidence)


def _judge(
    group: Group,
    parts: Sequence[Group],
    against: str,
    metric: str,
    confidence: float,
    sees: Mapping[str, Cell],
) -> list[Row]:
    rule = _best(group, "rule", metric)
    opponent = _opponent(group, against, rule)
    rival = group.agents[opponent]
    shared: Row = {"against": opponent, "against_best_rule": opponent == rule}
    shared |= {"metric": metric, "confidence": confidence}
    oracle = _best(group, "oracle", metric)
    told = None if oracle is None else group.agents[oracle].values[metric]
    words = {name: _words(group, opponent, name, confidence) for name in dict.fromkeys((metric, "mean", "p99"))}
    rows: list[Row] = []
    for agent in sorted(group.agents, key=lambda name: _order(group.agents[name].values[metric], metric)):
        role, values = group.agents[agent]
        wanted, others = values[metric], rival.values[metric]
        means = _share_ratio(wanted, others) if metric == SHARE else ratio_of_means(wanted, others, confidence)
        compared = means if metric == SHARE else ratio(wanted, others, confidence)
        of_seeds = [len(s.values[metric]) for s in (group.agents[agent], rival) if s.role == "agent"]
        episodes = wanted.shape[1]
        enough = group.windows >= WINDOWS_FOR_A_CLAIM if group.windows else episodes >= EPISODES_FOR_A_CLAIM
        row: Row = {"experiment": group.experiment, "task": group.task, "level": group.level, "agent": agent}
        row |= {"role": role, "sees": sees[agent], "seeds": len(wanted), "episodes": episodes}
        row |= {"windows": group.windows} | shared
        row |= dict(zip(("ratio", "low", "high"), map(_finite, compared), strict=True))
        row |= _columns("means_ratio", means)
        row["p"], row["verdict"] = words[metric][agent]
        row |= {f"{name}_verdict": words[name].get(agent, (None, None))[1] for name in ("mean", "p99")}
        row["disagree"] = {row["mean_verdict"], row["p99_verdict"]} == {"better", "worse"}
        row |= {"claim": enough and all(count >= SEEDS_FOR_A_CLAIM for count in of_seeds)}
        row |= _columns("value", (over_episodes if metric == SHARE else mean)(wanted, confidence))
        for name in METRICS:
            has = name in values
            row |= _columns(name, mean(values[name], confidence) if has else None)
            both = has and name in rival.values
            row |= _columns(f"{name}_ratio", ratio(values[name], rival.values[name], confidence) if both else None)
        row |= _columns("regret", _regret(agent, group, parts, metric, confidence))
        row |= {"oracle": oracle}
        row |= _columns("oracle_ratio", None if told is None or metric == SHARE else ratio(wanted, told, confidence))
        rows.append(row)
    return rows


def _share_ratio(values: Values, baseline: Baseline) -> Estimate:
    """The ratio of two shares, without interval: either may be 0. The difference decides between them."""
    below = baseline.mean()
    return Estimate(float(values.mean() / below) if below > 0 else np.nan, np.nan, np.nan)


def _words(group: Group, opponent: str, metric: str, confidence: float) -> dict[str, tuple[float | None, str]]:
    """For each agent that has the metric: p by Holm's correction, and how it stands to the opponent."""
    if metric not in group.agents[opponent].values:
        return {}
    having = {name: agent for name, agent in group.agents.items() if metric in agent.values}
    compared = {
        name: agent.values[metric] if metric == SHARE else np.log(agent.values[metric])
        for name, agent in having.items()
        if agent.role != "bound" or name == opponent
    }
    words: dict[str, tuple[float | None, str]] = dict.fromkeys(having, (None, "bound"))
    words |= decided(compared, opponent, confidence)
    if group.windows is not None and group.windows < WINDOWS_FOR_A_CLAIM:
        words |= {name: (p, "no claim") for name, (p, _) in words.items() if p is not None}
    return words


def _columns(name: str, estimate: Estimate | None) -> Row:
    value, low, high = (None,) * 3 if estimate is None else map(_finite, estimate)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _finite(value: float) -> float | None:
    """Missing where there is no such number: an end of the interval of one episode."""
    return value if np.isfinite(value) else None
