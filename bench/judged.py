"""Evaluations of several training seeds together: mean over seeds, with an interval over them.

    python bench/judged.py outputs/judged-1 outputs/judged-2 --json docs/results/forks_samplers.json

Each directory is an evaluation of evaluate_diversity.py (version 2 or 3 of diversity.json), all with the same settings.
Printed are quality and diversity on the test split, for the mixture's selected setting and every sampler's setting of
matched quality, then mixture minus sampler. Intervals over training seeds are Student's t. The largest diversity of all
independent samplers comes last, because a ceiling bounds it.
"""

import argparse
import json
from pathlib import Path

from record import digits, over_seeds, record
from tables import shown

from mot.inference.samplers import SAMPLERS

INDEPENDENT = tuple(name for name, sampler in SAMPLERS.items() if sampler.independent)
COLUMNS = ("sampler", "validity", "distinct", "gap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="store the rows for bench/tables.py")
    args = parser.parse_args()
    results = [json.loads((path / "diversity.json").read_text()) for path in args.evaluations]
    if old := [str(path) for path, r in zip(args.evaluations, results, strict=True) if r["version"] not in (2, 3)]:
        parser.error(f"{old[0]}: its diversity.json has another version than 2 and 3; evaluate it again")
    settings = [{s["name"]: s for s in r["settings"]} for r in results]
    quality, diversity = results[0]["quality"]["name"], results[0]["diversity"]["name"]

    def test(names: list[str], measure: str) -> list[float]:
        return [of[name]["test"][measure]["mean"] for of, name in zip(settings, names, strict=True)]

    def row(identity: str, label: str, names: list[str]) -> dict:
        good, different = test(names, "quality"), test(names, "diversity")
        return {"id": identity, "sampler": label, "validity": over_seeds(good, 3), "distinct": over_seeds(different, 2)}

    selected = [r["selected"] for r in results]
    rows = [row("thoughts", "thoughts", selected)]
    rows[0]["seeds"] = [digits(d, 2) for d in test(selected, "diversity")]
    pairs = [c for c in results[0]["comparisons"] + results[0]["ablations"] if c["matched_on"] == "quality"]
    for sampler in dict.fromkeys(c["sampler"] for c in pairs if c["sampler"] != "any"):
        matches = [
            next(
                c
                for c in r["comparisons"] + r["ablations"]
                if c["sampler"] == sampler and c["matched_on"] == "quality" and c["mixture"] == r["selected"]
            )
            for r in results
        ]
        label = sampler if all(c["qualified"] for c in matches) else f"{sampler} (nearest)"
        gap = over_seeds([c["diversity"]["mean"] for c in matches], 2)
        rows.append(row(sampler, label, [c["setting"] for c in matches]) | {"gap": gap})
    for cells in rows:
        print(f"{cells['sampler']:24} " + "   ".join(f"{key} {shown(cells.get(key))}" for key in COLUMNS[1:]))
    largest, name = max(
        (s["test"]["diversity"]["mean"], s["name"])
        for of in settings
        for s in of.values()
        if s["sampler"] in INDEPENDENT
    )
    ceiling = results[0]["ceiling"]
    bound = ceiling["independent"] if ceiling else "unknown"
    print(f"largest {diversity} of any independent sampler: {largest:.3f} ({name}); ceiling {bound}")
    for measure in results[0]["measures"]:
        best = [
            next(c["setting"] for c in r["comparisons"] if (c["sampler"], c["matched_on"]) == ("any", "quality"))
            for r in results
        ]
        if all(measure in of[name]["measures"] for of, name in zip(settings, selected, strict=True)):
            ours, theirs = (
                over_seeds([of[n]["measures"][measure]["mean"] for of, n in zip(settings, names, strict=True)], 3)
                for names in (selected, best)
            )
            print(f"{measure:14} thoughts {shown(ours)}, best sampler {shown(theirs)}")
    print("verdicts", [r["verdict"]["answer"] for r in results])
    if args.json:
        columns = dict(zip(COLUMNS, ("", quality, diversity, "thoughts minus it"), strict=True))
        study = f"{results[0]['task']}: thoughts against samplers and beams at matched quality"
        record(args.json, study, columns, rows, [path.name for path in args.evaluations], signed=["gap"])


if __name__ == "__main__":
    main()
