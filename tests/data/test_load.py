"""From text to batches that branch: tokenizers round-trip, data are split honestly, batches branch at one place."""

import json
import multiprocessing
import os
import pickle
import shutil
import string
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mot.data import cache as cache_module
from mot.data import encode as encode_module
from mot.data import load as load_module
from mot.data import sources as sources_module
from mot.data.datasets import Batches, MemmapArray, Rows, Windows, branch, collate_rows, collate_windows
from mot.data.encode import encode_prompts
from mot.data.load import load_data
from mot.data.sources import check_text, pieces, read_rows
from mot.model import tokenizer as tokenizer_module
from mot.model.tokenizer import END, PAD, build_tokenizer, identity, load_tokenizer, thought_ids, thought_token
from mot.training.settings import TrainSettings


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """An empty cache for this module's tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOT_CACHE", str(folder))
        yield folder


def encode(tokenizer, text: str) -> list[int]:
    """One text; the library takes many."""
    return tokenizer_module.encode(tokenizer, [text], "text")[0]


SPECIALS = [END, PAD, thought_token(0), thought_token(3)]
BPE = build_tokenizer(["the king of night speaks softly to the sleeping sea. " * 20], 300, 4)


def characters(text: str, num_thoughts: int = 4):
    return build_tokenizer([text], 256, num_thoughts)


def few_characters(text: str) -> bool:
    return 0 < len(set(text)) < 200


# Tokenizers ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=80).filter(few_characters))
def test_characters_round_trip_one_token_each(text):
    tokenizer = characters(text)
    ids = encode(tokenizer, text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(st.text(max_size=80))
def test_bpe_round_trips_text_it_was_never_trained_on(text):
    assert BPE.decode(encode(BPE, text)) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, "a", " ", "\n"]), min_size=1, max_size=8).map("".join))
def test_special_tokens_spelt_in_text_stay_text(text):
    for tokenizer in (BPE, characters(text)):
        ids = encode(tokenizer, text)
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("tokenizer", [BPE, characters("some text")], ids=["BPE", "characters"])
def test_thoughts_end_and_padding_are_tokens_of_their_own(tokenizer):
    ids = thought_ids(tokenizer, 4)
    assert tokenizer.convert_ids_to_tokens(ids) == [f"<|thought_{k}|>" for k in range(4)]
    assert ids == list(range(len(tokenizer) - 4, len(tokenizer)))
    assert len({*ids, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 6
    assert tokenizer.padding_side == "left"


def test_one_thought_is_a_plain_language_model():
    tokenizer = characters("some text", num_thoughts=1)
    assert thought_ids(tokenizer, 1) == []
    assert thought_token(0) not in tokenizer.get_vocab()


def test_bpe_has_every_byte_and_at_most_the_size_asked_for():
    assert 256 < len(BPE) - len(BPE.all_special_tokens) <= 300
    assert len(encode(BPE, "the king of night")) < len("the king of night")


def test_unknown_character_is_refused_by_name():
    with pytest.raises(ValueError, match="'é'"):
        encode(characters("abc"), "abécé")


@pytest.mark.parametrize("tokenizer", [BPE, characters("some text")], ids=["BPE", "characters"])
def test_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), 4)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert encode(again, "some text") == encode(tokenizer, "some text")
    assert thought_ids(again, 4) == thought_ids(tokenizer, 4)


mixed = st.lists(
    st.sampled_from(
        [*" \n\t\r\x1c\x85\xa0\u2003\u200b", "\r\n", "\n\n", "  ", *"aZé中7!.,", "'s", "'ll", "the king", END]
    )
).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=mixed, least=st.integers(1, 6), cuts=st.lists(st.integers(0, 60)))
def test_pieces_of_a_text_have_the_ids_of_the_whole(text, least, cuts):
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    blocks = [text[a:b] for a, b in pairwise(places)]
    parts = list(pieces(blocks, least, 10**6))
    assert "".join(parts) == text
    assert all(len(part) >= least for part in parts[:-1])
    for tokenizer in (BPE, *([characters(text)] if text else [])):
        assert [i for part in parts for i in encode(tokenizer, part)] == encode(tokenizer, text)


@settings(deadline=None, max_examples=300)
@given(text=mixed, least=st.integers(1, 4), more=st.integers(0, 9), size=st.integers(1, 9))
def test_where_a_text_is_cut_depends_on_the_text_alone(text, least, more, size):
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    parts = list(pieces(blocks, least, least + more))
    assert parts == list(pieces([text], least, least + more))
    assert all(least <= len(part) <= least + more for part in parts[:-1])
    assert "".join(parts) == text


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=20) | mixed, max_size=4).filter(
        lambda t: few_characters("".join(t))
    )
)
def test_characters_are_looked_up_as_the_library_would(texts):
    tokenizer = characters("".join(texts))
    expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer_module.encode(tokenizer, texts, "text") == expected


def test_identity_is_what_decides_the_ids():
    king = ["the king of night"]
    assert identity(build_tokenizer(king, 300, 1)) == identity(build_tokenizer(king, 300, 8))
    assert identity(build_tokenizer(king, 100, 4)) != identity(build_tokenizer(["the sea"], 100, 4))


# Branching ----------------------------------------------------------------------------------------------------------


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


# Splitting ----------------------------------------------------------------------------------------------------------


def load(path, **changes):
    return load_data(TrainSettings(train_file=str(path), **({"vocab_size": 100, "seq_length": 32} | changes)))


def said(tokenizer, part) -> str:
    """The text of a part's windows."""
    return "".join(tokenizer.decode(part[i]) for i in range(len(part)))


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


# Rows ---------------------------------------------------------------------------------------------------------------


def write_rows(path, *rows: tuple[str, str]):
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


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


json_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(json_text | st.just(""), json_text), min_size=1, max_size=4), ascii=st.booleans())
def test_rows_are_read_as_they_were_written(tmp_path_factory, rows, ascii):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=ascii) for p, c in rows]
    for newline in ("\n", "\r\n", "\n\n"):
        path.write_bytes(newline.join(lines).encode())
        assert list(read_rows(str(path), "--train_file x")) == rows


def test_the_mark_that_some_editors_put_before_utf8_is_no_part_of_it(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ("a", "b"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_rows(str(path), "--train_file x")) == [("a", "b")]
    assert check_text(str(path), "--train_file x") == len(path.read_bytes()) - 3


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from([b"\xef\xbb\xbf", "é中".encode(), b"ab", b" \n", b"\xff", b"\xc3", b"\0"])).map(b"".join)
)
def test_a_file_is_checked_in_blocks_as_it_would_be_whole(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("checked") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "BLOCK", 4)
        try:
            found = check_text(str(path), "x")
        except ValueError as e:
            found = str(e)
    if not content.strip():
        assert "is empty" in found
    elif b"\0" in content:
        assert f"a zero byte at {content.index(0)})" in found
    else:
        try:
            content.decode()
        except UnicodeDecodeError as e:
            place = f"(byte {e.start})"
        else:
            place = None
        assert place in found if place else found == len(content.decode("utf-8-sig"))


# The cache ----------------------------------------------------------------------------------------------------------


def whole(data) -> tuple:
    """Everything that data is, in memory."""
    parts = [(str(list(part)), part.tokens()) for part in (data.train, data.eval)]
    return data.fingerprint, data.notes, data.tokenizer.backend_tokenizer.to_str(), parts


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["text_file", "rows_file"])
@pytest.mark.parametrize("vocab_size", [100, 300])
def test_a_file_is_tokenised_once(kind, vocab_size, request, own_cache, tmp_path, monkeypatch):
    path = request.getfixturevalue(kind)
    first = whole(load(path, vocab_size=vocab_size))
    for module, name in (
        (encode_module, "encode_all"),
        (load_module, "train_engine"),
        (sources_module, "check_text"),
        (sources_module, "read_rows"),
    ):
        monkeypatch.delattr(module, name)  # a call of it fails
    assert whole(load(path, vocab_size=vocab_size)) == first
    elsewhere = shutil.copy(path, tmp_path / f"other{path.suffix}")
    assert load(elsewhere, vocab_size=vocab_size, num_thoughts=2, seq_length=24).fingerprint == first[0]


def test_what_lies_in_the_cache(own_cache, rows_file):
    data = load(rows_file, vocab_size=300)
    entries = [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]
    assert {f.name for p in entries for f in p.iterdir()} == {"ids", "bounds", "meta.json"}
    assert sorted((p / "bounds").stat().st_size for p in entries) == [8 * 5, 8 * 37]
    assert sum((p / "ids").stat().st_size for p in entries) == 2 * (data.train.tokens() + data.eval.tokens())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [flip, halve, Path.unlink, lambda path: path.write_bytes(b"")])
def test_whatever_is_damaged_is_made_anew(own_cache, rows_file, spoil):
    first, files = (
        whole(load(rows_file)),
        sorted(p for p in own_cache.rglob("*") if p.is_file() and p.suffix != ".lock"),
    )
    before = [p.read_bytes() for p in files]
    assert len(files) == 2 * 3 + 2
    for path in files:
        spoil(path)
        assert whole(load(rows_file)) == first
        assert [p.read_bytes() for p in files] == before


def test_what_a_killed_process_left_is_not_used(own_cache, text_file):
    first = whole(load(text_file))
    for entry in [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]:
        (entry / "meta.json").unlink()  # it is written last
        entry.rename(entry.with_suffix(".partial"))
    assert whole(load(text_file)) == first
    assert not list(own_cache.rglob("*.partial"))


def _load_in_another_process(path, cache, begin, found):
    os.environ["MOT_CACHE"] = str(cache)
    begin.wait()
    found.put(load(path, vocab_size=300).fingerprint)


def test_processes_that_start_together_end_well(own_cache, tmp_path, text_file):
    path = tmp_path / "text.txt"
    path.write_text(text_file.read_text() * 300)
    context = multiprocessing.get_context(
        "forkserver"
    )  # a fork would inherit the tokenizer's locks without its threads
    begin, found = context.Event(), context.Queue()
    processes = [
        context.Process(target=_load_in_another_process, args=(path, own_cache, begin, found)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    begin.set()
    prints = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert {*prints} == {load(path, vocab_size=300).fingerprint}
    assert sum(p.is_dir() for p in (own_cache / "tokens").iterdir()) == 2


def test_a_cache_that_cannot_be_written_is_named(text_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"MOT_CACHE .*file: cannot be written"):
        load(text_file)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(own_cache, text_file, monkeypatch):
    load(text_file)
    shutil.rmtree(own_cache / "tokens")

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_flush", full)
        with pytest.raises(ValueError, match=r"--train_file .*No space left.*MOT_CACHE"):
            load(text_file)
    assert not [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]


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


# The order of the data ----------------------------------------------------------------------------------------------


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


# Real data ----------------------------------------------------------------------------------------------------------


def test_shakespeare_is_65_characters_and_comes_back_whole(shared_data):
    data = load(shared_data / "shakespeare.txt", seq_length=256)
    assert data.notes == ["tokenizer: characters, 65 entries of the 100 asked for"]
    text = (shared_data / "shakespeare.txt").read_text()
    assert data.tokenizer.decode(encode(data.tokenizer, text[:100_000])) == text[:100_000]
    assert len(data.train) == len(text) * 9 // 10 // 256
    assert set(string.ascii_letters) < set(data.tokenizer.get_vocab())


def test_restaurants_are_3879_rows(shared_data):
    rows = list(read_rows(str(shared_data / "e2e" / "train.jsonl"), "--train_file x"))
    assert len(rows) == 3879
    assert all("[" in prompt and completion.startswith(" ") for prompt, completion in rows)
    tokenizer = build_tokenizer([text for row in rows[:200] for text in row], 500, 8)
    for prompt, completion in rows[::50]:
        assert tokenizer.decode(encode(tokenizer, prompt + completion)) == prompt + completion
