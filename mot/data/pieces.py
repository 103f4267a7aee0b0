"""A text in pieces that are encoded one by one, and the documents of a text.

"".join(pieces(blocks)) == "".join(blocks)         pieces of 4,096 characters and more, cut where ids do not change
list(by_document(["a<|endoftext|>b"]))             [(0, "a"), (1, "b"), ...]
"""

import re
from collections.abc import Iterable, Iterator

from mot.model.tokenizer import END

PIECE, LONGEST_PIECE = 2**12, 2**18  # characters: the least that a piece has, and the most

# A pre-tokenizer like GPT-2's splits by ` ?letters`, ` ?digits`, ` ?others` or `white space`, and never looks back. So
# every match that ends in a non-space ends before the next white space, and a new match begins there: a text cut at
# such a place keeps its ids. GPT-4's kind also joins `.` and a line break, so the first choice is a single space
# between words, which is safe for both. (Python's \s has four characters more than theirs, hence the list.)
CUTS = [re.compile(r"(?<=\S) (?=\S)"), re.compile(r"(?<=\S)[ \n\r\t]")]


def pieces(blocks: Iterable[str], least: int = PIECE, most: int = LONGEST_PIECE) -> Iterator[str]:
    """Blocks of one text, as pieces of `least` .. `most` characters (the last may be shorter).

    The places of the cuts depend on the text alone, not on its blocks. The ids of the pieces, joined, are the ids of
    the text. This always holds for characters. For byte-level BPE it fails where more than `most` characters follow
    each other without white space. A tokenizer that marks the beginning of a text (SentencePiece) marks every piece.
    """
    text, start = "", 0
    for block in blocks:
        text, start = text[start:] + block, 0
        while len(text) - start > most:
            stop = _cut(text, start, least, most)
            yield text[start:stop]
            start = stop
    while len(text) - start > least:
        stop = _cut(text, start, least, most)
        yield text[start:stop]
        start = stop
    if text[start:]:
        yield text[start:]


def _cut(text: str, start: int, least: int, most: int) -> int:
    """The end of the piece that begins at `start`."""
    for place in CUTS:
        # One character more: a space must be seen together with the character after it.
        if found := place.search(text, start + least, start + most + 1):
            return found.start()
    return min(start + most, len(text))


def by_document(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of the document, a piece of it) of a text in which END stands between documents."""
    number, rest = 0, ""
    for block in blocks:
        *ended, rest = (rest + block).split(END)
        for piece in ended:
            yield number, piece
            number += 1
        keep = next((n for n in range(min(len(END) - 1, len(rest)), 0, -1) if END.startswith(rest[-n:])), 0)
        yield number, rest[: len(rest) - keep]
        rest = rest[len(rest) - keep :]
    yield number, rest
