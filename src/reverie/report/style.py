"""How reports look: the colours of agents and roles, the setting of figures, and figures as SVG or PNG.

Colours are those of Okabe and Ito (2008), told apart with any colour vision; what is judged has colour, the rules that
it is compared with are grey. A figure's colours are names of a theme, so that one SVG suits light and dark pages.
"""

import html
import io
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from reverie.colours import BLUE, GREEN, GREY, GRID, INK, MUTED, ORANGE, PAPER, PURPLE, SILVER, SKY, VERMILLION
from reverie.files import replacing

LIGHT = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "paper": PAPER,
    "blue": BLUE,
    "vermillion": VERMILLION,
    "green": GREEN,
    "purple": PURPLE,
    "orange": ORANGE,
    "sky": SKY,
    "grey": GREY,
    "silver": SILVER,
}
"""The colours by name; figures use these."""
DARK = LIGHT | {
    "ink": "#e6edf3",
    "muted": "#9198a1",
    "grid": "#30363d",
    "paper": "#0d1117",
    "blue": "#4aa3df",
    "vermillion": "#f0803c",
    "green": "#2fbf93",
    "grey": "#8b949e",
    "silver": "#5b636c",
}
"""What they become on a dark page."""

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.visible": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with a $ is a name
}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


class Look(NamedTuple):
    """How one contestant is drawn everywhere."""

    colour: str
    dashes: str
    weight: float
    """Width of its lines."""


@contextmanager
def setting() -> Generator[None]:
    """Within this context matplotlib makes and draws figures in our style."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # a page has fonts enough
        yield


_AGENTS = {
    "dreamer-queue-rl2": (BLUE, "-"),
    "dreamer-counts-rl2": (BLUE, "--"),
    "dreamer-set-rl2": (BLUE, "-."),
    "dreamer-rl2": (SKY, "-"),
    "dreamer": (SKY, "--"),
    "a2c": (VERMILLION, "-"),
    "a2c-rl2": (VERMILLION, "--"),
    "a2c-equal-steps": (GREEN, "-"),
    "ppo": (PURPLE, "-"),
    "ppo-rl2": (PURPLE, "--"),
    "sac": (ORANGE, "-"),
}
"""Agents that have a colour and dashes of their own, in whatever picture and company."""


def looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """A look for every name in a table with the columns agent and role; agents of other names take what is left."""
    roles = {str(row["agent"]): str(row["role"]) for row in rows}
    of_role = {role: sorted(name for name in roles if roles[name] == role) for role in ("agent", "rule", "oracle")}
    bright, dashed = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY), ("-", "--", "-.", ":")
    taken = {_AGENTS[name] for name in of_role["agent"] if name in _AGENTS}
    seen = {colour for colour, _ in taken}
    free = [(colour, dashes) for dashes in dashed for colour in sorted(bright, key=seen.__contains__)]
    free = [look for look in free if look not in _AGENTS.values()] + free
    others = [name for name in of_role["agent"] if name not in _AGENTS]
    agents = _AGENTS | {name: free[i % len(free)] for i, name in enumerate(others)}
    found = {name: Look(GREY, ":", 1.0) for name in roles}
    found |= {name: Look(*agents[name], 2.2) for name in of_role["agent"]}
    found |= {name: Look(GREY, dashed[i % 4], 1.2) for i, name in enumerate(of_role["rule"])}
    return found | {name: Look(INK, dashed[1 + i % 3], 1.2) for i, name in enumerate(of_role["oracle"])}


def as_text(figure: Figure) -> None:
    """Let names with dollars be shown as they are: matplotlib would take what is between two for mathematics.

    Only the powers of ten that it writes itself at logarithmic axes are that.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text() and not text.get_text().startswith("$\\mathdefault"):
            text.set_parse_math(False)


def to_svg(figure: Figure, salt: str, description: str) -> str:
    """A figure as an SVG element whose colours are the CSS variables of `css_colours`, for a page of its own style.

    The same figure and `salt` give the same text; figures of one page need different salts, of which ids are made.
    """
    as_text(figure)
    out = io.StringIO()
    with setting(), mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = f'<svg role="img" aria-label="{html.escape(description)}"{svg[svg.index("<svg") + 4 :]}'
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the names of groups repeat from figure to figure
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, svg)
    for name, colour in LIGHT.items():
        if name != "paper":  # white within a figure stays white
            svg = svg.replace(colour, f"var(--{name})")
    return svg


def css_colours(theme: Mapping[str, str]) -> str:
    """The variables that `to_svg` uses, as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """A figure as PNG on white."""
    as_text(figure)
    out = io.BytesIO()
    with setting():
        figure.savefig(out, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
    return out.getvalue()


def save_png(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure as PNG on white, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(to_png(figure, dpi))
