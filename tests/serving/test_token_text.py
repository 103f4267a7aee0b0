"""Text below the character: bytes, offsets and log-probabilities of tokens, in six scripts and for five tokenizers.

The reference is slow: it decodes the whole text again for every token.
"""

import json
import random

import pytest
from mixtures import untrained
from serving_client import TORTURE, in_thread
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mot.model.tokenizer import build_tokenizer
from mot.serving.engine import Token
from mot.serving.logprobs import LogprobFormat
from mot.serving.token_text import TokenText

SCRIPTS = {
    "Latin": "The naïve king, who said: “no”!",
    "Cyrillic": "Король спит, а море шумит.",  # noqa: RUF001
    "Chinese": "国王在夜里说话,海很大。",
    "Arabic": "الملك ينام ليلا",
    "Hindi": "राजा रात में सोता है",
    "emoji": "👑 sleeps 👩‍👩‍👧 and 🏳️‍🌈!",
}


def sentencepiece(pieces: int) -> PreTrainedTokenizerFast:
    """As Llama's: a sign for the space, bytes for what is no piece, no space at the beginning of a decoded text."""
    engine = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=259 + pieces, special_tokens=special, show_progress=False)
    engine.train_from_iterator([SCRIPTS["Latin"], SCRIPTS["Cyrillic"]] * 3, trainer)
    # The trainer makes specials of the bytes, which a text would then lose.
    state = engine.to_str().replace('"special":true', '"special":false')
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(state), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def metaspace() -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.Unigram())
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    engine.train_from_iterator([*SCRIPTS.values()] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="<unk>", eos_token="</s>")


TOKENIZERS = {
    "characters": lambda: build_tokenizer([*SCRIPTS.values()], 200, 4),
    "bytes": lambda: build_tokenizer(["a"], 257, 4),
    "byte-level BPE": lambda: build_tokenizer([*SCRIPTS.values()] * 3, 320, 4),
    "SentencePiece with bytes": lambda: sentencepiece(40),
    "SentencePiece, unigrams": metaspace,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def slow_offsets(tokenizer, ids: list[int]) -> list[int]:
    """For each token, the characters before it that no later token changes."""
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    offsets = []
    for i in range(len(ids)):
        before = tokenizer.decode(ids[:i], skip_special_tokens=True)
        same = (n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b)
        # A run of bytes in which one is missing decodes to marks only, also where its characters were whole before.
        offsets.append(max(next(same, min(len(before), len(whole))), *offsets[-1:], 0))
    return offsets


@pytest.mark.parametrize("script", SCRIPTS)
def test_offsets_and_bytes_are_those_of_the_whole_text(script, tokenizer):
    form, draw = LogprobFormat(tokenizer), random.Random(script)
    for _ in range(1000 if TORTURE else 20):
        text = "".join(draw.choices(SCRIPTS[script] + " ", k=draw.randint(1, 12)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = form.with_offsets([Token(i, 0, -1.0, ()) for i in ids], with_special=False)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert [t.offset for t in tokens] == slow_offsets(tokenizer, ids), (text, ids)
        visible = [t for t in tokens if t.id not in form.texts.special]
        assert b"".join(t.raw for t in visible).decode() == whole, ids


def test_parts_of_characters_have_their_own_bytes():
    tokenizer = build_tokenizer(["a"], 257, 4)
    texts = TokenText(tokenizer)
    ids = tokenizer("€👑", add_special_tokens=False)["input_ids"]
    assert [texts.bytes_of(i) for i in ids] == [bytes([byte]) for byte in "€👑".encode()]
    assert texts.place(ids[:3], "€", 5) == [(5, b"\xe2"), (5, b"\x82"), (5, b"\xac")]
    wrong = [ids[0], *tokenizer("a", add_special_tokens=False)["input_ids"]]
    assert texts.place(wrong, "\ufffda", 5) == [(5, b"\xe2"), (6, b"a")]  # a character of its own, which never ended
    every = [i for i in range(len(tokenizer)) if i not in texts.special]
    assert len({texts.bytes_of(i) for i in every}) == len(every) == 256  # no two tokens look alike
    form = LogprobFormat(tokenizer)
    assert form.chat([Token(ids[0], 0, -1.0, ())])["content"][0]["token"] == "\\xe2"
    assert form.completions([Token(ids[0], 0, -1.0, ())], 0)["tokens"] == ["bytes:\\xe2"]


def test_tokens_that_look_alike_keep_entries_of_their_own():
    tokenizer = sentencepiece(60)
    letter, byte = tokenizer.convert_tokens_to_ids(["a", "<0x61>"])
    assert tokenizer.decode([letter]) == tokenizer.decode([byte]) == "a"
    form = LogprobFormat(tokenizer)
    for own, other in ((letter, byte), (byte, letter)):
        for top in (((letter, -1.0), (byte, -2.0)), ((byte, -2.0), (letter, -1.0))):
            logprob = dict(top)[own]
            (entries,) = form.completions([Token(own, 0, logprob, top)], 2)["top_logprobs"]
            assert entries == {"a": logprob, f"token_id:{other}": dict(top)[other]}


@pytest.fixture(scope="module", params=["bytes", "byte-level BPE", "characters"])
def server(request):
    vocabulary = {"bytes": (["a"], 257), "byte-level BPE": ([*SCRIPTS.values()] * 3, 320)}
    texts, size = vocabulary.get(request.param, ([*SCRIPTS.values()], 200))
    mixture = untrained(texts, size, 4)
    mixture.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with in_thread(mixture) as server:
        yield server


@pytest.mark.parametrize("script", SCRIPTS)
def test_served_tokens_are_those_of_the_text(script, server):
    prompt = "".join(sorted(set(SCRIPTS["Latin"] if server.engine.mixture.tokenizer.unk_token else SCRIPTS[script])))
    for seed in range(100 if TORTURE else 2):
        fields = {"prompt": prompt, "n": 2, "max_tokens": 30, "seed": seed, "echo": True, "logprobs": 5}
        for choice in server.complete(**fields | {"echo": False}, temperature=0)["choices"]:
            given = choice["logprobs"]
            for name, logprob, top in zip(given["tokens"], given["token_logprobs"], given["top_logprobs"], strict=True):
                assert len(top) == 5
                assert logprob == top[name] == max(top.values())  # greedy: the best of five, under its own name
        whole = server.complete(**fields, temperature=1.5)["choices"]
        streamed = [{"text": "", "tokens": [], "text_offset": []} for _ in whole]
        for line in server.post("/v1/completions", fields | {"temperature": 1.5, "stream": True}).text.splitlines():
            if line.startswith("data: {"):
                for part in json.loads(line[6:])["choices"]:
                    place = streamed[part["index"]]
                    place["text"] += part["text"]
                    place["tokens"] += part["logprobs"]["tokens"]
                    place["text_offset"] += part["logprobs"]["text_offset"]
        for choice, place in zip(whole, streamed, strict=True):
            assert place["text"] == choice["text"]
            assert place["tokens"] == choice["logprobs"]["tokens"]
            assert place["text_offset"] == choice["logprobs"]["text_offset"]


def test_the_bytes_of_a_chat_answer_are_its_text(server):
    body = {"messages": [{"role": "user", "content": "a n"}], "n": 2, "max_tokens": 40, "logprobs": True}
    for seed in range(100 if TORTURE else 5):
        asked = body | {"seed": seed, "temperature": 2, "top_logprobs": 3}
        for choice in server.post("/v1/chat/completions", asked).json()["choices"]:
            special = set(server.engine.mixture.tokenizer.all_special_tokens)
            tokens = [t for t in choice["logprobs"]["content"] if t["token"] not in special]
            assert (
                bytes(byte for t in tokens for byte in t["bytes"]).decode(errors="replace")
                == choice["message"]["content"]
            )
            for token in tokens:
                assert all(len(token["top_logprobs"]) == 3 for token in tokens)
                assert len({bytes(top["bytes"]) for top in token["top_logprobs"]}) == 3
