"""What a user could do instead of thinking: K texts of one prompt by the samplers that everybody has.

    texts_BK = sample(model, tokenizer, ids, prompts, 8, SAMPLERS["top_p"][3], max_new_tokens=60, seed=0)

SAMPLERS gives each of them the same number of settings to be tuned over. transformers' `generate` decodes; ours are only the
diverse beams, which transformers no longer has, and the random prefix. All of them are bound by the independence ceiling
(mot.tasks.independence_ceiling) but the two beam searches. Shapes: see mot/thoughts.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mot.data.datasets import collate_rows
from mot.inference.sampling import GumbelSampler, generator_of, warpers
from mot.inference.settings import SamplingParams


@dataclass(frozen=True)
class Setting:
    """A sampler and its parameters, by name in the order they are shown in."""

    sampler: str
    parameters: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """Unique and readable: `temperature 0.7`, `beam width 2 length_penalty 0`."""
        words = " ".join(f"{name} {value:g}" for name, value in self.parameters)
        return words if self.parameters[0][0] == self.sampler else f"{self.sampler} {words}"

    def get(self, name: str, default: float) -> float:
        return dict(self.parameters).get(name, default)

    @property
    def random(self) -> bool:
        """Does another seed give other texts?"""
        return self.sampler not in ("beam", "diverse_beam") and self != GREEDY_THOUGHTS


def _settings(sampler: str, *points: dict[str, float]) -> list[Setting]:
    assert len(points) == TUNING_POINTS, sampler
    return [Setting(sampler, tuple(point.items())) for point in points]


TUNING_POINTS = 6  # of every sampler, thoughts included: nobody is tuned harder than another
_TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.3)
SAMPLERS: dict[str, list[Setting]] = {
    # K thoughts, each once, and K samples of the one most probable thought: what the thoughts add to their sampler.
    "thoughts": _settings("thoughts", *({"temperature": t} for t in (0, *_TEMPERATURES[:5]))),
    "one_thought": _settings("one_thought", *({"temperature": t} for t in _TEMPERATURES)),
    "temperature": _settings("temperature", *({"temperature": t} for t in _TEMPERATURES)),
    "top_p": _settings("top_p", *({"top_p": p} for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98))),
    "min_p": _settings("min_p", *({"min_p": p} for p in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5))),
    "top_k": _settings("top_k", *({"top_k": k} for k in (2, 3, 5, 10, 20, 50))),
    # `width` in units of K; the K best beams are the texts.
    "beam": _settings("beam", *({"width": w, "length_penalty": p} for w in (1, 2) for p in (0.0, 1.0, 2.0))),
    "diverse_beam": _settings("diverse_beam", *({"penalty": p} for p in (0.1, 0.3, 0.5, 1.0, 2.0, 5.0))),
    # A random string of so many tokens before the prompt (seed-conditioning, Nagarajan et al. 2025, untrained for).
    "seed_prefix": _settings("seed_prefix", *({"tokens": n, "temperature": t} for t in (0.0, 0.7) for n in (1, 4, 16))),
}
GREEDY_THOUGHTS = SAMPLERS["thoughts"][0]
BASELINES = tuple(name for name in SAMPLERS if name != "thoughts")


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    prompts: list[str],
    k: int,
    setting: Setting,
    max_new_tokens: int,
    seed: int,
    suppressed: list[int],
) -> list[list[str]]:
    """k texts after every prompt, given as `ids` too; `suppressed` tokens are never said. For thoughts see mot.inference.think.

    A text depends on (seed, its prompt, its number) only, not on the prompts beside it.
    """
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    rows = [row for row in ids for _ in range(k)]
    generators = [generator_of(seed, prompt, f"{setting.name} {i}") for prompt in prompts for i in range(k)]
    searching = setting.sampler == "beam"
    if setting.sampler == "seed_prefix":
        rows = [
            _prefix(tokenizer, int(setting.get("tokens", 1)), g) + row for row, g in zip(rows, generators, strict=True)
        ]
    batch = collate_rows([(ids, []) for ids in (rows[::k] if searching else rows)], pad)
    inputs, mask = (batch[name].to(model.device) for name in ("prompt", "prompt_mask"))
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the draw is ours: argmax after GumbelSampler
        num_beams=k * int(setting.get("width", 1)) if searching else 1,
        num_return_sequences=k if searching else 1,
        length_penalty=setting.get("length_penalty", 1.0),
        suppress_tokens=suppressed or None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    processors = LogitsProcessorList(_processors(setting, k, generators, end, inputs.shape[1]))
    out = model.generate(inputs, attention_mask=mask, generation_config=config, logits_processor=processors)
    new = [row[: row.index(end)] if end in row else row for row in out[:, inputs.shape[1] :].tolist()]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [texts[i : i + k] for i in range(0, len(texts), k)]


def _processors(
    setting: Setting, k: int, generators: list[torch.Generator], end: int, start: int
) -> list[LogitsProcessor]:
    if setting.sampler == "beam":
        return []
    if setting.sampler == "diverse_beam":
        return [DiverseBeams(k, setting.get("penalty", 0.5), end, start)]
    temperature = setting.get("temperature", 1.0)
    if temperature == 0:
        return []
    on = SamplingParams(
        temperature=temperature,
        top_p=setting.get("top_p", 1.0),
        top_k=int(setting.get("top_k", 0)),
        min_p=setting.get("min_p", 0.0),
    )
    return [*warpers(on), GumbelSampler(generators)]


def _prefix(tokenizer: PreTrainedTokenizerBase, tokens: int, g: torch.Generator) -> list[int]:
    """Random ordinary tokens: letters of a character tokenizer, pieces of words of another."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    return [ordinary[i] for i in torch.randint(len(ordinary), (tokens,), generator=g).tolist()]


class DiverseBeams(LogitsProcessor):
    """Diverse beam search with k groups of one beam: each says its likeliest token, less `penalty` nats for every group
    before it that says the same token at the same place (Hamming diversity). Source: Vijayakumar et al. 2018, algorithm 1.

    A group that has ended (token `end` at or after place `start`) says nothing more.
    """

    def __init__(self, k: int, penalty: float, end: int, start: int):
        self.k, self.penalty, self.end, self.start = k, penalty, end, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp_BKV = scores.log_softmax(-1).view(-1, self.k, scores.shape[-1]).clone()
        speaks_BK = (input_ids[:, self.start :] != self.end).all(1).view(-1, self.k)
        said_BV = torch.zeros_like(logp_BKV[:, 0])
        for g in range(self.k):
            logp_BKV[:, g] -= self.penalty * said_BV
            token_B1 = logp_BKV[:, g].argmax(-1, keepdim=True)
            said_BV.scatter_add_(1, token_B1, speaks_BK[:, g : g + 1].to(said_BV.dtype))
        return logp_BKV.view_as(scores)
