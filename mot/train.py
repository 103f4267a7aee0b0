"""Train a mixture of thoughts: balanced, relaxed hard EM inside the transformers Trainer.

    result = train(TrainSettings(train_file="data/shakespeare.txt", vocab_size=100, hidden_size=128, num_layers=2))

Each optimizer step is one round of EM. `get_batch_samples` (E-step) takes all micro-batches of the step at once, cuts the
branch point, scores every thought on every row, balances the responsibilities over the whole step and draws the winners;
`compute_loss` (M-step) then sees rows that know their thought. All randomness of a step comes from (seed, step), so a
resumed run draws what the uninterrupted one would have drawn. Shapes: see mot/thoughts.py.
"""

import math
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from transformers import PrinterCallback, Trainer, TrainingArguments

from mot import tasks
from mot.checkpoint import claim, resumable
from mot.config import TrainSettings
from mot.data import Data, Windows, branch, load_data
from mot.model import build_model, evaluating, lay_out, score, thought_logprobs
from mot.thoughts import diversity, effective_thoughts, responsibilities, router_loss, usage_entropy
from mot.tokenizer import thought_ids
from mot.tracking import RunLog

TEMPERATURE = (1.0, 0.05)  # tau of the responsibilities, nats per token, at the first step and after the anneal
ANNEAL = 0.6  # of the steps: tau falls geometrically
LIBRARIES = 0.5 * 2**30  # bytes, resident once torch and transformers are imported
DIVERSITY_FROM = ANNEAL  # of the steps: earlier it would cement whatever difference is learnt first
DIVERSITY_CAP = 0.5  # of log M: more is not rewarded, or text pays for it in likelihood
DIVERSITY_SHARE, DIVERSITY_THOUGHTS = 1 / 16, 4  # on this share of the rows, between the winner and three others


@dataclass
class Result:
    """Where a run is and what it came to."""

    output_dir: str
    steps: int
    seconds: float
    metrics: dict[str, float]  # the last evaluation's
    notes: list[str]


def train(settings: TrainSettings) -> Result | None:
    """Run what `settings` say and return where it is; None after --dry_run. Raises ValueError before anything is written."""
    settings.validate()
    if settings.fp16 and not torch.cuda.is_available():
        raise ValueError("--fp16: needs a GPU and there is none; leave it out, or give --bf16")
    if settings.use_wandb:
        _require_wandb()
    task_rows = (tasks.training(settings.task, settings.seed), tasks.held_out(settings.task)) if settings.task else None
    data = load_data(settings, task_rows)
    steps = total_steps(settings, data)
    if settings.dry_run:
        print("\n".join(dry_run(settings, data, steps)))
        return None

    if settings.resume_from:
        shape = {"hidden_size": settings.hidden_size, "num_hidden_layers": settings.num_layers}
        resumable(settings.resume_from, shape | {"vocab_size": len(data.tokenizer)})
    output_dir = claim(settings.output(), settings.overwrite, settings.resume_from, asdict(settings))
    model = build_model(settings, data.tokenizer)
    if settings.bf16 and not torch.accelerator.is_available():
        # On a CPU, SDPA's backward in bfloat16 takes as long as everything else in the step together.
        model.set_attn_implementation("eager")
    log = RunLog(output_dir, steps, title=settings.name())
    trainer = MixtureTrainer(settings, data, model, steps, output_dir, callbacks=[log])
    begin = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=settings.resume_from)
        if trainer.evaluated_at != trainer.state.global_step:
            trainer.evaluate()
    finally:
        log.close()
    trainer.save_model(output_dir)
    return Result(output_dir, steps, time.perf_counter() - begin, trainer.last_evaluation, data.notes)


def total_steps(settings: TrainSettings, data: Data) -> int:
    """Optimizer steps of the run."""
    batches = max(1, len(data.train) // settings.batch_size)
    per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    return settings.max_steps or max(1, math.ceil(settings.num_epochs * per_epoch))


def dry_run(settings: TrainSettings, data: Data, steps: int) -> list[str]:
    """What a run would take: parameters, tokens, steps, memory."""
    with torch.device("meta"):
        parameters = build_model(settings, data.tokenizer).num_parameters()
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    mean_length = data.train.tokens() / len(data.train)
    thoughts = settings.num_thoughts if settings.num_thoughts > 1 else 0
    state = 16 * parameters  # fp32 weights, gradients and two moments
    # A token leaves about 30 values of the model's width in every layer for the backward pass, and its logits three times.
    per_token = 30 * settings.hidden_size * settings.num_layers + 3 * len(data.tokenizer)
    rows = settings.batch_size * (1 + DIVERSITY_SHARE * (min(DIVERSITY_THOUGHTS, thoughts or 1) - 1))
    activations = rows * mean_length * per_token * (2 if settings.fp16 or settings.bf16 else 4)
    scored = min(settings.estep_tokens or settings.seq_length, mean_length)
    estep = settings.batch_size * thoughts * scored * 2 * len(data.tokenizer) * 4  # logits and their softmax
    return [
        *data.notes,
        f"parameters  {parameters:,}",
        f"tokens      {data.train.tokens():,} to train on in {len(data.train):,} rows, {data.eval.tokens():,} held out in {len(data.eval):,} rows",
        f"steps       {steps:,} of {rows_per_step} rows: {steps * rows_per_step / len(data.train):.2f} epochs, {steps * rows_per_step * mean_length:,.0f} tokens",
        f"memory      about {(LIBRARIES + state + max(activations, estep)) / 2**30:.2f} GiB: {LIBRARIES / 2**30:.2f} Python and libraries, "
        f"{state / 2**30:.2f} weights and optimizer, {activations / 2**30:.2f} activations or {estep / 2**30:.2f} E-step",
    ]


class MixtureTrainer(Trainer):
    """transformers' Trainer with the objective of docs/architecture.md. One instance trains one mixture."""

    def __init__(self, settings: TrainSettings, data: Data, model, steps: int, output_dir: str, callbacks: list):
        self.settings, self.data, self.steps = settings, data, steps
        self.thoughts = thought_ids(data.tokenizer, settings.num_thoughts)
        self.pad = data.tokenizer.pad_token_id
        # A window has no end of its own; a row's completion has, and is judged whole.
        self.scored = settings.estep_tokens if isinstance(data.train, Windows) else 0
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_at = -1
        self._reset_window()
        super().__init__(
            model=model,
            args=training_arguments(settings, len(data.train), steps, output_dir),
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=_evenly(data.eval, settings.eval_rows),
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )
        # Our loss is normalised over the whole step already (law 8); without this the Trainer would divide it again.
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)

    # E-step ---------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], None]:
        """The micro-batches of one optimizer step, branched and with a thought for every row."""
        raw, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        g = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.state.global_step)
        point = int(torch.randint(1, self.settings.seq_length, (), generator=g))
        batches = [{name: t.to(device) for name, t in branch(b, point).items()} for b in raw]
        if batches:
            self.assign(batches, g)
        return batches, None

    def assign(self, batches: list[dict[str, Tensor]], g: torch.Generator) -> None:
        """Give every row a thought token, its responsibilities and what the M-step's averages divide by."""
        s, N, M = self.settings, self.settings.num_thoughts, min(DIVERSITY_THOUGHTS, self.settings.num_thoughts)
        sizes = [len(b["prompt"]) for b in batches]
        B, device = sum(sizes), batches[0]["prompt"].device
        token_B, q_BN, others_BM = torch.full((B,), -1), torch.zeros(B, N), torch.full((B, M - 1), -1)
        router_mean_N = torch.full((N,), 1 / N)
        carries = torch.rand(B, generator=g) >= s.thought_dropout
        if self.thoughts and carries.any():
            scores, router = [], []
            with torch.no_grad(), evaluating(self.model), self.compute_loss_context_manager():
                for b, keep in zip(batches, carries.split(sizes), strict=True):
                    if keep.any():
                        part = {name: t[keep.to(device)] for name, t in b.items()}
                        logp_BNT, router_BN = thought_logprobs(self.model, part, self.thoughts, self.scored)
                        length_B = part["completion_mask"][:, : logp_BNT.shape[-1]].sum(1)
                        scores.append(logp_BNT.sum(-1) / length_B[:, None])
                        router.append(router_BN)
            q_carrying = responsibilities(torch.cat(scores).cpu(), self.temperature())
            # Drawn from Q, not its argmax: while tau is high no accident of the first weights is cemented.
            winner = torch.multinomial(q_carrying, 1, generator=g)[:, 0]
            ids = torch.tensor(self.thoughts)
            token_B[carries], q_BN[carries] = ids[winner], q_carrying
            router_mean_N = torch.cat(router).softmax(-1).mean(0).cpu()
            if s.diversity_weight and self.state.global_step >= DIVERSITY_FROM * self.steps:
                rows = carries.nonzero()[:, 0]
                # Rounded up or down by chance: always up would cost a batch of 8 a third of its step.
                count = int(DIVERSITY_SHARE * len(rows) + torch.rand((), generator=g))
                rows = rows[torch.randperm(len(rows), generator=g)[:count]]
                chance = torch.rand(B, N, generator=g)
                chance[carries] = chance[carries].scatter(1, winner[:, None], -1.0)
                others_BM[rows] = ids[chance[rows].topk(M - 1).indices]
            self._count(usage=torch.bincount(winner, minlength=N).double())
        totals = {
            "target_tokens": sum(
                int(b["prompt_mask"].sum() + b["completion_mask"].sum()) - n
                for b, n in zip(batches, sizes, strict=True)
            ),
            "carrying": max(1, int(carries.sum())),
            "compared": max(1, int((others_BM[:, :1] >= 0).sum())),
        }
        parts = zip(batches, token_B.split(sizes), q_BN.split(sizes), others_BM.split(sizes), strict=True)
        for b, token, q, others in parts:
            b |= {
                "thought": token.to(device),
                "q": q.to(device),
                "others": others.to(device),
                "usage": router_mean_N.to(device),
                "totals": totals,
            }
        self._count(tokens=totals["target_tokens"] + B)

    def temperature(self) -> float:
        """tau of the current step."""
        first, last = TEMPERATURE
        return first * (last / first) ** min(1.0, self.state.global_step / (ANNEAL * self.steps))

    # M-step ---------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """L = CE(x and y) + w_r router - w_d diversity - w_e entropy: this micro-batch's share of the step's mean."""
        s, totals = self.settings, inputs.pop("totals")
        batch = {name: inputs[name] for name in ("prompt", "prompt_mask", "completion", "completion_mask")}
        B, P = batch["prompt"].shape
        compared = inputs["others"][:, :1].ge(0).flatten().nonzero()[:, 0]
        token, M = inputs["thought"], inputs["others"].shape[1] + 1
        if len(compared):  # the same rows again under other thoughts, in the same forward pass
            rows = compared.repeat_interleave(M - 1)
            batch = {name: torch.cat([t, t[rows]]) for name, t in batch.items()}
            token = torch.cat([token, inputs["others"][compared].flatten()])
        layout = lay_out(batch, token, self.pad)
        labels = layout.pop("labels")[:B]
        logits = model(**layout, use_cache=False).logits
        targets = labels[:, 1:]
        ce = F.cross_entropy(logits[:B, :-1].transpose(1, 2).float(), targets, reduction="none", ignore_index=-100)
        losses = {"lm_loss": ce.sum() / totals["target_tokens"]}
        loss = losses["lm_loss"]
        carrying = token[:B] >= 0
        if carrying.any():
            router_logits = logits[:B][carrying, P - 1][:, self.thoughts].float()
            losses["router_loss"] = router_loss(inputs["q"][carrying], router_logits).sum() / totals["carrying"]
            share = carrying.sum() / totals["carrying"]
            losses["entropy"] = usage_entropy(router_logits.softmax(-1).mean(0), inputs["usage"]) * share
            loss = loss + s.router_weight * losses["router_loss"] - s.entropy_weight * losses["entropy"]
        if len(compared):
            ours, theirs = logits[compared, P:-1], logits[B:, P:-1]
            logits_MRTV = torch.cat([ours[None], theirs.unflatten(0, (-1, M - 1)).transpose(0, 1)])
            said = diversity(logits_MRTV, batch["completion"][compared], batch["completion_mask"][compared])
            losses["diversity"] = said.sum() / totals["compared"]
            rewarded = said.clamp(max=DIVERSITY_CAP * math.log(M)).sum() / totals["compared"]
            loss = loss - s.diversity_weight * rewarded
        self._count(losses={name: value.detach() for name, value in losses.items()})
        return loss

    # What a person sees ---------------------------------------------------------------------------------------------

    def _reset_window(self) -> None:
        self._sums, self._usage, self._tokens = {}, torch.zeros(self.settings.num_thoughts).double(), 0
        self._since, self._first_step = time.perf_counter(), None

    def _count(self, usage=0, tokens=0, losses=None) -> None:
        if self._first_step is None:
            self._first_step = self.state.global_step
        self._usage, self._tokens = self._usage + usage, self._tokens + tokens
        for name, value in (losses or {}).items():
            self._sums[name] = self._sums.get(name, 0) + value  # stays on the device: no sync per step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the Trainer's numbers our losses apart, tokens per second, and how many thoughts the E-step used."""
        if "loss" in logs and self._sums:
            steps = max(1, self.state.global_step - self._first_step)
            logs |= {name: float(value) / steps for name, value in self._sums.items()}
            logs["tokens_per_second"] = self._tokens / (time.perf_counter() - self._since)
            if self._usage.sum():
                logs |= {
                    "effective_thoughts": effective_thoughts(self._usage).item(),
                    "temperature": self.temperature(),
                }
            self._reset_window()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Base, mixture and oracle NLL (nats per token), specialisation and effective thoughts on held-out rows."""
        begin = time.perf_counter()
        loader = DataLoader(self.eval_dataset, batch_size=self.settings.batch_size, collate_fn=self.data.collate)
        parts = []
        for raw in loader:
            batch = branch(raw, self.settings.seq_length // 2)
            batch = {name: t.to(self.args.device) for name, t in batch.items()}
            with self.compute_loss_context_manager():
                parts.append(score(self.model, batch, self.thoughts, self.pad))
        scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        weight = scores["tokens"] / scores["tokens"].sum()
        metrics = {
            f"{metric_key_prefix}_{name}": (scores[name] * weight).sum().item()
            for name in ("base_nll", "mixture_nll", "oracle_nll")
        }
        if self.thoughts:
            metrics[f"{metric_key_prefix}_specialisation"] = scores["specialisation"].mean().item()
            usage = torch.bincount(scores["winner"], minlength=len(self.thoughts)).double()
            metrics[f"{metric_key_prefix}_effective_thoughts"] = effective_thoughts(usage).item()
        self.last_evaluation, self.evaluated_at = dict(metrics), self.state.global_step
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - begin  # tokens per second are training's
        return metrics


def training_arguments(settings: TrainSettings, rows: int, steps: int, output_dir: str) -> TrainingArguments:
    """The settings in the Trainer's own words, for `rows` training rows."""
    return TrainingArguments(
        output_dir=output_dir,
        run_name=settings.name(),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=settings.peak_learning_rate(),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=round(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        fp16=settings.fp16,
        bf16=settings.bf16,
        torch_compile=settings.compile,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=settings.num_workers,
        dataloader_drop_last=rows
        >= settings.batch_size,  # one shape for every step: a ragged batch would be compiled anew
        dataloader_pin_memory=torch.accelerator.is_available(),
        seed=settings.seed,
        logging_steps=max(1, min(50, steps // 100)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_every or max(1, steps // 5),
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or steps,
        report_to="wandb" if settings.use_wandb else "none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _evenly(dataset, rows: int):
    """At most `rows` rows (0: all) of a dataset, evenly spaced."""
    if not rows or rows >= len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // rows for i in range(rows)])


def _require_wandb() -> None:
    import importlib.util
    import os

    if importlib.util.find_spec("wandb") is None:
        raise ValueError('--use_wandb: wandb is not installed; pip install "mixture-of-thoughts[wandb]"')
    os.environ.setdefault("WANDB_PROJECT", "mixture-of-thoughts")
