"""What does training cost? Against the machine's own arithmetic, against a plain model, against nanoGPT.

    python bench/training.py rate --train_file ../shared/data/shakespeare.txt                           P1
    python bench/training.py thoughts --train_file ../shared/data/shakespeare.txt                       P2, P2b
    python bench/training.py nanogpt --train_file ../shared/data/shakespeare.txt --nanogpt ../nanoGPT   P3

rate: FLOP/s of whole training steps of a plain model, over the FLOP/s of its own matrix products alone: every linear
      layer, forward and backward, at the shapes of the step.
thoughts: text tokens per second with 8 thoughts, over a plain model's of the same trunk: the M-step alone (the winner
      is known, no thought is scored; without and with the contrast rows of --diversity_weight), and all of it.
nanogpt: seconds of training to nanoGPT's published CPU loss (Shakespeare by characters, 4 layers of 128, context 64,
      validation loss 1.88), ours over its own, without evaluation on both sides. nanoGPT runs from your checkout.

Both sides run in turn, --rounds times, in one process (nanoGPT in its own); the figures are medians. The steps are the
trainer's own, its Python included. The last line is JSON. A GPU is used where there is one.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import DEVICE, described, synchronise
from torch.nn import functional as F
from transformers import TrainerCallback

from mot.data.load import load_data
from mot.runtime.signals import SignalHandler
from mot.training.em import MixtureTrainer
from mot.training.recipes import recipe_of
from mot.training.settings import TrainSettings

WARM = 3  # steps before the clock runs
PUBLISHED = 1.88  # nanoGPT's README: "a loss of 1.88" after 2,000 iterations on a CPU
GUIDE = "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000"
GUIDE += " --dropout=0.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rate", "thoughts", "nanogpt"))
    parser.add_argument("--train_file", required=True, help="a text")
    parser.add_argument("--nanogpt", type=Path, help="nanogpt: a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="rate, thoughts: of each run")
    parser.add_argument("--hidden_size", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--batch_size", type=int, default=32, help="rate, thoughts: rows of 256 tokens")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--max_steps", type=int, nargs=2, default=(600, 640), help="nanogpt: ours, plain and with thoughts"
    )
    parser.add_argument("--learning_rate", type=float, default=2.5e-3, help="nanogpt: ours")
    parser.add_argument("--rows", type=int, default=12, help="nanogpt: ours, in a batch")
    args = parser.parse_args()
    if args.part == "nanogpt" and not (args.nanogpt and (args.nanogpt / "train.py").is_file()):
        parser.error("nanogpt: needs --nanogpt, a checkout that holds train.py")
    found = {"rate": rate, "thoughts": thoughts, "nanogpt": nanogpt}[args.part](args)
    print(json.dumps({"bench": f"training {args.part}", **described(), **found}))


class Clock(TrainerCallback):
    """Take the time when an update is done."""

    def __init__(self, trainer: "Timed"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **_):
        synchronise()
        self.trainer.seconds.append(time.perf_counter() - self.trainer.begun)


class Timed(MixtureTrainer):
    """The trainer, and how many seconds each of its steps took."""

    scores = True

    def __init__(self, settings: TrainSettings, data, model, steps: int, directory: str):
        super().__init__(settings, data, model, steps, directory, None, SignalHandler())
        self.add_callback(Clock(self))
        self.seconds, self.args.logging_steps = [], steps
        self.args.eval_strategy = self.args.save_strategy = "no"

    def get_batch_samples(self, *args):
        synchronise()
        self.begun = time.perf_counter()
        return super().get_batch_samples(*args)

    def score_thoughts(self, batches, carries_R, candidates_NL):
        if self.scores:
            return super().score_thoughts(batches, carries_R, candidates_NL)
        R, N = len(carries_R), len(self.thoughts)  # the winner is known
        return torch.zeros(R, N), torch.zeros(R, N)


def timed(settings: TrainSettings, data, steps: int, scores: bool = True):
    """(trainer, seconds per step after the first WARM) of a fresh model."""
    with tempfile.TemporaryDirectory() as directory:
        trainer = Timed(settings, data, recipe_of(settings).model(data.tokenizer), steps, directory)
        trainer.scores = scores
        trainer.train()
    return trainer, trainer.seconds[WARM:]


def shape(args, hidden: int, **more) -> TrainSettings:
    layers = {128: 4, 384: 6}.get(hidden, 6)
    flags = {"hidden_size": hidden, "num_layers": layers, "batch_size": args.batch_size, "bf16": args.bf16}
    return TrainSettings(**flags, compile=args.compile, vocab_size=100, seed=1, **more)


# P1 -----------------------------------------------------------------------------------------------------------------


def rate(args) -> dict:
    found = {}
    print(f"{'hidden':>6} {'step':>10} {'training':>16} {'products alone':>16} {'ratio':>6}")
    for hidden in args.hidden_size:
        settings = shape(args, hidden, num_thoughts=1, train_file=args.train_file)
        data = load_data(settings, None, None)
        ours, ceiling = [], []
        for _ in range(args.rounds):
            trainer, seconds = timed(settings, data, args.steps)
            flops, products = work(trainer.model, args.batch_size, settings.seq_length)
            ours.append(flops / statistics.median(seconds))
            ceiling.append(gemm_rate(products, args.bf16))
        step = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(ours, ceiling, strict=True))
        one, two = statistics.median(ours) / 1e9, statistics.median(ceiling) / 1e9
        print(f"{hidden:>6} {step * 1e3:7.1f} ms {one:9.1f} GFLOP/s {two:9.1f} GFLOP/s {ratio:6.2f}")
        found[f"hidden {hidden}"] = {"training_gflops": one, "products_gflops": two, "ratio": ratio}
    return found | {"bf16": args.bf16, "compile": args.compile}


def work(model, rows: int, length: int) -> tuple[float, list[tuple[int, int, int]]]:
    """(FLOPs of a training step, (tokens, in, out) of its linear layers). Causal attention reads half its square."""
    tokens = rows * length
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    products = [(tokens, m.in_features, m.out_features) for m in linear]
    config = model.config
    attention = 2 * 2 * config.num_hidden_layers * config.hidden_size * tokens * (length + 1) / 2
    return 3 * (sum(2 * t * i * o for t, i, o in products) + attention), products


def gemm_rate(products: list[tuple[int, int, int]], half: bool) -> float:
    """FLOP/s of the products of one training step: y = x W', dx = dy W, dW = dy' x."""
    kind = {"device": DEVICE, "dtype": torch.bfloat16 if half else torch.float32}
    tensors = {
        p: (torch.randn(p[0], p[1], **kind), torch.randn(p[2], p[1], **kind), torch.randn(p[0], p[2], **kind))
        for p in set(products)
    }
    seconds = []
    for _ in range(4):
        synchronise()
        begin = time.perf_counter()
        for p in products:
            x, w, dy = tensors[p]
            x @ w.T, dy @ w, dy.T @ x
        synchronise()
        seconds.append(time.perf_counter() - begin)
    return 3 * sum(2 * t * i * o for t, i, o in products) / statistics.median(seconds[1:])


# P2, P2b ------------------------------------------------------------------------------------------------------------


def thoughts(args) -> dict:
    found = {}
    runs = {
        "plain": ({"num_thoughts": 1}, True),
        "M-step": ({"diversity_weight": 0.0}, False),
        "M-step, compared rows": ({}, False),
        "all": ({}, True),
    }
    for hidden in args.hidden_size:
        tokens = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, (flags, scores) in runs.items():
                settings = shape(args, hidden, train_file=args.train_file, **flags)
                data = load_data(settings, None, None)
                _, seconds = timed(settings, data, args.steps, scores)
                # The mean, not the median: compared rows are in the last 40 % of the steps only.
                tokens[name].append(args.batch_size * settings.seq_length / statistics.mean(seconds))
        print(f"hidden {hidden}, text tokens per second, and over the plain model's of the same round")
        found[f"hidden {hidden}"] = about = {}
        for name, of_rounds in tokens.items():
            ratios = [a / b for a, b in zip(of_rounds, tokens["plain"], strict=True)]
            about[name] = {"tokens_per_second": statistics.median(of_rounds), "ratio": statistics.median(ratios)}
            speed, ratio = about[name]["tokens_per_second"], about[name]["ratio"]
            print(f"  {name:22} {speed:10,.0f}  {ratio:5.2f} ({min(ratios):.2f} .. {max(ratios):.2f})")
    return found | {"bf16": args.bf16, "compile": args.compile}


# P3 -----------------------------------------------------------------------------------------------------------------


def nanogpt(args) -> dict:
    flags = {"train_file": args.train_file, "vocab_size": 100, "hidden_size": 128, "num_layers": 4, "num_heads": 4}
    flags |= {
        "seq_length": 64,
        "batch_size": args.rows,
        "learning_rate": args.learning_rate,
        "bf16": args.bf16,
        "compile": args.compile,
    }
    seconds = {"nanoGPT": [], "ours, plain": [], "ours, 8 thoughts": []}
    losses = {name: [] for name in seconds}
    for seed in range(2, args.rounds + 2):  # ours was chosen with seeds 1 and 11
        took, loss = theirs(args, seed)
        seconds["nanoGPT"].append(took)
        losses["nanoGPT"].append(loss)
        for name, n, steps in zip(list(seconds)[1:], (1, 8), args.max_steps, strict=True):
            settings = TrainSettings(num_thoughts=n, max_steps=steps, seed=seed, **flags)
            data = load_data(settings, None, None)
            trainer, _ = timed(settings, data, steps)
            seconds[name].append(sum(trainer.seconds))
            losses[name].append(validation_loss(trainer.model, data))
        print(
            "  ".join(f"{name}: {of[-1]:.1f} s, loss {losses[name][-1]:.4f}" for name, of in seconds.items()),
            flush=True,
        )
    found = {}
    for name, of_rounds in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(of_rounds, seconds["nanoGPT"], strict=True))
        found[name] = {"seconds": statistics.median(of_rounds), "ratio": ratio, "losses": losses[name]}
        print(
            f"{name:18} {found[name]['seconds']:7.1f} s  {ratio:5.2f} of nanoGPT's  worst loss {max(losses[name]):.4f}"
        )
    return found | {
        "rows": args.rows,
        "learning_rate": args.learning_rate,
        "max_steps": args.max_steps,
        "bf16": args.bf16,
    }


@torch.no_grad()
def validation_loss(model, data) -> float:
    """Nats per character of all of the last tenth, in windows of 64, without a thought: what nanoGPT estimates."""
    model.eval()
    total = count = 0
    for start in range(0, len(data.eval), 64):
        ids_BT = torch.stack([data.eval[i] for i in range(start, min(start + 64, len(data.eval)))])
        ids_BT = ids_BT.to(model.device)
        logits = model(input_ids=ids_BT).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum").item()
        count += ids_BT[:, 1:].numel()
    return total / count


def theirs(args, seed: int) -> tuple[float, float]:
    """(seconds of training until its validation loss is PUBLISHED or, if it never is, of all of it; that loss)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"  # it writes its data and checkpoints into itself
        shutil.copytree(args.nanogpt, copy, ignore=shutil.ignore_patterns(".git", "assets", "out*"))
        shutil.copyfile(args.train_file, copy / "data" / "shakespeare_char" / "input.txt")
        train = (copy / "train.py").read_text()
        assert "torch.manual_seed(1337 + seed_offset)" in train
        (copy / "train.py").write_text(train.replace("1337 + seed_offset", f"{1336 + seed} + seed_offset"))
        subprocess.run(
            [sys.executable, "data/shakespeare_char/prepare.py"], cwd=copy, check=True, stdout=subprocess.DEVNULL
        )
        words = f"train.py config/train_shakespeare_char.py --device={DEVICE.type} --compile=False --eval_interval=250"
        words += " --eval_iters=50 --log_interval=1"
        out = subprocess.run(
            [sys.executable, *words.split(), *GUIDE.split()], cwd=copy, check=True, capture_output=True, text=True
        ).stdout
    milliseconds = [(int(i), float(ms)) for i, ms in re.findall(r"iter (\d+): loss \S+, time ([\d.]+)ms", out)]
    usual = statistics.median(ms for _, ms in milliseconds)  # an iteration that evaluates has that in its time
    clock = [usual if i % 250 == 0 else ms for i, ms in milliseconds]
    evaluations = [
        (int(i), float(loss)) for i, loss in re.findall(r"step (\d+): train loss \S+, val loss ([\d.]+)", out)
    ]
    step, loss = next(((i, loss) for i, loss in evaluations if loss <= PUBLISHED), evaluations[-1])
    return sum(clock[:step]) / 1e3, loss


if __name__ == "__main__":
    main()
