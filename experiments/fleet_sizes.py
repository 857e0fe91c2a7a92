"""Any fleet size: the agents of `standard.py`, trained on ten servers, dispatch to 2 to 64.

The speeds of N servers are spread evenly from 0.15 to 1.05, as Park's ten are. Dreamer reads servers as a set, and its
memory is told the chosen server's row instead of its number, so the same weights serve any fleet.

    python experiments/fleet_sizes.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from standard import dreamers
from study import ExamOptions, Study, brief, study

from reverie.envs.fleet import workload as workloads
from reverie.envs.fleet.env import constant_speeds, fleet_task
from reverie.envs.fleet.families import PARK_MEAN_SIZE, PARK_SPEEDS, draw_tasks, park_sizes
from reverie.evaluate.examination import Exam, Setting
from reverie.evaluate.statistics import verdict
from reverie.report.style import setting
from reverie.tables import Row


@dataclass(frozen=True)
class FleetSizes(Study):
    """The options of this experiment."""

    exam: ExamOptions = field(default_factory=Exam)
    servers: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Sizes of the fleet; the agents were trained on 10 servers."""
    loads: tuple[float, ...] = (0.667, 0.909)
    """Offered loads."""

    def setting(self, servers: int, load: float) -> Setting:
        """Poisson arrivals of Park's jobs at a fleet of this size."""
        speeds = np.linspace(PARK_SPEEDS[0], PARK_SPEEDS[-1], servers)
        task = fleet_task(
            constant_speeds(speeds), workloads.poisson(PARK_MEAN_SIZE / load / speeds.sum(), park_sizes())
        )
        tasks = draw_tasks(lambda rng: task, self.exam.episodes, self.exam.stream)
        return Setting(f"{servers} servers at load {load:g}", tasks)


def picture(rows: Sequence[Row]) -> Figure:
    """The ratio to the best rule, by fleet size."""
    agents = [row for row in rows if row["role"] == "agent"]
    with setting():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axis = figure.subplots()
        for load in dict.fromkeys(str(row["task"]).split()[-1] for row in agents):
            of_load = [row for row in agents if str(row["task"]).endswith(load)]
            sizes = [int(str(row["task"]).split()[0]) for row in of_load]
            middle = [row["ratio"] for row in of_load]
            line = axis.plot(sizes, middle, "o-", label=f"load {load}")[0]
            axis.fill_between(
                sizes, [r["low"] for r in of_load], [r["high"] for r in of_load], alpha=0.2, color=line.get_color()
            )
        axis.axhline(1.0, color="0.5", linewidth=0.8)
        axis.axvline(len(PARK_SPEEDS), color="0.7", linestyle=":", linewidth=0.8)
        axis.annotate(
            "trained on 10", (len(PARK_SPEEDS), axis.get_ylim()[1]), xytext=(4, -10), textcoords="offset points"
        )
        axis.set(xscale="log", xlabel="servers", ylabel="mean response / best rule")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.legend(frameon=False)
    return figure


def main() -> None:
    asked = study(FleetSizes, __doc__)
    runs = asked.train(dreamers(asked))
    rows = []
    for load in asked.loads:
        for servers in asked.servers:
            rows += asked.examined(asked.exam, asked.setting(servers, load), runs, "full")
    table = brief(verdict(rows))
    best = [row for row in table if row["role"] == "agent" or row["agent"] == row["against"]]
    asked.publish("fleet_sizes", best)
    asked.draw("fleet_sizes", picture(best), dpi=160)


if __name__ == "__main__":
    main()
