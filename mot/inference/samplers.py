"""The samplers that thoughts are compared with: K texts of one prompt by every method that users already have.

    setting = SAMPLERS["top_p"].settings[3]
    texts_BK = sample(SampleRequest(model, setting, ["abcdefgh>"], k=8, max_new_tokens=60, seed=0))

To add a baseline, write one `Sampler` into SAMPLERS, with a `draw` function if none of the existing ones fits. Tables,
figures, the evaluation and `--baselines` read everything else from it.
"""

from mot.inference.arithmetic import draw_by_codes
from mot.inference.draws import (
    draw_after_random_prefix,
    draw_beams,
    draw_diverse_beams,
    draw_one_thought,
    draw_samples,
    draw_thoughts,
)
from mot.inference.listing import draw_list
from mot.inference.sampler import Sampler, Setting, always, never
from mot.inference.stochastic_beam import draw_stochastic_beams
from mot.inference.think import MixtureOfThoughts

# What a model can do ------------------------------------------------------------------------------------------------


def with_thoughts(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    return bool(model.thoughts)


def thoughts_without_copies(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    """Greedy repeats of a thought are copies."""
    return bool(model.thoughts) and (setting.random or k <= model.different_thoughts)


def narrow_beam(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    """A wider search would take most of the time of an evaluation."""
    return k * setting.get("width", 1) <= WIDEST_BEAM


def quick_settings(sampler: Sampler) -> list[Setting]:
    """Every second setting, no beam wider than 2 K. Every sampler keeps as many as thoughts do, or fewer."""
    return [s for s in sampler.settings[::2] if s.get("width", 1) <= 2]


def chat_model(setting: Setting, model: MixtureOfThoughts, k: int) -> bool:
    """A list is asked for in words, which a model without a chat template does not follow."""
    return model.tokenizer.chat_template is not None


# The table ----------------------------------------------------------------------------------------------------------

WIDEST_BEAM = 128  # beams
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
    Sampler(
        "temperature_top_p",
        "temperature x top-p",
        "C4",
        "p",
        tuple({"temperature": t, "top_p": p} for t in (0.7, 1.0, 1.3) for p in (0.8, 0.95)),
        draw_samples,
    ),
    Sampler("top_p", "top-p", "C3", "s", _grid("top_p", 0.5, 0.7, 0.8, 0.9, 0.95, 0.98), draw_samples),
    Sampler("min_p", "min-p", "C2", "^", _grid("min_p", 0.02, 0.05, 0.1, 0.2, 0.3, 0.5), draw_samples),
    Sampler("top_k", "top-k", "C4", "v", _grid("top_k", 2, 3, 5, 10, 20, 50), draw_samples),
    Sampler(
        "beam",
        "beam search",
        "C6",
        "D",
        tuple({"width": w, "length_penalty": p} for w in (1, 2, 8) for p in (0.0, 1.0)),
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
        "arithmetic",
        "arithmetic sampling",
        "C2",
        "h",
        _grid("temperature", *_TEMPERATURES),
        draw_by_codes,
        independent=False,
        deterministic=never,
    ),
    Sampler(
        "stochastic_beam",
        "stochastic beams",
        "C3",
        "<",
        _grid("temperature", *_TEMPERATURES),
        draw_stochastic_beams,
        independent=False,
        deterministic=never,
        possible=narrow_beam,
    ),
    Sampler(
        "list_prompt",
        "list prompt",
        "C0",
        ">",
        _grid("temperature", 0.0, *_TEMPERATURES[:5]),
        draw_list,
        independent=False,
        possible=chat_model,
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
