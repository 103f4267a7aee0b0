"""Thoughts that win: distinct valid answers of eight greedy thoughts, over training seeds, with and without each part.

    python bench/winning.py --task spellings --seeds 1 2 3 4 5
    python bench/winning.py --task forks --seeds 1 2 3 4 5 --capability avx2

Trains configs/TASK.yaml for every seed and variant (two runs at a time, one thread each) into outputs/bench/winning,
and a plain model with the same training FLOPs for the rivals (--plain). No run is made twice. `--capability` is
ATEN_CPU_CAPABILITY, which makes the processor older. Writes docs/results/winning_TASK[_CAPABILITY].json.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import runs
from counting import FILE
from record import digits, over_seeds, record

from mot.evaluation.answers import find_answers
from mot.inference.think import MixtureOfThoughts

RESULTS = runs.ROOT / "docs" / "results"
UNKEYED = (
    "mot.training.em.keyed = lambda b: {n: b[n] for n in ('prompt', 'prompt_mask', 'completion', 'completion_mask')}"
)
VARIANTS = {  # name: (label, flags, patch)
    "full": ("keys and matching", [], ""),
    "no_key": ("without keys", [], UNKEYED),
    "no_match": ("without matching", ["--match_steps", "0"], ""),
    "no_muon": ("with AdamW for all parameters", ["--optimizer", "adamw"], ""),
}
COLUMNS = {
    "variant": "variant",
    "distinct": "distinct of 8",
    "worst": "worst seed",
    "each": "each seed",
    "validity": "validity, worst seed",
    "cost": "cost, forward passes of 10^6 tokens",
}


def cost(run: Path) -> dict:
    return json.loads((run / FILE).read_text())


def main(task: str, seeds: list[int], variants: list[str], capability: str | None, plain: bool) -> None:
    name = f"{task}{f'_{capability}' if capability else ''}"
    folder = runs.ROOT / "outputs" / "bench" / "winning"
    if capability:
        os.environ["ATEN_CPU_CAPABILITY"] = capability
    flags = ["--config", str(runs.ROOT / "configs" / f"{task}.yaml")]
    made = {
        (variant, seed): runs.train_once(
            folder / f"{name}-{variant}-{seed}",
            [*flags, "--seed", str(seed), *VARIANTS[variant][1]],
            VARIANTS[variant][2],
        )
        for seed in seeds
        for variant in variants
    }
    rows = []
    for variant in variants:
        found = []
        for seed in seeds:
            found.append(find_answers(MixtureOfThoughts.from_pretrained(str(made[variant, seed].result())), task))
            print(f"{name} {variant} seed {seed}: {found[-1].distinct:.2f} of 8, validity {found[-1].validity:.4f}")
        distinct = [f.distinct for f in found]
        tokens = [cost(made[variant, seed].result())["forward_tokens"] / 1e6 for seed in seeds]
        rows.append(
            {
                "id": variant,
                "variant": VARIANTS[variant][0],
                "distinct": over_seeds(distinct, 2),
                "worst": digits(min(distinct), 2),
                "each": [digits(d, 2) for d in distinct],
                "validity": digits(min(f.validity for f in found), 3),
                "cost": digits(statistics.fmean(tokens), 0),
            }
        )
        record(RESULTS / f"winning_{name}.json", f"{task}: what each part gives", COLUMNS, rows, seeds)
    if plain:
        train_plain(folder, flags, task, made["full", seeds[0]].result(), seeds)


def train_plain(folder: Path, flags: list[str], task: str, mixture: Path, seeds: list[int]) -> None:
    """A plain model for each seed, with as many steps as the first mixture's cost pays for."""
    flags = [*flags, "--num_thoughts", "1", "--match_steps", "0"]
    probe = cost(runs.train_once(folder / f"{task}-probe", [*flags, "--max_steps", "20"]).result())
    steps = round(cost(mixture)["forward_tokens"] / (probe["forward_tokens"] / probe["steps"]))
    print(f"{task}: a plain model has the mixture's training FLOPs after {steps} steps")
    for run in [
        runs.train_once(folder / f"{task}-plain-{s}", [*flags, "--seed", str(s), "--max_steps", str(steps)])
        for s in seeds
    ]:
        print(run.result())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="spellings", choices=("spellings", "forks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", default=["full"], choices=VARIANTS)
    parser.add_argument("--capability", choices=("default", "avx2"))
    parser.add_argument("--plain", action="store_true")
    a = parser.parse_args()
    main(a.task, a.seeds, a.variants, a.capability, a.plain)
