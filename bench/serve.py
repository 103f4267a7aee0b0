"""K thoughts in one request against K requests in turn; rows with and without a shared forward pass.

    python bench/serve.py
    python bench/serve.py --model outputs/run --prompt_tokens 9 --max_tokens 6

Over HTTP, from a server in a process of its own. Without --model: an untrained model of 25 million parameters whose
texts end at --max_tokens. Every time is the median of --repeats, and both sides take turns. Prefills are the server's
counters.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


def untrained(directory: str) -> None:
    from mot.model.build import build_model
    from mot.model.tokenizer import build_tokenizer
    from mot.training.settings import TrainSettings

    tokenizer = build_tokenizer([TEXT], 100, 8)
    model = build_model(TrainSettings(hidden_size=512, num_layers=8, num_thoughts=8), tokenizer)
    tokenizer.eos_token = "<|thought_0|>"  # an end that is never generated
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory; else an untrained model")
    parser.add_argument("--thoughts", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if not args.model:
            untrained(directory)
        command = [sys.executable, "-P", "-c", "from mot import cli; cli.run(cli.serve)"]
        command += ["--model", args.model or directory, "--port", "0"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            measure(args, server.stdout.readline().split()[-1])
        finally:
            server.terminate()
            server.wait()


def measure(args: argparse.Namespace, url: str) -> None:
    K = args.thoughts

    def post(**body) -> dict:
        head = {"content-type": "application/json"}
        body = {"max_tokens": args.max_tokens} | body
        with urllib.request.urlopen(
            urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), head)
        ) as r:
            return json.load(r)

    def counter(name: str) -> int:
        with urllib.request.urlopen(url + "/metrics") as r:
            return next(
                int(float(line.split()[1])) for line in r.read().decode().splitlines() if line.startswith(f"{name} ")
            )

    def turns(*works: Callable[[], object]) -> list[tuple[float, int, int]]:
        """(median seconds, prefills, tokens prefilled) of each."""
        seconds, counts = [[] for _ in works], [None] * len(works)
        for _ in range(args.repeats):
            for i, work in enumerate(works):
                before = counter("mot_prefills_total"), counter("mot_prefill_tokens_total")
                begin = time.perf_counter()
                work()
                seconds[i].append(time.perf_counter() - begin)
                counts[i] = counter("mot_prefills_total") - before[0], counter("mot_prefill_tokens_total") - before[1]
        return [(statistics.median(s), *c) for s, c in zip(seconds, counts, strict=True)]

    post(prompt=TEXT[:9], n=K)
    print(f"{K} thoughts of {args.max_tokens} tokens; seconds (prefills, tokens prefilled)")
    print(f"{'prompt':>6} {'one request':>22} {f'{K} requests':>22} {'ratio':>6}")
    for length in args.prompt_tokens:
        prompt = (TEXT * (length // len(TEXT) + 1))[:length]
        one, many = turns(
            lambda prompt=prompt: post(prompt=prompt, n=K, seed=1),
            lambda prompt=prompt: [post(prompt=prompt, thoughts=[k], seed=1) for k in range(K)],
        )
        cells = [f"{s:.3f} ({prefills}, {tokens})" for s, prefills, tokens in (one, many)]
        print(f"{length:>6} {cells[0]:>22} {cells[1]:>22} {many[0] / one[0]:>6.2f}")

    prompts = [TEXT[: 20 + i] for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        shared, apart = turns(
            lambda: list(pool.map(lambda p: post(prompt=p), prompts)),
            lambda: list(pool.map(lambda p: post(prompt=p, seed=1), prompts)),
        )
    print(
        f"16 requests of one text at once: {shared[0]:.3f} s; each with a seed: {apart[0]:.3f} s; "
        f"ratio {apart[0] / shared[0]:.2f}"
    )


if __name__ == "__main__":
    main()
