"""Arithmetic sampling: K texts decoded from K evenly spaced codes, in parallel. Source: Vilnis et al. 2023, arXiv
2210.15458.

A code in [0, 1) picks a token by the cumulative probabilities in the order of the vocabulary. Its place within that
token's interval is the code for the next token. One random shift per prompt moves all its codes, so that every text
alone is an ordinary sample, and texts whose codes are far apart differ.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mot.inference.sampler import SampleRequest, decode, prompt_ids
from mot.inference.sampling import generator_of, warpers


def draw_by_codes(request: SampleRequest) -> list[list[str]]:
    """K texts of every prompt from evenly spaced codes."""
    params = request.setting.params(request.k, request.max_new_tokens, request.seed)
    rows = [row for row in prompt_ids(request.model, request.prompts) for _ in range(request.k)]
    codes = torch.cat([codes_of(request, prompt) for prompt in request.prompts])
    return decode(request, rows, [*warpers(params), ArithmeticDecoder(codes)])


def codes_of(request: SampleRequest, prompt: str) -> Tensor:
    """K codes [K] in [0, 1): i / K plus one shift, modulo 1."""
    g = generator_of(request.seed, prompt, request.setting.name)
    shift = torch.rand((), dtype=torch.float64, generator=g)
    return (torch.arange(request.k, dtype=torch.float64) / request.k + shift) % 1.0


class ArithmeticDecoder(LogitsProcessor):
    """Keeps of each row's scores [R, V] the token that its code [R] picks, and moves the code into its interval."""

    def __init__(self, code_R: Tensor):
        self.code_R = code_R

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        p_RV = scores.double().softmax(-1).cpu()
        upper_RV = p_RV.cumsum(-1)
        # Rounding leaves the last sum a little below 1: a code above it takes the last token that has a probability.
        code_R1 = torch.minimum(self.code_R, upper_RV[:, -1] * (1 - 1e-12))[:, None]
        token_R1 = torch.searchsorted(upper_RV, code_R1, right=True)
        p_R1 = p_RV.gather(1, token_R1)
        self.code_R = ((code_R1 - (upper_RV.gather(1, token_R1) - p_R1)) / p_R1).clamp(0, 1 - 1e-12)[:, 0]
        return torch.full_like(scores, -torch.inf).scatter_(1, token_R1.to(scores.device), 0.0)
