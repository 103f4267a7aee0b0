"""From text or rows to branchable batches: prompt, branch point, continuation.

    data = load_data(settings)             # reads, trains the tokenizer, tokenises, splits
    loader over data.train, collate data.collate -> {"window": [B, L]} or {"prompt": [B, P], ...}
    branch(batch, point)                   -> {"prompt", "prompt_mask", "completion", "completion_mask"}

Plain text has no prompt of its own: a window of L tokens is cut at a branch point that the caller draws. Rows have one,
between `prompt` and `completion`: prompts are padded on the left and completions on the right, so that a batch has one
branch point. Shapes: see mot/thoughts.py.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mot.config import TrainSettings
from mot.tokenizer import SMALLEST_BPE, build_tokenizer, encode, load_tokenizer

Pairs = list[tuple[str, str]]  # (prompt, completion)


@dataclass
class Data:
    """What a run trains on. `notes` are lines to say aloud: sizes reached, rows cut."""

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    eval: Dataset
    collate: Callable[[list], dict[str, Tensor]]
    notes: list[str]


class Windows(Dataset):
    """Consecutive windows of `length` tokens of one long text."""

    def __init__(self, ids: Tensor, length: int):
        self.windows = ids[: len(ids) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> Tensor:
        return self.windows[i]

    def tokens(self) -> int:
        return self.windows.numel()


class Rows(Dataset):
    """Pairs of token ids (prompt, completion)."""

    def __init__(self, pairs: list[tuple[list[int], list[int]]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return self.pairs[i]

    def tokens(self) -> int:
        return sum(len(prompt) + len(completion) for prompt, completion in self.pairs)


def load_data(settings: TrainSettings, task_rows: tuple[Pairs, Pairs] | None = None) -> Data:
    """Read, tokenise and split what the settings name; a task's (training, held-out) rows are given.

    Raises ValueError naming the flag, the line and the way out.
    """
    if task_rows:
        return _load_rows(settings, *task_rows)
    rows = settings.train_file.endswith(".jsonl")
    if settings.eval_file and settings.eval_file.endswith(".jsonl") != rows:
        raise ValueError(
            f"--eval_file {settings.eval_file}: must be of the kind of --train_file, {'.jsonl rows' if rows else 'plain text'}"
        )
    if not rows:
        return _load_text(settings)
    train = read_rows(settings.train_file, "--train_file")
    if settings.eval_file:
        return _load_rows(settings, train, read_rows(settings.eval_file, "--eval_file"))
    if len(train) < 2:
        raise ValueError(f"--train_file {settings.train_file}: one row cannot be split; give more rows, or --eval_file")
    cut = len(train) * 9 // 10
    return _load_rows(settings, train[:cut], train[cut:])


def _load_text(settings: TrainSettings) -> Data:
    text = read_text(settings.train_file, "--train_file")
    if settings.eval_file:
        train_text, eval_text = text, read_text(settings.eval_file, "--eval_file")
    else:
        cut = len(text) * 9 // 10
        train_text, eval_text = text[:cut], text[cut:]
    tokenizer, notes = _tokenizer(settings, [text])
    parts = []
    held_out = (
        ("--eval_file", settings.eval_file)
        if settings.eval_file
        else ("--train_file", f"{settings.train_file} (last 10 %)")
    )
    for part, (flag, path) in ((train_text, ("--train_file", settings.train_file)), (eval_text, held_out)):
        ids = torch.tensor(encode(tokenizer, [part], f"{flag} {path}")[0])
        if len(ids) < settings.seq_length:
            raise ValueError(
                f"--seq_length {settings.seq_length}: {flag} {path} has only {len(ids)} tokens; give more text or a smaller --seq_length"
            )
        parts.append(Windows(ids, settings.seq_length))
    return Data(tokenizer, *parts, collate_windows, notes)


def _load_rows(settings: TrainSettings, train: Pairs, held_out: Pairs) -> Data:
    tokenizer, notes = _tokenizer(settings, [text for row in train + held_out for text in row])
    parts = []
    for part, before in ((train, 0), (held_out, 0 if settings.eval_file else len(train))):
        where = (
            f"--eval_file {settings.eval_file}"
            if settings.eval_file and part is held_out
            else f"--train_file {settings.train_file}"
        )
        prompts = encode_prompts(tokenizer, [prompt for prompt, _ in part], where)
        completions = encode(tokenizer, [completion for _, completion in part], where)
        end = tokenizer.eos_token_id
        pairs = [(prompt, [*completion, end]) for prompt, completion in zip(prompts, completions, strict=True)]
        longest = max(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        if len(pairs[longest][0]) >= settings.seq_length:
            raise ValueError(
                f"--seq_length {settings.seq_length}: row {before + longest + 1} has a prompt of {len(pairs[longest][0])} tokens and no room "
                f"for a completion; give --seq_length {len(pairs[longest][0]) + 64} or more"
            )
        cut = [(p, c[: settings.seq_length - len(p)]) for p, c in pairs]
        shortened = sum(len(a[1]) != len(b[1]) for a, b in zip(cut, pairs, strict=True))
        if shortened:
            notes.append(f"{shortened} of {len(cut)} rows cut to --seq_length {settings.seq_length}")
        parts.append(Rows(cut))
    return Data(tokenizer, *parts, partial(collate_rows, pad=tokenizer.pad_token_id), notes)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str], where: str = "--prompt") -> list[list[int]]:
    """Prompts' ids; the end-of-text token stands for an empty prompt, for there must be a last position to route from."""
    return [ids or [tokenizer.eos_token_id] for ids in encode(tokenizer, prompts, where)]


def _tokenizer(settings: TrainSettings, texts: list[str]) -> tuple[PreTrainedTokenizerBase, list[str]]:
    if settings.tokenizer:
        return load_tokenizer(settings.tokenizer, settings.num_thoughts), []
    if settings.task:  # a task's answers are symbols, one token each
        return build_tokenizer(texts, SMALLEST_BPE - 1, settings.num_thoughts), []
    tokenizer = build_tokenizer(texts, settings.vocab_size, settings.num_thoughts)
    kind = "characters" if settings.vocab_size < SMALLEST_BPE else "byte-level BPE"
    size = len(tokenizer) - len(tokenizer.all_special_tokens)
    return tokenizer, [f"tokenizer: {kind}, {size:,} entries of the {settings.vocab_size:,} asked for"]


def read_text(path: str, flag: str) -> str:
    """A whole UTF-8 text file. Raises ValueError naming `flag` if it is missing, empty, binary or not UTF-8."""
    if not os.path.isfile(path):
        raise ValueError(f"{flag} {path}: no such file; give the path of a text or .jsonl file")
    data = Path(path).read_bytes()
    if not data.strip():
        raise ValueError(f"{flag} {path}: is empty; give a file with text in it")
    if b"\0" in data:
        raise ValueError(f"{flag} {path}: is binary (a zero byte at {data.index(0)}); give plain UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{flag} {path}: is not UTF-8 (byte {e.start}); convert it, e.g. iconv -f latin1 -t utf-8"
        ) from None


def read_rows(path: str, flag: str) -> Pairs:
    """(prompt, completion) of every line of a .jsonl file. Raises ValueError naming `flag` and the line."""
    rows = []
    for number, line in enumerate(read_text(path, flag).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise ValueError(f"{flag} {path}: line {number} is not JSON ({e.msg}); mend or remove it") from None
        for key in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise ValueError(
                    f'{flag} {path}: line {number} has no text `{key}`; every row needs {{"prompt": "...", "completion": "..."}}'
                )
        if any("\ud800" <= c <= "\udfff" for c in row["prompt"] + row["completion"]):
            raise ValueError(f"{flag} {path}: line {number} has half of a surrogate pair; mend or remove it")
        if not row["completion"]:
            raise ValueError(f"{flag} {path}: line {number} has an empty `completion`; mend or remove it")
        rows.append((row["prompt"], row["completion"]))
    return rows


def collate_windows(windows: list[Tensor]) -> dict[str, Tensor]:
    """{"window": [B, L]}"""
    return {"window": torch.stack(windows)}


def collate_rows(pairs: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """{"prompt": [B, P] padded left, "completion": [B, T] padded right, and a mask (1: real) of each}."""
    P, T = (max(len(row[i]) for row in pairs) for i in (0, 1))
    return {
        "prompt": torch.tensor([[pad] * (P - len(p)) + p for p, _ in pairs]),
        "prompt_mask": torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p, _ in pairs]),
        "completion": torch.tensor([c + [pad] * (T - len(c)) for _, c in pairs]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (T - len(c)) for _, c in pairs]),
    }


def branch(batch: dict[str, Tensor], point: int) -> dict[str, Tensor]:
    """Cut windows [B, L] at `point` (1 .. L-1) into prompt and completion; rows have their branch point and stay as they are."""
    if "window" not in batch:
        return batch
    prompt, completion = batch["window"][:, :point], batch["window"][:, point:]
    return {
        "prompt": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion": completion,
        "completion_mask": torch.ones_like(completion),
    }
