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
from torch.utils.data import DataLoader

from mot.data import load as load_module
from mot.data.datasets import Batches
from mot.data.encode import encode_prompts
from mot.data.load import load_data
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


def test_the_last_tenth_of_the_rows_is_held_out(rows_file):
    data = load(rows_file)
    decode, end = data.tokenizer.decode, data.tokenizer.eos_token_id
    assert [decode(p) for p, _ in data.train] == [f"n = {n}" for n in range(18)]
    assert [decode(p) for p, _ in data.eval] == ["n = 18", "n = 19"]
    assert [(decode(c[:-1]), c[-1]) for _, c in data.eval] == [(" is 18", end), (" is 19", end)]
    batch = data.collate([data.train[9], data.train[10]])
    assert batch["prompt"][0, 0] == data.tokenizer.pad_token_id


def test_the_size_really_reached_is_said_aloud(text_file, rows_file):
    distinct = len(set(text_file.read_text()))
    assert load(text_file).notes == [f"tokenizer: characters, {distinct} entries of the 100 asked for"]
    data = load(text_file, vocab_size=50257)
    reached = len(data.tokenizer) - len(data.tokenizer.all_special_tokens)
    assert data.notes == [f"tokenizer: byte-level BPE, {reached:,} entries of the 50,257 asked for"]
    assert said(data.tokenizer, data.eval) == text_file.read_text()[1800 : 1800 + len(said(data.tokenizer, data.eval))]


def test_rows_longer_than_seq_length_are_cut_and_reported(tmp_path):
    rows = [("ab", "c" * 5)] * 18 + [("ab", "c" * 50), ("a" * 5, "c" * 50)]
    rows[4] = ("abab", "c" * 29)  # one token too long, with the end of text
    data = load(write_rows(tmp_path / "rows.jsonl", *rows))
    assert data.notes[1:] == ["1 of 18 rows cut to --seq_length 32", "2 of 2 rows cut to --seq_length 32"]
    assert max(len(p) + len(c) for part in (data.train, data.eval) for p, c in part) == 32
    assert data.tokenizer.decode(data.eval[1][1]) == "c" * 27
    assert len(data.train[0][0] + data.train[0][1]) == 8


def test_a_prompt_that_leaves_no_room_is_refused_with_its_row(tmp_path):
    rows = [("a", "b")] * 20
    rows[7] = ("a" * 32, "b")
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(ValueError, match=r"--seq_length 32: row 8 has a prompt of 32 tokens.*--seq_length 96"):
        load(path)
    assert load(path, seq_length=33).notes[1:] == ["1 of 18 rows cut to --seq_length 33"]


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
    assert rows.notes[1:] == [
        "tokenizer: trained on one row of every 3, because all of them would take too much memory",
    ]
    before = whole(rows)
    shutil.rmtree(own_cache)
    assert whole(load(rows_file, vocab_size=300)) == before
    assert "one piece of about 4,096 characters of every 7" in load(text_file, vocab_size=300).notes[1]
    assert len(load(text_file).notes) == 1  # characters are all seen


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
    assert data.notes == ["tokenizer: characters, 65 entries of the 100 asked for"]
    text = (shared_data / "shakespeare.txt").read_text()
    assert data.tokenizer.decode(encode(data.tokenizer, text[:100_000])) == text[:100_000]
    assert len(data.train) == len(text) * 9 // 10 // 256
    assert set(string.ascii_letters) < set(data.tokenizer.get_vocab())
