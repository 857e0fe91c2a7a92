"""Whether numbers that were read from a log are true of it: the fitted servers in the simulator beside the real ones.

With the works that were recovered from it, a log is played back exactly whatever the numbers are: that is how works are
recovered. So works are drawn anew from their law, and requests are placed as the balancer placed them. That is known
where it took a server with the fewest requests in progress; a placement that does not look at servers (in turn, at
random) is repeated as it was. Numbers and law of a log's first half are held against its second half, which they have
not seen. What is left is told by the works themselves: they should be alike at all servers, however many were there.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.stats import ks_2samp, norm, spearmanr

from reverie.envs.core import TimeStep, stack_tasks
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import Fleet, FleetEnv
from reverie.envs.fleet.fitting import FEWEST, Fit, Server, fit
from reverie.envs.fleet.sharing import sharing
from reverie.envs.fleet.traces import Requests, Trace
from reverie.evaluate import trials
from reverie.evaluate.contestants import Contestant
from reverie.policies.views import View
from reverie.serve.predict import LeastConnections

Placed = Literal["fewest", "as logged", "queued"]
"""How a balancer placed requests: where the fewest were; some other way; it held them back until a slot was free."""
_COPIES, _MOST = 8, 20_000
"""How often works are drawn anew, and of how many requests at most."""


class Times(NamedTuple):
    """Of response times, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float


class Predicted(NamedTuple):
    """Response times at one server, or at all, beside those that were predicted."""

    server: str
    requests: int
    real: Times
    predicted: Times
    chance: float
    """By how much the mean of so few requests differs by chance: two standard deviations."""


class Alike(NamedTuple):
    """Whether the works at a server look like those at the others."""

    distance: float
    """Kolmogorov and Smirnov's between works here and elsewhere: 0 alike, 1 apart; NaN for a single server."""
    critical: float
    """What chance exceeds in one of twenty logs."""
    correlation: float
    """Spearman's, between work and how many were there as it came."""
    pace: float
    """Mean work of the first half over the second's (geometric): below 1, the server became slower or requests larger.
    """
    error: float
    """The standard error of the logarithm of the pace."""


class Found(NamedTuple):
    """All that a log says, and how far it is true."""

    trace: Trace
    """Its requests with their works."""
    fit: Fit
    placed: Placed
    alike: Sequence[Alike]
    predicted: Mapping[str, Sequence[Predicted]]
    """The second half of the log, by what it was predicted from."""


def examine(requests: Requests) -> Found:
    """Find servers and works in a log, and judge them."""
    found, how = fit(requests), placed(requests)
    trace = Trace(requests.name, requests.arrival, found.work, {}, requests.provenance)
    return Found(trace, found, how, alike(requests, found), _second_half(requests, found, how))


def placed(requests: Requests) -> Placed:
    """How requests were placed, as can be seen of them."""
    if (requests.sent - requests.arrival > 2 * requests.resolution).mean() > 0.02:
        return "queued"
    there = in_progress(requests)
    uneven = there.min(1) < there.max(1)
    fewest = there[np.arange(len(there)), requests.server] == there.min(1)
    return "fewest" if uneven.any() and fewest[uneven].mean() > 0.9 else "as logged"


def in_progress(requests: Requests) -> Int[np.ndarray, "J N"]:
    """How many requests were at each server as each was sent."""
    counts = []
    for i in range(len(requests.servers)):
        mine, failed = requests.server == i, requests.failed.at(i)
        sent = np.sort(np.append(requests.sent[mine], failed[0]))
        ended = np.sort(np.append(requests.ended[mine], failed[1]))
        came, went = np.searchsorted(sent, requests.sent, "left"), np.searchsorted(ended, requests.sent, "right")
        counts.append(came - np.minimum(went, came))
    return np.stack(counts, 1)


def alike(requests: Requests, fitted: Fit) -> list[Alike]:
    """The works of each server beside those of all others."""
    there, logs, found = in_progress(requests), np.log(fitted.work), []
    for i in range(len(requests.servers)):
        mine = requests.server == i
        here, count = logs[mine], there[mine, i]
        first, second = np.array_split(here, 2)
        error = np.sqrt(first.var() / max(len(first), 1) + second.var() / max(len(second), 1))
        n, m = len(here), len(logs) - len(here)
        found.append(
            Alike(
                float(ks_2samp(here, logs[~mine]).statistic) if m else np.nan,
                1.36 * float(np.sqrt((n + m) / (n * m))) if m else np.nan,
                float(spearmanr(here, count).statistic) if np.ptp(count) and np.ptp(here) else 0.0,
                float(np.exp(first.mean() - second.mean())) if len(second) else np.nan,
                float(error),
            )
        )
    return found


def own_fleet(servers: Sequence[Server]) -> Fleet:
    """The servers of a fit in the simulator."""
    b, slots = (np.array([getattr(server, name).value for server in servers]) for name in ("b", "slots"))
    return Fleet.constant([server.speed.value for server in servers])._replace(sharing=sharing(1 - b, b, slots))


def predict(
    requests: Requests, servers: Sequence[Server], law: Float[np.ndarray, " M"], how: Placed, seed: int = 0
) -> list[Predicted]:
    """Response times of the requests at such servers with works drawn from `law`; at each, and at all of them.

    Arguments: `how`, not `queued`: when a request was sent then depends on works. The first 20,000 are played.
    """
    requests = _in_order_of_sending(requests.part(slice(0, _MOST)))
    count, rng = len(requests.server), np.random.default_rng(seed)
    gap = np.diff(requests.sent, prepend=requests.sent[0])
    drawn = rng.choice(law, (_COPIES, count))
    fleet = own_fleet(servers)
    tasks = stack_tasks([fleet.task(workloads.recorded(gap, work)) for work in drawn])
    if how == "fewest":
        contestant = Contestant("leastconn", LeastConnections(np.ones(len(servers))), FleetEnv(view="latency"), "rule")
    else:
        logged = _AsLogged(jnp.asarray(requests.server, jnp.int32))
        contestant = Contestant("as logged", logged, FleetEnv(view="counts"), "rule")
    (jobs,) = trials.play([contestant], jax.tree.map(lambda leaf: leaf[None], tasks), jax.random.key(seed), count)
    server, response = jobs.server[0].T, jobs.response[0].T  # [E, J]
    real = requests.ended - requests.sent
    found = []
    for i in (*range(len(servers)), None):
        here = np.ones(count, bool) if i is None else requests.server == i
        there = [row if i is None else row[at == i] for row, at in zip(response, server, strict=True)]
        if here.any() and min(map(len, there)) > 0:
            means = [row.mean() for row in there]
            name = "all" if i is None else servers[i].name
            spread = 2 * float(np.std(means, ddof=1))
            found.append(Predicted(name, int(here.sum()), _times(real[here]), _times(np.concatenate(there)), spread))
    return found


def _second_half(requests: Requests, fitted: Fit, how: Placed) -> dict[str, list[Predicted]]:
    """The second half of a log as the numbers of the whole, and of its first half, say it should be."""
    middle = len(requests.server) // 2
    first, second = requests.part(slice(0, middle)), requests.part(slice(middle, None))
    servers = range(len(requests.servers))
    if how == "queued" or middle < FEWEST or not np.isin(servers, first.server).all():
        return {}
    of_first = fit(first)
    return {
        "predicted from the first half": predict(second, of_first.servers, of_first.work, how),
        "predicted from the whole log": predict(second, fitted.servers, fitted.work, how),
    }


def _in_order_of_sending(requests: Requests) -> Requests:
    order = np.argsort(requests.sent, kind="stable")
    return requests._replace(
        **{name: getattr(requests, name)[order] for name in ("server", "arrival", "sent", "ended")}
    )


def _times(seconds: Float[np.ndarray, " J"]) -> Times:
    return Times(float(seconds.mean()), *map(float, np.percentile(seconds, (50, 95, 99))))


class _AsLogged(eqx.Module):
    """Where they went."""

    view: ClassVar[View] = "counts"
    server: Int[Array, " J"]

    def initial_state(self, batch: int) -> Int[Array, " B"]:
        return jnp.zeros((batch,), jnp.int32)

    def act(
        self, state: Int[Array, " B"], timestep: TimeStep, key: Key[Array, ""]
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        return self.server.at[state].get(mode="clip"), state + 1


class Law(NamedTuple):
    """A law of sizes, as `--sizes` takes it, that has the mean (and spread) of works."""

    text: str
    distance: float
    """Kolmogorov and Smirnov's, from the works."""


def laws(work: Float[np.ndarray, " J"]) -> list[Law]:
    """Laws that may stand for works, the nearest first."""
    logs = np.log(work)
    middle, spread = float(logs.mean()), float(logs.std())
    known = {
        f"lognormal:{np.exp(middle):.4g},{max(spread, 1e-6):.4g}": norm(middle, max(spread, 1e-6)).cdf(np.sort(logs)),
        f"exponential:{work.mean():.4g}": -np.expm1(-np.sort(work) / work.mean()),
        f"fixed:{work.mean():.4g}": (np.sort(work) >= work.mean()).astype(float),
    }
    return sorted((Law(text, _distance(cdf)) for text, cdf in known.items()), key=lambda law: law.distance)


def _distance(cdf: Float[np.ndarray, " J"]) -> float:
    """From what a law says of works in ascending order to where they stand."""
    steps = np.arange(len(cdf) + 1) / len(cdf)
    return float(max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max()))
