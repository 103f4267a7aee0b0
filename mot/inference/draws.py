"""The ways of drawing K texts that need a few lines each: thoughts, samples, a random prefix, beams, diverse beams.

Arithmetic sampling, stochastic beams and list prompts have files of their own. Shapes: see mot/thoughts.py.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mot.inference.sampler import SampleRequest, decode, prompt_ids, sampling, text_generators
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts


def draw_thoughts(request: SampleRequest) -> list[list[str]]:
    """K thoughts, each once."""
    params = request.setting.params(request.k, request.max_new_tokens, request.seed)
    thinking = request.model.think_batch(request.prompts, params)
    return [[t.text for t in sorted(thoughts, key=lambda t: t.index)] for thoughts in thinking]


def draw_one_thought(request: SampleRequest) -> list[list[str]]:
    """K samples of the most probable thought."""
    model, prompts = request.model, request.prompts
    probable = [row[0] for row in model.think_batch(prompts, SamplingParams(1, 1, 0.0, creativity=0))]
    ids = prompt_ids(model, prompts)
    return _draw_after(request, [[*row, *model.tokens_of(t.index)] for row, t in zip(ids, probable, strict=True)])


def draw_samples(request: SampleRequest) -> list[list[str]]:
    """K independent samples."""
    return _draw_after(request, prompt_ids(request.model, request.prompts))


def _draw_after(request: SampleRequest, ids: list[list[int]]) -> list[list[str]]:
    rows = [row for row in ids for _ in range(request.k)]
    return decode(request, rows, sampling(request, text_generators(request)))


def draw_after_random_prefix(request: SampleRequest) -> list[list[str]]:
    """K samples, each after a random string of `tokens` tokens before the prompt.

    Source: seed-conditioning of Nagarajan et al. 2025, here with a model that was not trained for it.
    """
    generators = text_generators(request)
    rows = [row for row in prompt_ids(request.model, request.prompts) for _ in range(request.k)]
    length = int(request.setting.get("tokens", 1))
    rows = [_random_tokens(request.model, length, g) + row for row, g in zip(rows, generators, strict=True)]
    return decode(request, rows, sampling(request, generators))


def draw_beams(request: SampleRequest) -> list[list[str]]:
    """The K best of `width` times K beams."""
    beams = request.k * int(request.setting.get("width", 1))
    rows = prompt_ids(request.model, request.prompts)
    return decode(request, rows, [], beams, request.setting.get("length_penalty", 1.0))


def draw_diverse_beams(request: SampleRequest) -> list[list[str]]:
    """K groups of one beam."""
    rows = [row for row in prompt_ids(request.model, request.prompts) for _ in range(request.k)]
    end, start = request.model.tokenizer.eos_token_id, max(map(len, rows))
    return decode(request, rows, [DiverseBeams(request.k, request.setting.get("penalty", 0.5), end, start)])


def _random_tokens(model: MixtureOfThoughts, length: int, g: torch.Generator) -> list[int]:
    """Ordinary tokens: letters for a character tokenizer, pieces of words for another."""
    special = set(model.tokenizer.all_special_ids) | set(model.tokenizer.added_tokens_decoder)
    ordinary = [i for i in range(len(model.tokenizer)) if i not in special]
    return [ordinary[i] for i in torch.randint(len(ordinary), (length,), generator=g).tolist()]


class DiverseBeams(LogitsProcessor):
    """Diverse beam search with k groups of one beam.

    Each group takes its most probable token, less `penalty` nats for every earlier group that takes the same token at
    the same position (Hamming diversity). A group that has ended (token `end` at or after position `start`) counts no
    more. Source: Vijayakumar et al. 2018, algorithm 1.
    """

    def __init__(self, k: int, penalty: float, end: int, start: int):
        self.k, self.penalty, self.end, self.start = k, penalty, end, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp_BKV = scores.log_softmax(-1).view(-1, self.k, scores.shape[-1]).clone()
        running_BK = (input_ids[:, self.start :] != self.end).all(1).view(-1, self.k)
        taken_BV = torch.zeros_like(logp_BKV[:, 0])
        for g in range(self.k):
            logp_BKV[:, g] -= self.penalty * taken_BV
            token_B1 = logp_BKV[:, g].argmax(-1, keepdim=True)
            taken_BV.scatter_add_(1, token_B1, running_BK[:, g : g + 1].to(taken_BV.dtype))
        return logp_BKV.view_as(scores)
