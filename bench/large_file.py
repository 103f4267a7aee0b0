"""Memory and time of a text of a gigabyte: beyond the libraries, to tokenise it, to open it again, to seek.

    python bench/large_file.py --texts ../shared/data/wikitext2-valid.txt ../shared/data/wikitext2-test.txt
    python bench/large_file.py --texts ../shared/data/e2e/train.jsonl --megabytes 300

The text, or the .jsonl file, is made of the lines of `--texts`, again and again in another order. Each opening is a
process of its own and reads 2,000 batches in the order of a run, from batch 10^6 on. Memory is the peak of the resident
set (Linux) minus what was resident when torch, transformers and mot had been imported. The last line is one JSON
object.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make(texts: list[Path], path: Path, size: int) -> None:
    """Write `size` bytes of lines of `texts`, in a random but fixed order."""
    paragraphs = [line for text in texts for line in text.read_text(encoding="utf-8").splitlines(keepends=True)]
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < size:
            draw.shuffle(paragraphs)
            file.writelines(paragraphs)


def peak() -> int:
    """Peak of the resident memory in bytes, since the process began or since `clear`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def clear() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def open_once(path: str, vocab_size: int) -> dict[str, float]:
    """Open the file once, in this process."""
    import transformers  # noqa: F401

    from mot.data.datasets import Batches
    from mot.data.load import load_data
    from mot.training.settings import TrainSettings

    clear()
    before, begin = peak(), time.perf_counter()
    data = load_data(TrainSettings(train_file=path, vocab_size=vocab_size))
    opened = time.perf_counter()
    batches = iter(Batches(len(data.train), 32, seed=0, batches=1_002_000, start=1_000_000))
    first = data.collate([data.train[i] for i in next(batches)])
    sought = time.perf_counter()
    loading = peak()
    for batch in batches:
        data.collate([data.train[i] for i in batch])
    return {
        "seconds_to_open": opened - begin,
        "seconds_to_batch_1000000": sought - opened,
        "seconds_per_batch": (time.perf_counter() - sought) / 1999,
        "extra_MiB": (loading - before) / 2**20,
        "extra_MiB_with_training_batches": (peak() - before) / 2**20,
        "tokens": data.train.tokens() + data.eval.tokens(),
        "shape": list(next(iter(first.values())).shape),
    }


def seek(rows: int) -> dict[str, float]:
    """The first batch of `rows` rows from batch 10^6 on."""
    from mot.data.datasets import Batches

    clear()
    before, begin = peak(), time.perf_counter()
    next(iter(Batches(rows, 32, seed=0, batches=1_000_001, start=1_000_000)))
    return {"rows": rows, "seconds": time.perf_counter() - begin, "extra_MiB": (peak() - before) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the text")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, value = args.child
        print(json.dumps(open_once(value, args.vocab_size) if name == "open" else seek(int(value))))
        return

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines").with_suffix(args.texts[0].suffix)
        make(args.texts, path, args.megabytes * 10**6)

        def child(*words: str) -> dict[str, float]:
            command = [sys.executable, __file__, "--vocab_size", str(args.vocab_size)]
            command += ["--texts", *map(str, args.texts), "--child", *words]
            environment = os.environ | {"MOT_CACHE": f"{folder}/cache", "TOKENIZERS_PARALLELISM": "false"}
            return json.loads(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)

        first, second = child("open", str(path)), child("open", str(path))
        seeks = [child("seek", str(rows)) for rows in (1_000_000, 32_000_000)]
        cached = sum(p.stat().st_size for p in Path(folder, "cache").rglob("*"))
        result = {
            "bytes": path.stat().st_size,
            "vocab_size": args.vocab_size,
            "cache_bytes": cached,
            "first": first,
            "second": second,
            "seeks": seeks,
        }
    print(f"{result['bytes'] / 1e6:,.0f} MB, vocabulary {args.vocab_size}, {first['tokens']:,} tokens")
    print(f"{'':34}{'first':>10}{'again':>10}")
    for name in first:
        if isinstance(first[name], float):
            print(f"{name:34}{first[name]:10.4f}{second[name]:10.4f}")
    for s in seeks:
        print(f"order of {s['rows']:,} rows from batch 10^6: {s['seconds']:.2f} s, {s['extra_MiB']:.0f} MiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
