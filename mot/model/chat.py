"""Conversations as a tokenizer's chat template writes them.

    chat_prompt(tokenizer, [{"role": "user", "content": "Hi"}])        ids up to where the assistant speaks
    chat_row(tokenizer, [..., {"role": "assistant", "content": "a"}])  ids (prompt, completion)

A special token is one that the template writes. Special tokens that are spelt out in a message stay ordinary text.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

# What a template raises, which is a program of a stranger, given messages that it does not expect.
TEMPLATE_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
STAND_INS = range(0xF0000, 0xFFFFE)  # private characters, which no tokenizer has a use for


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Ids of a conversation up to the place where the assistant speaks. Raises ValueError."""
    spelt = _Spelt.of(tokenizer, messages)
    return spelt.encode(tokenizer, _template(tokenizer, spelt.messages, add_generation_prompt=True))


def chat_row(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids (prompt, completion): of all turns but the last, and of the last with its end. Raises ValueError."""
    spelt = _Spelt.of(tokenizer, messages)
    prompt = _template(tokenizer, spelt.messages[:-1], add_generation_prompt=True)
    whole = _template(tokenizer, spelt.messages, add_generation_prompt=False)
    # Some templates write earlier turns differently when a later turn follows, e.g. without their reasoning.
    is_prefix = whole.startswith(prompt)
    completion = whole.removeprefix(prompt).rstrip() if is_prefix else spelt.messages[-1]["content"]
    return spelt.encode(tokenizer, prompt), spelt.encode(tokenizer, completion)


@dataclass
class _Spelt:
    """Messages in which a private character stands for every special token that they spell out."""

    messages: list[dict[str, str]]
    text_of: dict[str, str]  # stand-in -> what the message says

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> "_Spelt":
        written = "\0".join(_strings(messages))
        specials = _specials(tokenizer, len(tokenizer)).values()
        found = sorted((special for special in specials if special in written), key=len, reverse=True)
        if not found:
            return cls(messages, {})
        unused = (chr(point) for point in STAND_INS if chr(point) not in written)
        stand_in_of = dict(zip(found, unused, strict=False))
        pattern = re.compile("|".join(map(re.escape, found)))  # the longest first
        replaced = _map_strings(messages, lambda text: pattern.sub(lambda match: stand_in_of[match[0]], text))
        return cls(replaced, {stand_in: special for special, stand_in in stand_in_of.items()})

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Ids of a text of the template. Nothing is put before it."""
        if not any(stand_in in text for stand_in in self.text_of):
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        # The text between two special tokens of the template is one text, so its ids are those of ordinary text.
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        specials = _specials(tokenizer, len(tokenizer))
        ids, between, begin = [], [], 0
        for i, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if i in specials:
                ids += [*self._ordinary(tokenizer, text[begin:start], between), i]
                between, begin = [], stop
            else:
                between.append(i)
        return ids + self._ordinary(tokenizer, text[begin:], between)

    def _ordinary(self, tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
        """Ids of a text without special tokens: `ids`, unless it has stand-ins."""
        if not any(stand_in in text for stand_in in self.text_of):
            return ids
        for stand_in, special in self.text_of.items():
            text = text.replace(stand_in, special)
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@lru_cache(maxsize=4)
def _specials(tokenizer: PreTrainedTokenizerBase, entries: int) -> dict[int, str]:
    """The special tokens of a tokenizer with so many entries. The library makes this table anew for each look."""
    return {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in values for text in _strings(part)]


def _map_strings(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _map_strings(part, change) for name, part in value.items()}
    return [_map_strings(part, change) for part in value] if isinstance(value, list) else value


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no chat template; give a prompt of plain text")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except (TemplateError, *TEMPLATE_ERRORS) as e:
        raise ValueError(f"the tokenizer's chat template rejects it ({e}); fix or remove it") from None


def ends_turn(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Is it a special token, such as the one that a template writes after a turn?"""
    return token_id in _specials(tokenizer, len(tokenizer))
