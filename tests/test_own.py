"""Your own fleet and traffic: read as they are meant, mistakes are named, and a server that is away gets no jobs."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reverie.envs.gymnasium  # noqa: F401 - registers the environments
from reverie import cli
from reverie.commands import evaluate
from reverie.envs.core import stack_tasks
from reverie.envs.fleet import families
from reverie.envs.fleet import schedule as schedules
from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import FleetEnv, members
from reverie.envs.fleet.families import family
from reverie.envs.fleet.load import capacity, offered_load
from reverie.envs.fleet.own import ARRIVALS, SIZES, Own, read_fleet
from reverie.envs.fleet.traces import Trace
from reverie.policies.rollout import rollout
from reverie.policies.rules import rules
from reverie.report import judged
from reverie.runs.folder import RunFolder
from reverie.settings.config import WorldConfig
from reverie.settings.presets import preset

PAGE = Path(__file__).parents[1] / "docs" / "your-fleet.md"
FILE = """
[[server]]
name = "web-1"
speed = 1.0
changes = [[100, 0.25], [200, 1.0]]
[[server]]
speed = 0.5
away = [[0, 50], [150, inf]]
"""


@pytest.fixture
def fleet_file(tmp_path) -> Path:
    path = tmp_path / "shop.toml"
    path.write_text(FILE)
    return path


def drawn(own: Own, load: float | None = None, name: str = "hard"):
    return own.tasks(name, load, 1000)(np.random.default_rng(0))


def test_a_fleet_file_says_when_speeds_change_and_who_is_there(fleet_file):
    task = read_fleet(fleet_file).task(workloads.poisson(1.0, workloads.exponential(1.0)))
    there = {0: [True, False], 49: [True, False], 50: [True, True], 149: [True, True], 150: [True, False]}
    for time, expected in there.items():
        assert members(task, schedules.instant(time)).tolist() == expected
    assert capacity(task, 300.0) == pytest.approx((200 * 1.0 + 100 * 0.25 + 100 * 0.5) / 300)
    assert capacity(task) == 1.0  # in the long run the second one is away


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("leastconn", "leastconn is called jsq here"),
        ("LEAST_REQUEST", "least_request is called p2c here"),
        ("leastcon", "did you mean 'leastconn'\\? leastconn is called jsq here"),
        ("jsqq", "did you mean 'jsq'\\? the known ones"),
        ("first", "first is called late-binding-fastest here"),
        ("least_time", "least_time is called ewma here"),
    ],
)
def test_a_rule_by_its_name_elsewhere_is_answered_with_ours(name, answer):
    with pytest.raises(ValueError, match=f"unknown rule '{name}': {answer}.*are random"):
        rules([1.0], [1.0], [name])


def test_who_is_away_gets_no_jobs_finishes_those_it_has_and_every_rule_respects_it(fleet_file):
    task = read_fleet(fleet_file).task(workloads.regular(2.0, workloads.deterministic(1.5)))
    names = ("random", "round-robin", "jsq", "sed", "shortest-wait", "sita", "adaptive-least-connections", "fpi")
    for name, rule in rules([1.0, 0.5], [1.0, 2.0], names).items():
        env = FleetEnv(2, 120, rule.view)
        record = jax.jit(
            lambda rule=rule, env=env: rollout(
                env, rule, stack_tasks([task]), jax.random.key(0), 120, lambda state, *_: state.record
            )[1]
        )()
        assert np.isfinite(record.response).all(), name
        chosen = {at: int(s) for at, s in zip(record.arrival[:, 0].tolist(), record.server[:, 0], strict=True)}
        assert {s for at, s in chosen.items() if at < 50 or at >= 150} == {0}, name
    state, _ = FleetEnv(2, 120).reset(task, jax.random.key(0))
    step = jax.jit(FleetEnv(2, 120).step)
    for _ in range(73):  # the last of them at time 148, three time units of work for the second server
        state, seen = step(task, state, jnp.int32(state.clock.coarse >= 140), jax.random.key(0))
    assert float(state.clock.coarse) == 148.0
    state, seen = step(task, state, jnp.int32(1), jax.random.key(0))
    assert seen.observation["mask"].tolist() == [True, False]
    assert float(seen.observation["servers"][1, 0]) > 0  # what it has, it finishes
    assert np.isfinite(float(state.record.response))
    state, seen = step(task, state, jnp.int32(1), jax.random.key(0))
    assert np.isnan(float(seen.reward))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 1", r"does not know 'speed'; there are server, repeat"),
        ("", "names no server"),
        ("[[server]]\nname = 'a'", r"server 0: has no speed"),
        ("[[server]]\nspeed = 'fast'", r"server 0: speed must be a number that is not negative, got \['fast'\]"),
        (
            "[[server]]\nspeed = 1\nspeeds = 2",
            "server 0: does not know 'speeds'; there are name, speed, a, b, slots, changes",
        ),
        ("[[server]]\nspeed = 1\nchanges = [[5, 1], [5, 2]]", "server 0: changes must come one after another"),
        ("[[server]]\nspeed = 1\nchanges = [5, 1]", "changes must be a pair of numbers"),
        ("[[server]]\nspeed = 1\naway = [[5, 5]]", r"server 0: away holds spans \[leaves, is back\]"),
        ("[[server]]\nspeed = 0", "server 0: schedule: it must not stay at 0 for ever"),
        ("repeat = 5\n[[server]]\nspeed = 1\nchanges = [[5, 2]]", "server 0: schedule: period 5.0 must lie beyond"),
        (
            "[[server]]\nspeed = 1\naway = [[10, 20]]\n[[server]]\nspeed = 1\naway = [[15, 30]]",
            "nobody is there at time 15",
        ),
        ("[[server]]\nspeed = 1\nslots = 2.5", "server 0: sharing: each server needs a whole number of slots"),
        ("[[server]]\nspeed = 1\na = 0", "server 0: sharing: a and b are to be at least 0, one of them more"),
        ("[[server]]\nspeed = 1\nb = -1", r"server 0: b must be a number that is not negative, got \[-1\]"),
        ("[[server", "is not TOML"),
    ],
)
def test_a_mistake_in_a_fleet_file_is_named_with_file_and_server(text, message, tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.toml: .*{message}"):
        read_fleet(path)


def test_servers_of_a_fleet_file_serve_as_many_at_once_as_it_says_in_every_family_and_on_a_trace(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[[server]]\nspeed = 2.0\na = 0.25\nb = 0.75\nslots = 4\n[[server]]\nspeed = 1.0\n")
    full = 2.0 * 4 / (0.25 + 0.75 * 4) + 1.0
    trace = Trace("t", np.arange(60.0), np.full(60, 0.5))
    for task in (
        drawn(Own(fleet=path), name="shared"),
        drawn(Own(fleet=path)),
        next(Own(fleet=path).windows(trace, 0.8, 60)),
    ):
        assert task.sharing.slot.sum(-1).tolist() == [4, 1]
        assert capacity(task) == pytest.approx(full, rel=1e-5)
        np.testing.assert_allclose(np.stack([task.sharing.a, task.sharing.b]), [[0.25, 1.0], [0.75, 0.0]])
    played = next(Own(fleet=path).windows(trace, 0.8, 60)).workload.recording
    assert float(played.size.sum() / (59 * played.gap[1])) == pytest.approx(0.8 * full, rel=1e-4)


def test_a_fleet_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml: cannot be read: No such file"):
        read_fleet(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        (
            "arrivals",
            "poison:3",
            r"no law 'poison'; did you mean poisson\? there are poisson:RATE, regular:RATE, bursts",
        ),
        ("arrivals", "poisson", "its RATE are numbers above 0"),
        ("arrivals", "poisson:0", "its RATE are numbers above 0"),
        ("arrivals", "poisson:nan", "its RATE are numbers above 0"),
        ("arrivals", "poisson:1,2", "expected poisson:RATE, 1 numbers; got 2"),
        ("arrivals", "diurnal:1,2,3", r"swing must lie in \[0, 1\), got 2"),
        ("sizes", "lognormal:3", "expected lognormal:MEDIAN,SIGMA, 2 numbers; got 1"),
        ("sizes", "gamma:1,2", "no law 'gamma'; there are fixed:SIZE, exponential:MEAN"),
        ("sizes", "bounded-pareto:1.5,9,3", "low 9.0 must lie below high 3.0"),
        ("speeds", "1,0", "speeds are numbers above 0 with commas"),
        ("speeds", "", "speeds are numbers above 0 with commas"),
    ],
)
def test_a_mistake_in_a_text_lists_what_there_is(field, text, message):
    with pytest.raises(ValueError, match=message):
        Own(**{field: text})


def test_speeds_and_a_file_are_not_given_together(fleet_file):
    with pytest.raises(ValueError, match="give speeds or a fleet file, not both"):
        Own(speeds="1,2", fleet=fleet_file)


def test_every_law_is_the_workload_of_its_name():
    numbers = {"RATE": 2.0, "SWING": 0.5, "DAY": 30.0, "CALM_RATE": 1.0, "BURST_RATE": 4.0, "CALM_TIME": 9.0}
    for name, law in ARRIVALS.items():
        text = f"{name}:" + ",".join(str(numbers.get(number, 3.0)) for number in law.numbers.split(","))
        task = drawn(Own("1,1", arrivals=text, sizes="fixed:0.5"))
        if name != "bursts":
            assert offered_load(task) == pytest.approx(2.0 * 0.5 / 2, rel=1e-5), name
        rates = set(np.round(np.asarray(task.workload.rate.value), 5).tolist())
        assert rates == {"poisson": {2.0}, "regular": {2.0}, "bursts": {1.0, 4.0}}.get(name, rates)
    means = {"fixed:3": 3, "exponential:3": 3, "lognormal:2,0.5": 2 * np.exp(0.125), "pareto:3,2": 3}
    means |= {"bounded-pareto:2,1,2": 4 / 3, "hyperexponential:0.25,1,5": 4, "bimodal:0.25,1,5": 4}
    assert {text.partition(":")[0] for text in means} == set(SIZES)
    for text, mean in means.items():
        assert workloads.moments(drawn(Own(sizes=text)).workload.sizes)[0] == pytest.approx(mean, rel=1e-4), text


def test_a_family_keeps_its_load_on_other_servers_and_own_arrivals_their_rate():
    for name in ("hard", "levels"):
        base = family(name)(np.random.default_rng(0))
        own = drawn(Own("3,1", sizes="exponential:2"), name=name)
        wanted = offered_load(base, workloads.span(base.workload, 1000))
        assert offered_load(own, workloads.span(own.workload, 1000)) == pytest.approx(wanted, rel=1e-4)
        assert own.mask.shape == (2,)
    assert offered_load(drawn(Own("3,1", arrivals="poisson:1", sizes="fixed:1"))) == pytest.approx(0.25)
    assert offered_load(drawn(Own("3,1", arrivals="poisson:1", sizes="fixed:1"), load=0.7)) == pytest.approx(0.7)


def test_gymnasium_takes_the_same(fleet_file):
    env = gymnasium.make("reverie/Fleet-v0", fleet=fleet_file, arrivals="poisson:1", sizes="fixed:0.1", jobs=5)
    observation, _ = env.reset(seed=0)
    assert observation["servers"].shape == (2, 2)
    assert observation["mask"].tolist() == [1, 0]
    env = gymnasium.make("reverie/Fleet-v0", speeds=[1.0, 0.5, 0.25], trace="conversation-like", view="counts", jobs=5)
    assert env.reset(seed=0)[0]["servers"].shape == (3, 1)


def commands(page: str) -> list[str]:
    """The commands that a page prints, lines that go on joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("reverie ")]


def test_the_page_about_your_fleet_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Path("fleet.toml").write_text(toml)
    found = commands(page)
    assert len(found) >= 3
    for command in found:
        assert cli.main(shlex.split(command)[1:]) == 0, command
    assert "jsq" in capsys.readouterr().out


def test_the_recipe_for_a_workload_makes_a_family_that_trains_and_is_examined(monkeypatch, capsys):
    page = (PAGE.parent / "how-it-works.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"### Add a workload\n.*?```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    exec(recipe, {})
    task = families.family("lunch")(np.random.default_rng(0))
    rate = task.workload.rate
    assert (np.asarray(rate.value)[1] * np.diff(rate.start)[1]) == pytest.approx(300, rel=1e-3)
    assert WorldConfig(family="lunch", tasks=3, jobs=10).open(0)[1].mask.shape == (3, 10)
    assert cli.main(["simulate", "--family", "lunch", "--episodes", "4", "--jobs", "20", "--policy", "jsq"]) == 0
    assert "lunch" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "expected"), [([], "1,0.5"), (["--speeds", "3,2,1"], "3,2,1")])
def test_an_agent_is_examined_on_the_servers_it_was_trained_for_unless_others_are_given(
    asked, expected, tmp_path, monkeypatch
):
    plan = preset("a2c", "cpu")
    RunFolder.create(tmp_path / "run", replace(plan, world=replace(plan.world, own=Own(speeds="1,0.5"))))
    seen = []

    def examine(path, tables, examination, tell):
        seen.append(examination.own.speeds)
        raise KeyboardInterrupt

    monkeypatch.setattr(judged, "examine_agent", examine)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(tmp_path / "run"), *asked])
    assert seen == [expected]


@pytest.mark.parametrize(
    ("family", "own", "said"),
    [
        ("shared", Own(speeds="1,0.5"), r"serve one job at a time unless their file says how many \(slots, b\)"),
        ("llm", Own(sizes="lognormal:100,2"), "the jobs of this family are recorded"),
        ("llm", Own(arrivals="poisson:1"), "the jobs of this family are recorded"),
    ],
)
def test_what_a_family_would_ignore_is_refused(family, own, said):
    with pytest.raises(ValueError, match=said):
        own.tasks(family, None, 100)(np.random.default_rng(0))
