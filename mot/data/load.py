"""From files, or a task's rows, to the data of a run.

    data = load_data(settings)                    # reads, trains the tokenizer, tokenises, splits
    loader over data.train, collate data.collate  -> {"window": [B, L]} or {"prompt": [B, P], ...}
    branch(batch, point)                          -> {"prompt", "prompt_mask", "completion", "completion_mask"}

The work is done by the files beside this one: `sources` reads and checks, `encode` makes token ids, `cache` keeps them,
`datasets` makes batches of them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice

import numpy as np
import tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mot.data.cache import FORMAT, Tokens, cached, sha256
from mot.data.datasets import Rows, Windows, collate_rows, collate_windows
from mot.data.encode import encode_file, encode_rows, id_dtype
from mot.data.pieces import PIECE
from mot.data.rows import NEEDED
from mot.data.settings import DataSettings, TokenizerSettings
from mot.data.sources import DataFile, Part, check_file, numbered, split, texts
from mot.model.tokenizer import SMALLEST_BPE, build_tokenizer, complete, load_tokenizer, opening, train_engine
from mot.runtime.announce import announced

RowTexts = list[tuple[str, ...]]  # (prompt, completion), or with a key (prompt, completion, key)
BPE_BYTES = 2**25  # most text that byte-level BPE is trained on; it takes 700 bytes for each different word
NAMES = {"text": "text", "rows": "rows of prompt and completion", "chat": "conversations"}
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

    Without a `tokenizer` the settings choose one. Without `--eval_file` a tenth is held out: the end of a text, or rows
    chosen by their prompts. Raises ValueError with one line that names the flag, the line of the file and the remedy.
    """
    data = _from_task(settings, *task_rows, tokenizer) if task_rows else _from_files(settings, tokenizer)
    if general_file:
        file = check_file(general_file, "--general_file", as_text=settings.as_text)
        if file.parts:
            raise ValueError(f"{file.where}: has rows; give text, rows of {NEEDED['documents']}, or --as_text")
        tokens = encode_file(file, _whole(file), data.tokenizer, file.where)
        data.general = Windows(tokens.ids, settings.seq_length, opening(data.tokenizer))
        _check_windows(data.general, settings.seq_length, file.where)
    return data


def _from_files(settings: DataSettings, tokenizer: PreTrainedTokenizerBase | None) -> Data:
    files = _checked_files(settings)
    notes = _notes_of_shape(files[0])
    if tokenizer is None:
        tokenizer, more = _choose_tokenizer(settings, files)
        notes = more + notes
    if files[0].kind == "chat" and not tokenizer.chat_template:
        raise ValueError(f"{files[0].where}: has `{files[0].shape.target}`, {NO_TEMPLATE}")
    if len(files) == 2:
        split_parts = [_whole(file) for file in files]
    else:
        *split_parts, note = split(files[0])
        notes.append(note)
    parts, sets = [], []
    for file, part, what in zip((files[0], files[-1]), split_parts, ("", " (held out)"), strict=True):
        where = file.where + (what if len(files) == 1 else "")
        parts.append(encode_file(file, part, tokenizer, where))

        def number(row: int, file=file, part=part) -> int:
            return next(islice(numbered(file, part), row, None))[0]

        sets.append(_dataset(settings, tokenizer, parts[-1], where, number, notes))
    return _data(tokenizer, parts, sets, notes)


def _whole(file: DataFile) -> Part:
    return Part("place", 0, file.count)


def _notes_of_shape(file: DataFile) -> list[str]:
    """What was made of columns that are not the usual ones, for the user."""
    if not file.shape:
        return []
    shape, notes = file.shape, []
    if shape.end:
        columns = " and ".join(f"`{name}`" for name in shape.prompt)
        notes.append(
            f"rows: the prompt is {columns}, with an empty line after each; the completion is `{shape.target}`"
        )
    if shape.others:
        notes.append(f"columns that are not read: {', '.join(shape.others)}")
    return notes


def _checked_files(settings: DataSettings) -> list[DataFile]:
    """The training file, and the evaluation file if there is one."""
    given = [(settings.train_file, "--train_file")]
    if settings.eval_file:
        given.append((settings.eval_file, "--eval_file"))
    files = [check_file(path, flag, settings.column_names(), settings.as_text) for path, flag in given]
    kinds = ["text" if file.kind == "documents" else file.kind for file in files]
    if kinds[0] != kinds[-1]:
        raise ValueError(f"{files[1].where}: has {NAMES[kinds[1]]} and --train_file {NAMES[kinds[0]]}; give one kind")
    return files


def _from_task(
    settings: DataSettings, train: RowTexts, held_out: RowTexts, tokenizer: PreTrainedTokenizerBase | None
) -> Data:
    if tokenizer is None and settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer, settings.num_thoughts)
    if tokenizer is None:  # a task's answers are symbols, one token each
        tokenizer = build_tokenizer(chain(*train, *held_out), SMALLEST_BPE - 1, settings.num_thoughts)
    notes, parts, sets, before = [], [], [], 0
    for rows in (train, held_out):
        parts_of_row = len(rows[0])
        ids = list(encode_rows(tokenizer, chain.from_iterable(rows), parts_of_row, "--task"))
        bounds = np.cumsum([0, *map(len, ids)]).astype("<i8")
        ids = np.concatenate(ids).astype(id_dtype(tokenizer))
        parts.append(Tokens(ids, bounds, parts_of_row, (sha256(ids.tobytes()), sha256(bounds.tobytes()))))
        number = partial(int.__add__, before + 1)
        sets.append(_dataset(settings, tokenizer, parts[-1], "--task", number, notes))
        before += len(rows)
    return _data(tokenizer, parts, sets, notes)


def _data(tokenizer: PreTrainedTokenizerBase, parts: list[Tokens], sets: list, notes: list[str]) -> Data:
    train, held_out = sets
    text = isinstance(train, Windows)
    collate = collate_windows if text else partial(collate_rows, pad=tokenizer.pad_token_id)
    kind = "text" if text else "rows with keys" if train.parts == 3 else "rows"
    fingerprint = sha256(json.dumps([kind, *(part.sha256 for part in parts)]).encode())
    return Data(tokenizer, train, held_out, collate, notes, fingerprint)


def _dataset(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    part: Tokens,
    where: str,
    number: Callable[[int], int],
    notes: list[str],
) -> Windows | Rows:
    """Windows or rows of a part. number: the row of the file that is this row of the part, for messages."""
    if part.bounds is None:
        windows = Windows(part.ids, settings.seq_length, opening(tokenizer))
        _check_windows(windows, settings.seq_length, where)
        return windows
    rows = Rows(part.ids, part.bounds, settings.seq_length, part.parts)
    too_long, first, full = rows.too_long()
    if not too_long:
        return rows
    if settings.too_long == "skip":
        notes.append(f"{too_long:,} of {len(rows):,} rows left out, longer than --seq_length {settings.seq_length}")
        if too_long == len(rows):
            raise ValueError(
                f"--seq_length {settings.seq_length}: all {len(rows):,} rows of {where} are longer; give a larger one"
            )
        return rows.without_too_long()
    if settings.too_long == "refuse" or full is not None:
        row = first if full is None else full
        prompt, whole = rows.length_of(row)
        what = f"a prompt of {prompt} tokens and no room for a completion"
        if full is None:
            more = f", and {too_long - 1:,} more rows are too long" if too_long > 1 else ""
            what = f"{whole} tokens{more}"
        least = prompt + 64 if settings.too_long == "cut" else rows.longest()
        raise ValueError(
            f"--seq_length {settings.seq_length}: row {number(row)} has {what}; give --seq_length {least} or more, or "
            "--too_long skip"
        )
    notes.append(f"{too_long:,} of {len(rows):,} rows cut to --seq_length {settings.seq_length}")
    return rows


def _check_windows(windows: Windows, seq_length: int, where: str) -> None:
    if not len(windows):
        raise ValueError(
            f"--seq_length {seq_length}: {where} has only {len(windows.ids)} tokens; "
            "give more text or a smaller --seq_length"
        )


def _choose_tokenizer(settings: TokenizerSettings, files: list[DataFile]) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer that the settings name, or else train, and notes for the user."""
    if settings.tokenizer:
        return load_tokenizer(settings.tokenizer, settings.num_thoughts), []
    kind, characters = files[0].kind, settings.vocab_size < SMALLEST_BPE
    if kind == "chat":
        raise ValueError(f"{files[0].where}: has `{files[0].shape.target}`, {NO_TEMPLATE}")
    read = files if kind == "rows" else files[:1]
    every = 1 if characters else -(-sum(file.size() for file in read) // BPE_BYTES)
    about = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "files": [file.sha256 for file in read],
        "as": [[file.format, file.shape and asdict(file.shape)] for file in read],
        "vocab_size": settings.vocab_size,
        "every": every,
    }
    sample = chain.from_iterable(texts(file, every) for file in read)
    with announced(f"training a tokenizer on {files[0].where}"):
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
