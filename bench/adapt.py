"""Thoughts for a pretrained model: do they work, and what do they cost?

    python bench/adapt.py e2e --train_file TRAIN.jsonl --prompts VALID.jsonl --halves
    python bench/adapt.py forks --seeds 1 2 3 4 5
    python bench/adapt.py size --train_file ../shared/data/shakespeare.txt

e2e: plain transformers train a model of restaurant descriptions, which gets 8 thoughts by LoRA. evaluate_diversity.py
     then compares them with every sampler of that base, with the same number of settings. The rows of 150 prompts are
     held out from both, for NLL and as a validation split. --halves: base and adapters learn from the rows of different
     prompts.
forks: a plain model of `train_mot.py --num_thoughts 1` gets 8 thoughts by LoRA: distinct valid answers of 8 on unseen
     prompts, beside the most that 8 independent draws can find.
size: a random model of the guide's full size: the trained share, peak memory and tokens per second of adapting, over
     those of training all of it, side by side.
Every command is printed as it is run. Finished runs are not run again.
"""

import argparse
import json
import random
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from runs import ROOT, printed, train_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("e2e", "forks", "size"))
    parser.add_argument("--train_file", help="e2e: rows with prompt and completion; size: any text")
    parser.add_argument("--prompts", help="e2e: held-out rows of the evaluation")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/adapt"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="forks, e2e: of base and adapters")
    parser.add_argument("--base_steps", type=int, help="default: 4000; e2e 600")
    parser.add_argument("--steps", type=int, help="of adapting; default: 4000; e2e 1000; size 6")
    parser.add_argument("--learning_rate", type=float, help="of adapting; default: e2e 1e-3, forks 2e-3")
    parser.add_argument("--halves", action="store_true", help="e2e: adapt on rows that the base has not seen")
    parser.add_argument("--hidden_size", type=int, help="default: e2e 128, forks 96, size 768")
    parser.add_argument("--num_layers", type=int, help="default: e2e 4, forks 3, size 12")
    parser.add_argument("--vocab_size", type=int, default=50257, help="size: of the model")
    parser.add_argument("--more", default="", help="further flags of train_lora_mot.py, as one word")
    parser.add_argument("--judge", default="", help="e2e: further flags of evaluate_diversity.py, as one argument")
    args = parser.parse_args()
    for name, of_part in {
        "base_steps": {"e2e": 600, "forks": 4000, "size": 0},
        "steps": {"e2e": 1000, "forks": 4000, "size": 6},
        "learning_rate": {"e2e": 1e-3, "forks": 2e-3, "size": 0},
        "hidden_size": {"e2e": 128, "forks": 96, "size": 768},
        "num_layers": {"e2e": 4, "forks": 3, "size": 12},
    }.items():
        setattr(args, name, getattr(args, name) or of_part[args.part])
    if (args.part != "forks" and not args.train_file) or (args.part == "e2e" and not args.prompts):
        parser.error(f"{args.part}: needs --train_file" + " and --prompts" * (args.part == "e2e"))
    {"e2e": e2e, "forks": forks, "size": size}[args.part](args)


def adapt_once(directory: Path, base: Path, flags: str, more: str):
    words = ["--base_model", str(base), *flags.split(), *shlex.split(more)]
    print("$ python train_lora_mot.py", shlex.join([*words, "--output_dir", str(directory)]), flush=True)
    return train_once(directory, words, command="adapt")


def last_lines(directory: Path, pattern: str) -> list[str]:
    return [line for line in printed(directory).read_text().splitlines() if re.search(pattern, line)]


# forks --------------------------------------------------------------------------------------------------------------


def forks(args) -> None:
    shape = f"--hidden_size {args.hidden_size} --num_layers {args.num_layers} --seq_length 24 --batch_size 64"
    bases, adapters = {}, {}
    for seed in args.seeds:
        flags = (
            f"--task forks --num_thoughts 1 {shape} --max_steps {args.base_steps} --learning_rate 2e-3 --seed {seed}"
        )
        bases[seed] = args.output_dir / f"forks-base-{args.base_steps}-seed{seed}"
        print(f"$ python train_mot.py {flags} --output_dir {bases[seed]}", flush=True)
        train_once(bases[seed], flags.split()).result()
        flags = f"--task forks --num_thoughts 8 --seq_length 24 --batch_size 64 --max_steps {args.steps}"
        flags += f" --learning_rate {args.learning_rate} --seed {seed}"
        adapters[seed] = args.output_dir / f"forks-adapter-{args.steps}-seed{seed}"
        adapt_once(adapters[seed], bases[seed], flags, args.more).result()
        print(f"seed {seed}  {last_lines(adapters[seed], '^forks: ')[-1]}")
        print("\n".join(f"        {line}" for line in last_lines(adapters[seed], "^without a thought")), flush=True)


# e2e ----------------------------------------------------------------------------------------------------------------


def e2e(args) -> None:
    dev, of_base, of_adapter = split(args)
    for seed in args.seeds:
        of = f"{args.base_steps}{'-half' * args.halves}-seed{seed}"
        base = args.output_dir / f"e2e-base-{of}"
        if not (base / "model.safetensors").is_file():
            pretrain(args, of_base, base, seed)
        flags = f"--train_file {of_adapter} --eval_file {dev} --num_thoughts 8 --max_steps {args.steps}"
        flags += f" --bf16 --lora_dropout 0.1 --learning_rate {args.learning_rate} --seed {seed}"
        adapter = args.output_dir / f"e2e-adapter-{args.steps}-{args.learning_rate}-on-{of}"
        adapter = adapt_once(adapter, base, flags, args.more).result()
        print("\n".join(last_lines(adapter, "^without a thought")), flush=True)
        words = ["--model", adapter, "--plain", base, "--task", "e2e", "--prompts", args.prompts]
        words += ["--output_dir", adapter.with_name(f"{adapter.name}-judged"), *shlex.split(args.judge)]
        words = [str(ROOT / "evaluate_diversity.py"), *map(str, words)]
        print("$ python", shlex.join(words), flush=True)
        subprocess.run([sys.executable, *words], check=True)


def split(args) -> list[Path]:
    """Three files of rows: of 150 prompts that nothing learns from, of those of the base, of those of the adapters."""
    rows = [json.loads(line) for line in Path(args.train_file).read_text().splitlines()]
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(0).shuffle(prompts)
    dev, rest = prompts[:150], prompts[150:]
    of_base, of_adapters = (rest[::2], rest[1::2]) if args.halves else (rest, rest)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    files = []
    for name, chosen in (("dev", set(dev)), ("base", set(of_base)), ("adapters", set(of_adapters))):
        files.append(args.output_dir / f"e2e-rows-{name}{'-half' * args.halves}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows if row["prompt"] in chosen))
    return files


def pretrain(args, train_file: Path, directory: Path, seed: int) -> None:
    """A plain language model of `prompt + completion` rows: transformers' Llama and Trainer, and our BPE."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from mot.model.tokenizer import build_tokenizer

    rows = [json.loads(line) for line in train_file.read_text().splitlines()]
    texts = [row["prompt"] + row["completion"] for row in rows]
    tokenizer = build_tokenizer(texts, 1000, 1)
    ids = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=-(-args.hidden_size * 8 // 3 // 32) * 32,
            num_hidden_layers=args.num_layers,
            num_attention_heads=max(1, args.hidden_size // 32),
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def collate(batch: list[list[int]]) -> dict:
        longest = max(map(len, batch))
        input_ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in batch])
        return {"input_ids": input_ids, "attention_mask": (labels != -100).long(), "labels": labels}

    how = TrainingArguments(
        output_dir=str(directory),
        max_steps=args.base_steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        seed=seed,
        save_strategy="no",
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        logging_steps=max(1, args.base_steps // 10),
    )
    print(
        f"# plain transformers: Llama {args.hidden_size} x {args.num_layers}, {args.base_steps} steps of 32", flush=True
    )
    Trainer(model=model, args=how, train_dataset=ids, data_collator=collate).train()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


# size ---------------------------------------------------------------------------------------------------------------


def size(args) -> None:
    here = args.output_dir / f"size-{args.hidden_size}x{args.num_layers}"
    common = f"--train_file {args.train_file} --batch_size 8 --max_steps {args.steps} --eval_rows 8"
    common += f" --eval_every {args.steps} --save_every {args.steps} --num_thoughts 8"
    shape = f"--hidden_size {args.hidden_size} --num_layers {args.num_layers} --vocab_size {args.vocab_size}"
    # One step of a plain model is a random base of the right shape, with a tokenizer.
    base = here / "base"
    train_once(base, f"{common} --num_thoughts 1 --max_steps 1 {shape}".split()).result()
    full = here / "full"
    print(f"$ python train_mot.py {common} {shape} --output_dir {full}", flush=True)
    train_once(full, f"{common} {shape}".split()).result()  # one after the other: each has the machine for itself
    adapted = adapt_once(here / "adapter", base, common, args.more).result()
    trained, all_of_it = (count(path) for path in (adapted / "adapter_model.safetensors", base / "model.safetensors"))
    print(f"trained     {trained:,} of {all_of_it:,} parameters of the base: {trained / all_of_it:.2%}")
    memory, speed = ([measured(directory, i) for directory in (adapted, full)] for i in (0, 1))
    print(f"peak memory {memory[0]:.2f} GiB adapting, {memory[1]:.2f} training all: ratio {memory[0] / memory[1]:.2f}")
    print(f"tokens/s    {speed[0]:,.0f} adapting, {speed[1]:,.0f} training all: ratio {speed[0] / speed[1]:.2f}")


def count(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def measured(directory: Path, which: int) -> float:
    """(most memory, GiB; median tokens per second after the first step) of a run."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    lines = [m for m in lines if "tokens_per_second" in m]
    memory, speed = ([m[name] for m in lines] for name in ("peak_memory_gib", "tokens_per_second"))
    return (max(memory), statistics.median(speed[1:] or speed))[which]


if __name__ == "__main__":
    main()
