"""Lay out rows as model inputs, and score continuations under every thought.

    layout = lay_out(batch, thought_token_BL, pad)                # [x][k][y], or [x][y] for a row without a thought
    logp_BNT, router_BN, _ = thought_logprobs(model, batch, thoughts)  # one prompt computation for all N
    scores = score(model, batch, thoughts, pad)                   # base, mixture and oracle NLL, specialisation

Shapes: see mot/thoughts.py. A `batch` is what mot.data.load.branch returns. All log-probabilities are in nats.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

from mot.runtime.flags import one_line
from mot.thoughts import draw_sequences, mixture_nll, oracle_nll, specialisation


def lay_out(batch: dict[str, Tensor], token_BL: Tensor, pad: int) -> dict[str, Tensor]:
    """Lay out rows [x][k_1 .. k_L][y] as model inputs and labels.

    `token_BL`: thought token ids, or -1 for a row without a thought. Such a row has y directly after x and L pads at
    its end; if no row has a thought, there are no columns for it. Labels leave out (-100) pads, thought tokens, and the
    first token of each row.
    """
    prompt, completion = batch["prompt"], batch["completion"]
    has_thought_B1 = token_BL[:, :1] >= 0
    ids, real = torch.cat([prompt, completion], 1), torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    labels = torch.where(real.bool(), ids, -100)
    if has_thought_B1.any():
        columns = torch.ones_like(token_BL, dtype=ids.dtype)

        def insert(plain: Tensor, thought: Tensor, end: int) -> Tensor:
            with_thought = torch.cat([plain[:, : prompt.shape[1]], thought, plain[:, prompt.shape[1] :]], 1)
            return torch.where(has_thought_B1, with_thought, torch.cat([plain, end * columns], 1))

        ids = insert(ids, token_BL.clamp_min(0), pad)
        real = insert(real, columns, 0)
        labels = insert(labels, -100 * columns, -100)
    before_is_pad = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], 1) == 0
    labels = labels.masked_fill(before_is_pad, -100)
    return {"input_ids": ids, **_positions(real, batch["prompt_mask"]), "labels": labels}


def _positions(real: Tensor, prompt_mask: Tensor) -> dict[str, Tensor]:
    # Causal attention never looks right, so only pads on the left need a mask. Attention without a mask is faster.
    if prompt_mask.all():
        return {}
    return {"attention_mask": real, "position_ids": (real.cumsum(-1) - 1).clamp_min(0)}


def prefill(
    model: PreTrainedModel, prompt: Tensor, prompt_mask: Tensor, cache: Cache | None = None
) -> tuple[Cache, Tensor]:
    """Compute prompts [B, P] once. Return (KV cache, logits [B, V] at the last prompt position).

    `cache` is an empty cache to fill; without it the model makes its own.
    """
    positions = _positions(prompt_mask, prompt_mask)
    out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions)
    return out.past_key_values, out.logits[:, -1].float()


def read_thought(
    model: PreTrainedModel, cache: Cache, prompt_mask: Tensor, begun: Tensor, thoughts: list[int]
) -> Tensor:
    """Read the last of the thought tokens `begun` [R, 1 .. L-1]. Return the router logits [R, N] of the next one.

    `cache` holds the R prompts and all of `begun` but its last token.
    """
    inputs = {"input_ids": begun[:, -1:], "position_ids": prompt_mask.sum(1, keepdim=True) + begun.shape[1] - 1}
    if not prompt_mask.all():
        inputs["attention_mask"] = torch.cat([prompt_mask, torch.ones_like(begun)], 1)
    return model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1, thoughts].float()


def thought_logprobs(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    thoughts: list[int],
    tokens: int = 0,
    sequences_ML: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score every continuation under M thoughts, with one computation of each prompt.

    Returns (log p(y_t | x, k, y_<t) [B, M, T] with 0 at pads; router logits [B, N] at the branch point; log p(k | x)
    [B, M]), in nats.

    The M thoughts are sequences of L digits (see mot/thoughts.py); without `sequences_ML` they are the N thought
    tokens. The M continuations share the prompt's cache. With `tokens` > 0 only the first `tokens` tokens of each
    continuation are scored, and T is at most that.
    """
    B = len(batch["prompt"])
    sequences_ML = torch.arange(len(thoughts))[:, None] if sequences_ML is None else sequences_ML
    M, L = sequences_ML.shape
    cache, logits_BV = prefill(model, batch["prompt"], batch["prompt_mask"])
    router_BN = logits_BV[:, thoughts]
    cache.batch_repeat_interleave(M)
    targets = batch["completion"][:, : tokens or None]
    mask = batch["completion_mask"][:, : tokens or None]
    T = targets.shape[1]
    sequences_ML = sequences_ML.to(targets.device)
    token_columns = torch.tensor(thoughts, device=targets.device)[sequences_ML].repeat(B, 1)
    targets, mask = targets.repeat_interleave(M, 0), mask.repeat_interleave(M, 0)
    ids = torch.cat([token_columns, targets[:, :-1]], 1)
    inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
    length_B = batch["prompt_mask"].sum(1).repeat_interleave(M)
    inputs["position_ids"] = length_B[:, None] + torch.arange(ids.shape[1], device=targets.device)
    if not batch["prompt_mask"].all():
        inputs["attention_mask"] = torch.cat([batch["prompt_mask"].repeat_interleave(M, 0), torch.ones_like(ids)], 1)
    logits = model(**inputs).logits
    of_y = logits[:, L - 1 :].flatten(0, 1).float()
    logp = -F.cross_entropy(of_y, targets.flatten(), reduction="none").view(B, M, T)
    sequence_logp_BM = router_BN.log_softmax(-1)[:, sequences_ML[:, 0]]
    if L > 1:
        later = logits[:, : L - 1, thoughts].float().log_softmax(-1).view(B, M, L - 1, len(thoughts))
        digits = sequences_ML[:, 1:, None].expand(B, -1, -1, -1)
        sequence_logp_BM = sequence_logp_BM + later.gather(-1, digits)[..., 0].sum(-1)
    return logp * mask.view(B, M, T), router_BN, sequence_logp_BM


def base_logprobs(model: PreTrainedModel, batch: dict[str, Tensor], pad: int) -> Tensor:
    """Return log p(y | x) of the trunk, without any thought, summed over y [B], in nats."""
    layout = lay_out(batch, torch.full((len(batch["prompt"]), 1), -1, device=batch["prompt"].device), pad)
    labels = layout.pop("labels")
    P = batch["prompt"].shape[1]
    logits = model(**layout).logits[:, P - 1 : -1]
    return -F.cross_entropy(logits.transpose(1, 2).float(), labels[:, P:], reduction="none", ignore_index=-100).sum(1)


@torch.no_grad()
def require_branching(model: PreTrainedModel, thoughts: list[int], where: str) -> None:
    """Raise ValueError, beginning with `where`, if thoughts cannot branch from this model.

    Tried on a few tokens: no logit may depend on later tokens, and continuations that share a prompt's cache, padded as
    in a batch, must score as whole rows do.
    """
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(min(thoughts, default=model.config.vocab_size), (2, 12), generator=g).to(model.device)
    batch = {"prompt": ids[:, :7], "completion": ids[:, 7:], "completion_mask": torch.ones_like(ids[:, 7:])}
    batch["prompt_mask"] = torch.ones_like(ids[:, :7])
    batch["prompt_mask"][1, :2] = 0
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
    what, two = f"{where}: a {type(model).__name__} cannot have thoughts", thoughts[:2]
    try:
        with evaluating(model):
            logits, shorter = (model(input_ids=part, use_cache=False).logits for part in (ids, ids[:, :9]))
            if (logits[:, :9] - shorter).abs().mean() > tolerance:
                raise ValueError(f"{what}: it reads later tokens, so it is not a causal language model; give another")
            if not thoughts:
                return
            shared_BM = thought_logprobs(model, batch, two)[0].sum(-1)
            for k, thought in enumerate(two):
                layout = lay_out(batch, torch.full((2, 1), thought, device=ids.device), thought)
                layout.pop("labels")
                logp_BTV = model(**layout, use_cache=False).logits[:, 7:-1].float().log_softmax(-1)
                whole_B = logp_BTV.gather(-1, batch["completion"][..., None]).sum((1, 2))
                if (shared_BM[:, k] - whole_B).abs().mean() > 5 * tolerance:
                    raise ValueError(
                        f"{what}: continuations that share a prompt's cache score otherwise than whole rows"
                    )
    except (TypeError, AttributeError, NotImplementedError, IndexError) as e:
        raise ValueError(f"{what}: it cannot share a prompt between them ({one_line(e, 120)})") from None


@torch.no_grad()
def score(
    model: PreTrainedModel, batch: dict[str, Tensor], thoughts: list[int], pad: int, thought_length: int = 1
) -> dict[str, Tensor]:
    """Return base, mixture and oracle NLL (nats per token), specialisation, `winner` and `tokens` of a batch, each [B].

    A model without thoughts is its own mixture. There are too many thought sequences (L > 1) to score all W = N ** L,
    so M = N of them, the same in every evaluation, represent all. Oracle, specialisation and `winner` (0 .. M-1) are
    those of the M; the mixture NLL is

        -log(W / M * sum over the M of p(k | x) p(y | x, k)) / length

    The expectation of that sum over the drawn sequences is exact, so the expectation of its -log is never below the
    true NLL (Jensen): an upper bound on average, and a looser one if thoughts are less alike. The oracle of the M is no
    bound of it. Source: importance sampling as in Burda et al. 2016.
    """
    with evaluating(model):
        length_B = batch["completion_mask"].sum(1)
        base_B = base_logprobs(model, batch, pad)
        result = {"base_nll": -base_B / length_B, "tokens": length_B}
        if thoughts:
            M = N = len(thoughts)
            sequences_ML = draw_sequences(M, N, thought_length, torch.Generator().manual_seed(0))
            logp_BMT, _, sequence_logp_BM = thought_logprobs(model, batch, thoughts, sequences_ML=sequences_ML)
            logp_BM = logp_BMT.sum(-1)
            represented = thought_length * math.log(N) - math.log(M)  # log(W / M)
            result["mixture_nll"] = mixture_nll(sequence_logp_BM + represented, logp_BM, length_B)
            result["oracle_nll"] = oracle_nll(logp_BM, length_B)
            result["specialisation"] = specialisation(logp_BM)
            result["winner"] = logp_BM.argmax(-1)
        else:
            result["mixture_nll"] = result["oracle_nll"] = result["base_nll"]
    return result


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout off inside the block, and restore the model's mode after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
