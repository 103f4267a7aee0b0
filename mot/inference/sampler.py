"""What a sampler is: a named way to draw K texts of one prompt, its settings, and what tables and figures must know of
it.

    texts_BK = sample(SampleRequest(model, setting, ["abcdefgh>"], k=8, max_new_tokens=60, seed=0))

mot/inference/samplers.py is the list of all samplers. Shapes: see mot/thoughts.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mot.data.datasets import collate_rows
from mot.data.encode import encode_prompts
from mot.inference.sampling import drawing, generator_of
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
    batch = collate_rows([(row, []) for row in rows], model.pad)
    inputs, mask = (batch[name].to(model.model.device) for name in ("prompt", "prompt_mask"))
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=False,  # GumbelSampler draws: the argmax of its scores is a sample
        num_beams=beams,
        num_return_sequences=k if beams > 1 else 1,
        length_penalty=length_penalty,
        suppress_tokens=model.thoughts or None,
        eos_token_id=end,
        pad_token_id=model.pad,
    )
    out = model.model.generate(
        inputs, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(processors)
    )
    new = [row[: row.index(end)] if end in row else row for row in out[:, inputs.shape[1] :].tolist()]
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [texts[i : i + k] for i in range(0, len(texts), k)]


def text_generators(request: SampleRequest) -> list[torch.Generator]:
    """A generator for every text: it depends on the seed, the setting, the prompt and the text's number."""
    name, numbers = request.setting.name, range(request.k)
    return [generator_of(request.seed, prompt, f"{name} {i}") for prompt in request.prompts for i in numbers]


def sampling(request: SampleRequest, generators: list[torch.Generator]) -> list[LogitsProcessor]:
    """The processors after which the argmax is a sample."""
    params = request.setting.params(request.k, request.max_new_tokens, request.seed)
    return drawing(params, generators)
