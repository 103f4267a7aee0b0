"""Figures of a report: colours and matplotlib's style, drawn for a light and for a dark page.

figures = write_figures(folder, {"loss": (draw, "What the loss does.")}, metrics)      # for mot.reporting.page
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

# Background, ink, and six of Okabe and Ito's colours, which people with any colour vision can tell apart. Drawing code
# calls them "C0" .. "C5", ink "C6" and background "C7". On the dark background they are lighter, for contrast.
THEMES = {
    "light": ("#ffffff", "#24292f", ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00")),
    "dark": ("#161b22", "#d7dee6", ("#56B4E9", "#E69F00", "#2FC79A", "#4C86F0", "#E79BC5", "#F0E442")),
}


def write_figures(folder: Path, figures: dict[str, tuple[Callable, str]], data) -> list[dict[str, str]]:
    """Write FOLDER/NAME.png of every {name: (draw, caption)}; returns name, caption and both images as data: URLs.

    draw(figure, data) draws nothing where it has no data. Then there is no figure, and one of an earlier report is
    removed.
    """
    drawn = []
    for name, (draw, caption) in figures.items():
        (folder / f"{name}.png").unlink(missing_ok=True)
        images = {theme: _png(draw, data, theme) for theme in THEMES}
        if all(images.values()):
            (folder / f"{name}.png").write_bytes(images["light"])
            urls = {theme: "data:image/png;base64," + base64.b64encode(png).decode() for theme, png in images.items()}
            drawn.append({"name": name, "caption": caption} | urls)
    return drawn


def _png(draw: Callable, data, theme: str) -> bytes:
    """The figure as PNG; empty if there was nothing to draw."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    paper, ink, colors = THEMES[theme]
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    style |= {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "axes.prop_cycle": cycler(color=[*colors, ink, paper]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.linewidth": 0.6,
        "font.size": 10,
        "grid.color": ink,
        "grid.alpha": 0.15,
        "grid.linewidth": 0.6,
        "text.parse_math": False,  # a dollar sign in a name is no formula
    }
    with matplotlib.rc_context(style):
        # The width of a phone. On a larger screen two figures stand side by side, never larger than drawn.
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        draw(figure, data)
        if not figure.axes:
            return b""
        file = io.BytesIO()
        figure.savefig(file, dpi=200)
    return file.getvalue()
