"""How fast is thinking, against what the machine could do? Ratios, measured side by side in one process.

    python bench/think.py p5      # K thoughts in one call against K cached `generate` calls, K = 2 .. 32
    python bench/think.py p6      # bytes a second of decoding one text, over those of a copy
    python bench/think.py p7      # a step behind 16k prompt tokens over one behind 1k, K = 32; bytes of its KV cache
    python bench/think.py p5 --dtype bfloat16 --hidden_size 2048 --num_layers 24     # on a GPU

An untrained model of the guide's full size, as `MixtureOfThoughts.from_pretrained` opens it, and `generate` on the same
model. Texts end at --max_new_tokens. Both sides take turns; figures are medians of --repeats. W is the bandwidth of a
copy (bytes read and written, an array far larger than any cache). F is the rate of the model's own matrix products at
512 rows. With `bytes` and `flops` of a step that decodes R texts,

    step(R)    = max(bytes(R) / W, flops(R) / F)          bytes: weights, the prompt's KV once, R texts' KV
    prefill    = flops of the prompt / F                  flops: 2 per weight and token, 4 per key, channel and query
    ceiling(K) = K (prefill + T step(1)) / (prefill + T step(K))                     at most K

is how much faster K texts in one call could be than K calls, if each kernel ran at the machine's best. `kernels` is the
same with the model's matrix products as timed here, at R rows for step(R) and at P rows for prefill.
Prints a table and, last, one line of JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from machine import DEVICE, described, synchronise

from mot.inference.think import MixtureOfThoughts
from mot.model.build import build_model
from mot.model.config import MixtureConfig
from mot.model.packed import MkldnnLinear, pack
from mot.model.shared_prompt import SharedPromptLayer, prompt_cache, share_prompt
from mot.model.tokenizer import build_tokenizer
from mot.training.settings import TrainSettings

N = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("p5", "p6", "p7"))
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--vocab_size", type=int, default=50257)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt_tokens", type=int, default=256, help="p5, p6")
    parser.add_argument("--long_prompt_tokens", type=int, default=16384, help="p7; the short one has 1024")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.7, help="p5: of the texts; 0 is greedy")
    parser.add_argument("--thoughts", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="p5: K; p7: the last")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--as_transformers_loads_it", action="store_true", help="without what mot/model/packed.py does on a CPU"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    mixture = untrained(args)
    with torch.no_grad():
        figures = {"p5": p5, "p6": p6, "p7": p7}[args.part](args, mixture)
    line = {"bench": f"think {args.part}", "date": str(date.today()), **described()}
    line |= {"dtype": args.dtype, "repeats": args.repeats, "packed": not args.as_transformers_loads_it}
    line |= {"model": f"{args.hidden_size} x {args.num_layers}, {args.vocab_size}", "prompt_tokens": args.prompt_tokens}
    print(json.dumps(line | {"max_new_tokens": args.max_new_tokens} | figures))


def untrained(args: argparse.Namespace) -> MixtureOfThoughts:
    tokenizer = build_tokenizer(["It was the best of times, it was the worst of times. "], 100, N)
    shape = TrainSettings(hidden_size=args.hidden_size, num_layers=args.num_layers, num_thoughts=N)
    model = build_model(shape, tokenizer)
    model.resize_token_embeddings(args.vocab_size, mean_resizing=False)
    tokenizer.eos_token = "<|thought_0|>"  # an end that is never generated
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model = model.to(DEVICE, getattr(torch, args.dtype)).eval()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.0f}M parameters, {args.dtype}, {DEVICE.type}", flush=True)
    if not args.as_transformers_loads_it:
        pack(model)
    return MixtureOfThoughts(model, tokenizer, MixtureConfig.of(model).thought_token_ids)


def turns(repeats: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each, which take turns; each has run once before."""
    seconds = [[] for _ in works]
    for i in range(repeats + 1):
        for work, taken in zip(works, seconds, strict=True):
            begin = time.perf_counter()
            work()
            synchronise()
            taken += [time.perf_counter() - begin] * (i > 0)
    return [statistics.median(taken) for taken in seconds]


class Products:
    """The matrix products of one forward pass over R tokens, and nothing else."""

    def __init__(self, model):
        self.maps, self.head = (
            [m for m in model.modules() if isinstance(m, torch.nn.Linear | MkldnnLinear)],
            model.lm_head,
        )
        self.numel = sum(m.in_features * m.out_features for m in self.maps)
        self.head_numel = self.head.in_features * self.head.out_features
        self.dtype = model.dtype

    def __call__(self, R: int, head_rows: int | None = None) -> Callable[[], None]:
        rows = {m.in_features: torch.randn(R, m.in_features, dtype=self.dtype, device=DEVICE) for m in self.maps}

        def work() -> None:
            for m in self.maps:
                x = rows[m.in_features]
                m(x[:head_rows] if m is self.head else x)

        return work


def a_copy() -> tuple[Callable[[], object], int]:
    """(copy something large, the bytes that are read and written)."""
    a = torch.ones((256 if DEVICE.type == "cpu" else 4096) << 20, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    return (lambda: b.copy_(a)), 2 * a.nbytes


def prompt_of(tokens: int, vocab: int) -> list[int]:
    return torch.randint(vocab - 64, vocab, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()


# P5 -----------------------------------------------------------------------------------------------------------------


def p5(args: argparse.Namespace, mixture: MixtureOfThoughts) -> dict:
    model, P, T = mixture.model, args.prompt_tokens, args.max_new_tokens
    prompt = prompt_of(P, args.vocab_size)
    ids = torch.tensor([[*prompt, mixture.thoughts[1]]], device=DEVICE)
    how = {"do_sample": args.temperature > 0, "temperature": args.temperature or None, "top_k": 0}

    def think(K: int) -> None:
        texts = mixture.think(prompt, num_thoughts=K, max_new_tokens=T, temperature=args.temperature)
        assert all(len(t.token_ids) == T for t in texts)

    def generate() -> None:
        assert model.generate(ids, max_new_tokens=T, **how).shape[1] == P + 1 + T

    products, (copy, copied) = Products(model), a_copy()
    rows, copying = products(512), products(P, 1)
    works = [generate, copy, rows, copying, *(products(R) for R in (1, *args.thoughts))]
    works += [lambda K=K: think(K) for K in args.thoughts]
    one, of_copy, of_512, prefill, *rest = turns(args.repeats, *works)
    linear = dict(zip((1, *args.thoughts), rest, strict=False))
    W, rate = copied / of_copy, 2 * 512 * products.numel / of_512
    size, h, L = products.dtype.itemsize, args.hidden_size, args.num_layers

    def step(R: int) -> float:
        bytes_ = size * (products.numel + 2 * L * h * (P + R * T / 2))
        return max(bytes_ / W, R * (2 * products.numel + 4 * (P + T / 2) * L * h) / rate)

    of_prompt = (2 * P * (products.numel - products.head_numel) + 2 * P * P * L * h) / rate
    print(f"copy {W / 1e9:.1f} GB/s, matrix products {rate / 1e9:.0f} GFLOP/s; one `generate` call {one:.2f} s")
    print(
        f"{'K':>3} {'one call':>9} {'K calls':>9} {'faster':>7} {'ceiling':>8} {'share':>6} {'kernels':>8} {'share':>6}"
    )
    table = []
    for K, seconds in zip(args.thoughts, rest[1 + len(args.thoughts) :], strict=True):
        faster = K * one / seconds
        ceiling = min(K, K * (of_prompt + T * step(1)) / (of_prompt + T * step(K)))
        kernels = min(K, K * (prefill + T * linear[1]) / (prefill + T * linear[K]))
        print(
            f"{K:>3} {seconds:>8.2f}s {K * one:>8.2f}s {faster:>7.2f} {ceiling:>8.2f} {faster / ceiling:>6.2f}"
            f" {kernels:>8.2f} {faster / kernels:>6.2f}"
        )
        table.append({"K": K, "faster": faster, "ceiling": ceiling, "share": faster / ceiling, "kernels": kernels})
        table[-1] |= {"seconds": seconds, "seconds_of_products_per_step": linear[K]}
    return {"copy_bytes_per_s": W, "flops_per_s": rate, "seconds_of_generate": one, "temperature": args.temperature} | {
        "thoughts": table
    }


# P6 -----------------------------------------------------------------------------------------------------------------


def p6(args: argparse.Namespace, mixture: MixtureOfThoughts) -> dict:
    P, T, model = args.prompt_tokens, args.max_new_tokens, mixture.model
    prompt, products, (copy, copied) = prompt_of(P, args.vocab_size), Products(model), a_copy()

    def think(tokens: int) -> Callable[[], object]:
        return lambda: mixture.think(prompt, num_thoughts=1, max_new_tokens=tokens, temperature=0)

    long, short, of_copy, linear = turns(args.repeats, think(T + 8), think(8), copy, products(1))
    step, W = (long - short) / T, copied / of_copy
    kv = 2 * args.num_layers * args.hidden_size * (P + 8 + T / 2)
    weights = products.numel * products.dtype.itemsize
    total = weights + kv * products.dtype.itemsize
    rates = {"decode": total / step, "products_alone": weights / linear, "copy": W}
    print(f"{total / 1e6:.0f} MB a token, {1e3 * step:.1f} ms; its matrix products alone {1e3 * linear:.1f} ms")
    for name, rate in rates.items():
        print(f"{name:>15} {rate / 1e9:>6.1f} GB/s  {rate / W:>5.2f} of a copy")
    return {"bytes_per_token": total, "seconds_per_token": step, "share": total / step / W} | {
        f"{name}_bytes_per_s": rate for name, rate in rates.items()
    }


# P7 -----------------------------------------------------------------------------------------------------------------


def p7(args: argparse.Namespace, mixture: MixtureOfThoughts) -> dict:
    model, K, lengths = mixture.model, args.thoughts[-1], (1024, args.long_prompt_tokens)
    config, numel = model.config, Products(model).numel
    ids = torch.tensor(mixture.thoughts[:1] * K, device=DEVICE)[:, None]

    def filled(P: int, once: bool):
        """A cache of random keys and values. A real prompt gives the same step time, but its prefill takes minutes."""
        cache = prompt_cache(model)
        shape = (1, config.num_key_value_heads, P, config.head_dim)
        for layer in cache.layers:
            layer.update(*(torch.randn(shape, dtype=model.dtype, device=DEVICE) for _ in range(2)))
            layer.reached = once
        share_prompt(cache)
        cache.batch_select_indices(torch.zeros(K, dtype=torch.long, device=DEVICE))
        return cache

    def step(cache) -> Callable[[], object]:
        return lambda: model(ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)

    caches = [filled(P, once=True) for P in lengths] + [filled(lengths[0], once=False)]
    ratios = []
    for P, cache in zip(lengths, caches, strict=False):
        assert all(type(layer) is SharedPromptLayer for layer in cache.layers)
        held = {t.untyped_storage() for layer in cache.layers for t in (layer.prompt_keys, layer.prompt_values)}
        one_copy = 2 * P * config.num_hidden_layers * args.hidden_size * model.dtype.itemsize
        ratios.append(sum(s.nbytes() for s in held) / one_copy)
    short, long, copies = turns(args.repeats, *map(step, caches))
    # The least that any exact attention must do: two products with every key and value for every query.
    flops = [2 * numel + 4 * P * config.num_hidden_layers * args.hidden_size for P in lengths]
    print(f"K = {K}; one step")
    for P, seconds, kv, work in zip(lengths, (short, long), ratios, flops, strict=True):
        print(
            f"prompt {P:>6}  {1e3 * seconds:>7.1f} ms  {K * work / seconds / 1e9:>6.0f} GFLOP/s  KV / one copy {kv:.3f}"
        )
    print(f"prompt {lengths[0]:>6}  {1e3 * copies:>7.1f} ms  with {K} copies of it: {copies / short:.2f} times as long")
    print(f"ratio {long / short:.2f}; of their arithmetic {flops[1] / flops[0]:.2f}")
    return {"K": K, "seconds": [short, long], "ratio": long / short, "ratio_of_flops": flops[1] / flops[0]} | {
        "kv_over_one_copy": ratios, "copies_over_once_at_1024": copies / short
    }  # fmt: skip


if __name__ == "__main__":
    main()
