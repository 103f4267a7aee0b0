"""Muon for the matrices of the layers and AdamW for all other parameters, as one optimizer.

    optimizer = MuonAdamW(model, learning_rate=2e-3, weight_decay=0.1, beta2=0.98)

Source: Jordan et al. 2024 (Muon), with the scale of its updates matched to AdamW's (Liu et al. 2025, arXiv 2502.16982),
so that one learning rate fits both. What it gives is in docs/results/winning.md.
"""

import torch
from transformers import PreTrainedModel


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW with one list of parameter groups, which a schedule reads and writes.

    Only the last group, of vectors, has no weight decay.
    """

    def __init__(self, model: PreTrainedModel, learning_rate: float, weight_decay: float, beta2: float):
        outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in outside]
        inside = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in inside]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.parts = (
            torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, learning_rate, betas=(0.9, beta2)),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The groups are those of the parts, not copies, so that a new learning rate reaches them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None) -> None:
        """Update all parameters that have a gradient. A closure is not supported."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
