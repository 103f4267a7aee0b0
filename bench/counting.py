"""Count what a training run computes, in forward passes of one token. Imported by the runs of bench/runs.py.

A forward pass counts all its tokens, pads included, once; with a gradient three times, because a backward pass costs
two forward passes. Scoring, generating and learning count alike, evaluations do not. The higher cost of attention for
late tokens is left out.
"""

import json
from pathlib import Path

import torch

from mot.training.em import MixtureTrainer

FILE = "cost.json"  # in the run's directory: {"forward_tokens": ..., "steps": ...}


def count_runs() -> None:
    """From now on every training run of this process writes its cost into its directory."""
    train, evaluate = MixtureTrainer.train, MixtureTrainer.evaluate
    count = {"forward_tokens": 0, "on": False}

    def add(module, args, kwargs) -> None:
        if count["on"]:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            count["forward_tokens"] += ids.numel() * (3 if torch.is_grad_enabled() else 1)

    def counted_train(self, *args, **kwargs):
        hook = self.model.register_forward_pre_hook(add, with_kwargs=True)
        count["on"] = True
        try:
            return train(self, *args, **kwargs)
        finally:
            count["on"] = False
            hook.remove()
            about = {"forward_tokens": count["forward_tokens"], "steps": self.state.global_step - self.start}
            (Path(self.args.output_dir) / FILE).write_text(json.dumps(about))

    def uncounted_evaluate(self, *args, **kwargs):
        before, count["on"] = count["on"], False
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            count["on"] = before

    MixtureTrainer.train, MixtureTrainer.evaluate = counted_train, uncounted_evaluate
