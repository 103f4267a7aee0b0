"""How a token is drawn: transformers' warpers, then Gumbel noise from a generator that belongs to the text.

    processors = drawing(SamplingParams(temperature=0.7), generators)
    token_R = logits_RV after all processors, argmax

A text depends on (seed, its prompt, its thought, its copy) only, never on what runs beside it.
"""

import hashlib

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mot.data.encode import Prompt
from mot.inference.settings import SamplingParams


def generator_of(seed: int, prompt: Prompt, use: str) -> torch.Generator:
    """A generator that depends on nothing but seed, prompt and what it is used for."""
    digest = hashlib.sha256(f"{seed}\0{use}\0{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def generators_of(seed: int, prompt: Prompt, chosen: list[int]) -> list[torch.Generator]:
    """A generator for each text of a prompt, which depends on its thought and on the number of its copy."""
    return [generator_of(seed, prompt, f"thought {k} copy {chosen[:i].count(k)}") for i, k in enumerate(chosen)]


def warpers(params: SamplingParams) -> list[LogitsProcessor]:
    """transformers' warpers for the settings that are on, in its order. `temperature` must be above 0."""
    return [
        TemperatureLogitsWarper(float(params.temperature)),
        *([TopKLogitsWarper(params.top_k)] if params.top_k > 0 else []),
        *([TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []),
        *([MinPLogitsWarper(params.min_p)] if params.min_p > 0 else []),
    ]


def drawing(params: SamplingParams, generators: list[torch.Generator]) -> list[LogitsProcessor]:
    """The processors after which the argmax is a draw for each row; none for greedy texts."""
    return [] if params.greedy else [*warpers(params), GumbelSampler(generators)]


class GumbelSampler(LogitsProcessor):
    """Add Gumbel noise from each row's own generator: the argmax is then a draw from the softmax (Gumbel-max trick)."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The same numbers as exponential_, bit for bit, in a third of its time: it computes logarithms one by one.
        uniform = torch.empty(scores.shape, dtype=torch.float64)
        for row, generator in zip(uniform, self.generators, strict=True):
            row.uniform_(generator=generator)
        noise = uniform.neg_().log1p_().neg_().float()
        return scores - noise.log_().to(scores.device)
