"""From files, or a task's rows, to the data of a run.

    data = load_data(settings)                    # reads, trains the tokenizer, tokenises, splits
    loader over data.train, collate data.collate  -> {"window": [B, L]} or {"prompt": [B, P], ...}
    branch(batch, point)                          -> {"prompt", "prompt_mask", "completion", "completion_mask"}

The work is done by the files beside this one: `sources` reads and checks, `encode` makes token ids, `cache` keeps them,
`datasets` makes batches of them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mot.data.cache import FORMAT, Tokens, cached, sha256
from mot.data.datasets import Rows, Windows, collate_rows, collate_windows
from mot.data.encode import encode_file, encode_rows, id_dtype
from mot.data.settings import DataSettings, TokenizerSettings
from mot.data.sources import PIECE, DataFile, check_file, texts
from mot.model.tokenizer import SMALLEST_BPE, build_tokenizer, complete, load_tokenizer, opening, train_engine

RowTexts = list[tuple[str, ...]]  # (prompt, completion), or with a key (prompt, completion, key)
BPE_BYTES = 2**25  # most text that byte-level BPE is trained on; it takes 700 bytes for each different word
NO_TEMPLATE = "and the tokenizer has no chat template; give rows with `prompt` and `completion`, or another tokenizer"


@dataclass
class Data:
    """The data of a run. `notes`: lines for the user, e.g. sizes reached and rows cut.

    `fingerprint` is a sha256 of the kind of the data and of all tokens, trained on and held out. It is the same
    wherever the files lie, and another if one token or the split differs. Neither `seq_length` nor `general` is part of
    it. `general` is text of another kind: evaluation shows what training does to it.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Windows | Rows
    eval: Windows | Rows
    collate: Callable[[list], dict[str, Tensor]]
    notes: list[str]
    fingerprint: str
    general: Windows | None = None


def load_data(
    settings: DataSettings,
    task_rows: tuple[RowTexts, RowTexts] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    general_file: str | None = None,
) -> Data:
    """Read, tokenise and split the data that the settings name, or tokenise a task's (training, held-out) rows.

    Without a `tokenizer` the settings choose one. Without `--eval_file` the last tenth of a file is held out, counted
    in characters or rows. Raises ValueError with one line that names the flag, the line of the file and the remedy.
    """
    data = _from_task(settings, *task_rows, tokenizer) if task_rows else _from_files(settings, tokenizer)
    if general_file:
        file = check_file(general_file, "--general_file", "text")
        tokens = encode_file(file, 0, file.count, data.tokenizer, file.where)
        data.general = _dataset(settings, data.tokenizer, tokens)
        _check_lengths(data.general, settings.seq_length, file.where, 0, data.notes)
    return data


def _from_files(settings: DataSettings, tokenizer: PreTrainedTokenizerBase | None) -> Data:
    files = _checked_files(settings)
    notes = []
    if tokenizer is None:
        tokenizer, notes = _choose_tokenizer(settings, files)
    if files[0].kind == "chat" and not tokenizer.chat_template:
        raise ValueError(f"{files[0].where}: has `messages`, {NO_TEMPLATE}")
    parts = []
    for file, start, stop, where in _split(files):
        parts.append(encode_file(file, start, stop, tokenizer, where))
        before = 0 if file.kind == "text" else start
        _check_lengths(_dataset(settings, tokenizer, parts[-1]), settings.seq_length, where, before, notes)
    return _data(settings, tokenizer, parts, notes)


def _checked_files(settings: DataSettings) -> list[DataFile]:
    """The training file, and the evaluation file if there is one."""
    kind = "rows" if settings.train_file.endswith(".jsonl") else "text"
    train = settings.train_file, "--train_file"
    if not settings.eval_file:
        return [check_file(*train, kind)]
    if settings.eval_file.endswith(".jsonl") != (kind == "rows"):
        raise ValueError(
            f"--eval_file {settings.eval_file}: must be of the kind of --train_file, "
            f"{'.jsonl rows' if kind == 'rows' else 'plain text'}"
        )
    files = [check_file(*train, kind), check_file(settings.eval_file, "--eval_file", kind)]
    if files[0].kind != files[1].kind:
        raise ValueError(f"{files[1].where}: must be of the kind of --train_file; one of them has `messages`")
    return files


def _split(files: list[DataFile]) -> list[tuple[DataFile, int, int, str]]:
    """What to train on and what to hold out: (file, start, stop, name in messages)."""
    if len(files) == 2:
        return [(file, 0, file.count, file.where) for file in files]
    (file,) = files
    if file.kind != "text" and file.count < 2:
        raise ValueError(f"{file.where}: one row cannot be split; give more rows, or --eval_file")
    cut = file.count * 9 // 10
    held_out = file.where + (" (last 10 %)" if file.kind == "text" else "")
    return [(file, 0, cut, file.where), (file, cut, file.count, held_out)]


def _from_task(
    settings: DataSettings, train: RowTexts, held_out: RowTexts, tokenizer: PreTrainedTokenizerBase | None
) -> Data:
    if tokenizer is None and settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer, settings.num_thoughts)
    if tokenizer is None:  # a task's answers are symbols, one token each
        tokenizer = build_tokenizer(chain(*train, *held_out), SMALLEST_BPE - 1, settings.num_thoughts)
    notes, parts = [], []
    for rows, before in ((train, 0), (held_out, len(train))):
        number = len(rows[0])
        ids = list(encode_rows(tokenizer, chain.from_iterable(rows), number, "--task"))
        bounds = np.cumsum([0, *map(len, ids)]).astype("<i8")
        ids = np.concatenate(ids).astype(id_dtype(tokenizer))
        parts.append(Tokens(ids, bounds, number, (sha256(ids.tobytes()), sha256(bounds.tobytes()))))
        _check_lengths(_dataset(settings, tokenizer, parts[-1]), settings.seq_length, "--task", before, notes)
    return _data(settings, tokenizer, parts, notes)


def _data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, parts: list[Tokens], notes: list[str]) -> Data:
    train, held_out = (_dataset(settings, tokenizer, part) for part in parts)
    text = isinstance(train, Windows)
    collate = collate_windows if text else partial(collate_rows, pad=tokenizer.pad_token_id)
    kind = "text" if text else "rows with keys" if train.parts == 3 else "rows"
    fingerprint = sha256(json.dumps([kind, *(part.sha256 for part in parts)]).encode())
    return Data(tokenizer, train, held_out, collate, notes, fingerprint)


def _dataset(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, part: Tokens) -> Windows | Rows:
    if part.bounds is None:
        return Windows(part.ids, settings.seq_length, opening(tokenizer))
    return Rows(part.ids, part.bounds, settings.seq_length, part.parts)


def _check_lengths(data: Windows | Rows, seq_length: int, where: str, before: int, notes: list[str]) -> None:
    """Raise ValueError if the data do not fit `seq_length`. before: rows of the file before the first."""
    if isinstance(data, Windows):
        if not len(data):
            raise ValueError(
                f"--seq_length {seq_length}: {where} has only {len(data.ids)} tokens; "
                "give more text or a smaller --seq_length"
            )
        return
    longest, row, shortened = -1, 0, 0
    for lengths in data.lengths():
        prompts, rows = lengths[:, 0], lengths[:, 0] + lengths[:, 1:].max(1)
        if prompts.max() > longest:
            longest, row = int(prompts.max()), before + int(prompts.argmax()) + 1
        shortened += int((rows > seq_length).sum())
        before += len(prompts)
    if longest >= seq_length:
        raise ValueError(
            f"--seq_length {seq_length}: row {row} has a prompt of {longest} tokens and no room "
            f"for a completion; give --seq_length {longest + 64} or more"
        )
    if shortened:
        notes.append(f"{shortened} of {len(data)} rows cut to --seq_length {seq_length}")


def _choose_tokenizer(settings: TokenizerSettings, files: list[DataFile]) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer that the settings name, or else train, and notes for the user."""
    if settings.tokenizer:
        return load_tokenizer(settings.tokenizer, settings.num_thoughts), []
    kind, characters = files[0].kind, settings.vocab_size < SMALLEST_BPE
    if kind == "chat":
        raise ValueError(f"{files[0].where}: has `messages`, {NO_TEMPLATE}")
    read = files if kind == "rows" else files[:1]
    every = 1 if characters else -(-sum(os.path.getsize(file.path) for file in read) // BPE_BYTES)
    about = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "files": [file.sha256 for file in read],
        "kind": kind,
        "vocab_size": settings.vocab_size,
        "every": every,
    }
    sample = chain.from_iterable(texts(file, 0, file.count, every) for file in read)
    engine = cached(about, lambda: train_engine(sample, settings.vocab_size).to_str())
    tokenizer = complete(tokenizers.Tokenizer.from_str(engine), settings.num_thoughts)
    name = "characters" if characters else "byte-level BPE"
    size = len(tokenizer) - len(tokenizer.all_special_tokens)
    notes = [f"tokenizer: {name}, {size:,} entries of the {settings.vocab_size:,} asked for"]
    if every > 1:
        piece = "row" if kind == "rows" else f"piece of about {PIECE:,} characters"
        notes.append(
            f"tokenizer: trained on one {piece} of every {every}, because all of them would take too much memory"
        )
    return tokenizer, notes
