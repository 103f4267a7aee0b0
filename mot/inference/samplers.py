"""The samplers that thoughts are compared with: K texts of one prompt by every method that users already have.

    setting = SAMPLERS["top_p"].settings[3]
    texts_BK = sample(SampleRequest(model, setting, ["abcdefgh>"], k=8, max_new_tokens=60, seed=0))

To add a baseline, write one `Sampler` into SAMPLERS, with a `draw` function if none of those here fits. Tables,
figures, the evaluation and `--baselines` read everything else from it. transformers' `generate` decodes. Ours are the
diverse beams, which transformers no longer has, and the random prefix. Shapes: see mot/thoughts.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mot.data.datasets import collate_rows
from mot.data.encode import encode_prompts
from mot.inference.sampling import GumbelSampler, generator_of, warpers
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts


@dataclass(frozen=True)
class Setting:
    """A sampler with values for its parameters, in the order in which they are shown."""

    sampler: "Sampler"
    parameters: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """Unique and readable: `temperature 0.7`, `beam width 2 length_penalty 0`."""
        values = " ".join(f"{name} {value:g}" for name, value in self.parameters)
        return values if self.parameters[0][0] == self.sampler.name else f"{self.sampler.name} {values}"

    def get(self, name: str, default: float) -> float:
        return dict(self.parameters).get(name, default)

    def params(self, k: int, max_new_tokens: int, seed: int) -> SamplingParams:
        """The parameters that act on the distribution of the next token; those that are not given are off."""
        return SamplingParams(
            num_thoughts=k,
            max_new_tokens=max_new_tokens,
            temperature=self.get("temperature", 1.0),
            top_p=self.get("top_p", 1.0),
            top_k=int(self.get("top_k", 0)),
            min_p=self.get("min_p", 0.0),
            seed=seed,
        )

    @property
    def random(self) -> bool:
        """Does another seed give other texts?"""
        return not self.sampler.deterministic(self)

    def possible(self, model: MixtureOfThoughts, k: int) -> bool:
        """Can this model draw K texts in this way?"""
        return self.sampler.possible(self, model, k)


@dataclass(frozen=True)
class SampleRequest:
    """K texts of every prompt. `model` holds tokenizer, weights and thought tokens; it may have no thoughts."""

    model: MixtureOfThoughts
    setting: Setting
    prompts: list[str]
    k: int
    max_new_tokens: int
    seed: int


def never(setting: Setting) -> bool:
    return False


def always(setting: Setting) -> bool:
    return True


def when_greedy(setting: Setting) -> bool:
    return setting.get("temperature", 1.0) == 0


def any_model(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Sampler:
    """A way to draw K texts, with everything that evaluation, tables and figures must know of it.

    `kind`: "mixture" is the method under evaluation, "ablation" is the mixture without a part of it, and "rival" is
    what a user has without a mixture. The verdict compares with rivals only. `independent`: texts are independent
    draws, so the independence ceiling bounds them (mot.tasks.independence_ceiling).
    """

    name: str
    label: str  # in figures and tables
    color: str  # of matplotlib's cycle, see mot/reporting/figures.py
    marker: str  # of matplotlib
    grid: tuple[dict[str, float], ...]  # the parameter values of its settings
    draw: Callable[[SampleRequest], list[list[str]]]
    kind: Literal["mixture", "ablation", "rival"] = "rival"
    independent: bool = True
    deterministic: Callable[[Setting], bool] = when_greedy
    possible: Callable[[Setting, MixtureOfThoughts, int], bool] = any_model

    @property
    def settings(self) -> list[Setting]:
        return [Setting(self, tuple(values.items())) for values in self.grid]


@torch.no_grad()
def sample(request: SampleRequest) -> list[list[str]]:
    """K texts of each prompt [B][K]; thoughts in the order of their index. No text contains a thought token.

    A text depends on the seed, its prompt and its number only, not on the prompts beside it.
    """
    return request.setting.sampler.draw(request)


def prompt_ids(model: MixtureOfThoughts, prompts: list[str]) -> list[list[int]]:
    """Token ids of prompts as the model was trained to read them: after the tokens that open every text."""
    return encode_prompts(model.tokenizer, prompts, "--prompts")


# Ways to draw -------------------------------------------------------------------------------------------------------


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
    return decode(request, rows, _sampling(request, _generators(request)))


def draw_after_random_prefix(request: SampleRequest) -> list[list[str]]:
    """K samples, each after a random string of `tokens` tokens before the prompt.

    Source: seed-conditioning of Nagarajan et al. 2025, here with a model that was not trained for it.
    """
    generators = _generators(request)
    rows = [row for row in prompt_ids(request.model, request.prompts) for _ in range(request.k)]
    length = int(request.setting.get("tokens", 1))
    rows = [_random_tokens(request.model, length, g) + row for row, g in zip(rows, generators, strict=True)]
    return decode(request, rows, _sampling(request, generators))


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


def decode(
    request: SampleRequest,
    rows: list[list[int]],
    processors: list[LogitsProcessor],
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[str]]:
    """Texts [B][K] that `generate` finds after `rows` of token ids, by argmax after the processors.

    `rows` holds K rows per prompt in order, or one per prompt for a beam search (`beams` > 1), which returns its K
    best.
    """
    model, k = request.model, request.k
    end = model.tokenizer.eos_token_id
    pad = model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else end
    batch = collate_rows([(row, []) for row in rows], pad)
    inputs, mask = (batch[name].to(model.model.device) for name in ("prompt", "prompt_mask"))
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=False,  # GumbelSampler draws: the argmax of its scores is a sample
        num_beams=beams,
        num_return_sequences=k if beams > 1 else 1,
        length_penalty=length_penalty,
        suppress_tokens=model.thoughts or None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    out = model.model.generate(
        inputs, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(processors)
    )
    new = [row[: row.index(end)] if end in row else row for row in out[:, inputs.shape[1] :].tolist()]
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [texts[i : i + k] for i in range(0, len(texts), k)]


def _generators(request: SampleRequest) -> list[torch.Generator]:
    name, numbers = request.setting.name, range(request.k)
    return [generator_of(request.seed, prompt, f"{name} {i}") for prompt in request.prompts for i in numbers]


def _sampling(request: SampleRequest, generators: list[torch.Generator]) -> list[LogitsProcessor]:
    params = request.setting.params(request.k, request.max_new_tokens, request.seed)
    return [*warpers(params), GumbelSampler(generators)] if params.temperature > 0 else []


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


# What a model can do ------------------------------------------------------------------------------------------------


def with_thoughts(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    return bool(model.thoughts)


def thoughts_without_copies(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    """Greedy repeats of a thought are copies."""
    return bool(model.thoughts) and (setting.random or k <= model.different_thoughts)


def narrow_beam(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    """A search for more texts would take most of the time of an evaluation."""
    return k <= WIDEST_BEAM


# The table ----------------------------------------------------------------------------------------------------------

WIDEST_BEAM = 64  # texts
TUNING_POINTS = 6  # settings of every sampler, thoughts included: all have the same tuning budget
_TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.3)


def _grid(name: str, *values: float) -> tuple[dict[str, float], ...]:
    return tuple({name: value} for value in values)


_samplers = (
    Sampler(
        "thoughts",
        "thoughts",
        "C1",
        "*",
        _grid("temperature", 0, *_TEMPERATURES[:5]),
        draw_thoughts,
        kind="mixture",
        independent=False,
        possible=thoughts_without_copies,
    ),
    Sampler(
        "one_thought",
        "one thought, sampled",
        "C1",
        "d",
        _grid("temperature", *_TEMPERATURES),
        draw_one_thought,
        kind="ablation",
        possible=with_thoughts,
    ),
    Sampler("temperature", "temperature", "C0", "o", _grid("temperature", *_TEMPERATURES), draw_samples),
    Sampler("top_p", "top-p", "C3", "s", _grid("top_p", 0.5, 0.7, 0.8, 0.9, 0.95, 0.98), draw_samples),
    Sampler("min_p", "min-p", "C2", "^", _grid("min_p", 0.02, 0.05, 0.1, 0.2, 0.3, 0.5), draw_samples),
    Sampler("top_k", "top-k", "C4", "v", _grid("top_k", 2, 3, 5, 10, 20, 50), draw_samples),
    Sampler(
        "beam",
        "beam search",
        "C6",
        "D",
        tuple({"width": w, "length_penalty": p} for w in (1, 2) for p in (0.0, 1.0, 2.0)),
        draw_beams,
        independent=False,
        deterministic=always,
        possible=narrow_beam,
    ),
    Sampler(
        "diverse_beam",
        "diverse beams",
        "C6",
        "P",
        _grid("penalty", 0.1, 0.3, 0.5, 1.0, 2.0, 5.0),
        draw_diverse_beams,
        independent=False,
        deterministic=always,
        possible=narrow_beam,
    ),
    Sampler(
        "seed_prefix",
        "random prefix",
        "C5",
        "X",
        tuple({"tokens": n, "temperature": t} for t in (0.0, 0.7) for n in (1, 4, 16)),
        draw_after_random_prefix,
        deterministic=never,
    ),
)
SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _samplers}
BASELINES = tuple(name for name, sampler in SAMPLERS.items() if sampler.kind != "mixture")
