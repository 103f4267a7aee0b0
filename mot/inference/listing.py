"""List prompting: ask a chat model for K different answers in one text, and split it. What users do without any
sampler.
"""

import re
from dataclasses import replace

from mot.data.encode import encode_prompts
from mot.inference.sampler import SampleRequest, decode, sampling, text_generators

REQUEST = (
    "{prompt}\n\nGive {k} different answers, as a list numbered from 1 to {k}. "
    "Write one answer per number and nothing else."
)
ITEM = re.compile(r"^[ \t]*(?:\*\*)?\d+[.):](?:\*\*)?[ \t]+(.*)$", re.M)


def draw_list(request: SampleRequest) -> list[list[str]]:
    """The first K items of one listed text per prompt; an item that is missing is an empty text."""
    asked = [[{"role": "user", "content": REQUEST.format(prompt=p, k=request.k)}] for p in request.prompts]
    one = replace(request, k=1, max_new_tokens=request.k * request.max_new_tokens)
    rows = encode_prompts(request.model.tokenizer, asked, "--prompts")
    return [items(text, request.k) for (text,) in decode(one, rows, sampling(one, text_generators(one)))]


def items(text: str, k: int) -> list[str]:
    """The first k items of a numbered list, padded with empty texts. An item goes on until the next number."""
    starts = list(ITEM.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    found = [text[match.start(1) : end].strip() for match, end in zip(starts, ends, strict=False)]
    return [*found, *[""] * k][:k]
