"""Tokens and their log-probabilities (nats) in OpenAI's two forms.

form = LogprobFormat(tokenizer)
form.completions(tokens, top=2)    # {"tokens": [...], "token_logprobs": [...], "top_logprobs": [...], ...}
form.chat(tokens)                  # {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], ...}, ...], ...}
"""

from transformers import PreTrainedTokenizerBase

from mot.serving.engine import Token


class LogprobFormat:
    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def token_text(self, id: int) -> str:
        return self.tokenizer.decode([id])

    def completions(self, tokens: list[Token], top: int, shift: int = 0) -> dict:
        """With the `top` most probable tokens at each place. `shift`, the length of an echo, is added to offsets."""
        top_logprobs = None
        if top:
            top_logprobs = [
                {self.token_text(i): logprob for i, logprob in t.top} if t.logprob is not None else None for t in tokens
            ]
        return {
            "tokens": [self.token_text(t.id) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": top_logprobs,
            "text_offset": [t.offset + shift for t in tokens],
        }

    def chat(self, tokens: list[Token]) -> dict:
        def entry(id: int, logprob: float) -> dict:
            text = self.token_text(id)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [entry(t.id, t.logprob) | {"top_logprobs": [entry(*pair) for pair in t.top]} for t in tokens]
        return {"content": content, "refusal": None}

    def with_offsets(self, tokens: list[Token]) -> list[Token]:
        """A prompt's tokens with the character offsets that the engine does not compute for a prompt."""
        placed, offset = [], 0
        for t in tokens:
            placed.append(Token(t.id, offset, t.logprob, t.top))
            offset += len(self.token_text(t.id))
        return placed
