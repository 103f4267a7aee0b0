"""What a run's settings ask of its data, checked before anything is written.

verify = run_verifier(settings, data, steps)      # what --match_steps asks; None if nothing is matched
check_rows(settings, data, world)                 # --group_prompts, --estep_rows
"""

import numpy as np

from mot.data.datasets import Windows
from mot.data.load import Data
from mot.tasks.verifier import Verify, load_verifier, require_some_valid
from mot.training.settings import RunSettings

TRIED = 64  # completions of the training data that a verifier is tried on


def run_verifier(settings: RunSettings, data: Data, steps: int) -> Verify | None:
    """Return what --match_steps asks, None if nothing is matched. Raises ValueError if it cannot teach anything."""
    matched = settings.matched_steps(steps)
    if not matched:
        return None
    if matched > steps:
        raise ValueError(f"--match_steps {matched}: the run has {steps} steps, of which they are the end; give fewer")
    if isinstance(data.train, Windows):
        raise ValueError(f"--match_steps {matched}: plain text has no prompts; give .jsonl rows, or leave it out")
    verify = load_verifier(settings.verifier or settings.task)
    if settings.verifier:
        rows = [data.train[i][:2] for i in range(min(TRIED, len(data.train)))]
        texts = [tuple(data.tokenizer.batch_decode(list(row), skip_special_tokens=True)) for row in rows]
        require_some_valid(verify, texts, f"--verifier {settings.verifier}")
    return verify


def check_rows(settings: RunSettings, data: Data, world: int) -> None:
    """Raise ValueError if --group_prompts cannot give the rows of every prompt to different thoughts in one step.

    Also if the data are no rows and a setting is about rows.
    """
    if isinstance(data.train, Windows) and settings.estep_rows < 1:
        raise ValueError(
            f"--estep_rows {settings.estep_rows:g}: plain text has another continuation in every pass; "
            "give .jsonl rows, or leave it out"
        )
    if not settings.group_prompts:
        return
    if isinstance(data.train, Windows):
        raise ValueError("--group_prompts: plain text has no prompts; give .jsonl rows, or leave it out")
    numbers = data.train.prompt_numbers
    counts = np.bincount(numbers)
    most, row = int(counts.max()), int((numbers == counts.argmax()).argmax())
    prompt = data.tokenizer.decode(data.train[row][0], skip_special_tokens=True)
    step_rows = settings.batch_size * settings.gradient_accumulation_steps * world
    for limit, name in ((settings.num_thoughts, "--num_thoughts"), (step_rows, "rows of an update: --batch_size")):
        if most > limit:
            raise ValueError(
                f"--group_prompts: the prompt {prompt[:60]!r} has {most} rows, more than {name} {limit}; "
                "keep fewer of them, or leave --group_prompts out"
            )
