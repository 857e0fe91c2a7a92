"""Draw the pictures of README and docs from a verdict: `python docs/pictures.py runs/verdict`."""

import sys
from pathlib import Path

from reverie.commands.pages import learning_section
from reverie.commands.results import Results
from reverie.evaluate.statistics import verdict
from reverie.report import figures
from reverie.report.style import save_png
from reverie.train.run import RunFolder

AGENTS = ("a2c", "dreamer-rl2")


def main() -> None:
    results = Results.of(Path(sys.argv[1]) / "tables")
    pictures = Path(__file__).parent / "pictures"
    judged = verdict([row for row in results.tables().results if row["experiment"] == "standard"])
    save_png(figures.forest(judged), pictures / "verdict.png", dpi=100)
    trained = [RunFolder.open(path) for path in sorted(Path(sys.argv[1]).glob("*-[0-9]"))]
    save_png(learning_section(trained).pictures[1].figure, pictures / "learning.png", dpi=100)
    rule, *agents = results.watched()
    shown = [rule, *(episode for episode in agents if episode.jobs[0]["agent"] in AGENTS)]
    save_png(figures.fleet_over_time(shown), pictures / "fleet.png", dpi=100)


if __name__ == "__main__":
    main()
