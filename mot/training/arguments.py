"""Our settings as transformers' TrainingArguments."""

import torch
from transformers import TrainingArguments

from mot.training.settings import RunSettings
from mot.training.tracking import PROJECT


class OneDeviceArguments(TrainingArguments):
    """TrainingArguments with at most one GPU per process: DataParallel does not know our loss; torchrun does."""

    @property
    def n_gpu(self) -> int:
        """0 or 1."""
        return min(1, super().n_gpu)


def training_arguments(settings: RunSettings, steps: int, output_dir: str, eval_on_start: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a run of `steps` optimizer steps."""
    gpu = torch.accelerator.is_available()
    return OneDeviceArguments(
        output_dir=output_dir,
        run_name=settings.name(),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=settings.peak_learning_rate(),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=min(round(settings.warmup_ratio * steps), steps - 1),  # the first step of a warm-up has rate 0
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=0.0,  # mot.training.callbacks.SpikeGuard clips, because it needs the norm
        fp16=settings.fp16,
        bf16=settings.bf16,
        torch_compile=settings.compile,
        activation_checkpointing=settings.save_memory,
        fsdp=settings.fsdp or None,
        ddp_find_unused_parameters=False,
        use_cpu=not gpu,
        ignore_data_skip=True,  # the data loader begins where the checkpoint ends
        dataloader_pin_memory=gpu,
        seed=settings.seed,
        logging_steps=max(1, min(50, steps // 100)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_on_start=eval_on_start,
        eval_steps=settings.eval_every or max(1, steps // 5),
        save_strategy="steps",
        save_steps=settings.save_every or max(1, steps // 10),
        report_to="none",  # the trackers are among the callbacks
        project=PROJECT,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
