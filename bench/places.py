"""What makes thoughts divide places instead of words? `forks`, one choice undone at a time.

    python bench/places.py --seeds 1 2 3 --steps 1500

Each run is the `make demo` run with fewer steps; a variant changes one constant of the library in its own process.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VARIANTS = {
    "as it is": "",
    "keys without a wide bias": "mot.model.KEY_BIAS_STD = 0.0",
    "rotary base 10,000": "mot.model.WAVELENGTHS = 10_000 / 24",
    "winners hard from the first step": "mot.train.TEMPERATURE = (0.05, 0.05)",
    "diversity from the first step": "mot.train.DIVERSITY_FROM = 0.0",
    "no diversity": "",
}
RUN = "import mot.model, mot.train; {patch}\nfrom mot import cli; cli.run(cli.train, {flags!r})"
LINE = re.compile(r"found ([\d.]+) of 8 answers on unseen prompts \(validity ([\d.]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/places"))
    args = parser.parse_args()

    def run(variant: str, seed: int) -> tuple[float, float]:
        log = args.output_dir / f"{variant.replace(' ', '_')}-{args.steps}-seed{seed}.txt"
        if not log.is_file():
            flags = [
                "--config",
                "configs/forks.yaml",
                "--max_steps",
                str(args.steps),
                "--seed",
                str(seed),
                "--overwrite",
            ]
            flags += ["--output_dir", str(log.with_suffix(""))] + ["--diversity_weight", "0"] * (
                variant == "no diversity"
            )
            code = RUN.format(patch=VARIANTS[variant], flags=flags)
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            log.write_text(done.stdout)
        found, validity = LINE.search(log.read_text()).groups()
        return float(found), float(validity)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        jobs = {variant: [pool.submit(run, variant, seed) for seed in args.seeds] for variant in args.variants}
        for variant, runs in jobs.items():
            print(
                f"{variant:34}" + "   ".join("{:.2f} of 8 at {:.3f}".format(*job.result()) for job in runs), flush=True
            )


if __name__ == "__main__":
    main()
