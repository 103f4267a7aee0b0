"""Drawing: K texts for every setting, prompt and seed, kept in OUTPUT/texts.jsonl as they are drawn.

texts = Texts("outputs/eval", about, overwrite=False)      # reads what an interrupted evaluation has drawn
draw_missing(plan, texts)
texts.drawn[setting_name, "test", seed, prompt_number]     # K texts
"""

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mot.evaluation.plan import Plan
from mot.inference.sampler import SampleRequest, Setting, sample
from mot.runtime.announce import duration

TEXTS, RESULT = "texts.jsonl", "diversity.json"
OLD_SPLITS = {"tuned": "validation", "judged": "test"}  # names in files before version 2 of diversity.json
REPORT_EVERY = 30.0  # seconds, without a terminal


class Texts:
    """OUTPUT/texts.jsonl. Its first line identifies models, prompts and K, so that no other texts are mixed in."""

    def __init__(self, output_dir: str, about: dict, overwrite: bool):
        self.path, self.drawn = Path(output_dir) / TEXTS, {}
        if overwrite and self.path.exists():
            for name in (TEXTS, RESULT):
                (self.path.parent / name).unlink(missing_ok=True)
        if self.path.exists():
            self._read(about, output_dir)
        else:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._append({"about": about})
            except OSError as e:
                raise ValueError(f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another") from None

    def _read(self, about: dict, output_dir: str) -> None:
        # A killed process leaves an incomplete last line. It is cut off, so that the next line starts at a line's
        # start.
        *lines, _ = self.path.read_bytes().split(b"\n")
        if not lines or json.loads(lines[0]) != {"about": about}:
            raise ValueError(
                f"--output_dir {output_dir}: holds the evaluation of another model, prompts or K; "
                "give another, or --overwrite"
            )
        for line in lines[1:]:
            row = json.loads(line)
            self._keep(
                row["setting"], OLD_SPLITS.get(row["part"], row["part"]), row["seed"], row["first"], row["texts"]
            )
        with open(self.path, "rb+") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def add(self, setting: str, part: str, seed: int, first: int, texts: list[list[str]]) -> None:
        """Texts [B][K] of the prompts number `first`, `first` + 1, ..."""
        self._append({"setting": setting, "part": part, "seed": seed, "first": first, "texts": texts})
        self._keep(setting, part, seed, first, texts)

    def _keep(self, setting: str, part: str, seed: int, first: int, texts: list[list[str]]) -> None:
        for number, texts_of_prompt in enumerate(texts, first):
            self.drawn[setting, part, seed, number] = texts_of_prompt

    def _append(self, row: dict) -> None:
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")


def draw_missing(plan: Plan, texts: Texts) -> None:
    """Draw what `texts` does not hold yet."""
    batches = list(_batches(plan, texts))
    work = sum(_work(plan, setting, numbers) for _, setting, _, numbers in batches)
    if batches:
        count = plan.k * sum(len(numbers) for *_, numbers in batches)
        _say(f"{count:,} texts to draw in {len(batches):,} batches; the first batch is timed")
    with progress(len(batches)) as started:
        for i, (part, setting, seed, numbers) in enumerate(batches):
            started(f"{part.name} split: {setting.name}")
            prompts = [part.prompts[number] for number in numbers]
            request = SampleRequest(plan.model(setting), setting, prompts, plan.k, plan.max_new_tokens, seed)
            if i == 0:  # the first draw of a process loads code, which must not be in the estimate
                sample(dataclasses.replace(request, prompts=prompts[:1]))
            begin = time.monotonic()
            texts.add(setting.name, part.name, seed, numbers[0], sample(request))
            if i == 0:
                seconds = (time.monotonic() - begin) / _work(plan, setting, numbers) * work
                _say(f"they take about {duration(seconds)}, by the time of the first batch")


def _work(plan: Plan, setting: Setting, numbers: list[int]) -> float:
    """Rows that the model computes: texts, and for a beam search beams."""
    return plan.k * len(numbers) * setting.get("width", 1)


def _batches(plan: Plan, texts: Texts) -> Iterator[tuple]:
    """(split, setting, seed, numbers of prompts); numbers are consecutive, so that a line can say where they start."""
    size = max(1, plan.batch_size // plan.k)
    for part in (plan.validation, plan.test):
        for setting in plan.settings:
            for seed in plan.seeds(setting, part):
                prompts = range(len(part.items))
                missing = [i for i in prompts if (setting.name, part.name, seed, i) not in texts.drawn]
                gaps = [j for j, (a, b) in enumerate(pairwise(missing), 1) if b != a + 1]
                for start, stop in pairwise([0, *gaps, len(missing)]):
                    for i in range(start, stop, size):
                        yield part, setting, seed, missing[i : min(i + size, stop)]


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows count and time left on stderr: a bar on a terminal, else a line every REPORT_EVERY seconds.

    Yields a function to call with a description before each of the `total` steps.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task, begun = bar.add_task("", total=total), []

            def started(description: str) -> None:
                bar.update(task, completed=len(begun), description=description)
                begun.append(description)

            yield started
        return
    begun, begin, stop = [], time.monotonic(), threading.Event()

    def report() -> None:
        # In a thread, because one batch of a large model may take longer than REPORT_EVERY.
        while not stop.wait(REPORT_EVERY):
            _say(_line(begun, total, time.monotonic() - begin))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield begun.append
    finally:
        stop.set()
        thread.join()


def _line(begun: list[str], total: int, seconds: float) -> str:
    """E.g. `12 of 340 batches, about 9 min left; test split: top_p 0.9`."""
    done = max(0, len(begun) - 1)
    left = "time left unknown"
    if done:
        left = f"about {duration(seconds / done * (total - done))} left"
    return f"{done:,} of {total:,} batches, {left}" + (f"; {begun[-1]}" if begun else "")


def _say(line: str) -> None:
    """To stderr, where rich puts it above its bar."""
    print(line, file=sys.stderr, flush=True)
