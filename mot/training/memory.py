"""Remembered winners: rows keep the thought that they won, and only some steps score all rows.

    memory = RememberedWinners(rows=len(data.train), num_thoughts=8, share=1 / 8, steps=1000)
    scored_B = carries_B & (memory.of(rows_B, step) < 0)      # rows that the E-step must score
    memory.keep(rows_B[scored_B], winner_C)

In the first fifth of the steps every row is scored: fresh responsibilities break the symmetry of the thoughts. Later
only a share of the steps score all their rows, which balances them over the thoughts as before. In the other steps a
row takes the thought that it won when it was last scored; a row that was never scored is scored. The state is one byte
per row, in the checkpoint. Source: incremental EM (Neal & Hinton 1998), truncated EM (Forster & Lücke 2018).
"""

from pathlib import Path

import torch
from torch import Tensor

from mot.training.settings import ESTEP_FROM

FILE = "winners.pt"  # in a checkpoint


class RememberedWinners:
    """The thought 0 .. N-1 that each row won last. `router_mean_N` is the router's mean when rows were last scored."""

    def __init__(self, rows: int, num_thoughts: int, share: float, steps: int):
        self.num_thoughts, self.share, self.steps = num_thoughts, share, steps
        # The number N stands for "never scored".
        self.winner = torch.full((rows,), num_thoughts, dtype=torch.uint8 if num_thoughts < 256 else torch.int16)
        self.router_mean_N = torch.full((num_thoughts,), 1 / num_thoughts)

    def scores_all(self, step: int) -> bool:
        """Does this step score all its rows?"""
        return step < ESTEP_FROM * self.steps or int((step + 1) * self.share) > int(step * self.share)

    def of(self, rows_B: Tensor, step: int) -> Tensor:
        """The remembered winners [B] of rows by their numbers, -1 for a row that this step must score."""
        winner_B = self.winner[rows_B].long()
        return (
            torch.full_like(winner_B, -1) if self.scores_all(step) else winner_B.where(winner_B < self.num_thoughts, -1)
        )

    def keep(self, rows_C: Tensor, winner_C: Tensor) -> None:
        """Remember who won the rows."""
        self.winner[rows_C] = winner_C.to(self.winner.dtype)

    def save(self, directory: Path) -> None:
        """Write the state into a checkpoint's directory."""
        torch.save({"winner": self.winner, "router_mean": self.router_mean_N}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. A checkpoint of a run that scored all rows has nothing to remember."""
        if not (directory / FILE).is_file():
            return
        state = torch.load(directory / FILE, weights_only=True)
        self.winner, self.router_mean_N = state["winner"], state["router_mean"]
