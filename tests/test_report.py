"""A report needs nothing but itself, shows every figure, and says what its tables say."""

import io
import itertools
import json
import re
from contextlib import nullcontext
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image
from rich.console import Console

from reverie.envs.fleet import picture
from reverie.evaluate.statistics import verdict
from reverie.evaluate.watch import Watched
from reverie.report import figures, film, page, style
from reverie.report.tables import rich_table, verdict_tables
from reverie.report.words import lead, number, per_cent, ratio, sentence

LEVELS = (None, 0.455, 0.909)
SPEEDS = (1.0, 0.5, 2.0)


def results(view="full", episodes=30):
    rng = np.random.default_rng(0)
    contestants = [("dreamer", "agent", s) for s in range(3)] + [("a2c", "agent", 0), ("sed", "rule", None)]
    contestants += [("jsq", "rule", None), ("round-robin", "rule", None)]
    contestants += [("told", "oracle", None)] if view == "counts" else []
    pace = {"dreamer": 0.95, "a2c": 1.2, "sed": 1.0, "jsq": 1.1, "round-robin": 9.0, "told": 0.7}
    for experiment, levels in (("standard", LEVELS[:1]), ("adaptive", LEVELS)):
        for level in levels:
            base = 100 * rng.lognormal(size=episodes)
            for name, role, seed in contestants:
                for e, value in enumerate(pace[name] * base * rng.lognormal(sigma=0.02, size=episodes)):
                    yield {
                        "experiment": experiment,
                        "agent": name,
                        "role": role,
                        "training_seed": seed,
                        "task": "hard",
                        "evaluation_seed": e,
                        "episode": 0,
                        "level": level,
                        "jobs": 100,
                        "mean_size": 3.0,
                        "mean": float(value),
                        "sees": view,
                        "p99": float((6 if name == "dreamer" else 4) * value),
                    }


def distribution(judged):
    for row in judged:
        for survival in (1.0, 0.1, 0.01):
            who = {name: row[name] for name in ("experiment", "agent", "role", "task")}
            yield who | {"training_seed": 0, "survival": survival, "response": row["mean"] / survival}


def episode(agent="sed", jobs=40):
    """Jobs that come every time unit and are sent to the servers in turn; the second server fails for a while."""
    free = np.zeros(3)
    rows = []
    for j in range(jobs):
        free[j % 3] = max(free[j % 3], j) + 2.0
        size, level = 1.0 + j % 5, 0.9 if j > 20 else 0.5
        times = {"arrival": float(j), "response": float(free[j % 3] - j)}
        rows.append({"agent": agent, "task": "hard", "job": j, **times, "size": size, "server": j % 3, "level": level})
    servers = [{"agent": agent, "task": "hard", "server": n, "time": 0.0, "speed": v} for n, v in enumerate(SPEEDS)]
    servers += [servers[1] | {"time": t, "speed": v} for t, v in ((10.0, 0.0), (15.0, 0.5))]
    return Watched(rows, servers)


def curves():
    for agent, seed, k in itertools.product(("a2c", "dreamer"), (0, 1), range(4)):
        yield {
            "agent": agent,
            "training_seed": seed,
            "step": 1 + 1000 * k,
            "cpu_seconds": 2.0 * k,
            "response": 9.0 - k,
        }


JUDGED = verdict(list(results("counts")))


def sections():
    return [
        page.answer_section(JUDGED),
        page.verdict_section(JUDGED),
        page.Section(
            "Learning",
            pictures=[page.Picture(partial(figures.learning_curves, list(curves()), {"sed": 7.0}), "How it went.")],
        ),
        page.response_section(list(distribution(JUDGED)), JUDGED),
        page.fleet_section([episode("sed"), episode("jsq")]),
        page.numbers_section(JUDGED),
        page.run_section({"Command": "reverie verdict", "Configuration": {"seed": 0, "layers": list(range(20))}}),
    ]


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self.text = [], [], []
        self.feed(re.sub('<span class="name">(.*?)</span>', r"\1", text).replace("\N{NO-BREAK SPACE}%", " %"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])

    def handle_data(self, data):
        self.text.append(data)
        if self.elements and self.elements[-1][0] in ("td", "th"):
            self.cells[-1].append(data)
            self.elements.append(("", {}))

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if attrs.get(name)]


@pytest.fixture(scope="module")
def text():
    return page.page("A <title>", "In short.", sections())


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_needs_nothing_from_outside(text, read):
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "link", "iframe", "object", "embed"})
    for name in ("src", "href", "xlink:href", "srcset", "action"):
        for address in read.attributes(name):
            assert address.startswith(("#", "data:image/png;base64,"))
    assert set(re.findall(r"url\(.", text)) <= {"url(#"}
    assert "@import" not in text


def test_on_paper_tables_are_not_cut_and_what_was_folded_is_open(text):
    paper = text[text.index("@media print") :]
    assert re.search(r"\.table {[^}]*overflow: visible", paper)
    assert re.search(r"\.table td {[^}]*white-space: normal", paper)
    assert re.search(r"::details-content {[^}]*content-visibility: visible", paper)
    assert re.search(r"figure svg {[^}]*max-height", paper)


def test_references_within_the_page_have_one_target_each(text, read):
    ids = read.attributes("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", text)) | {a[1:] for a in read.attributes("xlink:href") if a[0] == "#"}
    assert used
    assert used <= set(ids)


def test_page_shows_every_figure_with_its_caption(read):
    pictures = [picture for section in sections() for picture in section.pictures]
    assert len(pictures) == 2 + 1 + 2 + 1  # the verdict and the distribution have one for each experiment
    assert [attrs["aria-label"] for tag, attrs in read.elements if tag == "svg"] == [
        p.caption for p in pictures for _ in ("wide", "narrow")
    ]
    assert set(read.text) >= {p.caption for p in pictures}


def test_numbers_in_the_page_are_those_of_the_table(read):
    def first_number(cell):
        return float(cell.split(" ")[0].replace(",", ""))

    rows = [cells for cells in read.cells if cells[0] not in ("agent", "traffic") and cells[1] in ("counts", "full")]
    assert len(rows) == len(JUDGED)
    for cells, row in zip(rows, JUDGED, strict=True):
        value, low, high = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cells[3]).groups()
        assert (cells[0], cells[1]) == (row["agent"], row["sees"])
        assert first_number(cells[2]) == pytest.approx(row["mean"], rel=1e-3)
        assert first_number(cells[4]) == pytest.approx(row["means_ratio"], rel=1e-2)
        assert [float(x) for x in (value, low, high)] == pytest.approx(
            [row[n] for n in ("ratio", "low", "high")], abs=0.06
        )
        assert cells[5].removesuffix(" (?)") == row["verdict"].replace("baseline", "the opponent")
        assert cells[6] == ("-" if row["role"] != "agent" else str(row["seeds"]))
        assert first_number(cells[-1]) == pytest.approx(row["oracle_ratio"], rel=1e-2)


def test_the_answer_comes_first_one_row_for_each_kind_of_traffic(text, read):
    rows = [cells for cells in read.cells if cells[0] == "traffic" or "faster (" in cells[2]]
    assert rows[0] == ["traffic", "winner", "how much", "how sure", "slowest 1 %"]
    assert [cells[:2] for cells in rows[1:]] == [["hard", "dreamer (?)"], ["hard (adaptive trials)", "dreamer (?)"]]
    assert all(re.fullmatch(r"[45]\.\d % faster \(.* to .* %\) than sed", cells[2]) for cells in rows[1:])
    assert all(cells[3] == "3 training seeds, 30 episodes: too few for a claim" for cells in rows[1:])
    assert all("% slower (" in cells[4] for cells in rows[1:])
    assert text.index('class="table answer"') < text.index("<svg")


def test_the_first_sentence_counts_kinds_of_traffic_and_names_what_contradicts():
    assert lead(JUDGED) == (
        "In 2 of 2 kinds of traffic the best agent is faster than the best rule. In 2 the slowest 1 % of the jobs say "
        "the opposite. Too few seeds or episodes for a claim."
    )
    said = sentence(next(row for row in JUDGED if row["agent"] == "dreamer"))
    assert "Its slowest 1 % says the opposite: 4" in said


def test_every_agent_is_judged_in_words(read):
    said = [sentence(row) for row in JUDGED if row["role"] == "agent" and row["level"] is None]
    assert len(said) == 4  # two agents, two experiments
    assert set(read.text) >= {f" {words}" for words in said}


def test_page_escapes_what_it_is_told(text):
    assert "A <title>" not in text
    assert "A &lt;title&gt;" in text


def test_every_colour_is_one_of_both_themes(text):
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"var\(--(\w+)\)", svgs)) <= set(style.LIGHT)
    assert style.LIGHT.keys() == style.DARK.keys()
    for name, colour in style.LIGHT.items():
        assert name == "paper" or colour not in svgs


def test_the_same_tables_give_the_same_page_written_whole(tmp_path, text):
    page.write_page(tmp_path / "report.html", "A <title>", "In short.", sections())
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_a_page_without_agents_says_so(read):
    rules = [row for row in results() if row["role"] == "rule"]
    section = page.verdict_section(verdict(rules))
    assert not section.findings
    assert "No trained agent" in section.text[0]


# --- words -----------------------------------------------------------------------------------------------------------

ROW = {
    "experiment": "standard",
    "task": "Azure conversation",
    "level": None,
    "agent": "dreamer",
    "role": "agent",
    "against": "fpi",
    "against_best_rule": True,
    "confidence": 0.95,
    "seeds": 5,
    "episodes": 200,
    "windows": None,
    "metric": "mean",
    "disagree": False,
    "claim": True,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"verdict": "better", "ratio": 0.96, "low": 0.94, "high": 0.98},
            "On Azure conversation dreamer is 4.0 % faster than the best rule, fpi (95 % interval 2.0 to 6.0 %, "
            "5 training seeds, 200 episodes).",
        ),
        (
            {"verdict": "worse", "ratio": 1.2, "low": 1.05, "high": 1.4, "level": 0.909, "experiment": "adaptive"},
            "On Azure conversation at load 0.909 (adaptive trials) dreamer is 20 % slower than the best rule, fpi "
            "(95 % interval 5.0 to 40 %, 5 training seeds, 200 episodes).",
        ),
        (
            {"verdict": "worse", "ratio": 2.5, "low": 2.25, "high": 2.75, "against_best_rule": False, "against": "a2c"},
            "On Azure conversation dreamer takes 2.50 times as long as a2c (95 % interval 2.25 to 2.75, "
            "5 training seeds, 200 episodes).",
        ),
        (
            {"verdict": "no difference", "ratio": 0.99, "low": 0.97, "high": 1.01, "seeds": 1, "claim": False},
            "On Azure conversation dreamer does not differ measurably from the best rule, fpi (95 % interval 0.970 to "
            "1.010, ratio 0.990, 1 training seed, 200 episodes; too few for a claim).",
        ),
        (
            {"verdict": "worse", "ratio": 1.3, "low": 1.2, "high": 1.4, "role": "rule", "agent": "jsq", "seeds": 1},
            "On Azure conversation jsq is 30 % slower than the best rule, fpi (95 % interval 20 to 40 %, "
            "200 episodes).",
        ),
        (
            {"verdict": "no claim", "ratio": 1.3, "low": 0.2, "high": 8.0, "windows": 2, "episodes": 2, "claim": False},
            "On Azure conversation dreamer cannot be told from the best rule, fpi: too few windows of the trace "
            "(5 training seeds, 2 independent windows).",
        ),
        (
            {"verdict": "better", "ratio": 0.9, "low": 0.88, "high": 0.92, "disagree": True, "p99_ratio": 1.25}
            | {"p99_ratio_low": 1.2, "p99_ratio_high": 1.3},
            "On Azure conversation dreamer is 10 % faster than the best rule, fpi (95 % interval 8.0 to 12 %, "
            "5 training seeds, 200 episodes). Its slowest 1 % says the opposite: 25 % slower (20 to 30 %).",
        ),
    ],
)
def test_sentences_say_who_is_faster_and_how_sure_that_is(change, expected):
    assert sentence(ROW | change) == expected


def test_numbers_are_readable():
    assert [number(x) for x in (0.123456, 5.0, 543.0, 14635.7, None, float("nan"))] == [
        "0.1235",
        "5.000",
        "543.0",
        "14,636",
        "-",
        "-",
    ]
    assert [ratio(x) for x in (0.9731, 22.71, None)] == ["0.973", "22.7", "-"]
    assert [per_cent(x) for x in (0.0041, 0.0994, 0.0996, 0.5)] == ["0.4", "9.9", "10", "50"]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_regret_stands_where_levels_change_and_the_oracle_where_something_is_hidden():
    full = verdict(list(results("full")))
    titles = {table.title: table.columns for table in verdict_tables(full)}
    first = ["agent", "sees", "mean response", "/ sed", "of means", "verdict", "seeds"]
    assert {title: columns for title, columns in titles.items() if "tails" not in title} == {
        "hard": first,
        "hard (adaptive trials)": [*first, "regret"],
        "hard at load 0.455 (adaptive trials)": first,
        "hard at load 0.909 (adaptive trials)": first,
    }
    tails = ["agent", "p99", "p50 / sed", "p95 / sed", "p99 / sed", "slowdown / sed", "p99's verdict"]
    assert all(columns == tails for title, columns in titles.items() if "tails" in title)
    assert len(titles) == 8
    assert verdict_tables(JUDGED)[0].columns == [*first, "/ told"]


def test_terminal_shows_the_verdict_without_cutting_it():
    table = verdict_tables(JUDGED)[0]
    out = io.StringIO()
    Console(file=out, width=170).print(rich_table(table))
    for row in table.rows:
        assert all(cell in out.getvalue() for cell in row)
    assert "fewer than 5 training seeds or 200 episodes" in " ".join(out.getvalue().split())


def test_verdict_is_ready_for_json():
    assert json.loads(json.dumps(JUDGED, allow_nan=False)) == JUDGED


# --- figures ---------------------------------------------------------------------------------------------------------


def test_an_agent_looks_the_same_in_every_figure():
    looks = style.looks(JUDGED)
    assert style.looks(list(distribution(JUDGED[::-1]))) == looks
    assert looks["a2c"].colour != looks["dreamer"].colour
    drawn = figures.learning_curves(list(curves()), {}, agents=["dreamer", "a2c", "absent"]).axes[0].lines
    first = looks["dreamer"].colour
    assert {line.get_color() for line in drawn if line.get_label() == "dreamer"} == {first} == {style.SKY}
    assert {looks[rule].colour for rule in ("sed", "jsq", "round-robin")} == {style.GREY}


def test_an_agent_looks_the_same_whoever_takes_part():
    def seen(*names):
        return style.looks([{"agent": name, "role": "agent"} for name in names])

    alone = {name: seen(name)[name] for name in style._AGENTS}
    everybody = seen(*alone, "mine", "yours")
    assert {name: everybody[name] for name in alone} == alone
    assert len({(look.colour, look.dashes) for look in everybody.values()}) == len(everybody)


def test_forest_has_a_panel_per_task_and_level_and_writes_out_what_is_beyond_it():
    axes = figures.forest([row for row in JUDGED if row["experiment"] == "adaptive"]).axes
    assert [axis.get_title("left") for axis in axes] == ["hard, all of it", "hard, load 0.455", "hard, load 0.909"]
    assert [text.get_text()[-1] for text in axes[0].texts] == ["▸"]
    many = [row | {"task": f"task {k}"} for k in range(6) for row in JUDGED if row["experiment"] == "standard"]
    assert len([axis for axis in figures.forest(many).axes if axis.get_visible()]) == 6
    few = [dict(row, low=None, high=None) for row in JUDGED if row["experiment"] == "adaptive"]
    assert len(figures.forest(few).axes) == len(axes)  # too few episodes for an interval: the ratio alone


def test_fleet_shows_every_job_and_every_failure():
    figure = figures.fleet_over_time([episode("sed"), episode("jsq")])
    for axis in figure.axes[:2]:
        ticks = [c for c in axis.collections if isinstance(c, LineCollection) and len(c.get_segments()) == 40]
        assert len(ticks) == 1
        assert [label.get_text() for label in axis.get_yticklabels()] == ["2", "1", "0.5"]  # the fastest on top
        (failed,) = [patch for patch in axis.patches if patch.get_hatch()]
        assert (failed.get_x(), failed.get_width()) == (10.0, 5.0)
        assert failed.get_y() + failed.get_height() / 2 == pytest.approx(2)


def test_a_stretch_of_time_can_be_shown():
    figure = figures.fleet_over_time([episode()], begin=10.0, end=19.5)
    assert figure.axes[0].get_xlim() == (10.0, 19.5)
    counts = [len(c.get_segments()) for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    assert 10 in counts


def test_survival_draws_agents_and_named_rules_over_the_others():
    rows = [row for row in distribution(JUDGED) if row["experiment"] == "standard"]
    figure = figures.survival(rows, ["sed"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dreamer", "a2c", "sed", "all others"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    dreamer = next(row for row in rows if row["agent"] == "dreamer")
    assert lines["dreamer"].get_xdata()[0] == pytest.approx(dreamer["response"])
    assert figure.axes[0].get_xlabel() == "response time [time units]"
    assert figures.survival(rows, [], {"hard": "seconds"}).axes[0].get_xlabel() == "response time [seconds]"


def test_learning_curves_have_a_line_per_run_and_rules_that_can_be_read():
    figure = figures.learning_curves(list(curves()), {"sed": 7.0, "jsq": 7.01, "fpi": 7.02})
    (axis,) = figure.axes
    assert len([line for line in axis.lines if len(line.get_xdata()) == 4]) == 4
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a2c", "dreamer"]
    heights = np.log([text.xyann[1] for text in axis.texts])
    low, high = np.log(axis.get_ylim())
    assert np.diff(heights).min() > 0.05 * (high - low)
    assert [text.get_text() for text in axis.texts] == ["sed", "jsq", "fpi"]


def test_learning_curves_leave_out_what_lies_far_above_the_rules():
    untrained = {"agent": "a2c", "training_seed": 0, "step": 5, "cpu_seconds": 1.0, "response": 1e6}
    (axis,) = figures.learning_curves([untrained, *curves()], {"sed": 7.0}).axes
    low, high = axis.get_ylim()
    assert low < 6
    assert high == pytest.approx(21)


@pytest.mark.parametrize("steps", [(16, 26, 64), (5_000, 40_000, 9_000_000)])
def test_steps_are_plain_numbers_however_long_the_training(steps):
    run = [{"agent": "a2c", "training_seed": 0, "step": step, "response": 9.0} for step in steps]
    assert "mathdefault" not in style.to_svg(figures.learning_curves(run, {"sed": 7.0}), "steps", "steps")


def test_a_film_has_a_frame_for_each_job_and_one_that_stays(tmp_path):
    film.write_film(tmp_path / "fleet.gif", [episode("sed"), episode("jsq")], "time units")
    with Image.open(tmp_path / "fleet.gif") as shown:
        assert (shown.n_frames, shown.info["loop"]) == (41, 0)
        frames, durations = [], []
        for frame in range(41):
            shown.seek(frame)
            frames.append(np.asarray(shown.convert("RGB")).astype(int))
            durations.append(shown.info["duration"])
    assert durations == [100] * 40 + [2000]
    height = picture._HEAD + 3 * picture._TALLEST + picture._FOOT
    assert frames[0].shape == (2 * height, picture.WIDTH, 3)
    assert np.abs(frames[7][60:height] - frames[7][height + 60 :]).max() == 0  # but for their names they are the same
    orange = np.abs(frames[7] - np.array([0xD5, 0x5E, 0x00])).max(-1) < 12
    rows = [orange[picture._HEAD + (row * 2 + 1) * picture._TALLEST // 2, picture._LEFT :].any() for row in range(3)]
    assert rows == [False, True, False]  # the seventh job went to server 0, second by speed


def test_a_server_that_stands_still_is_called_down(monkeypatch):
    scenes = []
    drawn = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(film, "draw", lambda scene, *_: scenes.append(scene) or drawn)
    monkeypatch.setattr(film, "replacing", lambda path: nullcontext(io.BytesIO()))
    film.write_film(Path("fleet.gif"), [episode()], "seconds")
    stopped = {scene.now for scene in scenes if scene.speed[1] == 0}
    assert stopped == {10.0, 11.0, 12.0, 13.0, 14.0}
    assert {tuple(scene.order) for scene in scenes} == {(2, 0, 1)}


def test_the_best_rule_and_the_best_agent_are_worth_watching():
    agents = [episode(name) for name in ("sed", "a2c", "dreamer")]
    assert film.best_of(agents, JUDGED) == ["sed", "dreamer"]
    assert film.best_of(agents[:1], JUDGED) == ["sed"]


def test_a_phone_gets_pictures_of_its_own_with_panels_below_one_another():
    adaptive = [row for row in JUDGED if row["experiment"] == "adaptive"]
    wide, narrow = (figures.forest(adaptive, width=width) for width in (figures.WIDTH, figures.PHONE))
    for figure, columns in ((wide, 3), (narrow, 1)):
        figure.draw_without_rendering()
        assert len({round(axis.get_position().x0, 2) for axis in figure.axes}) == columns
        for axis in figure.axes:
            assert axis.title.get_window_extent().x1 <= figure.bbox.x1
    for figure in (figures.survival(list(distribution(JUDGED)), ["sed"], width=figures.PHONE), narrow):
        assert figure.get_figwidth() == figures.PHONE


def test_names_do_not_break(read):
    long = [row | {"task": "a_task-of_one_very_long_name at load 0.8"} for row in JUDGED if row["level"] is None]
    (title,) = {axis.get_title("left") for axis in figures.forest(long).axes}
    assert title.replace("\n", " ") == long[0]["task"]
    assert "a_task-of_one_very_long_name" in title
    assert page._text("On x p2c-peak-ewma is 4.0 % slower") == (
        'On x <span class="name">p2c-peak-ewma</span> is 4.0\N{NO-BREAK SPACE}% slower'
    )


def test_figures_can_be_saved_for_a_readme(tmp_path):
    style.save_png(figures.learning_curves(list(curves()), {}), tmp_path / "curves.png", dpi=40)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
