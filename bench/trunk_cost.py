"""Do thoughts cost the trunk anything? Plain LM against mixture, same size and steps, several seeds.

    python bench/trunk_cost.py --train_file ../shared/data/shakespeare.txt --seeds 1 2 3

Held-out NLL in nats per character on the second half of every held-out 256-character window. Runs that are there already
are not run again. Two runs at a time, one thread each. The interval over seeds is Student's t.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from runs import train_once

SHAPE = "--vocab_size 100 --hidden_size 128 --num_layers 4 --batch_size 32 --seq_length 256 --bf16 --eval_rows 0"
# Two-sided 95 % quantiles of Student's t by the number of seeds (one degree of freedom less).
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def last_evaluation(directory: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [m for m in lines if "eval_base_nll" in m][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/trunk_cost"))
    args = parser.parse_args()

    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > max(STUDENT):
        parser.error(f"--seeds: give 1 to {max(STUDENT)} different ones")

    def run(thoughts: int, seed: int):
        flags = [*SHAPE.split(), "--train_file", args.train_file, "--max_steps", str(args.steps)]
        flags += f"--eval_every {max(1, args.steps // 2)} --num_thoughts {thoughts} --seed {seed}".split()
        return train_once(args.output_dir / f"thoughts{thoughts}-seed{seed}", flags)

    jobs = [(seed, run(8, seed), run(1, seed)) for seed in args.seeds]
    rows = [(seed, last_evaluation(m.result()), last_evaluation(p.result())) for seed, m, p in jobs]

    print(f"{'seed':>4} {'plain':>8} {'base':>8} {'mixture':>8} {'oracle':>8}")
    for seed, m, p in rows:
        nlls = (p["eval_base_nll"], *(m[f"eval_{name}_nll"] for name in ("base", "mixture", "oracle")))
        print(f"{seed:>4} " + " ".join(f"{nll:8.4f}" for nll in nlls))
    for name in ("base", "mixture"):
        gaps = [m[f"eval_{name}_nll"] - p["eval_base_nll"] for _, m, p in rows]
        print(f"{name} - plain: {statistics.mean(gaps):+.4f} {interval(gaps)}")


def interval(gaps: list[float]) -> str:
    """Half the width of the 95 % interval of the mean over seeds, in words."""
    if len(gaps) < 2:
        return "nats per character (one seed: no interval)"
    half = STUDENT[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"+- {half:.4f} nats per character (95 %, {len(gaps)} seeds)"


if __name__ == "__main__":
    main()
