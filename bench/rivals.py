"""Every rival at its most diverse, over several evaluations: what a plain model finds at best, beside its ceiling.

    python bench/rivals.py outputs/judged-1 outputs/judged-2 --task spellings --json docs/results/spellings_rivals.json

Each directory is an evaluation of evaluate_diversity.py. Of every sampler the setting that is most diverse on the
validation split is shown with its figures on the test split, whatever its quality; beams are shown at every width. For
`spellings` the last column is what the same sampler finds at most on the exact distribution (mot/tasks/ceilings.py).
"""

import argparse
import json
from pathlib import Path

from record import digits, over_seeds, record
from tables import shown

from mot.inference.samplers import SAMPLERS

INDEPENDENT = tuple(name for name, sampler in SAMPLERS.items() if sampler.independent and sampler.kind == "rival")
COLUMNS = {"sampler": "8 texts by", "setting": "setting", "distinct": "distinct valid of 8", "validity": "validity"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds of the evaluations; default 1, 2, ..")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    results = [json.loads((path / "diversity.json").read_text()) for path in args.evaluations]
    settings = [{s["name"]: s for s in r["settings"]} for r in results]
    exact = ceilings() if args.task == "spellings" else {}
    rows = [row("thoughts", "**8 thoughts**", [r["selected"] for r in results], settings, None)]
    for sampler in dict.fromkeys(s["sampler"] for s in results[0]["settings"] if s["kind"] == "rival"):
        for width in (1, 2, 8) if sampler == "beam" else (None,):
            names = [most_diverse(of, sampler, width) for of in settings]
            if None in names:
                continue
            label = f"beam of {8 * width}, its best 8" if width else SAMPLERS[sampler].label
            rows.append(
                row(f"beam{8 * width}" if width else sampler, label, names, settings, ceiling(exact, sampler, width))
            )
    best = max((r for r in rows if r["id"] in INDEPENDENT), key=lambda r: mean(r["distinct"]))
    rows.append({**best, "id": "best_sampler", "sampler": "the best of all independent samplers"})
    rows[0]["bold"] = ["distinct"]
    for cells in rows:
        print(f"{cells['id']:18} " + "   ".join(f"{key} {shown(cells.get(key))}" for key in COLUMNS))
    columns = COLUMNS | ({"ceiling": "at most, exactly"} if exact else {})
    record(
        args.json,
        f"{args.task}: every rival at its most diverse",
        columns,
        rows,
        args.seeds or [*range(1, len(results) + 1)],
    )


def mean(cell) -> float:
    return cell["mean"] if isinstance(cell, dict) else cell


def most_diverse(of: dict[str, dict], sampler: str, width: int | None) -> str | None:
    """The setting of a sampler (and a beam's width) with the largest diversity on the validation split."""
    fitting = [
        s
        for s in of.values()
        if s["sampler"] == sampler and (width is None or s["parameters"].get("width", 1) == width)
    ]
    return max(fitting, key=lambda s: s["validation"]["diversity"])["name"] if fitting else None


def row(identity: str, label: str, names: list[str], settings: list[dict[str, dict]], at_most: float | None) -> dict:
    tests = [of[name]["test"] for of, name in zip(settings, names, strict=True)]
    cells = {
        "id": identity,
        "sampler": label,
        "setting": " / ".join(dict.fromkeys(names)),
        "distinct": over_seeds([t["diversity"]["mean"] for t in tests], 2),
        "validity": over_seeds([t["quality"]["mean"] for t in tests], 3),
    }
    return cells | {"ceiling": None if at_most is None else digits(at_most, 2)}


def ceilings() -> dict[str, float]:
    from mot.tasks.ceilings import ceilings as of
    from mot.tasks.spellings import ExactLaw, default

    return of(ExactLaw(), [prompt for prompt, *_ in default.rows(500, 0)])


def ceiling(exact: dict[str, float], sampler: str, width: int | None) -> float | None:
    name = f"beam {8 * width}" if width else {"diverse_beam": "diverse beam", "arithmetic": "arithmetic"}.get(sampler)
    if name is None and sampler in INDEPENDENT:
        name = "independent"
    return exact.get(name)


if __name__ == "__main__":
    main()
