"""Draw README's picture of the fleet from a verdict: `python docs/pictures.py runs/verdict`.

The pictures of the experiments are drawn by the experiments.
"""

import argparse
from pathlib import Path

from reverie.evaluate.results import Results
from reverie.report import figures
from reverie.report.style import save_png

AGENTS = ("a2c", "dreamer-queue-rl2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verdict", type=Path, help="the folder that `reverie verdict` wrote")
    rule, *agents = Results.of(parser.parse_args().verdict / "tables").watched()
    shown = [rule, *(episode for episode in agents if episode.jobs[0]["agent"] in AGENTS)]
    save_png(figures.fleet_over_time(shown), Path(__file__).parent / "pictures" / "fleet.png", dpi=100)


if __name__ == "__main__":
    main()
