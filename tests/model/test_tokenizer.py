"""Tokenizers give back what they were given, and thoughts are tokens of their own."""

import json
import time

import pytest
from data_helpers import BPE, characters, encode, few_characters, mixed
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.model import tokenizer as tokenizer_module
from mot.model.tokenizer import END, PAD, build_tokenizer, identity, load_tokenizer, thought_ids, thought_token

SPECIALS = [END, PAD, thought_token(0), thought_token(3)]


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


@pytest.mark.parametrize("text", ["a" * 300_000, "\n" * 300_000, "\u4e2d" * 100_000, "ab1" * 100_000])
def test_bpe_is_trained_soon_on_text_without_spaces(text):
    """The library alone takes minutes: its time grows with the square of the longest word."""
    begin = time.process_time()
    tokenizer = build_tokenizer([text], 300, 4)
    assert time.process_time() - begin < 20
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_ordinary_text_is_not_cut_for_training():
    text = "the king of night speaks softly to the sleeping sea. " * 400
    assert list(tokenizer_module._short_words([text, "x" * 5000])) == [text, "x" * 4096, "x" * 904]


@pytest.mark.parametrize("tokenizer", [BPE, characters("a")], ids=["BPE", "characters"])
def test_a_broken_byte_is_refused_by_name(tokenizer):
    with pytest.raises(ValueError, match=r"--prompt: has .*udcff"):
        tokenizer_module.encode(tokenizer, ["a\udcff"], "--prompt")


def damaged(folder, name: str, content: str | bytes):
    folder.mkdir()
    BPE.save_pretrained(folder)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[1]", "{}", "", "7", b"\xff\xfe", '{"model": {"type": "X"}}', "9" * 5000]
)
def test_a_damaged_tokenizer_is_one_line(tmp_path, name, content):
    path = damaged(tmp_path / "t", name, content)
    said = where = f"--tokenizer {path}: "
    try:
        load_tokenizer(path, 4)  # the library repairs a few
    except ValueError as e:
        said = str(e)
    assert said.startswith(where)
    assert "\n" not in said


def test_a_tokenizer_without_a_fast_backend_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--tokenizer .*: its tokenizer has no tokenizer.json"):
        load_tokenizer(str(tmp_path), 4)


def test_a_tokenizer_with_holes_in_its_ids_is_refused(tmp_path):
    content = json.loads(BPE.backend_tokenizer.to_str())
    content["model"]["vocab"] = {word: 3 * i for word, i in content["model"]["vocab"].items()}
    path = damaged(tmp_path / "t", "tokenizer.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"--tokenizer .*: has \d+ entries with ids up to \d+; number them from 0"):
        load_tokenizer(path, 4)
