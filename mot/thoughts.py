"""The idea, as pure functions on logits. Read this page first.

                        branch point
                             |
      x  x  x  x  x  x  ... [k]  y  y  y  y      every layer reads the thought by ordinary causal attention
      prompt, computed once  ^   continuation
                             thought token: one of N, chosen by the router p(k | x)

                p(y | x) = sum over k of  p(k | x) * p(y | x, k)

Shapes, here and everywhere in the project:
    B batch rows   N thoughts of the model   K thoughts asked for   P prompt tokens   T continuation tokens   V vocabulary

A thought may be a *word* of L of the N thought tokens, `--thought_length L`: W = N ** L different thoughts, p(k | x) the product
of p(k_i | x, k_1 .. k_i-1). A word is a row of L digits below N; its index is the number they write in base N. Such thoughts are too
many to compare all, so training and evaluation compare M = N of them. With L = 1 a word is its token, and the M are all.

The four formulas of training are four functions:
    responsibilities   E-step: which thought explains which row (Sinkhorn, rows sum to 1, columns to B/N)
    router_loss        M-step: the router learns the responsibilities
    diversity          M-step: what the thought says about the continuation (Jensen-Shannon divergence, mixture weights)
    usage_entropy      M-step: all thoughts are used
What is read off a trained mixture: mixture_nll, oracle_nll, specialisation, effective_thoughts. How K thoughts are picked:
choose_thoughts, repeats. Which words are compared: draw_words. Nothing here knows a model, a tokenizer or a file; all randomness is a
`torch.Generator`.
"""

import math
from typing import NamedTuple

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
    """Cross-entropy [B], nats, of the router (softmax restricted to the N thought tokens) against fixed responsibilities.

    Of words, [B, L] from two [B, L, N]: first thoughts against the responsibilities summed onto them, the others against
    those of the winner, so that the sum over L is -log p(winner | x) where the winner alone is responsible.
    """
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


def draw_words(m: int, N: int, L: int, generator: torch.Generator) -> Tensor:
    """m different words [M, L], uniformly; with L = 1 and m = N all thoughts in their order, and nothing is drawn."""
    if L == 1 and m == N:
        return torch.arange(N)[:, None]
    assert m <= N**L
    drawn = {}  # N ** L may be 2 ** 80, so that words are drawn until m of them differ
    while len(drawn) < m:
        drawn[tuple(torch.randint(N, (L,), generator=generator).tolist())] = None
    return torch.tensor(list(drawn))


def word_index(word: list[int], N: int) -> int:
    """The number that a word's digits write in base N, the first digit the highest: 0 .. N ** L - 1."""
    index = 0
    for digit in word:
        index = index * N + digit
    return index


class Chosen(NamedTuple):
    """k beginnings of words, in the order chosen: row of the beginning each goes on from, the thought it goes on with,
    its log-probability under creativity (nats, up to a constant), and that with its Gumbel noise."""

    row_k: Tensor
    thought_k: Tensor
    logp_k: Tensor
    key_k: Tensor


def repeats(p_Bk: Tensor, K: int) -> Tensor:
    """Which of k thoughts each of K texts follows [B, K], the most probable first: every one ceil(K/k) or floor(K/k) times."""
    copies_K = torch.arange(p_Bk.shape[1]).repeat(-(-K // p_Bk.shape[1]))[:K]
    return copies_K[p_Bk[:, copies_K].argsort(dim=-1, descending=True, stable=True)]


def choose_thoughts(
    logits_RN: Tensor, k: int, creativity: float, generator: torch.Generator, before: Chosen | None = None
) -> Chosen:
    """The k <= R * N thoughts to follow, without replacement: one level of the tree of words.

    `logits_RN` are the router's, after each of the R beginnings in `before`; at the root R is 1 and nothing is before. With
    `router logits / creativity`, creativity 0 takes the k most probable, 1 samples by the router, infinity is uniform. Source:
    Kool et al. 2019, algorithm 1: at the root Gumbel top-k; below it a beginning's noise is the largest of its continuations',

        key = -log(exp(-key of the beginning) - exp(-max G) + exp(-G)),     G = log p + Gumbel,  max over its continuations

    so that L levels, k each, are Gumbel top-k over all N ** L words. With creativity 0 they are a plain beam search, whose
    words are the most probable ones up to what a beam misses; a creativity near 0 is something else, for every level has its
    own softmax: the k words then stay behind the most probable first token as long as there are k.
    """
    R, N = logits_RN.shape
    gumbel_RN = -torch.empty(R, N, dtype=torch.float64).exponential_(generator=generator).log()
    logp_RN = logits_RN.double().cpu().log_softmax(-1)
    if creativity > 0:
        # Finite, lest infinities be subtracted below: a creativity of 1e-310 is a number, too.
        logp_RN = (logp_RN / creativity).clamp_min(-1e300)
    if before is not None:
        logp_RN = before.logp_k[:, None] + logp_RN.log_softmax(-1)
    key_RN = logp_RN if creativity == 0 else logp_RN + gumbel_RN
    if before is not None and creativity > 0:
        rest_RN = -torch.expm1(key_RN - key_RN.max(-1, keepdim=True).values)  # 1 - exp(G - max G)
        key_RN = -torch.logaddexp(-before.key_k[:, None], rest_RN.log() - key_RN)
    best = key_RN.flatten().argsort(descending=True, stable=True)[:k]
    return Chosen(best // N, best % N, logp_RN.flatten()[best], key_RN.flatten()[best])
