"""How different are eight thoughts of a prompt/completion model, beside eight samples of its most probable thought?

    python bench/e2e.py --model outputs/e2e --prompts ../shared/data/e2e/valid.jsonl

24 held-out prompts, evenly spaced. Different texts of 8, Vendi score (1 .. 8), distinct-2. Quality is not measured here
but by evaluate_diversity.py.
"""

import argparse
import json
import statistics
from pathlib import Path

from mot import MixtureOfThoughts
from mot.evaluation.metrics import distinct_n, vendi_score
from mot.inference.settings import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    args = parser.parse_args()
    mixture = MixtureOfThoughts.from_pretrained(args.model)
    everything = list(dict.fromkeys(json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()))
    prompts = everything[::5][:24]

    def show(name: str, texts: list[list[str]]) -> None:
        different, vendi, distinct = (
            statistics.mean(measure(row) for row in texts)
            for measure in (lambda t: len(set(t)), vendi_score, lambda t: distinct_n(t, 2))
        )
        print(f"{name:44} {different:5.2f} different  Vendi {vendi:.2f}  distinct-2 {distinct:.3f}")

    for temperature in (0.0, 0.7):
        rows = mixture.think_batch(prompts, SamplingParams(max_new_tokens=80, temperature=temperature))
        show(f"8 thoughts, temperature {temperature}", [[t.text for t in row] for row in rows])
    draws = [mixture.think_batch(prompts, SamplingParams(1, 80, 0.7, creativity=0, seed=seed)) for seed in range(8)]
    show(
        "8 samples of one thought, temperature 0.7", [[draw[i][0].text for draw in draws] for i in range(len(prompts))]
    )


if __name__ == "__main__":
    main()
