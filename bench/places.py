"""What makes thoughts divide places instead of items? `forks`, one choice undone at a time.

    python bench/places.py --seeds 1 2 3 --steps 1500

Each run is the `make demo` run with fewer steps; a variant changes one constant of the library in its own process.
"""

import argparse
import re
from pathlib import Path

from runs import ROOT, printed, train_once

VARIANTS = {
    "as it is": "",
    "keys without a wide bias": "mot.model.build.KEY_BIAS_STD = 0.0",
    "rotary base 10,000": "mot.model.build.WAVELENGTHS = 10_000 / 24",
    "winners hard from the first step": "",
    "diversity from the first step": "mot.training.em.DIVERSITY_FROM = 0.0",
    "no diversity": "",
}
LINE = re.compile(r"found ([\d.]+) of 8 answers on unseen prompts \(validity ([\d.]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/places"))
    args = parser.parse_args()

    def run(variant: str, seed: int):
        flags = ["--config", str(ROOT / "configs/forks.yaml"), *f"--max_steps {args.steps} --seed {seed}".split()]
        flags += ["--diversity_weight", "0"] * (variant == "no diversity")
        flags += ["--estep_temperature", "0.3"] * (variant == "winners hard from the first step")
        name = f"{variant.replace(' ', '_')}-{args.steps}-seed{seed}"
        return train_once(args.output_dir / name, flags, patch=VARIANTS[variant])

    jobs = {variant: [run(variant, seed) for seed in args.seeds] for variant in args.variants}
    for variant, of_seeds in jobs.items():
        found = [LINE.search(printed(job.result()).read_text()).groups() for job in of_seeds]
        print(f"{variant:34}" + "   ".join(f"{n} of 8 at {validity}" for n, validity in found), flush=True)


if __name__ == "__main__":
    main()
