"""The idea, as pure functions on logits. Read this page first.

                        branch point
                             |
      x  x  x  x  x  x  ... [k]  y  y  y  y      every layer reads the thought by ordinary causal attention
      prompt, computed once  ^   continuation
                             thought token: one of N, chosen by the router p(k | x)

                p(y | x) = sum over k of  p(k | x) * p(y | x, k)

Shapes, here and everywhere in the project:
    B batch rows   N thoughts of the model   K thoughts asked for   P prompt tokens   T continuation tokens   V vocabulary

The four formulas of training are four functions:
    responsibilities   E-step: which thought explains which row (Sinkhorn, rows sum to 1, columns to B/N)
    router_loss        M-step: the router learns the responsibilities
    diversity          M-step: what the thought says about the continuation (Jensen-Shannon divergence, mixture weights)
    usage_entropy      M-step: all thoughts are used
What is read off a trained mixture: mixture_nll, oracle_nll, specialisation, effective_thoughts. How K thoughts are picked:
choose_thoughts. Nothing here knows a model, a tokenizer or a file; all randomness is a `torch.Generator`.
"""

import math

import torch
from torch import Tensor


def responsibilities(scores_BN: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Balanced soft assignment of B rows to N thoughts (the E-step).

        Q = Sinkhorn(exp((a - max a) / tau))

    Args: `scores_BN` mean log-likelihood of each row under each thought, nats per token; `temperature` tau > 0, nats per
    token: large is uniform, small is hard; `rounds` of column-then-row scaling.
    Returns Q [B, N] in [0, 1]: rows sum to 1 exactly, columns to B/N up to what `rounds` leaves.
    Source: Sinkhorn-Knopp as in SwAV (Caron et al. 2020, eq. 3), for the online responsibilities of Shen et al. 2019.
    """
    B, N = scores_BN.shape
    # In logarithms: at tau = 0.05 a row one nat per token worse than another would underflow every column but its own.
    log_q = scores_BN.double() / temperature
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) + math.log(B / N)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp().to(scores_BN.dtype)


def router_loss(q_BN: Tensor, router_logits_BN: Tensor) -> Tensor:
    """Cross-entropy [B], nats, of the router (softmax restricted to the N thought tokens) against fixed responsibilities."""
    return -(q_BN.detach() * router_logits_BN.float().log_softmax(-1)).sum(-1)


def diversity(logits_MRTV: Tensor, targets_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """What the identity of the thought says about the continuation [R], nats per continuation, for M thoughts on R rows.

        sum over t of  JSD_w(t) = H(sum_m w_m p_m) - sum_m w_m H(p_m),      w_m(t) = p(m | x, y_<t)

    p_m are the next-token distributions of M thoughts on the same continuation (`targets_RT`, of which `mask_RT` tells real
    from pad), w their posterior after the tokens so far, without gradient, from a uniform prior. By the chain rule this is
    the mutual information I(m; y | x) along one y: 0 when all M agree; a token gives at most log M, and so does the whole,
    in expectation over the mixture's own y. Source: Lin 1991, eq. 5.1 (the divergence), with the weights of a mixture.
    Without the weights a thought is also paid for disagreeing where it would never have gone, and learns to talk nonsense
    there: docs/RESULTS.md, "What makes thoughts divide places".
    """
    logp = logits_MRTV.float().log_softmax(-1)
    said_MRT = logp.detach().gather(-1, targets_RT[None, ..., None].expand(len(logp), -1, -1, 1))[..., 0] * mask_RT
    log_w = (said_MRT.cumsum(-1) - said_MRT).log_softmax(0)[..., None]
    log_mean = (log_w + logp).logsumexp(0)
    jsd_RT = (log_w.exp() * logp.exp() * (logp - log_mean)).sum(-1).sum(0)
    return (jsd_RT * mask_RT).sum(-1)


def usage_entropy(mean_probs_N: Tensor, batch_mean_N: Tensor | None = None) -> Tensor:
    """Entropy, nats, of the router's mean probabilities: 0 (one thought does all) .. log N (all used alike).

    With `batch_mean_N`, the mean over the whole (accumulated) batch that `mean_probs_N` is a part of, the parts' values
    average to the whole batch's entropy and their gradients to its gradient: -sum p log stopgrad(P) and H(P) have the
    same gradient, because sum dp = 0. This is what lets four micro-batches of 8 equal one batch of 32 (law 8).
    """
    reference = mean_probs_N if batch_mean_N is None else batch_mean_N.detach()
    return -(mean_probs_N * reference.clamp_min(1e-30).log()).sum()


def mixture_nll(router_logp_BN: Tensor, thought_logp_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """-log sum_k p(k|x) p(y|x,k) per token of y [B], nats per token.

    `thought_logp_BN` is log p(y | x, k) summed over the `lengths_B` tokens of each y. Never above the best thought's NLL
    by more than -log p(k|x) / length, never below `oracle_nll`.
    """
    return -(router_logp_BN + thought_logp_BN).logsumexp(-1) / lengths_B


def oracle_nll(thought_logp_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """NLL per token [B] of the best thought chosen *after* seeing y: a bound, never a headline figure."""
    return -thought_logp_BN.max(-1).values / lengths_B


def specialisation(thought_logp_BN: Tensor) -> Tensor:
    """(log p(y|x,k*) - log mean_k p(y|x,k)) / log N  [B]: 0 when all thoughts agree on y, 1 when only one explains it."""
    N = thought_logp_BN.shape[-1]
    log_mean = thought_logp_BN.logsumexp(-1) - math.log(N)
    return (thought_logp_BN.max(-1).values - log_mean) / math.log(N)


def effective_thoughts(usage_N: Tensor) -> Tensor:
    """exp(entropy) of how often each thought is used (counts or probabilities): 1 .. N."""
    return torch.special.entr(usage_N / usage_N.sum()).sum().exp()


def choose_thoughts(router_logits_N: Tensor, k: int, creativity: float, generator: torch.Generator) -> Tensor:
    """Indices [k] of the thoughts to follow, in the order chosen.

    k <= N: different thoughts, without replacement, by Gumbel top-k on `router logits / creativity`: creativity 0 takes
    the k most probable, 1 samples by the router, infinity is uniform. k > N: every thought floor(k/N) times, and the
    remaining k mod N chosen as above. Source: Kool et al. 2019 (Gumbel top-k).
    """
    N = len(router_logits_N)
    gumbel = -torch.empty(N, dtype=torch.float64).exponential_(generator=generator).log()
    logits = router_logits_N.double().cpu().log_softmax(-1)
    keys = logits if creativity == 0 else logits / creativity + gumbel
    order = keys.argsort(descending=True, stable=True)
    return order.repeat(-(-k // N))[:k]
