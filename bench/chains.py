"""Does each thought know one Markov chain? Transition matrices of what every thought says, against the true ones.

    python bench/chains.py --models outputs/chains-1 outputs/chains-2 --samples 4000

Trained with `train_mot.py --task chains`. For each of the four chains: the thought that recovers it, and the largest
absolute error of that thought's transition matrix (each of 4,000 texts, temperature 1; of the very chain they would come
within 0.02). A model without thoughts is compared with the chains four times over: it can know the average only.
"""

import argparse
import json
from pathlib import Path

from runs import ROOT  # noqa: F401  (this directory's mot, not the installed one)

from mot import tasks
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.tasks import chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=4000)
    args = parser.parse_args()
    rows, entropy = tasks.held_out("chains"), chains.entropy()
    print(f"true entropy {entropy:.4f} nats per token")
    for path in args.models:
        mixture = MixtureOfThoughts.from_pretrained(path)
        N = mixture.num_thoughts
        (thoughts,) = mixture.think_batch(
            [chains.START], SamplingParams(N * args.samples, chains.LENGTH + 1, temperature=1.0)
        )
        found = [chains.transition_matrix([t.text for t in thoughts if t.index == k]) for k in range(N)]
        recovered = chains.recovered(found if N > 1 else found * chains.CHAINS)
        nll = [mixture.nll(prompt, text) for prompt, text in rows]
        # `nll` scores the text without its end, which is certain: its share of the tokens is put back.
        share = chains.LENGTH / (chains.LENGTH + 1)
        numbers = {name: share * sum(n[name] for n in nll) / len(nll) for name in ("base", "mixture")}
        line = {
            "model": Path(path).name,
            "errors": [round(e, 4) for _, e in recovered],
            "thoughts": [k for k, _ in recovered],
        }
        print(json.dumps(line | {name: round(value, 4) for name, value in numbers.items()}), flush=True)


if __name__ == "__main__":
    main()
