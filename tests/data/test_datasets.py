"""Windows, rows, the order of a run, and batches that branch at one place."""

import pickle
import time
from itertools import chain

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.data.datasets import Batches, MemmapArray, Rows, Windows, branch, collate_rows, collate_windows


@settings(deadline=None)
@given(B=st.integers(1, 4), L=st.integers(2, 20), data=st.data())
def test_branch_cuts_windows_in_two(B, L, data):
    point = data.draw(st.integers(1, L - 1))
    window = torch.arange(B * L).view(B, L)
    cut = branch(collate_windows(list(window)), point)
    assert torch.equal(torch.cat([cut["prompt"], cut["completion"]], 1), window)
    for name, length in (("prompt", point), ("completion", L - point)):
        assert cut[name].shape == cut[f"{name}_mask"].shape == (B, length)
        assert cut[f"{name}_mask"].all()


ids = st.lists(st.integers(1, 99), min_size=1, max_size=9)


@settings(deadline=None)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5), st.sampled_from([0, 7]))
def test_prompts_are_padded_left_and_completions_right(pairs, pad):
    batch = collate_rows(pairs, pad)
    assert branch(batch, 3) is batch  # rows have their branch point
    for i, (prompt, completion) in enumerate(pairs):
        P, T = len(prompt), len(completion)
        padding = batch["prompt"].shape[1] - P
        assert batch["prompt"][i].tolist() == [pad] * padding + prompt
        assert batch["prompt_mask"][i].tolist() == [0] * padding + [1] * P
        padding = batch["completion"].shape[1] - T
        assert batch["completion"][i].tolist() == completion + [pad] * padding
        assert batch["completion_mask"][i].tolist() == [1] * T + [0] * padding
    assert batch["prompt"].shape[1] == max(len(p) for p, _ in pairs)
    assert batch["completion"].shape[1] == max(len(c) for _, c in pairs)


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 60))
def test_windows_follow_each_other_and_leave_out_what_does_not_fill_one(length, tokens):
    windows = Windows(np.arange(tokens, dtype=np.uint16), length)
    assert len(windows) == tokens // length
    assert windows.tokens() == len(windows) * length
    assert [t for window in windows for t in window.tolist()] == list(range(len(windows) * length))
    assert all(window.dtype == torch.int64 and window.shape == (length,) for window in windows)


@settings(deadline=None)
@given(st.lists(st.tuples(ids, ids), max_size=5), st.integers(10, 20))
def test_rows_cut_completions_and_count_what_is_left(pairs, length):
    flat = [part for pair in pairs for part in pair]
    rows = Rows(np.array([*chain(*flat)], np.uint16), np.cumsum([0, *map(len, flat)]), length)
    expected = [(prompt, completion[: length - len(prompt)]) for prompt, completion in pairs]
    assert list(rows) == expected
    assert len(rows) == len(pairs)
    assert rows.tokens() == sum(len(prompt) + len(completion) for prompt, completion in expected)


def test_a_memmap_array_is_the_array_in_the_file(tmp_path):
    array = np.arange(50_000, dtype="<u2")
    array.tofile(tmp_path / "ids")
    array_in_file = MemmapArray(tmp_path / "ids", "<u2")
    again = pickle.loads(pickle.dumps(array_in_file))
    (tmp_path / "ids").unlink()  # a run goes on
    for part in (slice(0, 3), slice(4097, 40_000), slice(49_990, 60_000), slice(7, 7), slice(None)):
        assert np.array_equal(array_in_file[part], array[part])
        assert np.array_equal(again[part], array[part])
    assert len(array_in_file) == len(array)


some = st.integers(1, 12)


@settings(deadline=None)
@given(rows=st.integers(1, 40), batch_size=some, seed=st.integers(0, 2**32 - 1))
def test_every_row_comes_once_in_every_epoch(rows, batch_size, seed):
    batches = list(Batches(rows, batch_size, seed, batches=3 * rows))
    assert {len(batch) for batch in batches} == {batch_size}
    order = [*chain(*batches)]
    epochs = [order[i : i + rows] for i in range(0, len(order), rows)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs if len(epoch) == rows)
    if rows > 20:
        assert epochs[0] != epochs[1]
        assert order != [*chain(*Batches(rows, batch_size, seed + 1, batches=3 * rows))]


@settings(deadline=None)
@given(rows=st.integers(1, 40), batch_size=some, batches=st.integers(0, 30), start=st.integers(0, 40), world=some)
def test_starting_late_yields_the_rest(rows, batch_size, batches, start, world):
    for rank in {0, world - 1}:
        whole = Batches(rows, batch_size, 7, batches, 0, rank, world)
        late = Batches(rows, batch_size, 7, batches, start, rank, world)
        assert list(late) == list(whole)[start:]
        assert len(late) == len(list(late))
        assert list(late) == list(late)


@settings(deadline=None)
@given(rows=st.integers(1, 40), batch_size=some, world=st.integers(1, 4))
def test_processes_together_see_what_one_would(rows, batch_size, world):
    alone = list(Batches(rows, batch_size * world, 7, 20))
    parts = [list(Batches(rows, batch_size, 7, 20, rank=r, world=world)) for r in range(world)]
    assert [[*chain(*batch)] for batch in zip(*parts, strict=True)] == alone


def test_the_order_is_this_one():
    """A run that is gone on with after an update of this library must see the rows it would have seen."""
    assert list(Batches(5, 2, 42, 5)) == [[1, 2], [0, 4], [3, 0], [4, 1], [3, 2]]


def test_batch_a_million_is_there_at_once():
    begin = time.perf_counter()
    (batch,) = Batches(1_000_000, 32, 0, 1_000_001, start=1_000_000)
    assert time.perf_counter() - begin < 1
    assert len(batch) == 32
