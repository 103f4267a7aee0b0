"""Does each thought know one Markov chain? Transition matrices of every thought's texts, against the true ones.

    python bench/chains.py --models outputs/chains-1 outputs/chains-2 --json docs/results/chains.json

Trained with `train_mot.py --task chains`. For each of the four chains: the thought that recovers it, and the largest
absolute error of that thought's transition matrix, from 4,000 texts at temperature 1. Texts of the chain itself come
within 0.02. A model without thoughts is compared with all four chains, because it can only know their average.
"""

import argparse
import json
from pathlib import Path

from record import digits, record
from runs import ROOT  # noqa: F401  (this directory's mot, not the installed one)

from mot import tasks
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.tasks import chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--json", type=Path, help="store the rows for bench/tables.py")
    args = parser.parse_args()
    table = []
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
        errors = [digits(e, 3) for e in sorted(e for _, e in recovered)]
        table.append({"model": line["model"], "errors": errors, "nll": digits(numbers["mixture"], 3)})
    if args.json:
        columns = {"model": "model", "errors": "largest errors of the four matrices", "nll": "NLL, nats per token"}
        record(args.json, "chains: does each thought recover one Markov chain?", columns, table, seeds=[])


if __name__ == "__main__":
    main()
