"""The evaluation of a run on held-out rows: numbers, and samples to read.

measured = measure(model, data, rows, settings, device, stopped)     # {"base_nll": ...}, or None if stopped
prompt, thoughts = sample(model, data, rows[0], settings)
rows = evenly(data.eval, 128)
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel

from mot.data.datasets import branch, collate_windows
from mot.data.encode import encode_prompts
from mot.data.load import Data
from mot.inference.think import MixtureOfThoughts, Thought
from mot.model.score import base_logprobs, evaluating, score
from mot.model.tokenizer import thought_ids
from mot.thoughts import effective_thoughts
from mot.training.settings import RunSettings

SAMPLED, SAMPLED_TOKENS = 8, 48  # thoughts, and tokens of each, that every evaluation writes


def measure(
    model: PreTrainedModel,
    data: Data,
    rows,
    settings: RunSettings,
    device: torch.device,
    stopped: Callable[[], bool],
) -> dict[str, float] | None:
    """Return base, mixture and oracle NLL (nats per token), specialisation and effective thoughts on a dataset.

    On `data.general`, text of another kind, the base NLL alone (`general_nll`). With thought sequences (L > 1),
    effective thoughts are those among the N that mot.model.score.score uses: 1 .. N. Returns None once `stopped()` is
    true; it is called before every batch.
    """
    thoughts, pad = thought_ids(data.tokenizer, settings.num_thoughts), data.tokenizer.pad_token_id
    parts, general = [], []
    for batch in _batches(rows, data.collate, settings, device):
        if stopped():
            return None
        parts.append(score(model, batch, thoughts, pad, settings.thought_length))
    if data.general:
        for batch in _batches(evenly(data.general, settings.eval_rows), collate_windows, settings, device):
            if stopped():
                return None
            with torch.no_grad(), evaluating(model):
                general.append(-base_logprobs(model, batch, pad) / batch["completion"].shape[1])
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    weight = scores["tokens"] / scores["tokens"].sum()
    measured = {name: (scores[name] * weight).sum().item() for name in ("base_nll", "mixture_nll", "oracle_nll")}
    if general:
        measured["general_nll"] = torch.cat(general).mean().item()
    if thoughts:
        measured["specialisation"] = scores["specialisation"].mean().item()
        usage = torch.bincount(scores["winner"], minlength=len(thoughts)).double()
        measured["effective_thoughts"] = effective_thoughts(usage).item()
    return measured


def sample(model: PreTrainedModel, data: Data, row, settings: RunSettings) -> tuple[str, list[Thought]]:
    """Return the prompt of a held-out row and what the thoughts generate for it. Draws from no global generator."""
    thoughts = thought_ids(data.tokenizer, settings.num_thoughts)
    ids = branch(data.collate([row]), settings.seq_length // 2)["prompt"][0].tolist()
    prompt = data.tokenizer.decode(ids, skip_special_tokens=True)
    mixture = MixtureOfThoughts(model, data.tokenizer, thoughts, settings.thought_length)
    # The tokens of a chat template are lost in `prompt`; the ids have them.
    asked = prompt if encode_prompts(data.tokenizer, [prompt])[0] == ids else ids
    with evaluating(model):
        return prompt, mixture.think(asked, min(SAMPLED, mixture.num_thoughts), max_new_tokens=SAMPLED_TOKENS, seed=0)


def evenly(dataset, rows: int):
    """Return at most `rows` rows (0: all) of a dataset, evenly spaced."""
    if not rows or rows >= len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // rows for i in range(rows)])


def _batches(dataset, collate, settings: RunSettings, device: torch.device) -> Iterator[dict[str, Tensor]]:
    # So few rows at a time that the logits of all thoughts take no more memory than training's.
    rows = max(1, min(settings.batch_size, 2 * settings.batch_size // settings.num_thoughts))
    loader = DataLoader(dataset, batch_size=rows, collate_fn=collate, generator=torch.Generator())
    for raw in loader:
        batch = branch(raw, settings.seq_length // 2)
        yield {name: t.to(device) for name, t in batch.items()}
