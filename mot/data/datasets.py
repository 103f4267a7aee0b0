"""Rows and windows of token ids, the order in which a run sees them, and batches that branch.

    Windows(ids, 256)[3]                          int64 [256]
    Rows(ids, bounds, 256)[3]                     (prompt ids, completion ids)
    Batches(len(rows), 32, seed=0, batches=100)   for DataLoader(batch_sampler=...)
    branch(collate_windows(windows), point)       {"prompt", "prompt_mask", "completion", "completion_mask"}

Plain text has no prompt of its own: a window of L tokens is cut at a branch point that the caller draws. A row branches
between `prompt` and `completion`. Prompts are padded on the left and completions on the right, so that a batch has one
branch point. Shapes: see mot/thoughts.py.
"""

import hashlib
import os
from collections.abc import Iterator
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


class Rows(Dataset):
    """Pairs of token ids (prompt, completion). Completions are cut so that no pair has more than `length` tokens.

    `ids` holds all prompts and completions in turn. The prompt of row i is ids[bounds[2i]:bounds[2i+1]], its completion
    ids[bounds[2i+1]:bounds[2i+2]].
    """

    def __init__(self, ids: np.ndarray | MemmapArray, bounds: np.ndarray | MemmapArray, length: int):
        self.ids, self.bounds, self.length = ids, bounds, length

    def __len__(self) -> int:
        return len(self.bounds) // 2

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        first, branch_point, stop = self.bounds[2 * i : 2 * i + 3].tolist()
        row = self.ids[first : min(stop, first + self.length)].tolist()
        return row[: branch_point - first], row[branch_point - first :]

    def lengths(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lengths of the prompts, and of the whole rows before they are cut, a million rows at a time."""
        for i in range(0, len(self), 2**20):
            bounds = self.bounds[2 * i : 2 * (i + 2**20) + 1]
            yield np.diff(bounds)[::2], np.diff(bounds[::2])

    def tokens(self) -> int:
        return sum(int(np.minimum(rows, self.length).sum()) for _, rows in self.lengths())

    def mean_lengths(self) -> tuple[float, float]:
        """Mean number of tokens of a prompt and of a continuation."""
        prompts = sum(int(np.minimum(prompts, self.length).sum()) for prompts, _ in self.lengths())
        return prompts / len(self), (self.tokens() - prompts) / len(self)


class Batches(Sampler[list[int]]):
    """The order in which a run sees its rows, for `DataLoader(batch_sampler=...)`.

    The order is endless: one permutation of range(rows) after another, each drawn from (seed, epoch). Batch b takes the
    next batch_size * world places of it, and process `rank` the rank-th batch_size of those. So a batch may reach into
    the next epoch, and all batches have the same size. Yields batches start .. batches - 1 as lists of row numbers. A
    late `start` costs no time. Memory: 4 bytes per row.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, batches: int, start: int = 0, rank: int = 0, world: int = 1
    ):
        assert 0 < rows < 2**31, rows
        assert 0 <= rank < world, (rank, world)
        self.rows, self.batch_size, self.seed, self.batches = rows, batch_size, seed, batches
        self.start, self.rank, self.world = start, rank, world
        self.epoch, self.order = -1, None

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for b in range(self.start, self.batches):
            first = (b * self.world + self.rank) * self.batch_size
            yield self._places(first, first + self.batch_size)

    def _places(self, first: int, stop: int) -> list[int]:
        batch = []
        while first < stop:
            epoch, place = divmod(first, self.rows)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, None  # free the old permutation before the new one is drawn
                g = torch.Generator().manual_seed(_order_seed(self.seed, epoch))
                self.order = torch.randperm(self.rows, generator=g, dtype=torch.int32)
            rows = self.order[place : place + stop - first].tolist()
            batch += rows
            first += len(rows)
        return batch


def _order_seed(seed: int, epoch: int) -> int:
    return int(hashlib.sha256(f"order {seed} {epoch}".encode()).hexdigest()[:15], 16)


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
