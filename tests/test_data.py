"""Text to branchable batches: tokenizers give back what they were given, data is split honestly, batches branch at one place."""

import json
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mot import tokenizer as tokenizer_module
from mot.config import TrainSettings
from mot.data import (
    Rows,
    Windows,
    branch,
    collate_rows,
    collate_windows,
    encode_prompts,
    load_data,
    read_rows,
    read_text,
)
from mot.tokenizer import END, PAD, build_tokenizer, load_tokenizer, thought_ids, thought_token


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
    windows = Windows(torch.arange(tokens), length)
    assert len(windows) == tokens // length
    assert windows.tokens() == len(windows) * length
    assert [t for i in range(len(windows)) for t in windows[i].tolist()] == list(range(len(windows) * length))


def test_rows_count_their_tokens():
    assert Rows([([1], [2, 3]), ([4, 5], [6])]).tokens() == 6


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
        assert read_rows(str(path), "--train_file") == rows


def test_the_mark_that_some_editors_put_before_utf8_is_no_part_of_it(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ("a", "b"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(str(path), "--train_file") == [("a", "b")]
    assert read_text(str(path), "--train_file").startswith('{"prompt"')


# Real data ----------------------------------------------------------------------------------------------------------


def test_shakespeare_is_65_characters_and_comes_back_whole(shared_data):
    data = load(shared_data / "shakespeare.txt", seq_length=256)
    assert data.notes == ["tokenizer: characters, 65 entries of the 100 asked for"]
    text = (shared_data / "shakespeare.txt").read_text()
    assert data.tokenizer.decode(encode(data.tokenizer, text[:100_000])) == text[:100_000]
    assert len(data.train) == len(text) * 9 // 10 // 256
    assert set(string.ascii_letters) < set(data.tokenizer.get_vocab())


def test_restaurants_are_3879_rows(shared_data):
    rows = read_rows(str(shared_data / "e2e" / "train.jsonl"), "--train_file")
    assert len(rows) == 3879
    assert all("[" in prompt and completion.startswith(" ") for prompt, completion in rows)
    tokenizer = build_tokenizer([text for row in rows[:200] for text in row], 500, 8)
    for prompt, completion in rows[::50]:
        assert tokenizer.decode(encode(tokenizer, prompt + completion)) == prompt + completion
