"""The idea, as pure functions on logits. Read this page first.

                        branch point
                             |
      x  x  x  x  x  x  ... [k]  y  y  y  y      every layer reads the thought by ordinary causal attention
      prompt, computed once  ^   continuation
                             thought token: one of N, chosen by the router p(k | x)

                p(y | x) = sum over k of  p(k | x) * p(y | x, k)

Shapes, here and everywhere in the project:
    B batch rows     N thoughts of the model   K thoughts asked for
    P prompt tokens  T continuation tokens     V vocabulary

With `--thought_length L` a thought is a *thought sequence*: L of the N thought tokens, one after the other. There are
W = N ** L different ones, and p(k | x) is the product of p(k_i | x, k_1 .. k_i-1). A sequence is written as L digits,
each below N. Its index is the number that the digits write in base N. W is too large to compare all sequences, so
training and evaluation compare M = N of them. With L = 1 a sequence is its token, and the M are all.

The four formulas of training are four functions:
    responsibilities   E-step: which thought explains which row (Sinkhorn, rows sum to 1, columns to B/N)
    router_loss        M-step: the router learns the responsibilities
    diversity          M-step: what the thought says about the continuation (Jensen-Shannon divergence, mixture weights)
    usage_entropy      M-step: all thoughts are used
Four measures describe a trained mixture: mixture_nll, oracle_nll, specialisation, effective_thoughts.
choose_thoughts and repeats pick the K thoughts to follow. draw_sequences picks the sequences to compare.
Nothing here knows a model, a tokenizer or a file. All randomness is a `torch.Generator`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def responsibilities(scores_BN: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Balanced soft assignment of B rows to N thoughts (the E-step).

        Q = Sinkhorn(exp((a - max a) / tau))

    Args:
        scores_BN: mean log-likelihood of each row under each thought, nats per token.
        temperature: tau > 0, nats per token. A large tau gives a uniform Q, a small one a hard Q.
        rounds: how often columns, then rows, are scaled.
    Returns Q [B, N] in [0, 1]. Rows sum to 1 exactly, columns to B/N up to the error that `rounds` leaves.
    Source: Sinkhorn-Knopp as in SwAV (Caron et al. 2020, eq. 3), for the online responsibilities of Shen et al. 2019.
    """
    B, N = scores_BN.shape
    # In logarithms, because at tau = 0.05 a row that is one nat per token worse would underflow in every other column.
    log_q = scores_BN.double() / temperature
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) + math.log(B / N)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp().to(scores_BN.dtype)


def router_loss(q_BN: Tensor, router_logits_BN: Tensor) -> Tensor:
    """Cross-entropy [B], nats, of the router (softmax over the N thought tokens) against fixed responsibilities.

    For thought sequences both arguments are [B, L, N] and the loss is [B, L]. The target of the first token is the sum
    of the responsibilities of all sequences that begin with it. The target of a later token is the winner's token. The
    sum over L is therefore -log p(winner | x) when the winner alone is responsible.
    """
    return -(q_BN.detach() * router_logits_BN.float().log_softmax(-1)).sum(-1)


def diversity(logits_MRTV: Tensor, targets_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """What the identity of the thought says about the continuation [R], nats, for M thoughts on R continuations.

        sum over t of  JSD_w(t) = H(sum_m w_m p_m) - sum_m w_m H(p_m),      w_m(t) = p(m | x, y_<t)

    p_m are the next-token distributions of M thoughts on the same continuation `targets_RT`. `mask_RT` is 1 on real
    tokens and 0 on pads. w is the posterior of the thoughts after the tokens so far, without gradient, from a uniform
    prior. By the chain rule the sum is the mutual information I(m; y | x) along one y. It is 0 when all M agree. A
    token adds at most log M, and so does the whole sum in expectation over the mixture's own y.
    Source: Lin 1991, eq. 5.1 (the divergence), with the weights of a mixture. Uniform weights would also reward a
    thought for disagreeing on continuations that it never writes, and it would learn nonsense there:
    docs/results/log.md, "What makes thoughts divide places".
    """
    logp = logits_MRTV.float().log_softmax(-1)
    target_logp_MRT = (
        logp.detach().gather(-1, targets_RT[None, ..., None].expand(len(logp), -1, -1, 1))[..., 0] * mask_RT
    )
    log_w = (target_logp_MRT.cumsum(-1) - target_logp_MRT).log_softmax(0)[..., None]
    log_mean = (log_w + logp).logsumexp(0)
    jsd_RT = (log_w.exp() * logp.exp() * (logp - log_mean)).sum(-1).sum(0)
    return (jsd_RT * mask_RT).sum(-1)


def usage_entropy(mean_probs_N: Tensor, batch_mean_N: Tensor | None = None) -> Tensor:
    """Entropy, nats, of the router's mean probabilities: 0 (one thought does all) .. log N (all are used alike).

    `mean_probs_N` may be the mean over one part of an accumulated batch, and `batch_mean_N` the mean over all of it.
    The values of the parts then average to the entropy of the batch, and their gradients to its gradient, because -sum
    p log stopgrad(P) and H(P) have the same gradient (sum dp = 0). Four micro-batches of 8 therefore equal one batch of
    32 (law 8).
    """
    reference = mean_probs_N if batch_mean_N is None else batch_mean_N.detach()
    return -(mean_probs_N * reference.clamp_min(1e-30).log()).sum()


def mixture_nll(router_logp_BN: Tensor, thought_logp_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """-log sum_k p(k|x) p(y|x,k) per token of y [B], nats per token.

    `thought_logp_BN` is log p(y | x, k), summed over the `lengths_B` tokens of each y. The result exceeds the best
    thought's NLL by at most -log p(k|x) / length and is at least `oracle_nll`.
    """
    return -(router_logp_BN + thought_logp_BN).logsumexp(-1) / lengths_B


def oracle_nll(thought_logp_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """NLL per token [B] of the best thought, chosen *after* seeing y: a lower bound, never a figure to report alone."""
    return -thought_logp_BN.max(-1).values / lengths_B


def specialisation(thought_logp_BN: Tensor) -> Tensor:
    """(log p(y|x,k*) - log mean_k p(y|x,k)) / log N  [B]: 0 if all thoughts agree on y, 1 if only one explains it."""
    N = thought_logp_BN.shape[-1]
    log_mean = thought_logp_BN.logsumexp(-1) - math.log(N)
    return (thought_logp_BN.max(-1).values - log_mean) / math.log(N)


def effective_thoughts(usage_N: Tensor) -> Tensor:
    """exp(entropy) of how often each thought is used (counts or probabilities): 1 .. N."""
    return torch.special.entr(usage_N / usage_N.sum()).sum().exp()


def draw_sequences(m: int, N: int, L: int, generator: torch.Generator) -> Tensor:
    """m different thought sequences [m, L], uniformly drawn. With L = 1 and m = N: all thoughts in order, no draw."""
    if L == 1 and m == N:
        return torch.arange(N)[:, None]
    assert m <= N**L
    drawn = {}  # N ** L may be 2 ** 80, too many to permute: draw until m sequences differ
    while len(drawn) < m:
        drawn[tuple(torch.randint(N, (L,), generator=generator).tolist())] = None
    return torch.tensor(list(drawn))


def sequence_index(sequence: list[int], N: int) -> int:
    """The number that a sequence's digits write in base N, the first digit the highest: 0 .. N ** L - 1."""
    index = 0
    for digit in sequence:
        index = index * N + digit
    return index


class BeamState(NamedTuple):
    """k partial thought sequences, in the order chosen.

    `row_k` is the parent (its row in the level above), `thought_k` the thought token that extends it, `logp_k` the
    log-probability under creativity (nats, up to a constant), and `key_k` the same with Gumbel noise.
    """

    row_k: Tensor
    thought_k: Tensor
    logp_k: Tensor
    key_k: Tensor


def repeats(p_Bk: Tensor, K: int) -> Tensor:
    """The thought, 0 .. k-1, of each of K texts [B, K], the most probable first: each ceil(K/k) or floor(K/k) times."""
    copies_K = torch.arange(p_Bk.shape[1]).repeat(-(-K // p_Bk.shape[1]))[:K]
    return copies_K[p_Bk[:, copies_K].argsort(dim=-1, descending=True, stable=True)]


def choose_thoughts(
    logits_RN: Tensor, k: int, creativity: float, generator: torch.Generator, before: BeamState | None = None
) -> BeamState:
    """The k <= R * N thoughts to follow, without replacement: one level of the tree of thought sequences.

    `logits_RN` are the router's after each of the R partial sequences in `before`. At the root R is 1 and `before` is
    None. The k are drawn by `router logits / creativity`: creativity 0 takes the most probable, 1 samples by the
    router, infinity is uniform. Source: Kool et al. 2019, algorithm 1. The root is Gumbel top-k. Below it the key of a
    partial sequence is the largest key among its extensions,

        key = -log(exp(-key of the parent) - exp(-max G) + exp(-G)),     G = log p + Gumbel,  max over its extensions

    so L levels of k each are Gumbel top-k over all N ** L sequences. With creativity 0 they are a plain beam search,
    whose sequences are the most probable ones up to what a beam misses. A creativity near 0 differs from 0, because
    every level has its own softmax: the k sequences then share the most probable first token as long as it has k
    extensions.
    """
    R, N = logits_RN.shape
    gumbel_RN = -torch.empty(R, N, dtype=torch.float64).exponential_(generator=generator).log()
    logp_RN = logits_RN.double().cpu().log_softmax(-1)
    if creativity > 0:
        # Infinities would be subtracted below and give NaN. They arise because a creativity of 1e-310 is allowed.
        logp_RN = (logp_RN / creativity).clamp_min(-1e300)
    if before is not None:
        logp_RN = before.logp_k[:, None] + logp_RN.log_softmax(-1)
    key_RN = logp_RN if creativity == 0 else logp_RN + gumbel_RN
    if before is not None and creativity > 0:
        rest_RN = -torch.expm1(key_RN - key_RN.max(-1, keepdim=True).values)  # 1 - exp(G - max G)
        key_RN = -torch.logaddexp(-before.key_k[:, None], rest_RN.log() - key_RN)
    best = key_RN.flatten().argsort(descending=True, stable=True)[:k]
    return BeamState(best // N, best % N, logp_RN.flatten()[best], key_RN.flatten()[best])
