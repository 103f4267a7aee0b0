"""Do the flags change diversity as they should? --num_thoughts 1, 4, 8, 16 and --diversity_weight 0 .. 0.2.

    python bench/knobs.py --train_file ../shared/data/shakespeare.txt --seeds 1 2 3

Small character models on Shakespeare, everything else equal. Diversity: what the thought says about the second half of
a held-out window, over all N thoughts, in nats (mot.thoughts.diversity). Vendi score: effective number of different
texts among the N greedy thoughts of 16 held-out prompts of 64 characters. For N = 1 it is 1, without diversity, by
definition.
"""

import argparse
import json
import statistics
from pathlib import Path

from runs import train_once

SHAPE = "--vocab_size 100 --hidden_size 64 --num_layers 2 --batch_size 16 --seq_length 128"
SHAPE += " --max_steps 600 --eval_every 600"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/knobs"))
    args = parser.parse_args()

    def run(thoughts: int, weight: float, seed: int):
        flags = [*SHAPE.split(), "--train_file", args.train_file]
        flags += f"--num_thoughts {thoughts} --diversity_weight {weight} --seed {seed}".split()
        return train_once(args.output_dir / f"thoughts{thoughts}-weight{weight}-seed{seed}", flags)

    settings = [(n, 0.1) for n in (1, 4, 8, 16)] + [(8, w) for w in (0.0, 0.05, 0.2)]
    jobs = {s: [run(*s, seed) for seed in args.seeds] for s in settings}
    directories = {s: [job.result() for job in of_seeds] for s, of_seeds in jobs.items()}
    text = Path(args.train_file).read_text()
    held_out = text[len(text) * 9 // 10 :]
    columns = f"{'N':>3} {'weight':>6} {'diversity':>18} {'Vendi':>18} {'base':>8} {'mixture':>8}"
    print(columns + "   mean (least .. most) over seeds")
    for (n, weight), of_seeds in sorted(directories.items()):
        said, vendi, base, mixture = zip(*(measure(directory, held_out) for directory in of_seeds), strict=True)
        spans = [f"{statistics.mean(v):.3f} ({min(v):.2f}..{max(v):.2f})" for v in (said, vendi)]
        nlls = f"{statistics.mean(base):8.4f} {statistics.mean(mixture):8.4f}"
        print(f"{n:>3} {weight:>6} {spans[0]:>18} {spans[1]:>18} {nlls}")


def measure(directory: Path, held_out: str) -> tuple[float, ...]:
    """(diversity, Vendi score, base NLL, mixture NLL) of one run."""
    import torch

    from mot import MixtureOfThoughts
    from mot.evaluation.metrics import vendi_score
    from mot.model.tokenizer import encode
    from mot.thoughts import diversity

    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    mixture = MixtureOfThoughts.from_pretrained(str(directory))
    ids = torch.tensor(encode(mixture.tokenizer, [held_out], "held-out text")[0])
    windows = ids[: len(ids) // 128 * 128].view(-1, 128)[::14][:32]
    last = [m for m in metrics if "eval_base_nll" in m][-1]
    if not mixture.thoughts:
        return 0.0, 1.0, last["eval_base_nll"], last["eval_mixture_nll"]
    with torch.no_grad():
        rows = [
            torch.stack([torch.cat([w[:64], torch.tensor([k]), w[64:]]) for k in mixture.thoughts]) for w in windows
        ]
        logits_NRTV = torch.stack([mixture.model(row).logits[:, 64:-1] for row in rows], 1)
    said = diversity(logits_NRTV, windows[:, 64:], torch.ones_like(windows[:, 64:]))
    prompts = [held_out[i * 6000 : i * 6000 + 64] for i in range(16)]
    vendi = [
        vendi_score([t.text for t in mixture.think(prompt, max_new_tokens=120, temperature=0.0)]) for prompt in prompts
    ]
    return said.mean().item(), statistics.mean(vendi), last["eval_base_nll"], last["eval_mixture_nll"]


if __name__ == "__main__":
    main()
