"""Do thoughts cost the trunk anything? Plain LM against mixture, same size and steps, several seeds.

    python bench/trunk_cost.py --train_file ../shared/data/shakespeare.txt --seeds 1 2 3

Held-out NLL in nats per character on the second half of every held-out 256-character window. Runs that are there already
are not run again. Two runs at a time, one thread each.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SHAPE = [
    "--vocab_size",
    "100",
    "--hidden_size",
    "128",
    "--num_layers",
    "4",
    "--batch_size",
    "32",
    "--seq_length",
    "256",
    "--bf16",
    "--eval_rows",
    "0",
]


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

    def run(thoughts: int, seed: int) -> dict[str, float]:
        directory = args.output_dir / f"thoughts{thoughts}-seed{seed}"
        if not (directory / "model.safetensors").is_file():
            command = [
                sys.executable,
                "train_mot.py",
                "--train_file",
                args.train_file,
                *SHAPE,
                "--max_steps",
                str(args.steps),
            ]
            command += [
                "--eval_every",
                str(max(1, args.steps // 2)),
                "--num_thoughts",
                str(thoughts),
                "--seed",
                str(seed),
            ]
            command += ["--output_dir", str(directory), "--overwrite"]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        return last_evaluation(directory)

    with ThreadPoolExecutor(2) as pool:
        jobs = [(seed, pool.submit(run, 8, seed), pool.submit(run, 1, seed)) for seed in args.seeds]
        rows = [(seed, mixture.result(), plain.result()) for seed, mixture, plain in jobs]

    print(f"{'seed':>4} {'plain':>8} {'base':>8} {'mixture':>8} {'oracle':>8}")
    for seed, m, p in rows:
        print(
            f"{seed:>4} {p['eval_base_nll']:8.4f} {m['eval_base_nll']:8.4f} {m['eval_mixture_nll']:8.4f} {m['eval_oracle_nll']:8.4f}"
        )
    for name in ("base", "mixture"):
        gaps = [m[f"eval_{name}_nll"] - p["eval_base_nll"] for _, m, p in rows]
        spread = (
            4.303 * statistics.stdev(gaps) / math.sqrt(3) if len(gaps) == 3 else math.nan
        )  # Student t, two degrees of freedom
        print(f"{name} - plain: {statistics.mean(gaps):+.4f} +- {spread:.4f} nats per character (95 %)")


if __name__ == "__main__":
    main()
