"""What a run takes, for --dry_run, and what to give when it takes too much.

print("\n".join(dry_run(settings, data, steps)))
raise ValueError(out_of_memory(settings, error))
"""

from dataclasses import replace

from mot.data.datasets import Windows
from mot.data.load import Data
from mot.training.costs import LIBRARIES, STATE, activations, cost_of_a_row
from mot.training.recipes import recipe_of
from mot.training.settings import RunSettings


def out_of_memory(settings: RunSettings, e: BaseException) -> str:
    """Return a line with flags that make the run smaller."""
    advice = []
    if settings.batch_size > 1:
        smaller = settings.batch_size // 2
        accumulated = settings.gradient_accumulation_steps * settings.batch_size // smaller
        advice.append(f"--batch_size {smaller} --gradient_accumulation_steps {accumulated} (the same update)")
    if not settings.save_memory:
        advice.append("--save_memory")
    if not (settings.bf16 or settings.fp16):
        advice.append("--bf16")
    advice += recipe_of(settings).less_memory()
    reason = str(e).splitlines()[0][:120] if str(e) else "MemoryError"
    return f"out of memory ({reason}); give {', or '.join(advice)}"


def dry_run(settings: RunSettings, data: Data, steps: int) -> list[str]:
    """Return what a run takes, a line each: parameters, tokens, steps, memory."""
    size, train_data = recipe_of(settings).size(data.tokenizer), data.train
    rows, tokens = len(train_data), train_data.tokens()
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    plain = ""
    if settings.num_thoughts > 1:
        lengths, windows = train_data.mean_lengths(), isinstance(train_data, Windows)
        without = replace(settings, num_thoughts=1)
        matched = settings.matched_steps(steps) / steps
        ratio = cost_of_a_row(settings, *lengths, windows, matched) / cost_of_a_row(without, *lengths, windows)
        plain = f"; a plain model has the same training FLOPs with --num_thoughts 1 --max_steps {round(steps * ratio)}"
    half = settings.fp16 or settings.bf16
    kept, estep = activations(settings, size.hidden_size, size.layers, len(data.tokenizer), tokens / rows, half)
    state, gib = STATE * size.trained + size.frozen_bytes, 2**30
    return [
        *data.notes,
        f"parameters  {size.text()}",
        f"tokens      {tokens:,} to train on in {rows:,} rows, "
        f"{data.eval.tokens():,} held out in {len(data.eval):,} rows",
        f"steps       {steps:,} of {rows_per_step} rows: {steps * rows_per_step / rows:.2f} epochs, "
        f"{steps * rows_per_step * tokens / rows:,.0f} tokens{plain}",
        f"memory      about {(LIBRARIES + state + max(kept, estep)) / gib:.2f} GiB: {LIBRARIES / gib:.2f} Python and "
        f"libraries, {state / gib:.2f} weights and optimizer, {kept / gib:.2f} activations or {estep / gib:.2f} E-step",
    ]
