"""Tokens and their log-probabilities (nats) in OpenAI's two forms.

form = LogprobFormat(tokenizer)
form.completions(tokens, top=2)    # {"tokens": [...], "token_logprobs": [...], "top_logprobs": [...], ...}
form.chat(tokens)                  # {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], ...}, ...], ...}

A token that is a part of a character is shown by its bytes, as OpenAI does: "bytes:\\xe2\\x82" in completions,
"\\xe2\\x82" in chat.
"""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from mot.serving.engine import Token, detokenize
from mot.serving.token_text import TokenText


class LogprobFormat:
    """One for all requests, because it remembers the texts of tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.texts = tokenizer, TokenText(tokenizer)

    def completions(self, tokens: list[Token], top: int, shift: int = 0) -> dict:
        """With the `top` most probable tokens at each place. `shift`, the length of an echo, is added to offsets."""
        names = [_name(self._bytes(t), "bytes:") for t in tokens]
        top_logprobs = None
        if top:
            top_logprobs = [
                self._alternatives(t, name) if t.logprob is not None else None
                for t, name in zip(tokens, names, strict=True)
            ]
        return {
            "tokens": names,
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": top_logprobs,
            "text_offset": [t.offset + shift for t in tokens],
        }

    def _alternatives(self, token: Token, name: str) -> dict[str, float]:
        """{name: log-probability}: an entry for each, the token's own under its own name, also if tokens look alike."""
        entries: dict[str, float] = {}
        for id, logprob in token.top:
            own = name if id == token.id else _name(self.texts.bytes_of(id), "bytes:")
            taken = own in entries or (own == name and id != token.id)
            entries[f"token_id:{id}" if taken else own] = logprob
        return entries

    def chat(self, tokens: list[Token]) -> dict:
        def entry(raw: bytes, logprob: float) -> dict:
            return {"token": _name(raw, ""), "logprob": logprob, "bytes": list(raw)}

        def alternatives(t: Token) -> list[dict]:
            return [entry(self._bytes(t) if id == t.id else self.texts.bytes_of(id), lp) for id, lp in t.top]

        content = [entry(self._bytes(t), t.logprob) | {"top_logprobs": alternatives(t)} for t in tokens]
        return {"content": content, "refusal": None}

    def _bytes(self, token: Token) -> bytes:
        return self.texts.bytes_of(token.id) if token.raw is None else token.raw

    def with_offsets(self, tokens: list[Token], with_special: bool) -> list[Token]:
        """A prompt's tokens with the offsets and bytes that the engine does not compute for a prompt."""
        placed, group, ids, emitted, length = [], [], [], (0, 0), 0
        for i, token in enumerate(tokens, 1):
            ids.append(token.id)
            group.append(token)
            added, emitted = detokenize(self.tokenizer, ids, emitted, i == len(tokens), with_special)
            if added or i == len(tokens):
                placed += place_tokens(self.texts, group, added, length, with_special)
                group, length = [], length + len(added)
        return placed


def place_tokens(
    texts: TokenText, tokens: list[Token], added: str, start: int, with_special: bool = False
) -> list[Token]:
    """Tokens that together added a text at the offset `start`, with their own offsets and bytes."""
    places = texts.place([t.id for t in tokens], added, start, with_special)
    return [replace(t, offset=offset, raw=raw) for t, (offset, raw) in zip(tokens, places, strict=True)]


def _name(raw: bytes, prefix: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in raw)
