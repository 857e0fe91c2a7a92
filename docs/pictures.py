"""Draw README's pictures of the fleet from a verdict: `python docs/pictures.py runs/verdict`.

The pictures of the experiments are drawn by the experiments.
"""

import argparse
from pathlib import Path

from reverie.evaluate.results import Results
from reverie.report import figures
from reverie.report.film import write_film
from reverie.report.style import save_png

PICTURES = Path(__file__).parent / "pictures"
AGENTS = ("a2c", "dreamer-queue-rl2")
FILMED = 150
"""Jobs of the film: a quarter of a minute."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verdict", type=Path, help="the folder that `reverie verdict` wrote")
    rule, *agents = Results.of(parser.parse_args().verdict / "tables").watched()
    shown = [rule, *(episode for episode in agents if episode.jobs[0]["agent"] in AGENTS)]
    save_png(figures.fleet_over_time(shown), PICTURES / "fleet.png", dpi=100)
    filmed = [episode._replace(jobs=episode.jobs[:FILMED]) for episode in (shown[0], shown[-1])]
    write_film(PICTURES / "fleet.gif", filmed, figures.UNIT)


if __name__ == "__main__":
    main()
