"""Conversations as a tokenizer's chat template writes them.

chat_prompt(tokenizer, [{"role": "user", "content": "Hi"}])     text up to where the assistant speaks
encode_chat(tokenizer, text)                                    its token ids
"""

from transformers import PreTrainedTokenizerBase


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """A conversation as text, up to the place where the assistant speaks. Raises ValueError."""
    return _template(tokenizer, messages, add_generation_prompt=True)


def chat_texts(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[str, str]:
    """(prompt, completion) of a conversation: all turns but the last, and the last with its end. Raises ValueError."""
    prompt, whole = chat_prompt(tokenizer, messages[:-1]), _template(tokenizer, messages, add_generation_prompt=False)
    # Some templates write earlier turns differently when a later turn follows, e.g. without their reasoning.
    return prompt, whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else messages[-1]["content"]


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no chat template; give a prompt of plain text")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except TemplateError as e:
        raise ValueError(f"the tokenizer's chat template rejects it ({e}); fix or remove it") from None


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text from a chat template: special tokens spelt out in it are special, and nothing is put before it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ends_turn(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Is it a special token, such as the one that a template writes after a turn?"""
    return token_id in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token_id].special
