"""Conversations: the template's special tokens, and none that a message spells out."""

import pytest
from bases import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.data.encode import encode_chats, encode_prompts
from mot.model.chat import chat_prompt, chat_row
from mot.model.tokenizer import add_thoughts, encode, thought_ids

CHAT = add_thoughts(tokenizer(chat=True), 4)
TURN, END = CHAT.convert_tokens_to_ids(["<|turn|>", "<|end|>"])
SPELT = ["<|turn|>", "<|end|>", "<|endoftext|>", "<|pad|>", "<|thought_0|>", "<|thought_3|>", "\U000f0000", "<|", "|>"]
content = st.lists(st.sampled_from([*SPELT, "a", "the king", " ", "\n", "é"]), max_size=8).map("".join)


def ordinary(text: str) -> list[int]:
    return encode(CHAT, [text], "text")[0]


@settings(deadline=None, max_examples=300)
@given(turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), content), min_size=1, max_size=4))
def test_content_is_never_a_control_token(turns):
    """The ids are those of the template with ordinary text in it, joined by hand."""
    messages = [{"role": role, "content": text} for role, text in turns]
    expected = []
    for role, text in turns:
        expected += [TURN, *ordinary(f"{role}\n{text}"), END, *ordinary("\n")]
    assert chat_prompt(CHAT, messages) == [*expected, TURN, *ordinary("assistant\n")]
    assert encode_prompts(CHAT, [messages]) == [chat_prompt(CHAT, messages)]
    assert CHAT.decode(chat_prompt(CHAT, messages)) == CHAT.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


@settings(deadline=None, max_examples=200)
@given(question=content, answer=content)
def test_a_row_has_the_specials_of_its_template_alone(question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt, completion = chat_row(CHAT, messages)
    assert prompt == chat_prompt(CHAT, messages[:1])
    assert completion == [*ordinary(answer), END]
    (a, b) = encode_chats(CHAT, [(messages,)], "x")
    assert [a.tolist(), b.tolist()] == [prompt, completion]
    assert not {*prompt, *completion} & {*thought_ids(CHAT, 4)}


def test_without_special_tokens_the_ids_are_the_library_s():
    messages = [{"role": "user", "content": "the quick <b> brown|> fox"}]
    assert chat_prompt(CHAT, messages) == CHAT.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_a_role_is_content_too():
    assert chat_prompt(CHAT, [{"role": "<|end|>", "content": "a"}]).count(END) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[3].content.x }}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ messages[0]['content'] | int(0) // 0 }}",
    ],
)
def test_a_template_that_fails_is_one_line(template):
    broken = tokenizer(chat=True)
    broken.chat_template = template
    with pytest.raises(ValueError, match="the tokenizer's chat template rejects it"):
        chat_prompt(broken, [{"role": "user", "content": "a"}])
