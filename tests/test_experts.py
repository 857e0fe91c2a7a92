"""Experts of a mixture that nobody uses, or that all tasks share, are named in the log and on the page."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import Walk, begin, train

from reverie.evaluate.suites import DREAMS, LIKENESS
from reverie.models.routing import USE, best, use
from reverie.report.suite_page import write_suite_report
from reverie.runs import loop
from reverie.runs.experts import LINES, Watch, collapsed, expert_use
from reverie.runs.folder import RunFolder
from reverie.settings.suites import suite_plan
from reverie.tables import write_csv

EVEN = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]  # 3 tasks, 2 of 4 experts each
IDLE = [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0.005, 0.995, 0], [1, 0, 1, 0]]  # the last has nobody
SHARED = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]  # the second is everybody's


def line(shares, **more) -> dict[str, float]:
    return {f"{USE}{k}/{j}": float(x) for (k, j), x in np.ndenumerate(np.array(shares, float))} | more


def test_the_use_of_experts_is_the_share_of_a_tasks_steps():
    scores = jnp.array([[[0.5, 0.3, 0.2], [0.5, 0.2, 0.3]], [[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]])
    metrics = use(best(scores, 2), jnp.array([[0, 0], [0, 2]]), 3)
    found = expert_use({name: float(x) for name, x in metrics.items()})
    np.testing.assert_allclose(found, [[2 / 3, 2 / 3, 2 / 3], [np.nan] * 3, [1, 1, 0]], rtol=1e-6)
    assert expert_use({"model/kl": 1.0}) is None


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        (EVEN, {}),
        (IDLE, {"expert 4 of 4": "no task has used it"}),
        (SHARED, {"expert 2 of 4": "all 3 tasks have shared it"}),
        ([*EVEN[:2], [np.nan] * 4], {}),
        (IDLE[:3], {}),  # six choices of four experts leave one out by chance
        ([[1, 1, 0, 0]], {}),  # one task cannot use four experts, and shares none
        (
            [[0.98, 1, 0.01, 0.01], [1, 0.98, 0.01, 0.01]] * 2,
            dict.fromkeys(("expert 3 of 4", "expert 4 of 4"), "no task has used it"),
        ),
    ],
)
def test_a_collapse_is_an_expert_of_none_or_of_all(shares, found):
    assert collapsed(np.array(shares, float)) == found


def test_a_collapse_is_said_once_when_it_has_lasted_and_once_when_it_is_over():
    watch = Watch()
    said = [watch(line(shares)) for shares in (*[IDLE] * (LINES - 1), EVEN, *[IDLE] * (LINES + 3), EVEN, EVEN)]
    told = {at: words for at, words in enumerate(said) if words}
    assert told == {
        2 * LINES - 1: [f"expert 4 of 4 has collapsed: no task has used it for {LINES} lines of metrics"],
        2 * LINES + 3: ["expert 4 of 4 has recovered: it is no longer so that no task has used it"],
    }


@pytest.mark.parametrize("shares", [EVEN, SHARED])
def test_training_says_it(shares, tmp_path, capsys):
    class Mixed(Walk):
        def train(self, state):
            state, metrics = super().train(state)
            return state, metrics | {name: jnp.full(self.updates, x) for name, x in line(shares).items()}

    monkey = partial(loop.train, quiet=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", lambda *given, quiet, **more: monkey(*given, **more))
        train(begin(tmp_path / "run"), Mixed(), steps=7 + (LINES + 1) * 30, evaluate_every=10**6)
    error = capsys.readouterr().err
    told = f"at {7 + LINES * 30:,} environment steps: expert 2 of 4 has collapsed: all 3 tasks have shared it for"
    assert (told in error, "collapsed" in error) == (shares is SHARED,) * 2


def test_the_page_of_a_mixture_shows_experts_embeddings_and_dreams(tmp_path):
    plan = suite_plan("loads", "mixture")
    names = plan.world.names
    run = RunFolder.create(tmp_path / "run", plan)
    shares = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [np.nan] * 4]
    with run.writer(["reverie", "train"]) as writer:
        writer.restore(())
        for step in range(LINES + 2):
            entropy = {"model/router_entropy": 1.3, "cpu_seconds": 1.0, "wall_seconds": 1.0, "updates": step}
            scores = {"evaluation/score": 0.5} | {f"evaluation/score/{name}": 0.5 for name in names}
            writer.log(100 * step, line(IDLE if step > 1 else shares, **entropy, **scores))
    row = {"agent": "dreamer-mixture", "steps": 1000, "learned": True, "episodes": 4, "response": 2.0, "rule": "jsq"}
    row |= {"rule_response": 1.0, "random_response": 3.0, "score": 0.5, "score_low": 0.4, "score_high": 0.6}
    row |= {"ratio": 2.0, "low": 1.9, "high": 2.1}
    run.tables.mkdir(exist_ok=True)
    write_csv(run.tables / "scores.csv", [{"task": name} | row for name in names])
    write_csv(run.tables / LIKENESS, [{"task": a} | {b: float(a == b) for b in names} for a in names])
    dream = {"truth": 1.0, "mean": 2.0, "low": 1.0, "high": 3.0, "error": 4.25, "still": 5.0}
    rows = [{"task": name, "ahead": ahead} | dream for name in names for ahead in range(1, 65)]
    write_csv(run.tables / DREAMS, rows)
    write_suite_report(run, plan.world)
    page = run.report.read_text()
    assert f"At step {100 * (LINES + 1):,}: expert 4 of 4 has collapsed: no task has used it" in page
    assert page.count("<figure") == 5
    assert page.count("4.25") == 2 * len(names)
