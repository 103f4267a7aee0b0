"""Do thoughts cost the trunk anything? Plain LM against mixture, same size and steps, several seeds.

    python bench/trunk_cost.py --train_file ../shared/data/shakespeare.txt --seeds 1 2 3

Held-out NLL in nats per character on the second half of every held-out 256-character window. Finished runs are not run
again. Two runs at a time, one thread each. The interval over seeds is Student's t.
"""

import argparse
import json
from pathlib import Path

from record import STUDENT, digits, over_seeds, record
from runs import train_once
from tables import shown

SHAPE = "--vocab_size 100 --hidden_size 128 --num_layers 4 --batch_size 32 --seq_length 256 --bf16 --eval_rows 0"
COLUMNS = {name: name for name in ("seed", "steps", "plain", "base", "mixture", "oracle")}
COLUMNS |= {"base_gap": "base - plain", "mixture_gap": "mixture - plain"}


def last_evaluation(directory: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [m for m in lines if "eval_base_nll" in m][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/trunk_cost"))
    parser.add_argument("--json", type=Path, help="store the rows for bench/tables.py")
    args = parser.parse_args()
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > max(STUDENT):
        parser.error(f"--seeds: give 1 to {max(STUDENT)} different ones")

    def run(thoughts: int, seed: int):
        flags = [*SHAPE.split(), "--train_file", args.train_file, "--max_steps", str(args.steps)]
        flags += f"--eval_every {max(1, args.steps // 2)} --num_thoughts {thoughts} --seed {seed}".split()
        return train_once(args.output_dir / f"thoughts{thoughts}-seed{seed}", flags)

    jobs = [(seed, run(8, seed), run(1, seed)) for seed in args.seeds]
    pairs = [(seed, last_evaluation(m.result()), last_evaluation(p.result())) for seed, m, p in jobs]
    rows = []
    for seed, m, p in pairs:
        plain, *ours = (p["eval_base_nll"], *(m[f"eval_{name}_nll"] for name in ("base", "mixture", "oracle")))
        nlls = dict(zip(("plain", "base", "mixture", "oracle"), (digits(x, 4) for x in (plain, *ours)), strict=True))
        gaps = {"base_gap": digits(ours[0] - plain, 4), "mixture_gap": digits(ours[1] - plain, 4)}
        rows.append({"seed": seed, "steps": args.steps, **nlls, **gaps})
    gaps = {
        f"{name}_gap": over_seeds([m[f"eval_{name}_nll"] - p["eval_base_nll"] for _, m, p in pairs], 4)
        for name in ("base", "mixture")
    }
    rows.append({"id": "mean", "seed": "mean, 95 %", "steps": args.steps, **gaps})
    for row in rows:
        print("   ".join(f"{key} {shown(row.get(key))}" for key in COLUMNS))
    if args.json:
        study = "Tiny Shakespeare: does the trunk stay a good language model?"
        record(args.json, study, COLUMNS, rows, args.seeds, signed=["base_gap", "mixture_gap"])


if __name__ == "__main__":
    main()
