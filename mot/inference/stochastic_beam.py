"""Stochastic beam search: K different texts, sampled without replacement. Source: Kool et al. 2019, arXiv 1903.06059.

Gumbel top-k over all texts, level by level. A prefix carries its log-probability and the largest perturbed
log-probability of the texts behind it; its continuations draw theirs under the condition that their maximum is that
number. The K largest go on.
"""

import torch
from torch import Tensor

from mot.data.datasets import collate_rows
from mot.inference.sampler import SampleRequest, prompt_ids
from mot.inference.sampling import generator_of
from mot.model.score import prefill


def draw_stochastic_beams(request: SampleRequest) -> list[list[str]]:
    """K texts of every prompt, different from each other as token sequences, in the order of their perturbed
    probability.
    """
    model, K, B = request.model, request.k, len(request.prompts)
    end = model.tokenizer.eos_token_id
    batch = collate_rows([(row, []) for row in prompt_ids(model, request.prompts)], model.pad)
    prompt, mask = (batch[name].to(model.model.device) for name in ("prompt", "prompt_mask"))
    generators = [generator_of(request.seed, text, request.setting.name) for text in request.prompts]
    temperature = request.setting.get("temperature", 1.0)

    cache, logits_BV = prefill(model.model, prompt, mask)
    cache.batch_repeat_interleave(K)
    mask, logits_RV = mask.repeat_interleave(K, 0), logits_BV.repeat_interleave(K, 0)
    logp_BK = torch.full((B, K), -torch.inf, dtype=torch.float64)
    logp_BK[:, 0] = 0.0  # at first there is one prefix, the empty one
    key_BK, tokens_BKT = logp_BK.clone(), torch.empty(B, K, 0, dtype=torch.long)
    for _ in range(request.max_new_tokens):
        logits_RV[:, model.thoughts] = -torch.inf
        step_BKV = (logits_RV.double().cpu() / temperature).log_softmax(-1).view(B, K, -1)
        step_BKV = only_end(step_BKV, tokens_BKT, end)
        parent_BK, token_BK, logp_BK, key_BK = expand(step_BKV, logp_BK, key_BK, generators)
        tokens_BKT = torch.cat(
            [tokens_BKT.gather(1, parent_BK[..., None].expand_as(tokens_BKT)), token_BK[..., None]], -1
        )
        if (tokens_BKT == end).any(-1).all() or tokens_BKT.shape[-1] == request.max_new_tokens:
            break
        rows = (parent_BK + K * torch.arange(B)[:, None]).flatten().to(prompt.device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], torch.ones_like(mask[:, :1])], 1)
        inputs = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
        next_R1 = token_BK.flatten()[:, None].to(prompt.device)
        logits_RV = (
            model.model(input_ids=next_R1, past_key_values=cache, use_cache=True, **inputs).logits[:, -1].float()
        )
    texts = []
    for row in tokens_BKT.flatten(0, 1).tolist():
        new = row[: row.index(end)] if end in row else row
        texts.append(model.tokenizer.decode(new, skip_special_tokens=True))
    return [texts[b * K : (b + 1) * K] for b in range(B)]


def only_end(step_BKV: Tensor, tokens_BKT: Tensor, end: int) -> Tensor:
    """A text that has ended has one continuation, the end token, with probability 1."""
    ended_BK = (tokens_BKT == end).any(-1)
    stay_V = torch.full(step_BKV.shape[-1:], -torch.inf, dtype=step_BKV.dtype)
    stay_V[end] = 0.0
    return torch.where(ended_BK[..., None], stay_V, step_BKV)


def expand(
    step_BKV: Tensor, logp_BK: Tensor, key_BK: Tensor, generators: list[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(parent, token, log-probability, key) [B, K] of the K continuations with the largest keys.

    key = -log(exp(-key of the parent) - exp(-max G) + exp(-G)),   G = log p + Gumbel,  max over the parent's
    continuations. At the root all keys are free, which is the same with an infinite key of the parent.
    """
    K, V = step_BKV.shape[1:]
    logp_BKV = logp_BK[..., None] + step_BKV
    noise = torch.stack([torch.empty(K, V, dtype=torch.float64).exponential_(generator=g).log_() for g in generators])
    gumbel_BKV = logp_BKV - noise
    rest_BKV = -torch.expm1(gumbel_BKV - gumbel_BKV.max(-1, keepdim=True).values)  # 1 - exp(G - max G)
    rest_BKV = rest_BKV.nan_to_num(1.0)  # a prefix without probability: -inf - -inf
    conditioned_BKV = -torch.logaddexp(-key_BK[..., None], rest_BKV.log() - gumbel_BKV)
    key, place = conditioned_BKV.flatten(1).topk(K)
    return place // V, place % V, logp_BKV.flatten(1).gather(1, place), key
