"""Servers that serve several jobs at once, beside theory and beside an event simulation in double precision."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.core import stack_tasks
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, Task, constant_speeds, fleet_task, responses, stack_fleets
from reverie.envs.fleet.load import capacity
from reverie.envs.fleet.sharing import sharing
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules

KEY = jax.random.key(0)


def play(tasks: Task, jobs: int, rule: str = "jsq", view="counts", reward="elapsed"):
    """Responses, arrivals, sizes, servers, rewards [J, B] and observations."""
    n = tasks.mask.shape[-1]
    env = FleetEnv(n, jobs, view, reward)
    policy = rules([1.0] * n, [1.0] * n)[rule]
    keep = lambda state, timestep, action: (state.record, timestep)  # noqa: E731

    @eqx.filter_jit
    def run(tasks):
        ended, (record, timestep) = rollout(env, policy, tasks, KEY, jobs, keep)
        return record._replace(response=responses(record, ended.states)), timestep

    return run(tasks)


def batch(task: Task, count: int) -> Task:
    return stack_tasks([task] * count)


def simulated(speed, a, b, slots, prefill, server, arrival, size, prompt):
    """Responses of jobs, each at the server it was sent to, by events in double precision. `speed` [N] lists of (start,
    value) until the next start."""
    response = np.empty(len(size))
    for i in range(len(a)):
        inside, queue, now, pause = {}, [], 0.0, 0.0
        coming = [j for j in range(len(size)) if server[j] == i]
        while inside or queue or coming:
            while queue and len(inside) < slots[i]:
                job = queue.pop(0)
                inside[job] = size[job]
                pause += prefill[i] * prompt[job]
            v = [value for start, value in speed[i] if start <= now][-1]
            rate = v / (a[i] + b[i] * len(inside)) if inside and pause == 0 else 0.0
            least = min(inside.values(), default=math.inf)
            ends = least / rate if rate > 0 else math.inf
            resumes = pause / v if pause > 0 and v > 0 else math.inf
            events = [start - now for start, _ in speed[i] if start > now]
            events += [arrival[coming[0]] - now] if coming else []
            step = min([ends, resumes, *events])
            now += step
            for job in inside:
                inside[job] -= step * rate
            if step == resumes:
                pause = 0.0
            elif pause > 0:
                pause -= step * v
            if step == ends:
                job = min(inside, key=inside.get)
                response[job] = now - arrival[job]
                del inside[job]
            elif coming and arrival[coming[0]] <= now:
                now = arrival[coming[0]]
                queue.append(coming.pop(0))
    return response


JOBS = 300
SPEEDS = [[(0.0, 1.0)], [(0.0, 2.0), (40.0, 0.0), (55.0, 1.0)], [(0.0, 0.5), (100.0, 3.0)]]
HOW = [np.array(numbers) for numbers in ((1.0, 0.2, 0.0), (0.0, 0.3, 1.0), (1, 4, 3), (0.3, 0.4, 0.1))]
PROMPTS = np.random.default_rng(0).exponential(2.0, JOBS)


def changing(prompts: np.ndarray) -> Task:
    rng = np.random.default_rng(1)
    speed = schedules.stack([schedules.schedule(*map(np.array, zip(*pieces, strict=True))) for pieces in SPEEDS])
    workload = workloads.recorded(rng.exponential(1.3, JOBS), rng.exponential(2.0, JOBS), prompt=prompts)
    return fleet_task(speed, workload)._replace(sharing=sharing(*HOW))


def fifo() -> Task:
    return fleet_task(constant_speeds([1.0, 0.4]), workloads.poisson(1.2, workloads.exponential(1.0)))


@pytest.fixture(scope="module")
def played():
    """Beside one another: servers that share, the same and nothing to read, and FIFO servers, padded."""
    return play(stack_fleets([changing(PROMPTS), changing(0 * PROMPTS), fifo()]), JOBS)


@pytest.mark.parametrize(("episode", "prompts"), [(0, PROMPTS), (1, 0 * PROMPTS)])
def test_every_job_departs_when_an_event_simulation_lets_it_also_where_speeds_change(played, episode, prompts):
    record, timestep = played
    columns = (record.server, record.arrival, record.size, record.response)
    server, arrival, size, response = (np.asarray(leaf[:, episode], float) for leaf in columns)
    expected = simulated(SPEEDS, *HOW, server, arrival, size, prompts)
    np.testing.assert_allclose(response, expected, rtol=2e-4, atol=2e-3)
    assert len(set(server)) == 3
    np.testing.assert_allclose(-timestep.reward[:, episode].sum(), response.sum(), rtol=1e-4)


def test_a_fifo_server_is_one_of_one_slot_and_padding_is_without_effect(played):
    record, seen = played
    expected, known = play(batch(fifo(), 3), JOBS)
    np.testing.assert_allclose(record.response[:, 2], expected.response[:, 2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.reward[:, 2], known.reward[:, 2], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(seen.observation["servers"][:, 2, :2], known.observation["servers"][:, 2])


WORKERS = np.array([1.0, 9.0, 4.0]), np.array([1, 4, 3])


def workers(shared: bool) -> Task:
    """Servers of several slots that do not slow each other, one of which stands still for a while; `shared`, as the
    loop over departures takes them, rather than a queue for each slot."""
    how = sharing(WORKERS[0], 0.0, WORKERS[1])
    task = changing(0 * PROMPTS)
    return batch(task._replace(sharing=how._replace(b=jnp.zeros(3)) if shared else how), 2)


def test_workers_by_queues_of_their_slots_are_those_of_the_loop_over_departures():
    """Each job, and all that the view `latency` tells on the way."""
    (found, seen), (expected, known) = (play(workers(shared), JOBS, "ewma", "latency") for shared in (False, True))
    np.testing.assert_array_equal(found.server, expected.server)
    np.testing.assert_allclose(found.response, expected.response, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(seen.observation["servers"], known.observation["servers"], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(seen.reward, known.reward, rtol=2e-4, atol=1e-2)
    most = np.asarray(known.observation["servers"])[..., 0].max((0, 1))
    assert (most > (1, 1, 3)).all()  # several everywhere, and more than there are slots


def test_workers_are_paid_at_dispatch_what_an_event_simulation_finds_in_the_end():
    """Without a ledger: slots stay in order of what is left."""
    record, seen = play(workers(shared=False), JOBS, "least-work", "full", "admission")
    server, arrival, size, paid = (
        np.asarray(leaf[:, 0], float) for leaf in (record.server, record.arrival, record.size, -seen.reward)
    )
    nothing = np.zeros(3)
    expected = simulated(SPEEDS, WORKERS[0], nothing, WORKERS[1], nothing, server, arrival, size, 0 * PROMPTS)
    np.testing.assert_allclose(paid, expected, rtol=2e-4, atol=2e-3)
    assert len(set(server)) == 3


LOAD, COPIES = 0.6, 32
SHARED = [(a, b, scv) for a, b in ((0.0, 1.0), (0.5, 0.5), (3.0, 0.5)) for scv in (1.0, 4.0)]
SLOTTED = [(3.0, 0.0, 3), (0.5, 0.5, 4)]


def slotted_rate(a: float, b: float, slots: int) -> float:
    return 0.75 * slots / (a + b * slots)


@pytest.fixture(scope="module")
def means() -> np.ndarray:
    """Mean responses [8, COPIES] of single servers, all in one program."""
    one = constant_speeds([1.0])
    tasks = [
        fleet_task(one, workloads.poisson(b / LOAD, workloads.lognormal(1.0, scv)))._replace(sharing=sharing(a, b, 64))
        for a, b, scv in SHARED
    ]
    tasks += [
        fleet_task(one, workloads.poisson(1 / slotted_rate(*how), workloads.exponential(1.0)))._replace(
            sharing=sharing(*how)
        )
        for how in SLOTTED
    ]
    response = play(stack_fleets([task for task in tasks for _ in range(COPIES)]), 2000)[0].response[400:]
    return np.asarray(response, float).mean(0).reshape(len(tasks), COPIES)


def near(found: np.ndarray, expected: float) -> None:
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert found.mean() == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


@pytest.mark.parametrize(("number", "how"), list(enumerate(SHARED)))
def test_mean_response_of_a_server_that_shares_is_that_of_theory_whatever_the_variance(number, how, means):
    """M/G at rate 1 / (a + b n): (a + b) E[S] / (1 - lambda b E[S])."""
    a, b, _ = how
    near(means[number], (a + b) / (1 - LOAD))


@pytest.mark.parametrize(("number", "how"), list(enumerate(SLOTTED, len(SHARED))))
def test_mean_response_with_few_slots_is_that_of_a_birth_death_chain(number, how, means):
    """Exponential sizes; with b = 0 this is M/M/k, Erlang's formula."""
    (a, b, slots), rate, n = how, slotted_rate(*how), np.arange(400)
    served = np.minimum(n, slots)[1:]
    weight = np.concatenate([[1.0], np.cumprod(rate * (a + b * served) / served)])
    near(means[number], (n @ weight) / weight.sum() / rate)


def test_the_load_is_that_at_which_a_server_is_saturated():
    """Prompts included: a replica can serve 1 / (prefill P + (b + a / B) O) requests."""
    task = changing(PROMPTS)
    mean = np.asarray(task.workload.recording.size).mean()
    each = HOW[3] * PROMPTS.mean() + (HOW[1] + HOW[0] / HOW[2]) * mean
    speed = np.array([1.0, 1.0, 3.0])
    assert capacity(task) == pytest.approx((speed * mean / each).sum(), rel=1e-5)


def test_what_cannot_be_known_or_is_not_simulated_is_refused():
    task = changing(PROMPTS)
    with pytest.raises(ValueError, match="give reward='elapsed', got 'admission'"):
        FleetEnv(3, 10).reset(task, KEY)
    with pytest.raises(ValueError, match="the view 'park' has no servers that serve several jobs at once"):
        FleetEnv(3, 10, "park", "elapsed").reset(task, KEY)
    for wrong in ((-1.0, 1.0, 2), (0.0, 0.0, 2), (1.0, jnp.nan, 1)):
        with pytest.raises(ValueError, match="a and b are to be at least 0"):
            sharing(*wrong)
    for slots in (0, 1.5, jnp.inf):
        with pytest.raises(ValueError, match="whole number of slots"):
            sharing(1.0, 0.0, slots)
