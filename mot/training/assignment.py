"""What the E-step decides about the rows of a step, as pure functions on its scores.

    step = Assignment.empty(B, N, M, L)
    winner_C = match(step, scores_BN, router_BN, carries_B, candidates_NL, tokens_NL, tau, g)
    recall(step, winner_B, recalled_B, tokens_NL, router_mean_N)
    choose_contrast(step, winner_C, carries_B, tokens_NL, g)
    local_rows, gathered_rows = row_offsets(sizes, rank, world)

Shapes: see mot/thoughts.py. B is the rows of the whole step, in the order of the data and over all processes; C those
that carry a thought (`carries_B`). A candidate is a thought as a row of L digits (`candidates_NL`) or of L token ids
(`tokens_NL`). `g` is the step's generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mot.thoughts import responsibilities
from mot.training.settings import DIVERSITY_SHARE


@dataclass
class Assignment:
    """The E-step's decisions, which the M-step reads.

    A row without a thought has -1 in `thought_BL` (token ids) and zeros in `q_BLN` (the router's targets).
    `contrast_BML` holds the M - 1 thoughts that a row's winner is compared with, -1 in the other rows.
    `router_mean_N` is the mean of the router's probabilities over the rows that carry a thought.
    """

    thought_BL: Tensor
    q_BLN: Tensor
    contrast_BML: Tensor
    router_mean_N: Tensor

    @classmethod
    def empty(cls, B: int, N: int, M: int, L: int) -> "Assignment":
        """No row carries a thought."""
        nothing, contrast = torch.full((B, L), -1), torch.full((B, M - 1, L), -1)
        return cls(nothing, torch.zeros(B, L, N), contrast, torch.full((N,), 1 / N))


def match(
    step: Assignment,
    scores_BN: Tensor,
    router_BN: Tensor,
    carries_B: Tensor,
    candidates_NL: Tensor,
    tokens_NL: Tensor,
    tau: float,
    g: torch.Generator,
    mates: Sequence["Mates"] = (),
) -> Tensor:
    """Draw a winner for each of the C rows that carry a thought; fill in thoughts, router targets and router mean.

    `scores_BN` in nats per token, `router_BN` logits, `tau` > 0 in nats per token. `mates` are rows that must be won by
    different thoughts. Returns the winners [C], 0 .. N-1.
    """
    q_CN = responsibilities(scores_BN[carries_B], tau)
    # Drawn from Q, not its argmax: while tau is high, accidents of the first weights do not decide for good.
    winner_C = torch.multinomial(q_CN, 1, generator=g)[:, 0]
    separate(winner_C, q_CN, mates, g)
    step.thought_BL[carries_B] = tokens_NL[winner_C]
    # The router's targets: for the first token all candidates that begin with it, for the others the winner's.
    first_CN = torch.zeros_like(q_CN).index_add(1, candidates_NL[:, 0], q_CN)
    later_CLN = F.one_hot(candidates_NL[winner_C, 1:], len(candidates_NL)).to(first_CN.dtype)
    step.q_BLN[carries_B] = torch.cat([first_CN[:, None], later_CLN], 1)
    step.router_mean_N = router_BN[carries_B].softmax(-1).mean(0)
    return winner_C


class Mates(NamedTuple):
    """Rows of one prompt, by their places among the C rows, and the thoughts that its other rows have won before."""

    places: list[int]
    taken: list[int]


def mates_of(prompt_B: Tensor, scored_B: Tensor, remembered_B: Tensor) -> list[Mates]:
    """Find the prompts, numbered in `prompt_B`, of which several rows carry a thought.

    Such a row is scored now, or its winner is remembered (>= 0).
    """
    place_B, found = scored_B.cumsum(0) - 1, []
    carrying_B = scored_B | (remembered_B >= 0)
    numbers, counts = prompt_B[carrying_B].unique(return_counts=True)
    for number in numbers[counts > 1]:
        rows = prompt_B == number
        taken = remembered_B[rows & ~scored_B & (remembered_B >= 0)].tolist()
        found.append(Mates(place_B[rows & scored_B].tolist(), taken))
    return [mates for mates in found if mates.places]


def separate(winner_C: Tensor, q_CN: Tensor, mates: Sequence[Mates], g: torch.Generator) -> None:
    """Draw the winners of rows that share a prompt without replacement, at most N rows for each prompt.

    It is the assignment of the largest total log Q plus Gumbel noise; for one row that is a draw from Q. Source: SSFT
    (arXiv 2510.05132) assigns the references of a prompt likewise.
    """
    from scipy.optimize import linear_sum_assignment

    for places, taken in mates:
        noise = -torch.empty(len(places), q_CN.shape[1]).exponential_(generator=g).log()
        noisy = q_CN[places].clamp_min(1e-30).log() + noise
        noisy[:, taken] = -1e9
        _, thoughts = linear_sum_assignment(noisy.numpy(), maximize=True)
        winner_C[places] = torch.tensor(thoughts)


def recall(step: Assignment, winner_B: Tensor, recalled_B: Tensor, tokens_NL: Tensor, router_mean_N: Tensor) -> None:
    """Give rows the thoughts that they won before (thoughts of one token), which alone are the router's targets."""
    step.thought_BL[recalled_B] = tokens_NL[winner_B[recalled_B]]
    step.q_BLN[recalled_B, 0] = F.one_hot(winner_B[recalled_B], len(tokens_NL)).to(step.q_BLN.dtype)
    step.router_mean_N = router_mean_N


def choose_contrast(
    step: Assignment, winner_C: Tensor, carries_B: Tensor, tokens_NL: Tensor, g: torch.Generator
) -> None:
    """Choose DIVERSITY_SHARE of the rows, and for each of them M - 1 random thoughts that are not its winner."""
    rows = carries_B.nonzero()[:, 0]
    # Rounded up or down at random: a batch of 8 that always rounded up would spend a third of its step on this.
    count = int(DIVERSITY_SHARE * len(rows) + torch.rand((), generator=g))
    rows = rows[torch.randperm(len(rows), generator=g)[:count]]
    rank_BN = torch.rand(len(carries_B), len(tokens_NL), generator=g)
    rank_BN[carries_B] = rank_BN[carries_B].scatter(1, winner_C[:, None], -1.0)
    step.contrast_BML[rows] = tokens_NL[rank_BN[rows].topk(step.contrast_BML.shape[1]).indices]


def row_offsets(sizes: list[int], rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Return where the rows of this process [R], and those of all processes in turn [B], stand in the step.

    `sizes` are the rows of this process's micro-batches, the same in every process. A step's rows are in the order of
    the data: micro-batch by micro-batch, and within each process by process. One process with twice the batch has the
    same rows at the same places.
    """
    offsets = [world * sum(sizes[:m]) for m in range(len(sizes))]
    of_rank = [
        torch.cat([torch.arange(size) + offset + r * size for size, offset in zip(sizes, offsets, strict=True)])
        for r in range(world)
    ]
    return of_rank[rank], torch.cat(of_rank)
