"""Time of `python train_mot.py --help`, of an empty Python, and of Python with torch.

    python bench/start.py

Medians of --rounds, in turn. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from runs import ROOT

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python train_mot.py --help": [str(ROOT / "train_mot.py"), "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    seconds = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, words in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    found = {name: statistics.median(of_rounds) for name, of_rounds in seconds.items()}
    for name, median in found.items():
        print(f"{name:28} {median:6.3f} s  ({min(seconds[name]):.3f} .. {max(seconds[name]):.3f})")
    print(json.dumps({"bench": "start", **found}))


if __name__ == "__main__":
    main()
