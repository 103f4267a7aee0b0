"""Evaluations of several training seeds together: means over the seeds, with intervals.

    python bench/judged.py outputs/judge/forks-eval-seed1 outputs/judge/forks-eval-seed2

Each directory is an evaluation of evaluate_diversity.py, all with the same settings. Quality and diversity are shown
for the mixture's selected setting and for every sampler's setting at matched quality, then mixture minus sampler.
Intervals over training seeds are Student's t. The largest diversity of all independent samplers is shown too: it may
not exceed the ceiling, which checks the instrument.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from trunk_cost import STUDENT

from mot.evaluation.schema import VERSION
from mot.inference.samplers import SAMPLERS


def spread(values: list[float]) -> str:
    """Mean, and half the width of its 95 % interval where there are several values."""
    if len(values) < 2:
        return f"{statistics.fmean(values):.3f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} +- {half:.3f}"


def read(path: Path) -> dict:
    result = json.loads((path / "diversity.json").read_text())
    if result["version"] != VERSION:
        raise SystemExit(
            f"{path}: version {result['version']}, not {VERSION}; run the evaluation again (texts are kept)"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    args = parser.parse_args()
    results = [read(path) for path in args.evaluations]
    settings = [{s["name"]: s for s in r["settings"]} for r in results]
    quality, diversity = (results[0][axis]["name"] for axis in ("quality", "diversity"))

    def on_test(r: int, name: str, axis: str) -> float:
        return settings[r][name]["test"][axis]["mean"]

    print(f"{'':14} {quality:>22} {diversity:>22}   per seed")
    ours = [[on_test(i, r["selected"], axis) for i, r in enumerate(results)] for axis in ("quality", "diversity")]
    selected = ", ".join(f"{r['selected'].split()[-1]}: {d:.3f}" for r, d in zip(results, ours[1], strict=True))
    print(f"{'thoughts':14} {spread(ours[0]):>22} {spread(ours[1]):>22}   T {selected}")
    for key, note in (("comparisons", ""), ("ablations", " (ablation)")):
        for sampler in dict.fromkeys(c["sampler"] for c in results[0][key]):
            matches = [
                next(c for c in r[key] if c["sampler"] == sampler and c["matched_on"] == "quality") for r in results
            ]
            theirs = [
                [on_test(i, c["setting"], axis) for i, c in enumerate(matches)] for axis in ("quality", "diversity")
            ]
            gaps = spread([c["diversity"]["mean"] for c in matches])
            names = ", ".join(c["setting"] + ("" if c["qualified"] else " (nearest)") for c in matches)
            print(
                f"{sampler:14} {spread(theirs[0]):>22} {spread(theirs[1]):>22}"
                f"   thoughts minus it {gaps}; {names}{note}"
            )
    largest = max(
        (s["test"]["diversity"]["mean"], s["name"])
        for by_name in settings
        for s in by_name.values()
        if SAMPLERS[s["sampler"]].independent
    )
    ceiling = results[0]["ceiling"] and results[0]["ceiling"]["independent"]
    print(f"largest {diversity} of any independent sampler: {largest[0]:.3f} ({largest[1]}); ceiling {ceiling}")
    rivals = [
        next(c["setting"] for c in r["comparisons"] if (c["sampler"], c["matched_on"]) == ("any", "quality"))
        for r in results
    ]
    for name in results[0]["measures"]:
        if all(name in settings[i][r["selected"]]["measures"] for i, r in enumerate(results)):
            of_thoughts, of_rivals = (
                spread([settings[i][s]["measures"][name]["mean"] for i, s in enumerate(names)])
                for names in ([r["selected"] for r in results], rivals)
            )
            print(f"{name:14} thoughts {of_thoughts}, best rival {of_rivals}")
    print("verdicts", [r["verdict"]["answer"] for r in results])


if __name__ == "__main__":
    main()
