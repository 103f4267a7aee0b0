"""What all reports share: colours, matplotlib's dress, and the page, which holds its images inside.

A page asks no server for anything and runs no script, so it can be mailed and is safe to open whatever texts are in it.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

# Background, ink, and six of Okabe and Ito's colours, which every kind of colour vision tells apart. To those who draw
# they are "C0" .. "C5", ink "C6" and background "C7". On the dark ground they are lighter, for contrast.
THEMES = {
    "light": ("#ffffff", "#24292f", ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00")),
    "dark": ("#161b22", "#d7dee6", ("#56B4E9", "#E69F00", "#2FC79A", "#4C86F0", "#E79BC5", "#F0E442")),
}


def write_pictures(folder: Path, pictures: dict[str, tuple[Callable, str]], data) -> list[dict[str, str]]:
    """Write FOLDER/NAME.png of every {name: (draw, caption)} and return them for `page`, light and dark.

    draw(figure, data) draws nothing where it has no data; then there is no picture, nor one of an earlier report.
    """
    drawn = []
    for name, (draw, caption) in pictures.items():
        (folder / f"{name}.png").unlink(missing_ok=True)
        images = {theme: _png(draw, data, theme) for theme in THEMES}
        if all(images.values()):
            (folder / f"{name}.png").write_bytes(images["light"])
            inside = {theme: "data:image/png;base64," + base64.b64encode(png).decode() for theme, png in images.items()}
            drawn.append({"name": name, "caption": caption} | inside)
    return drawn


def _png(draw: Callable, data, theme: str) -> bytes:
    """The picture as PNG; nothing if the data have nothing for it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    paper, ink, colours = THEMES[theme]
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    style |= {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "axes.prop_cycle": cycler(color=[*colours, ink, paper]),
    }
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "font.size": 10}
    style |= {"grid.color": ink, "grid.alpha": 0.15, "grid.linewidth": 0.6, "axes.linewidth": 0.6}
    style |= {"text.parse_math": False}  # a dollar sign in a name is no formula
    with matplotlib.rc_context(style):
        # As wide as a phone is: on a larger screen two of them stand side by side, never larger than drawn.
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        draw(figure, data)
        if not figure.axes:
            return b""
        file = io.BytesIO()
        figure.savefig(file, dpi=200)
    return file.getvalue()


def page(body: str, css: str = "", **values) -> str:
    """The page of a jinja2 template of <body>; {{ figure(p) }} in it is one of `write_pictures`. Values are escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(FIGURE + HEAD.replace("</style>", css + "</style>") + body + FOOT).render(**values)


FIGURE = """{% macro figure(p) -%}
<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{{ p.dark }}"><img src="{{ p.light }}" alt="{{ p.name }}"></picture><figcaption>{{ p.caption }}</figcaption></figure>
{%- endmacro %}
"""
# The policy forbids scripts and requests even if a text got past the escaping.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { --paper: #ffffff; --card: #f6f8fa; --line: #d0d7de; --ink: #24292f; --dim: #59636e; --accent: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --card: #161b22; --line: #30363d; --ink: #e6edf3; --dim: #9aa4b0; --accent: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 3rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem }
p { margin: .25rem 0 }
.dim, figcaption, small { color: var(--dim); font-size: .875rem }
table { border-collapse: collapse }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  font-weight: normal }
td { overflow-wrap: anywhere }
td.dim { overflow-wrap: normal }
@media (max-width: 30rem) { th, td { padding-right: .7rem } }
thead th { color: var(--dim); font-size: .875rem }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.last { font-weight: 600 }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); align-items: start }
.thoughts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); align-items: stretch }
figure, article { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem }
figure { background: var(--picture, #ffffff) }
@media (prefers-color-scheme: dark) { figure { --picture: #161b22 } }
img { display: block; width: 100%; height: auto; margin-bottom: .5rem }
article header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .5rem; white-space: nowrap }
article b { color: var(--accent) }
pre { margin: .5rem 0 0; font: .875rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.prompt { padding: .6rem .8rem; margin: 1rem 0 .75rem; border-left: 3px solid var(--accent); background: var(--card) }
summary { cursor: pointer; color: var(--dim); margin: .75rem 0 }
</style>
</head>
<body>
"""
FOOT = """</body>
</html>
"""
