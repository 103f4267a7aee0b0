"""Balanced, relaxed hard EM inside the transformers Trainer, in one process or several.

    MixtureTrainer(settings, data, model, steps, output_dir, log, interruption).train(resume_from_checkpoint)

Each optimizer step is one round of EM. `get_batch_samples` (E-step) takes all micro-batches of the step at once, cuts the
branch point, scores every thought on every row, balances the responsibilities over the whole step, all processes together,
and draws the winners; `compute_loss` (M-step) then sees rows that know their thought. All randomness of a step comes from
(seed, step), so a resumed run draws what the uninterrupted one would have drawn, and two processes what one would have.
Shapes: see mot/thoughts.py; B is the rows of the whole step here, R those of this process.
"""

import json
import math
import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from transformers import PrinterCallback, Trainer, TrainingArguments

from mot.data.load import Batches, Data, Windows, branch, by_length, collate_windows, encode_prompts
from mot.inference.think import MixtureOfThoughts
from mot.model import adapters
from mot.model.score import base_logprobs, evaluating, lay_out, score, thought_logprobs
from mot.model.tokenizer import thought_ids
from mot.runtime.files import WRITE_ERRORS, atomic_write_text, disk_is_full
from mot.runtime.remote import Mirror
from mot.runtime.signals import Interruption
from mot.thoughts import diversity, draw_words, effective_thoughts, responsibilities, router_loss, usage_entropy
from mot.training.checkpoint import HISTORY, discard, prune, seal
from mot.training.settings import (
    ANNEAL,
    DIVERSITY_FROM,
    DIVERSITY_SHARE,
    DIVERSITY_THOUGHTS,
    AdaptSettings,
    RunSettings,
)
from mot.training.tracking import PROJECT, RunLog

ESTEP_PARTS = 4  # batches of like length that the E-step makes of one: short rows are not padded to the longest
COOLED = 1 / 20  # tau of the responsibilities falls from --estep_temperature to this share of it
DIVERSITY_CAP = 0.5  # of log M: more is not rewarded, or text pays for it in likelihood
SPIKE, REMEMBERED = 6.0, 128  # a loss so many standard deviations above the mean of the last so many is not learnt from
STEADY = 0.02  # of the mean: a deviation is taken for at least that, or leaving a plateau would be a spike
PATIENCE = 10  # updates skipped in a row before the run gives up
SAMPLED, SAMPLED_TOKENS = 8, 48  # thoughts, and tokens of each, that every evaluation shows
WATCH = "watch.json"  # in a checkpoint: the losses that a spike is measured against


class MixtureTrainer(Trainer):
    """transformers' Trainer with the objective of docs/architecture.md. One instance trains one mixture.

    `start` is the step of the checkpoint it will go on from, `facts` what a checkpoint's manifest says about the run.
    """

    def __init__(
        self,
        settings: RunSettings,
        data: Data,
        model,
        steps: int,
        output_dir: str,
        log: RunLog | None,
        interruption: Interruption,
        start: int = 0,
        facts: dict | None = None,
        mirror: Mirror | None = None,
    ):
        self.settings, self.data, self.steps, self.start = settings, data, steps, start
        self.run_log, self.interruption, self.facts, self.mirror = log, interruption, facts or {}, mirror
        self.thoughts = thought_ids(data.tokenizer, settings.num_thoughts)
        self.pad = data.tokenizer.pad_token_id
        # A window has no end of its own; a row's completion has, and is judged whole.
        self.scored = settings.estep_tokens if isinstance(data.train, Windows) else 0
        self.judged_by = min(
            self.scored or math.inf, data.train.mean_lengths()[1]
        )  # tokens of a continuation, on average
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_at = self.saved_at = -1
        self.uploader, self.upload = ThreadPoolExecutor(1), None
        self.recent, self.skipped, self._step_loss = deque(maxlen=REMEMBERED), 0, 0.0
        self._reset_window()
        super().__init__(
            model=model,
            args=training_arguments(settings, steps, output_dir, start),
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=_evenly(data.eval, settings.eval_rows),
            processing_class=data.tokenizer,
            callbacks=[log, *log.trackers] if log else [],
        )
        # Our loss is normalised over the whole step already (law 8); without this the Trainer would divide it again.
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process from the step the run goes on from: nothing is skipped by reading it."""
        s, world, rank = self.settings, self.args.world_size, self.args.process_index
        each = s.gradient_accumulation_steps
        order = Batches(
            len(self.train_dataset), s.batch_size, s.seed, self.steps * each, self.start * each, rank, world
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=order,
            collate_fn=self.data_collator,
            num_workers=s.num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # else every iterator would draw from the global one, evaluations included
        )

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
        """Give every row a thought, its responsibilities and what the M-step's averages divide by.

        Words (L > 1) are too many to compare: N of them, drawn for the step, are its N thoughts.
        """
        s, N, M = self.settings, self.settings.num_thoughts, min(DIVERSITY_THOUGHTS, self.settings.num_thoughts)
        L = s.thought_length
        sizes = [len(b["prompt"]) for b in batches]
        world = self.args.world_size
        B, device = sum(sizes) * world, batches[0]["prompt"].device
        mine_R, gathered_B = _places(sizes, self.args.process_index, world)
        token_BL, q_BLN, others_BML = torch.full((B, L), -1), torch.zeros(B, L, N), torch.full((B, M - 1, L), -1)
        router_mean_N = torch.full((N,), 1 / N)
        carries = torch.rand(B, generator=g) >= s.thought_dropout
        words_NL = draw_words(N, N, L, g)
        targets_R = torch.cat([b["prompt_mask"].sum(1) + b["completion_mask"].sum(1) - 1 for b in batches])
        scores_RN = router_RN = torch.zeros(len(targets_R), N)
        if self.thoughts and carries.any():
            scores_RN, router_RN = self._score(batches, carries[mine_R], words_NL)
        # One exchange between the processes: every row's scores, router logits and number of targets.
        known_R = torch.cat([scores_RN.to(device), router_RN.to(device), targets_R[:, None].float()], 1)
        known_B = torch.empty(B, known_R.shape[1])
        known_B[gathered_B] = (self.accelerator.gather(known_R) if world > 1 else known_R).cpu()
        scores_BN, router_BN, targets_B = known_B.split([N, N, 1], 1)
        if self.thoughts and carries.any():
            q_carrying = responsibilities(scores_BN[carries], self.temperature())
            # Drawn from Q, not its argmax: while tau is high no accident of the first weights is cemented.
            winner = torch.multinomial(q_carrying, 1, generator=g)[:, 0]
            tokens_NL = torch.tensor(self.thoughts)[words_NL]
            token_BL[carries] = tokens_NL[winner]
            # The router's targets: for the first token all that begins with it, for the others the winner's.
            first_RN = torch.zeros_like(q_carrying).index_add(1, words_NL[:, 0], q_carrying)
            later_RLN = F.one_hot(words_NL[winner, 1:], N).to(first_RN.dtype)
            q_BLN[carries] = torch.cat([first_RN[:, None], later_RLN], 1)
            router_mean_N = router_BN[carries].softmax(-1).mean(0)
            if s.diversity_weight and self.state.global_step >= DIVERSITY_FROM * self.steps:
                rows = carries.nonzero()[:, 0]
                # Rounded up or down by chance: always up would cost a batch of 8 a third of its step.
                count = int(DIVERSITY_SHARE * len(rows) + torch.rand((), generator=g))
                rows = rows[torch.randperm(len(rows), generator=g)[:count]]
                chance = torch.rand(B, N, generator=g)
                chance[carries] = chance[carries].scatter(1, winner[:, None], -1.0)
                others_BML[rows] = tokens_NL[chance[rows].topk(M - 1).indices]
            self._compared += int((others_BML >= 0).any())
            self._count(usage=torch.bincount(words_NL[winner, 0], minlength=N).double())
        totals = {
            "target_tokens": int(targets_B.double().sum()),
            "carrying": max(1, int(carries.sum())),
            "compared": max(1, int((others_BML[:, :1, 0] >= 0).sum())),
        }
        parts = (t[mine_R].split(sizes) for t in (token_BL, q_BLN, others_BML))
        for b, token, q, others in zip(batches, *parts, strict=True):
            b |= {
                "thought": token.to(device),
                "q": q.to(device),
                "others": others.to(device),
                "usage": router_mean_N.to(device),
                "totals": totals,
            }
        self._count(tokens=totals["target_tokens"] + B)

    def _score(self, batches: list[dict[str, Tensor]], carries_R: Tensor, words_NL: Tensor) -> tuple[Tensor, Tensor]:
        """(mean log-likelihood, router logits) [R, N] of the rows that will carry a thought; zeros for the others."""
        N, parts = len(self.thoughts), 1 if self.is_fsdp_enabled else ESTEP_PARTS
        device, R = batches[0]["prompt"].device, len(carries_R)
        scores_RN, router_RN = torch.zeros(R, N, device=device), torch.zeros(R, N, device=device)
        sizes = [len(b["prompt"]) for b in batches]
        with torch.no_grad(), evaluating(self.model), self.compute_loss_context_manager():
            for b, rows in zip(batches, torch.arange(R).split(sizes), strict=True):
                keep = carries_R[rows]
                if not keep.any():
                    if not self.is_fsdp_enabled:
                        continue
                    keep[0] = True  # a sharded model's forward pass needs every process
                kept = {name: t[keep.to(t.device)] for name, t in b.items()}
                for some, part in by_length(kept, parts):
                    logp_BNT, router_BN, _ = thought_logprobs(self.model, part, self.thoughts, self.scored, words_NL)
                    length_B = part["completion_mask"][:, : logp_BNT.shape[-1]].sum(1)
                    places = rows[keep].to(device)[some]
                    scores_RN[places], router_RN[places] = logp_BNT.sum(-1) / length_B[:, None], router_BN
        return scores_RN, router_RN

    def temperature(self) -> float:
        """tau of the current step, nats per token: the same for a continuation of any length."""
        cooled = COOLED ** min(1.0, self.state.global_step / (ANNEAL * self.steps))
        return self.settings.estep_temperature * cooled / self.judged_by

    # M-step ---------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """L = CE(x and y) + w_r router - w_d diversity - w_e entropy: this micro-batch's share of the step's mean."""
        s, totals = self.settings, inputs.pop("totals")
        batch = {name: inputs[name] for name in ("prompt", "prompt_mask", "completion", "completion_mask")}
        B, P = batch["prompt"].shape
        compared = inputs["others"][:, :1, 0].ge(0).flatten().nonzero()[:, 0]
        token, M, L = inputs["thought"], inputs["others"].shape[1] + 1, s.thought_length
        if len(compared):  # the same rows again under other thoughts, in the same forward pass
            rows = compared.repeat_interleave(M - 1)
            batch = {name: torch.cat([t, t[rows]]) for name, t in batch.items()}
            token = torch.cat([token, inputs["others"][compared].flatten(0, 1)])
        layout = lay_out(batch, token, self.pad)
        labels = layout.pop("labels")[:B]
        logits = model(**layout, use_cache=False).logits
        targets = labels[:, 1:]
        ce = F.cross_entropy(logits[:B, :-1].transpose(1, 2).float(), targets, reduction="none", ignore_index=-100)
        losses = {"lm_loss": ce.sum() / totals["target_tokens"]}
        loss = losses["lm_loss"]
        carrying = token[:B, 0] >= 0
        if carrying.any():
            router_logits = logits[:B][carrying, P - 1 : P - 1 + L][..., self.thoughts].float()
            losses["router_loss"] = router_loss(inputs["q"][carrying], router_logits).sum() / totals["carrying"]
            share = carrying.sum() / totals["carrying"]
            # Of first tokens only: later ones are read behind a winner, and winners are drawn evenly.
            losses["entropy"] = usage_entropy(router_logits[:, 0].softmax(-1).mean(0), inputs["usage"]) * share
            loss = loss + s.router_weight * losses["router_loss"] - s.entropy_weight * losses["entropy"]
        if len(compared):
            ours, theirs = logits[compared, P - 1 + L : -1], logits[B:, P - 1 + L : -1]
            logits_MRTV = torch.cat([ours[None], theirs.unflatten(0, (-1, M - 1)).transpose(0, 1)])
            said = diversity(logits_MRTV, batch["completion"][compared], batch["completion_mask"][compared])
            losses["diversity"] = said.sum() / totals["compared"]
            rewarded = said.clamp(max=DIVERSITY_CAP * math.log(M)).sum() / totals["compared"]
            loss = loss - s.diversity_weight * rewarded
        self._count(losses={name: value.detach() for name, value in losses.items()})
        self._step_loss = self._step_loss + losses["lm_loss"].detach()
        # Gradients are averaged over the processes, and ours are shares of a sum.
        return loss * self.args.world_size

    # What must not be learnt from -----------------------------------------------------------------------------------

    def _get_grad_norm(self, model, grad_norm=None):
        """Called between clipping and the update: the last moment to drop gradients that would do harm."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self._step_loss = float(self._sum(torch.as_tensor(self._step_loss))), 0.0
        fault = self.fault(loss, float(norm))
        if fault is None:
            self.recent.append(loss)
            self.skipped = 0
            return norm
        self.skipped += 1
        for parameter in model.parameters():
            parameter.grad = None  # an optimizer leaves parameters without gradient, and its moments of them, alone
        if self.is_world_process_zero():
            print(f"step {self.state.global_step + 1}: {fault}; update skipped", file=sys.stderr)
        if self.skipped == PATIENCE:
            rate = self.settings.peak_learning_rate()
            raise ValueError(
                f"step {self.state.global_step + 1}: {fault}, {PATIENCE} updates in a row; lower --learning_rate {rate:g} "
                f"(try {rate / 4:.2g}) or raise --warmup_ratio {self.settings.warmup_ratio:g} (try {max(0.2, 2 * self.settings.warmup_ratio):g}), "
                "then start again or --resume_from auto --allow_changed"
            )
        return norm

    def fault(self, loss: float, norm: float) -> str | None:
        """Why an update must not be made, or None: NaN, infinity, or a loss far above the recent ones."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"loss is {loss:.4g} and gradient norm {norm:.4g}"
        if len(self.recent) == REMEMBERED:
            mean = statistics.fmean(self.recent)
            deviation = max(statistics.pstdev(self.recent), STEADY * mean)
            if loss > mean + SPIKE * deviation:
                return f"loss {loss:.4g} is {(loss - mean) / deviation:.1f} standard deviations above the last {REMEMBERED}"
        return None

    def _sum(self, share: Tensor) -> Tensor:
        """A share of every process, summed."""
        return self.accelerator.reduce(share.to(self.args.device)) if self.args.world_size > 1 else share

    # What must not be lost ------------------------------------------------------------------------------------------

    def asked_to_stop(self) -> bool:
        """Has any process been sent a signal? All processes get the same answer, and take the signal for their own."""
        signum = torch.tensor(self.interruption.signum or 0, device=self.args.device)
        if self.args.world_size > 1:
            signum = self.accelerator.gather(signum).max()
        self.interruption.signum = int(signum) or None
        return self.interruption.signum is not None

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """After every update: a signal becomes a checkpoint of this step, and the end of training."""
        if self.asked_to_stop():
            self.control.should_training_stop = True
            self.control.should_evaluate = False
            self.control.should_save = self.saved_at != self.state.global_step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial=None) -> None:
        """A checkpoint with its manifest written last; the oldest ones beyond the limit go after that."""
        step = self.state.global_step
        directory = Path(self.args.output_dir) / f"checkpoint-{step}"
        writes = self.is_world_process_zero()
        self.finish_upload()  # a directory on its way must not be pruned
        try:
            if writes:
                discard(directory)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if writes:
                for name in HISTORY:
                    if (directory.parent / name).is_file():
                        shutil.copyfile(directory.parent / name, directory / name)
                atomic_write_text(directory / WATCH, json.dumps({"recent": list(self.recent), "skipped": self.skipped}))
                seal(directory, step, self.facts)
                prune(self.args.output_dir, self.settings.save_total_limit)
        except WRITE_ERRORS as e:
            if not disk_is_full(e) or self.args.world_size > 1:
                raise
            discard(directory)
            print(
                f"step {step}: the disk is full, checkpoint-{step} is not written; older checkpoints stay",
                file=sys.stderr,
            )
            return
        self.saved_at = step
        if writes and self.mirror:
            self.upload = self.uploader.submit(self._upload, directory)

    def _upload(self, directory: Path) -> None:
        """In a thread of its own, while training goes on."""
        try:
            self.mirror.upload(directory)
            self.mirror.prune(self.settings.save_total_limit)
        except ValueError as e:
            print(f"{directory.name} is not uploaded, the next one will be tried: {e}", file=sys.stderr)

    def finish_upload(self) -> None:
        """Wait for the checkpoint that is being uploaded, if one is."""
        if self.upload:
            self.upload.result()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model and tokenizer in Hugging Face's layout; not the Trainer's training_args.bin, which is a pickle."""
        if self.args.should_save:
            unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if isinstance(self.settings, AdaptSettings):
                adapters.save(unwrapped, output_dir, state_dict)
            else:
                unwrapped.save_pretrained(output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir)

    def _init_training_state(self, max_steps, *args) -> tuple[int, int]:
        """The Trainer would take the checkpoint's intervals, whatever --save_every and --eval_every say now."""
        result = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            watch = json.loads((Path(checkpoint) / WATCH).read_text())
            self.recent, self.skipped = deque(watch["recent"], REMEMBERED), watch["skipped"]

    # What a person sees ---------------------------------------------------------------------------------------------

    def _reset_window(self) -> None:
        self._sums, self._usage, self._tokens = {}, torch.zeros(self.settings.num_thoughts).double(), 0
        self._compared, self._since, self._first_step = 0, time.perf_counter(), None

    def _count(self, usage=0, tokens=0, losses=None) -> None:
        if self._first_step is None:
            self._first_step = self.state.global_step
        self._usage, self._tokens = self._usage + usage, self._tokens + tokens
        for name, value in (losses or {}).items():
            self._sums[name] = self._sums.get(name, 0) + value  # stays on the device: no sync per step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the Trainer's numbers our losses apart, speed, memory, and how much the E-step used each thought.

        Of words, `usage` and `effective_thoughts` are those of the winners' first tokens, 1 .. N.
        """
        if "loss" in logs and self._sums:
            steps = max(1, self.state.global_step - self._first_step)
            # Every process has to ask for the same sums; a name may be missing where no row of it was concerned.
            names = ("lm_loss", "router_loss", "entropy", "diversity")
            sums = self._sum(
                torch.stack([torch.as_tensor(self._sums.get(n, 0.0), device=self.args.device) for n in names])
            )
            shown = names[: 1 + 2 * bool(self.thoughts) + bool(self._compared)]
            logs |= {name: value / steps for name, value in zip(names, sums.tolist(), strict=True) if name in shown}
            # Not every step compares thoughts: a mean over those that do, or no number at all.
            logs |= {"diversity": logs.pop("diversity") * steps / self._compared} if self._compared else {}
            logs["tokens_per_second"] = self._tokens / (time.perf_counter() - self._since)
            logs["peak_memory_gib"] = peak_memory() / 2**30
            if self._usage.sum():
                logs |= {
                    "effective_thoughts": effective_thoughts(self._usage).item(),
                    "temperature": self.temperature(),
                }
                logs |= {f"usage/{k}": share for k, share in enumerate((self._usage / self._usage.sum()).tolist())}
            self._reset_window()
        rows = self.settings.batch_size * self.settings.gradient_accumulation_steps * self.args.world_size
        self.state.epoch = self.state.global_step * rows / len(self.train_dataset)
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Base, mixture and oracle NLL (nats per token), specialisation and effective thoughts on held-out rows.

        On a text of another kind, where one was given, the base NLL alone (`eval_general_nll`). Of words, effective thoughts are those among the N that mot.model.build.score asks: 1 .. N.
        A signal ends it early; the checkpoint that follows is of the step it belongs to.
        """
        begin = time.perf_counter()
        parts, general = [], []
        for batch in self._batches(self.eval_dataset, self.data.collate):
            if self._ended_early():
                return {}
            with self.compute_loss_context_manager():
                parts.append(score(self.model, batch, self.thoughts, self.pad, self.settings.thought_length))
        if self.data.general:
            for batch in self._batches(_evenly(self.data.general, self.settings.eval_rows), collate_windows):
                if self._ended_early():
                    return {}
                with torch.no_grad(), evaluating(self.model), self.compute_loss_context_manager():
                    general.append(-base_logprobs(self.model, batch, self.pad) / batch["completion"].shape[1])
        scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        weight = scores["tokens"] / scores["tokens"].sum()
        metrics = {
            f"{metric_key_prefix}_{name}": (scores[name] * weight).sum().item()
            for name in ("base_nll", "mixture_nll", "oracle_nll")
        }
        if general:
            metrics[f"{metric_key_prefix}_general_nll"] = torch.cat(general).mean().item()
        if self.thoughts:
            metrics[f"{metric_key_prefix}_specialisation"] = scores["specialisation"].mean().item()
            usage = torch.bincount(scores["winner"], minlength=len(self.thoughts)).double()
            metrics[f"{metric_key_prefix}_effective_thoughts"] = effective_thoughts(usage).item()
        self.last_evaluation, self.evaluated_at = dict(metrics), self.state.global_step
        if self.run_log and not self.is_fsdp_enabled:
            self._sample()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - begin  # tokens per second are training's
        return metrics

    def _batches(self, dataset, collate) -> Iterator[dict[str, Tensor]]:
        """Held-out rows, branched, where the model is. So few at a time that all thoughts' logits are not more than training's."""
        rows = max(1, min(self.settings.batch_size, 2 * self.settings.batch_size // self.settings.num_thoughts))
        loader = DataLoader(dataset, batch_size=rows, collate_fn=collate, generator=torch.Generator())
        for raw in loader:
            batch = branch(raw, self.settings.seq_length // 2)
            yield {name: t.to(self.args.device) for name, t in batch.items()}

    def _ended_early(self) -> bool:
        if self.asked_to_stop():
            self.control.should_training_stop = True
            self.control.should_save = self.saved_at != self.state.global_step
        return bool(self.interruption.signum)

    def _sample(self) -> None:
        """What the thoughts say about the first held-out prompt, for people to read. Draws from no global generator."""
        first = branch(self.data.collate([self.eval_dataset[0]]), self.settings.seq_length // 2)
        ids = first["prompt"][0].tolist()
        prompt = self.data.tokenizer.decode(ids, skip_special_tokens=True)
        mixture = MixtureOfThoughts(self.model, self.data.tokenizer, self.thoughts, self.settings.thought_length)
        with evaluating(self.model), self.compute_loss_context_manager():
            asked = (
                prompt if encode_prompts(self.data.tokenizer, [prompt])[0] == ids else ids
            )  # a template's own tokens
            said = mixture.think(asked, min(SAMPLED, mixture.num_thoughts), max_new_tokens=SAMPLED_TOKENS, seed=0)
        self.run_log.samples(self.state.global_step, prompt, said)


def training_arguments(settings: RunSettings, steps: int, output_dir: str, start: int = 0) -> TrainingArguments:
    """The settings in the Trainer's own words."""
    gpu = torch.accelerator.is_available()
    args = TrainingArguments(
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
        eval_on_start=isinstance(settings, AdaptSettings) and start == 0,  # what the base can do before it is touched
        eval_steps=settings.eval_every or max(1, steps // 5),
        save_strategy="steps",
        save_steps=settings.save_every or max(1, steps // 10),
        report_to="none",  # the trackers are among the callbacks
        project=PROJECT,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    args._n_gpu = min(1, args.n_gpu)  # several GPUs are for torchrun; DataParallel knows nothing of our loss
    return args


def peak_memory() -> int:
    """Bytes: the most that was allocated on the GPU, else the most that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _places(sizes: list[int], rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Where this process' rows [R], and the rows of all processes one after the other [B], stand in the step.

    A step's rows are in the order of the data: micro-batch by micro-batch, in each process by process. One process with
    twice the batch has the same rows at the same places.
    """
    offsets = [world * sum(sizes[:m]) for m in range(len(sizes))]
    of_rank = [
        torch.cat([torch.arange(size) + offset + r * size for size, offset in zip(sizes, offsets, strict=True)])
        for r in range(world)
    ]
    return of_rank[rank], torch.cat(of_rank)


def _evenly(dataset, rows: int):
    """At most `rows` rows (0: all) of a dataset, evenly spaced."""
    if not rows or rows >= len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // rows for i in range(rows)])
