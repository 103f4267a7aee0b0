"""Write the tables and figures of README.md and docs/**/*.md from docs/results/*.json. No torch.

    python bench/tables.py            # rewrite every block
    python bench/tables.py --check    # change nothing; exit 1 and name every page whose blocks are stale

A block of a page lies between two comments, and everything between them is generated:

    <!-- table: NAME --> <!-- end -->                   the rows of NAME.json and where they come from
    <!-- command: NAME --> <!-- end -->                 the commands of NAME.json in a fence
    <!-- figure: NAME.ROW.COLUMN --> <!-- end -->       one cell; .mean, .low, .high or .half: one number

A file names study, date, commit (that recorded the figures), machine, command, seeds, columns (key: label) and rows. A
row is an object of cells. "id" is its name in a reference and "bold" lists the cells that stand out. A cell is

    1.000                                       a number, shown with the digits it is written with
    {"mean": 7.62, "half": 0.53}                7.62 ± 0.53
    {"mean": 5.95, "low": 5.46, "high": 6.38}   5.95 [5.46, 6.38]
    [7.75, 7.82]                                one number for each seed
    "{forks.mean.distinct} of 8"                text; a reference in braces is a cell of another file
    null                                        an empty cell

A file without a date is a summary: its cells are references, so that no figure is written down twice.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- (table|command|figure): ([\w.]+) -->)(.*?)(<!-- end -->)", re.DOTALL)
REFERENCE = re.compile(r"\{(\w+(?:\.\w+)+)\}")


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def study(name: str) -> dict:
    """The content of NAME.json. Decimals keep the digits that the file shows."""
    return json.loads((RESULTS / f"{name}.json").read_text(), parse_float=Decimal)


def figure(reference: str, signed: bool = False) -> str:
    """The text of the cell NAME.ROW.COLUMN, or of one number of it."""
    name, row, column, *part = reference.split(".")
    content = study(name)
    (found,) = [r for r in content["rows"] if r.get("id") == row]
    value = found[column]
    for key in part:
        value = value[key]
    return shown(value, signed or column in content.get("signed", ()))


def shown(value, signed: bool = False) -> str:
    """A cell as text."""
    match value:
        case None:
            return ""
        case str():
            return REFERENCE.sub(lambda m: figure(m[1]), value)
        case int() | Decimal():
            return f"{value:+,}" if signed else f"{value:,}"
        case list():
            return " ".join(shown(v, signed) for v in value)
        case {"mean": mean, "half": half}:
            return f"{shown(mean, signed)} ± {shown(half)}"
        case {"mean": mean, "low": low, "high": high}:
            return f"{shown(mean, signed)} [{shown(low, signed)}, {shown(high, signed)}]"
    raise ValueError(f"no rule to show {value!r}")


def table(name: str, page: Path) -> str:
    content = study(name)
    columns, signed = content["columns"], content.get("signed", ())
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in content["rows"]:
        cells = {key: shown(row.get(key), key in signed) for key in columns}
        cells |= {key: f"**{cells[key]}**" for key in row.get("bold", ())}
        lines.append("| " + " | ".join(cells.values()) + " |")
    if "date" in content:
        link = os.path.relpath(RESULTS / f"{name}.json", page.parent)
        seeds = ", ".join(map(str, content["seeds"])) or "none"
        source = f"{content['date']}, commit {content['commit']}, seeds: {seeds}; {content['machine']}"
        source = f"<sub>{source} ([{name}.json]({link}))</sub>"
        lines += ["", textwrap.fill(source, 120, break_long_words=False, break_on_hyphens=False)]
    return "\n" + "\n".join(lines) + "\n"


def command(name: str, page: Path) -> str:
    return "\n```bash\n" + "\n".join(study(name)["command"]) + "\n```\n"


def written(page: Path) -> str:
    """The page's text with every block made anew."""

    def block(match: re.Match) -> str:
        opening, kind, name, _, end = match.groups()
        body = figure(name) if kind == "figure" else {"table": table, "command": command}[kind](name, page)
        return opening + body + end

    return BLOCK.sub(block, page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is stale")
    args = parser.parse_args()
    stale = [page for page in pages() if page.read_text() != written(page)]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'stale' if args.check else 'written'}")
        if not args.check:
            page.write_text(written(page))
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
