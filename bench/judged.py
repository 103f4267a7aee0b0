"""Evaluations of several training seeds together: mean over seeds, with an interval over them.

    python bench/judged.py outputs/judge/forks-eval-seed1 outputs/judge/forks-eval-seed2

Each directory is an evaluation of evaluate_diversity.py, all with the same settings. For the mixture's chosen setting and every
sampler's setting at matched quality: quality and diversity; then mixture minus sampler. Intervals over training seeds are
Student's t; the largest of all independent samplers is said too, for it has a ceiling that checks the instrument.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from trunk_cost import STUDENT

INDEPENDENT = ("one_thought", "temperature", "top_p", "min_p", "top_k", "seed_prefix")


def spread(values: list[float]) -> str:
    """Mean, and half the width of its 95 % interval where there are several."""
    if len(values) < 2:
        return f"{statistics.fmean(values):.3f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    args = parser.parse_args()
    results = [json.loads((path / "diversity.json").read_text()) for path in args.evaluations]
    settings = [{s["name"]: s for s in r["settings"]} for r in results]
    quality, diversity = (results[0][aim]["name"] for aim in ("quality", "diversity"))

    def judged(r: int, name: str, aim: str) -> float:
        return settings[r][name]["judged"][aim]["mean"]

    print(f"{'':14} {quality:>22} {diversity:>22}   per seed")
    ours = [[judged(i, r["headline"], aim) for i, r in enumerate(results)] for aim in ("quality", "diversity")]
    chosen = ", ".join(f"{r['headline'].split()[-1]}: {d:.3f}" for r, d in zip(results, ours[1], strict=True))
    print(f"{'thoughts':14} {spread(ours[0]):>22} {spread(ours[1]):>22}   T {chosen}")
    for sampler in dict.fromkeys(c["sampler"] for c in results[0]["comparisons"]):
        matches = [
            next(c for c in r["comparisons"] if c["sampler"] == sampler and c["at"] == "quality") for r in results
        ]
        theirs = [[judged(i, c["setting"], aim) for i, c in enumerate(matches)] for aim in ("quality", "diversity")]
        gaps = spread([c["diversity"]["mean"] for c in matches])
        names = ", ".join(c["setting"] + ("" if c["met"] else " (nearest)") for c in matches)
        print(f"{sampler:14} {spread(theirs[0]):>22} {spread(theirs[1]):>22}   thoughts minus it {gaps}; {names}")
    largest = max(
        (s["judged"]["diversity"]["mean"], s["name"])
        for of in settings
        for s in of.values()
        if s["sampler"] in INDEPENDENT
    )
    ceiling = results[0]["ceiling"]
    print(
        f"largest {diversity} of any independent sampler: {largest[0]:.3f} ({largest[1]}); ceiling {ceiling and ceiling['independent']}"
    )
    names = [
        name
        for name in results[0]["measures"]
        if all(name in settings[i][r["headline"]]["measures"] for i, r in enumerate(results))
    ]
    for name in names:
        rivals = [
            next(c["setting"] for c in r["comparisons"] if (c["sampler"], c["at"]) == ("any", "quality"))
            for r in results
        ]
        pair = [
            spread([settings[i][s]["measures"][name]["mean"] for i, s in enumerate(of)])
            for of in ([r["headline"] for r in results], rivals)
        ]
        print(f"{name:14} thoughts {pair[0]}, best sampler {pair[1]}")
    print("verdicts", [r["verdict"]["answer"] for r in results])


if __name__ == "__main__":
    main()
