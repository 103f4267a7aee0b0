"""What a token is as text: its bytes, also where it is a part of a character, and its place in a text.

texts = TokenText(tokenizer)
texts.bytes_of(17)                           # b" the"; b"\\xe2\\x82" for the first two bytes of an euro sign
texts.place([17, 4], added="€", start=9)     # [(9, b"\\xe2\\x82"), (9, b"\\xac")]: (character offset, bytes) of each
"""

import codecs
import re

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level BPE
PART = "\ufffd"  # what a tokenizer decodes a part of a character to


class TokenText:
    """Of one tokenizer. Remembers every token that was asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.known: dict[int, bytes] = {}
        # Some tokenizers drop a space at the beginning of a text, so a token is read behind another one.
        ordinary = (i for i in range(len(tokenizer)) if i not in self.special)
        decoded = ((i, tokenizer.decode([i])) for i in ordinary)
        self.before, self.before_text = next(((i, t) for i, t in decoded if t.strip() and PART not in t), (None, ""))

    def bytes_of(self, id: int) -> bytes:
        """The UTF-8 bytes that the token adds inside a text. A special token's are those of its name."""
        if id not in self.known:
            self.known[id] = self._bytes_of(id)
        return self.known[id]

    def _bytes_of(self, id: int) -> bytes:
        before = [] if self.before is None or id in self.special else [self.before]
        text = self.tokenizer.decode([*before, id]).removeprefix(self.before_text if before else "")
        if PART not in text:
            return text.encode()
        name = self.tokenizer.convert_ids_to_tokens(id)
        raw = bytes(BYTE_OF.get(character, 0) for character in name)
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):  # SentencePiece
            raw = bytes.fromhex(byte[1])
        return raw if raw.decode(errors="replace") == text else text.encode()

    def place(self, ids: list[int], added: str, start: int, with_special: bool = False) -> list[tuple[int, bytes]]:
        """(character offset, bytes) of each of the tokens that together added `added` at the offset `start` of a text.

        The offset of a part of a character is that of the character. Special tokens add nothing, unless `with_special`.
        """
        raws = [self.bytes_of(id) for id in ids]
        lengthy = [raw if with_special or id not in self.special else b"" for id, raw in zip(ids, raws, strict=True)]
        if len(ids) == 1 and lengthy[0]:
            return [(start, added.encode())]  # as it is in this context, e.g. without its space at the beginning
        if len(added) == len(ids) and added == PART * len(ids):  # SentencePiece has a mark for every wrong byte
            return [(start + i, raw) for i, raw in enumerate(raws)]
        dropped = b"".join(lengthy).decode(errors="replace").removesuffix(added)
        if not dropped.strip(" "):  # spaces at the beginning of the text, which the tokenizer does not decode
            lengthy = _without_first(lengthy, len(dropped))
            raws = [raw if id in self.special else rest for id, raw, rest in zip(ids, raws, lengthy, strict=True)]
        return [(start + offset, raw) for offset, raw in zip(_offsets(lengthy), raws, strict=True)]


def _without_first(raws: list[bytes], count: int) -> list[bytes]:
    """Pieces without the first `count` bytes of all of them."""
    rest = []
    for raw in raws:
        rest.append(raw[count:])
        count = max(0, count - len(raw))
    return rest


def _offsets(raws: list[bytes]) -> list[int]:
    """The number of the character with the first byte of each piece."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, count = [], 0
    for raw in raws:
        count += len(decoder.decode(raw[:1]))
        unfinished = decoder.getstate()[0] != b""
        offsets.append(count if unfinished or not raw else count - 1)
        count += len(decoder.decode(raw[1:]))
    return offsets
