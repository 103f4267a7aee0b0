"""From files to data: honest splits, rows that fit, fingerprints, little memory."""

import pickle
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import encode, load, said, whole, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mot.data import load as load_module
from mot.data.datasets import Batches
from mot.data.encode import encode_prompts
from mot.data.load import load_data
from mot.data.sources import check_file, split
from mot.data.sources import rows as rows_of
from mot.training.settings import TrainSettings


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """An empty cache for this module's tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOT_CACHE", str(folder))
        yield folder


def test_the_last_tenth_of_a_text_is_held_out(text_file):
    text, data = text_file.read_text(), load(text_file)
    train, held_out = said(data.tokenizer, data.train), said(data.tokenizer, data.eval)
    assert text[:1800].startswith(train)
    assert text[1800:].startswith(held_out)
    assert len(train) == 1800 // 32 * 32
    assert len(held_out) == 200 // 32 * 32


def test_an_eval_file_leaves_the_whole_text_to_train_on(text_file, tmp_path):
    held_out = tmp_path / "held.txt"
    held_out.write_text("the king of night " * 3)
    data = load(text_file, eval_file=str(held_out))
    assert text_file.read_text().startswith(said(data.tokenizer, data.train))
    assert len(data.train) == 2000 // 32
    assert said(data.tokenizer, data.eval) == "the king of night the king of ni"


def test_a_tenth_of_the_rows_is_held_out(rows_file):
    data = load(rows_file)
    decode, end = data.tokenizer.decode, data.tokenizer.eos_token_id
    held_out, train = ([decode(p) for p, _ in part] for part in (data.eval, data.train))
    assert sorted(held_out + train) == sorted(f"n = {n}" for n in range(20))
    assert len(held_out) == 2
    assert [f"n = {n}" for n in range(20) if f"n = {n}" in train] == train  # in the order of the file
    assert all((decode(c[:-1]), c[-1]) == (decode(p).replace("n =", " is"), end) for p, c in data.eval)
    batch = data.collate([data.train[0], data.train[17]])
    assert batch["prompt"][0, 0] == data.tokenizer.pad_token_id
    assert data.notes[-1] == "held out: 2 of 20 rows, shuffled by prompt: 2 of 20 prompts, none of them trained on"


@settings(deadline=None, max_examples=60)
@given(prompts=st.lists(st.integers(0, 30), min_size=2, max_size=60), data=st.data())
def test_no_prompt_is_trained_on_and_held_out(tmp_path_factory, prompts, data):
    folder = tmp_path_factory.mktemp("split")
    rows = [(f"p{p}", f"c{i}") for i, p in enumerate(prompts)]
    file = check_file(str(write_rows(folder / "rows.jsonl", *rows)), "x")
    *parts, note = split(file)
    train, held_out = (list(rows_of(file, part)) for part in parts)
    assert sorted(train + held_out) == sorted(rows)
    assert train
    assert held_out
    if len(set(prompts)) > 1:
        assert not {p for p, _ in train} & {p for p, _ in held_out}
        most = max(prompts.count(p) for p in prompts)
        assert abs(len(held_out) - len(rows) / 10) <= most
    else:
        assert note.endswith("all rows have one prompt")
    shuffled = data.draw(st.permutations(rows))
    again = check_file(str(write_rows(folder / "shuffled.jsonl", *shuffled)), "x")
    assert {*rows_of(again, split(again)[1])} == {*held_out}


def test_one_prompt_of_nearly_all_rows_is_trained_on(tmp_path):
    """However the hashes of the prompts fall."""
    for prompt in "abcdefgh":
        rows = [(prompt, f"c{i}") for i in range(80)] + [(f"p{i}", "c") for i in range(20)]
        file = check_file(str(write_rows(tmp_path / "rows.jsonl", *rows)), "x")
        held_out = list(rows_of(file, split(file)[1]))
        assert len(held_out) == 10
        assert prompt not in {p for p, _ in held_out}


def test_equal_rows_and_rows_of_one_prompt_are_split_too(tmp_path):
    for rows, words in (
        ([("", f"c{i}") for i in range(20)], "shuffled; all rows have one prompt"),
        ([("a", "b")] * 20, "shuffled; all rows are equal"),
    ):
        data = load(write_rows(tmp_path / "rows.jsonl", *rows))
        assert (len(data.train), len(data.eval)) == (18, 2)
        assert data.notes[-1] == f"held out: 2 of 20 rows, {words}"


def test_the_size_really_reached_is_said_aloud(text_file, rows_file):
    distinct = len(set(text_file.read_text()))
    end = "held out: the last 10 % of the text (--eval_file gives another)"
    assert load(text_file).notes == [f"tokenizer: characters, {distinct} entries of the 100 asked for", end]
    data = load(text_file, vocab_size=50257)
    reached = len(data.tokenizer) - len(data.tokenizer.all_special_tokens)
    assert data.notes[0] == f"tokenizer: byte-level BPE, {reached:,} entries of the 50,257 asked for"
    assert said(data.tokenizer, data.eval) == text_file.read_text()[1800 : 1800 + len(said(data.tokenizer, data.eval))]


def long_rows(path) -> list:
    """20 rows of 8 tokens but three: one token too long, far too long, and with a long prompt."""
    rows = [(f"{i:02}", "c" * 5) for i in range(20)]
    rows[4], rows[9], rows[18] = ("abab", "c" * 28), ("ab", "c" * 50), ("a" * 5, "c" * 50)
    return [str(write_rows(path / "rows.jsonl", *rows)), rows]


def test_rows_longer_than_seq_length_are_cut_and_reported(tmp_path):
    path, _ = long_rows(tmp_path)
    data = load(path, eval_file=path)
    assert data.notes[1:] == ["3 of 20 rows cut to --seq_length 32"] * 2
    assert max(len(p) + len(c) for p, c in data.train) == 32
    assert data.tokenizer.decode(data.train[18][1]) == "c" * 27
    assert data.tokenizer.decode(data.train[4][1]) == "c" * 28
    assert len(data.train[0][0] + data.train[0][1]) == 8


def test_rows_longer_than_seq_length_are_skipped_and_reported(tmp_path):
    path, rows = long_rows(tmp_path)
    rows[11] = ("p" * 60, "c")
    write_rows(Path(path), *rows)
    data = load(path, eval_file=path, too_long="skip")
    assert data.notes[1:] == ["4 of 20 rows left out, longer than --seq_length 32"] * 2
    left = [row for i, row in enumerate(rows) if i not in (4, 9, 11, 18)]
    decode = data.tokenizer.decode
    assert [(decode(p), decode(c[:-1])) for p, c in data.train] == left
    assert data.train.tokens() == 16 * 8
    assert data.train.mean_lengths() == (2, 6)
    with pytest.raises(ValueError, match=r"--seq_length 7: all 20 rows of --train_file .* are longer"):
        load(path, eval_file=path, too_long="skip", seq_length=7)


def test_rows_longer_than_seq_length_are_refused(tmp_path):
    path, _ = long_rows(tmp_path)
    line = "--seq_length 32: row 5 has 33 tokens, and 2 more rows are too long; give --seq_length 56 or more"
    with pytest.raises(ValueError, match=line):
        load(path, eval_file=path, too_long="refuse")
    assert load(path, eval_file=path, too_long="refuse", seq_length=56).notes[1:] == []


def test_a_prompt_that_leaves_no_room_is_refused_with_its_row(tmp_path):
    rows = [("a", "b")] * 20
    rows[7] = ("a" * 32, "b")
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(ValueError, match=r"--seq_length 32: row 8 has a prompt of 32 tokens.*--seq_length 96"):
        load(path)
    assert "1 of 20 rows cut to --seq_length 33" in load(path, seq_length=33, eval_file=str(path)).notes


def test_the_end_of_text_token_stands_for_an_empty_prompt(tmp_path):
    data = load(write_rows(tmp_path / "rows.jsonl", ("", "abc"), ("", "bca")))
    end = data.tokenizer.eos_token_id
    assert data.train[0] == ([end], [*encode(data.tokenizer, "abc"), end])
    assert encode_prompts(data.tokenizer, [""])[0] == [end]
    assert encode_prompts(data.tokenizer, ["a"])[0] == encode(data.tokenizer, "a")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_fingerprint_is_of_the_tokens_and_the_split(text_file, rows_file, tmp_path):
    text = text_file.read_text()
    (tmp_path / "other.txt").write_text(text[:-1] + ("a" if text[-1] != "a" else "b"))
    (tmp_path / "train.txt").write_text(text[:1800])
    (tmp_path / "held.txt").write_text(text[1800:])
    found = [
        load(text_file),
        load(tmp_path / "other.txt"),
        load(tmp_path / "train.txt", eval_file=str(tmp_path / "train.txt")),
        load(text_file, vocab_size=300),
        load(rows_file),
    ]
    assert len({data.fingerprint for data in found}) == len(found)
    # The same split, made by hand.
    assert load(tmp_path / "train.txt", eval_file=str(tmp_path / "held.txt")).fingerprint == found[0].fingerprint


def test_a_task_is_like_its_rows_in_a_file(tmp_path):
    train, held_out = [("a b", "c"), ("", "dd"), ("b", "a")], [("d", "b")]
    task = load_data(TrainSettings(task="forks", seq_length=32), (train, held_out))
    files = [write_rows(tmp_path / name, *rows) for name, rows in (("a.jsonl", train), ("b.jsonl", held_out))]
    read = load(files[0], eval_file=str(files[1]))
    assert list(task.train) == list(read.train)
    assert list(task.eval) == list(read.eval)
    assert task.fingerprint == read.fingerprint
    assert task.notes == []


def test_bpe_is_trained_on_a_sample_of_a_large_file_and_says_so(text_file, rows_file, own_cache, monkeypatch):
    monkeypatch.setattr(load_module, "BPE_BYTES", 300)
    rows = load(rows_file, vocab_size=300)
    assert rows.notes[1] == "tokenizer: trained on one row of every 3, because all of them would take too much memory"
    before = whole(rows)
    shutil.rmtree(own_cache)
    assert whole(load(rows_file, vocab_size=300)) == before
    assert "one piece of about 4,096 characters of every 7" in load(text_file, vocab_size=300).notes[1]
    assert not any("trained on" in note for note in load(text_file).notes[:1])  # characters are all seen


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_read_the_same_and_get_no_copy(text_file, rows_file, context):
    for path in (text_file, rows_file):
        data = load(path)
        assert len(pickle.dumps(data.train)) < 1000
        order = Batches(len(data.train), 4, seed=1, batches=6)
        here = list(DataLoader(data.train, batch_sampler=order, collate_fn=data.collate))
        workers = DataLoader(
            data.train, batch_sampler=order, collate_fn=data.collate, num_workers=1, multiprocessing_context=context
        )
        for a, b in zip(here, workers, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


MEASURED = """
import os, sys
import psutil
from mot.training.settings import TrainSettings
from mot.data.datasets import Batches
from mot.data.load import load_data
from mot.data.sources import check_file, split
from mot.data.sources import rows as rows_of
import transformers
path, vocab_size = sys.argv[1:]
small = path + ".small.txt"
open(small, "w").write(open(path).read(2**20))
load_data(TrainSettings(train_file=small, vocab_size=int(vocab_size)))  # code that is imported late
before = psutil.Process().memory_info().rss
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
data = load_data(TrainSettings(train_file=path, vocab_size=int(vocab_size)))
for batch in Batches(len(data.train), 64, seed=0, batches=500):
    data.collate([data.train[i] for i in batch])
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((peak - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_a_large_file_takes_little_memory(tmp_path, own_cache):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list(string.ascii_lowercase), n)) for n in draw.integers(2, 9, 2000)]
    line = " ".join(draw.choice(words, 200_000)) + "\n"
    path = tmp_path / "text.txt"
    with open(path, "w") as file:
        while file.tell() < 64 * 2**20:
            file.write(line)
    run = subprocess.run([sys.executable, "-c", MEASURED, path, "100"], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 32  # MiB: half of the text itself, a quarter of its tokens


def test_shakespeare_is_65_characters_and_comes_back_whole(shared_data):
    data = load(shared_data / "shakespeare.txt", seq_length=256)
    assert data.notes[0] == "tokenizer: characters, 65 entries of the 100 asked for"
    text = (shared_data / "shakespeare.txt").read_text()
    assert data.tokenizer.decode(encode(data.tokenizer, text[:100_000])) == text[:100_000]
    assert len(data.train) == len(text) * 9 // 10 // 256
    assert set(string.ascii_letters) < set(data.tokenizer.get_vocab())
