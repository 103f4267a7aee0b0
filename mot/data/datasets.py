"""Rows and windows of token ids, the order in which a run sees them, and batches that branch.

    Windows(ids, 256)[3]                          int64 [256]
    Rows(ids, bounds, 256)[3]                     (prompt ids, completion ids), and key ids if rows have keys
    Batches(len(rows), 32, seed=0, batches=100)   for DataLoader(batch_sampler=...)
    branch(collate_windows(windows), point)       {"prompt", "prompt_mask", "completion", "completion_mask"}

Plain text has no prompt of its own: a window of L tokens is cut at a branch point that the caller draws. A row branches
between `prompt` and `completion`. Its key, if it has one, is what the E-step scores in place of the completion. Prompts
are padded on the left, completions and keys on the right, so that a batch has one branch point. Shapes: see
mot/thoughts.py.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


class MemmapArray:
    """A one-dimensional array in a file. A slice of it is a copy in memory.

    The memory map lives only while a slice is copied, so pages do not add up in the process. The file stays open: a run
    continues after the cache was emptied. Pickling stores the path, not the content.
    """

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype = path, np.dtype(dtype)
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.length = os.fstat(self.file.fileno()).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        first, stop, _ = part.indices(self.length)
        if first >= stop:
            return np.empty(0, self.dtype)
        return np.array(np.memmap(self.file, self.dtype, "r", first * self.dtype.itemsize, (stop - first,)))

    def __reduce__(self):
        return MemmapArray, (self.path, self.dtype.str)


class Windows(Dataset):
    """Consecutive windows of one long text, int64 [length]. `ids` is an integer array or a `MemmapArray`.

    Each window begins with the tokens `first`, which do not belong to the text.
    """

    def __init__(self, ids: np.ndarray | MemmapArray, length: int, first: list[int] | None = None):
        self.ids, self.length, self.first = ids, length, np.array(first or [], np.int64)
        self.step = length - len(self.first)

    def __len__(self) -> int:
        return len(self.ids) // self.step

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < len(self):
            raise IndexError(i)
        text = self.ids[i * self.step : (i + 1) * self.step].astype(np.int64)
        return torch.from_numpy(np.concatenate([self.first, text]))

    def tokens(self) -> int:
        return len(self) * self.length

    def mean_lengths(self) -> tuple[float, float]:
        """Mean number of tokens before and after a branch point drawn uniformly."""
        return self.length / 2, self.length / 2

    def mean_scored(self) -> float:
        """Mean number of tokens of a continuation."""
        return self.length / 2


class Rows(Dataset):
    """Token ids (prompt, completion) or (prompt, completion, key) of rows.

    `ids` holds the `parts` texts of every row in turn: part j of row i is ids[bounds[parts * i + j] : bounds[parts * i
    + j + 1]]. Completions and keys are cut so that neither has more than `length` tokens together with the prompt.
    kept: the numbers of the rows that are used, in order; None: all.
    """

    def __init__(
        self,
        ids: np.ndarray | MemmapArray,
        bounds: np.ndarray | MemmapArray,
        length: int,
        parts: int = 2,
        kept: np.ndarray | None = None,
    ):
        self.ids, self.bounds, self.length, self.parts, self.kept = ids, bounds, length, parts, kept

    def __len__(self) -> int:
        return len(self.bounds) // self.parts if self.kept is None else len(self.kept)

    def __getitem__(self, i: int) -> tuple[list[int], ...]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        i = i if self.kept is None else int(self.kept[i])
        bounds = self.bounds[self.parts * i : self.parts * (i + 1) + 1].tolist()
        row = self.ids[bounds[0] : bounds[-1]].tolist()
        prompt, *others = (row[begin - bounds[0] : end - bounds[0]] for begin, end in pairwise(bounds))
        return prompt, *(part[: max(0, self.length - len(prompt))] for part in others)

    def lengths(self) -> Iterator[np.ndarray]:
        """Lengths [rows, parts] of the texts before they are cut, at most a million rows at a time."""
        for i in range(0, len(self.bounds) // self.parts, 2**20):
            bounds = self.bounds[self.parts * i : self.parts * (i + 2**20) + 1]
            lengths = np.diff(bounds).reshape(-1, self.parts)
            if self.kept is not None:
                begin, end = np.searchsorted(self.kept, (i, i + 2**20))
                lengths = lengths[self.kept[begin:end] - i]
            yield lengths

    def too_long(self) -> tuple[int, int | None, int | None]:
        """Number of rows that are longer than `length`, the first of them, and the longest prompt without room."""
        number, first, full, longest, before = 0, None, None, self.length - 1, 0
        for lengths in self.lengths():
            rows = np.flatnonzero(_whole(lengths) > self.length)
            number += len(rows)
            if first is None and len(rows):
                first = before + int(rows[0])
            if lengths[:, 0].max(initial=0) > longest:
                longest, full = lengths[:, 0].max(), before + int(lengths[:, 0].argmax())
            before += len(lengths)
        return number, first, full

    def longest(self) -> int:
        """Tokens of the longest row before it is cut."""
        return max(int(_whole(lengths).max()) for lengths in self.lengths())

    def length_of(self, i: int) -> tuple[int, int]:
        """Tokens of the prompt of row i, and of the row with its longest text, before it is cut."""
        i = i if self.kept is None else int(self.kept[i])
        lengths = np.diff(self.bounds[self.parts * i : self.parts * (i + 1) + 1])[None]
        return int(lengths[0, 0]), int(_whole(lengths)[0])

    def without_too_long(self) -> "Rows":
        """The rows that need not be cut. Memory: 8 bytes for each of them."""
        fits = np.concatenate([_whole(lengths) <= self.length for lengths in self.lengths()])
        kept = np.flatnonzero(fits) if self.kept is None else self.kept[fits]
        return Rows(self.ids, self.bounds, self.length, self.parts, kept)

    def tokens(self) -> int:
        """Number of tokens of all prompts and completions."""
        return int(self._totals[:2].sum())

    def mean_lengths(self) -> tuple[float, float]:
        """Mean number of tokens of a prompt and of a continuation."""
        prompts, completions = (self._totals[:2] / len(self)).tolist()
        return prompts, completions

    def mean_scored(self) -> float:
        """Mean number of tokens that the E-step scores: of a key, or else of a continuation."""
        return self._totals[-1].item() / len(self)

    @cached_property
    def prompt_numbers(self) -> np.ndarray:
        """A number for every row [rows], the same for rows that have the same prompt."""
        seen: dict[bytes, int] = {}
        first, branch_point = self.bounds[:][: -1 : self.parts].tolist(), self.bounds[:][1 :: self.parts].tolist()
        prompts = (self.ids[a:b].tobytes() for a, b in zip(first, branch_point, strict=False))
        return np.array([seen.setdefault(prompt, len(seen)) for prompt in prompts], np.int32)

    def longest_continuation(self) -> int:
        """Most tokens of a completion after it is cut."""
        return max(int(np.minimum(part[:, 1], self.length - part[:, 0]).max()) for part in self.lengths())

    @cached_property
    def _totals(self) -> np.ndarray:
        totals = np.zeros(self.parts, np.int64)
        for lengths in self.lengths():
            prompts = np.minimum(lengths[:, :1], self.length)
            totals += np.concatenate([prompts, np.minimum(lengths[:, 1:], self.length - prompts)], 1).sum(0)
        return totals


def _whole(lengths: np.ndarray) -> np.ndarray:
    """Tokens [rows] of a prompt and the longer one of completion and key."""
    return lengths[:, 0] + lengths[:, 1:].max(1)


class Batches(Sampler[list[int]]):
    """The order in which a run sees its rows, for `DataLoader(batch_sampler=...)`.

    The order is endless: one permutation of range(rows) after another, each drawn from (seed, epoch). Batch b takes the
    next batch_size * world places of it, and process `rank` the rank-th batch_size of those. So a batch may reach into
    the next epoch, and all batches have the same size. Yields batches start .. batches - 1 as lists of row numbers. A
    late `start` costs no time. Memory: 4 bytes per row.

    With `groups`, a number for every row, the rows of one group stay together: no group has rows in two steps of
    `step_rows` places, but for at most one at the end of an epoch. If every group is a single row, the order is as
    without groups.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        batches: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        groups: np.ndarray | None = None,
        step_rows: int = 1,
    ):
        assert 0 < rows < 2**31, rows
        assert 0 <= rank < world, (rank, world)
        self.rows, self.batch_size, self.seed, self.batches = rows, batch_size, seed, batches
        self.start, self.rank, self.world = start, rank, world
        self.groups, self.step_rows = groups, step_rows
        self.epoch, self.order = -1, None

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for b in range(self.start, self.batches):
            first = (b * self.world + self.rank) * self.batch_size
            yield self._places(first, first + self.batch_size)

    def rows_of(self, step: int, rows: int) -> list[int]:
        """The numbers of the `rows` rows of an optimizer step, of all processes, in the order of the data."""
        return self._places(step * rows, (step + 1) * rows)

    def _places(self, first: int, stop: int) -> list[int]:
        batch = []
        while first < stop:
            epoch, place = divmod(first, self.rows)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, None  # free the old permutation before the new one is drawn
                g = torch.Generator().manual_seed(_order_seed(self.seed, epoch))
                self.order = torch.randperm(self.rows, generator=g, dtype=torch.int32)
                if self.groups is not None:
                    room = self.step_rows - epoch * self.rows % self.step_rows
                    self.order = torch.tensor(keep_together(self.order.tolist(), self.groups, room, self.step_rows))
            rows = self.order[place : place + stop - first].tolist()
            batch += rows
            first += len(rows)
        return batch


def keep_together(order: list[int], groups: np.ndarray, room: int, step_rows: int) -> list[int]:
    """The rows of `order`, moved so that no group has rows in two steps of `step_rows` places.

    The first step has `room` places. A group that does not fit waits for the next step, and later groups that fit take
    its place; if none does, the first one that waits is cut.
    """
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(groups[row]), []).append(row)
    coming, waiting, placed = deque(members.values()), deque(), []
    while coming or waiting:
        if not coming:  # nothing fits: the first one that waits fills the step
            coming.append(waiting[0][:room])
            waiting[0] = waiting[0][room:]
        rows = coming.popleft()
        if len(rows) > room:
            waiting.append(rows)
            continue
        placed += rows
        room -= len(rows)
        if room == 0:
            room = step_rows
            coming.extendleft(reversed(waiting))
            waiting.clear()
    return placed


def _order_seed(seed: int, epoch: int) -> int:
    return int(hashlib.sha256(f"order {seed} {epoch}".encode()).hexdigest()[:15], 16)


def collate_windows(windows: list[Tensor]) -> dict[str, Tensor]:
    """{"window": [B, L]}"""
    return {"window": torch.stack(windows)}


def collate_rows(rows: list[tuple[list[int], ...]], pad: int) -> dict[str, Tensor]:
    """{"prompt": [B, P] padded left, "completion": [B, T] padded right, and a mask (1: real) of each}.

    If the rows have keys, also "key" and its mask, padded right.
    """
    prompts, *others = zip(*rows, strict=True)
    P = max(map(len, prompts))
    batch = {
        "prompt": torch.tensor([[pad] * (P - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts]),
    }
    for name, texts in zip(("completion", "key"), others, strict=False):
        T = max(map(len, texts))
        batch[name] = torch.tensor([ids + [pad] * (T - len(ids)) for ids in texts])
        batch[f"{name}_mask"] = torch.tensor([[1] * len(ids) + [0] * (T - len(ids)) for ids in texts])
    return batch


def keyed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch that the E-step scores: with the keys, if the rows have any, in place of the completions."""
    scored = {name: batch[name] for name in ("prompt", "prompt_mask", "completion", "completion_mask")}
    if "key" in batch:
        scored |= {"completion": batch["key"], "completion_mask": batch["key_mask"]}
    return scored


def by_length(batch: dict[str, Tensor], parts: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Split a batch into at most `parts` batches of rows with completions of similar length.

    Yields (row numbers [R], batch of those rows without the columns that are all padding).
    """
    length_B = batch["completion_mask"].sum(1)
    if (length_B == length_B[0]).all():
        parts = 1
    for rows in length_B.argsort(stable=True).chunk(parts):
        part = {name: t[rows] for name, t in batch.items()}
        P, T = (int(part[f"{side}_mask"].sum(1).max()) for side in ("prompt", "completion"))
        begin = part["prompt"].shape[1] - P
        yield rows, {name: t[:, begin:] if name.startswith("prompt") else t[:, :T] for name, t in part.items()}


def branch(batch: dict[str, Tensor], point: int) -> dict[str, Tensor]:
    """Cut windows [B, L] at `point` (1 .. L-1) into prompt and completion. A batch of rows is returned as it is."""
    if "window" not in batch:
        return batch
    prompt, completion = batch["window"][:, :point], batch["window"][:, point:]
    return {
        "prompt": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion": completion,
        "completion_mask": torch.ones_like(completion),
    }
