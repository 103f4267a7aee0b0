"""One optimizer step of a tiny trainer, taken apart, and the slow obvious version of its parts. Used by tests/laws.

trainer, (batch,) = step_of(tmp_path, num_thoughts=4, batch_size=32)   # assigned by the E-step, not yet learnt from
trainer.compute_loss(trainer.model, dict(batch))
"""

import json
import math
import statistics

import torch

from mot.data.load import load_data
from mot.model.build import build_model
from mot.runtime.signals import SignalHandler
from mot.thoughts import diversity
from mot.training.em import MixtureTrainer
from mot.training.settings import TrainSettings

TEXT = "the quick brown fox jumps over the lazy dog. "
ESTEP_TOKENS = 4


def trainer_of(settings: TrainSettings, double: bool = False) -> MixtureTrainer:
    """A trainer of a fresh model on the data of the settings, for `max_steps` steps."""
    data = load_data(settings)
    model = build_model(settings, data.tokenizer)
    model = model.double() if double else model
    return MixtureTrainer(settings, data, model, settings.max_steps, settings.output_dir, None, SignalHandler())


def step_of(
    path, num_thoughts: int, batch_size: int, rows: int | None = None, source="text", step=9, global_seed=0, **more
):
    """(trainer, micro-batches) of optimizer step `step` of 10, on real files, in double precision.

    The weights are far from initialisation. `rows` (default: one batch) are split into batches of `batch_size`.
    Step 9 is late in the run, so every loss is on.
    """
    path.mkdir(parents=True, exist_ok=True)
    if source == "text":
        file = path / "data.txt"
        file.write_text(TEXT * 60)
    else:
        file = path / "data.jsonl"
        file.write_text("".join(json.dumps(json_row(i, source)) + "\n" for i in range(80)))
    shape = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 32}
    run = {"train_file": str(file), "output_dir": str(path / "run"), "max_steps": 10}
    s = TrainSettings(num_thoughts=num_thoughts, batch_size=batch_size, **shape, **run, **more)
    trainer = trainer_of(s, double=True)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = math.ceil((rows or batch_size) / batch_size)
    data = trainer.data
    items = [data.train[i] for i in range(rows or batch_size)]
    parts = [data.collate(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
    trainer.state.global_step = step
    torch.manual_seed(global_seed)  # after the Trainer, which sets it too
    batches, _ = trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))
    return trainer, batches


def json_row(i: int, source: str) -> dict[str, str]:
    """Row i of a file.

    `source` "rows": without keys. "same keys": the completion is the key. "keys": the key is another text.
    """
    row = {"prompt": "the " * (i % 3) + "q", "completion": "dog " * (1 + i % 4)}
    keys = {"rows": {}, "same keys": {"key": row["completion"]}, "keys": {"key": "fox " * (1 + i % 3)}}
    return row | keys[source]


def row(batch: dict, i: int) -> tuple[list[int], list[int], list[int]]:
    """(x, thought tokens or [], y) of row i, without pads."""
    x, y = (batch[name][i][batch[f"{name}_mask"][i].bool()].tolist() for name in ("prompt", "completion"))
    thought = batch["thought"][i].tolist()
    return x, thought if thought[0] >= 0 else [], y


def scored_tokens(trainer: MixtureTrainer, source: str) -> float:
    """Mean number of tokens that the E-step scores: ESTEP_TOKENS of a window, all of a completion."""
    rows = trainer.data.train
    return ESTEP_TOKENS if source == "text" else statistics.fmean(len(rows[i][1]) for i in range(len(rows)))


def sharpen(trainer: MixtureTrainer) -> None:
    """Make thoughts differ more about y. The rows of the thought tokens stay, and with them the router."""
    others = [t for t in range(trainer.model.config.vocab_size) if t not in trainer.thoughts]
    trainer.model.lm_head.weight.data[others] *= 12


@torch.no_grad()
def row_diversity(trainer: MixtureTrainer, x: list[int], thoughts: list[list[int]], y: list[int]) -> torch.Tensor:
    """`diversity` of thoughts (token ids each) on one row, one forward pass per thought, nats."""
    first = len(x) + len(thoughts[0]) - 1
    logits = [trainer.model(torch.tensor([[*x, *thought, *y]])).logits[:, first:-1] for thought in thoughts]
    return diversity(torch.stack(logits), torch.tensor([y]), torch.ones(1, len(y))).squeeze()
