"""Balanced, relaxed hard EM inside the transformers Trainer, in one process or several.

    MixtureTrainer(settings, data, model, steps, output_dir, log, interruption).train(resume_from_checkpoint)

Each optimizer step is one round of EM over all rows of the step:

    E-step   get_batch_samples   a[b,k] = log p(y_b | x_b, k) / length;  Q = Sinkhorn(a / tau);  winner_b ~ Q[b]
    M-step   compute_loss        CE(x and y) + w_r CE(Q, router) - w_d diversity - w_e entropy   on [x, winner, y]

In the last --match_steps steps the E-step asks a verifier instead: thoughts that give the same answer are matched with
other verified answers, and those are the rows of the M-step (matching.py).

`get_batch_samples` receives all micro-batches of the step at once: the responsibilities are balanced over the whole
step, over all processes. All randomness of a step comes from (seed, step), so that a resumed run draws what the
uninterrupted run would have drawn, and two processes draw what one would have. What the E-step decides from its scores
is in assignment.py. What is not the objective lies beside it: callbacks.py (spikes, signals, checkpoints, averages),
evaluate.py, arguments.py.

Shapes: see mot/thoughts.py. B is the rows of the whole step in the E-step and of a micro-batch in the M-step, R those
of this process, C those that carry a thought.
"""

import math
import time
from pathlib import Path

import torch
from accelerate.utils import gather, reduce
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from mot.data.datasets import Batches, Windows, branch, by_length, keyed
from mot.data.load import Data
from mot.inference.think import MixtureOfThoughts
from mot.model.score import evaluating, lay_out, thought_logprobs
from mot.model.tokenizer import thought_ids
from mot.runtime.remote import Mirror, is_remote
from mot.runtime.signals import SignalHandler
from mot.tasks.verifier import Verify
from mot.thoughts import diversity, draw_sequences, router_loss, usage_entropy
from mot.training.arguments import training_arguments
from mot.training.assignment import Assignment, Mates, choose_contrast, match, mates_of, recall, row_offsets
from mot.training.best import KeepBest
from mot.training.callbacks import FlagsGovern, LogWindow, SealCheckpoint, SpikeGuard, StopOnSignal
from mot.training.evaluate import evenly, measure, sample
from mot.training.matching import COUNTS, answer_batch
from mot.training.memory import RememberedWinners
from mot.training.recipes import recipe_of
from mot.training.run_log import RunLog
from mot.training.settings import ANNEAL, DIVERSITY_FROM, DIVERSITY_THOUGHTS, RunSettings

ESTEP_PARTS = 4  # batches of similar length that the E-step makes of one: short rows are not padded to the longest
COOLED = 1 / 20  # tau of the responsibilities falls from --estep_temperature to this share of it
DIVERSITY_CAP = 0.5  # of log M: more is not rewarded, because it would cost likelihood


class MixtureTrainer(Trainer):
    """transformers' Trainer with the objective of docs/architecture.md. One instance trains one mixture.

    `start` is the step of the checkpoint that training resumes from, `facts` what a manifest says about the run.
    """

    def __init__(
        self,
        settings: RunSettings,
        data: Data,
        model,
        steps: int,
        output_dir: str,
        log: RunLog | None,
        interruption: SignalHandler,
        start: int = 0,
        facts: dict | None = None,
        mirror: Mirror | None = None,
        verify: Verify | None = None,
    ):
        self.settings, self.data, self.steps, self.start = settings, data, steps, start
        self.verify, self.em_steps = verify, steps - (settings.matched_steps(steps) if verify else 0)
        self.run_log, self.facts, self.recipe = log, facts or {}, recipe_of(settings)
        self.thoughts = thought_ids(data.tokenizer, settings.num_thoughts)
        self.pad = data.tokenizer.pad_token_id
        self.scored_tokens = settings.scored_tokens(isinstance(data.train, Windows))
        self.mean_scored = min(self.scored_tokens or math.inf, data.train.mean_scored())  # tokens
        self.longest = data.train.longest_continuation() if verify else 0  # tokens
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_at = -1
        self.window = LogWindow(settings.num_thoughts)
        self.guard = SpikeGuard(settings)
        self.groups = data.train.prompt_numbers if settings.group_prompts else None
        self.memory = None
        if settings.estep_rows < 1:
            self.memory = RememberedWinners(len(data.train), settings.num_thoughts, settings.estep_rows, self.em_steps)
        self.checkpoint_state = [self.guard]  # objects with save(directory) and load(directory)
        self.checkpoint_state += [self.memory] if self.memory else []
        self.best = KeepBest(settings.early_stopping, is_remote(settings.output()))
        self.seal = SealCheckpoint(
            settings.save_total_limit, self.facts, mirror, self.checkpoint_state, self.guard, self.best
        )
        self.stop = StopOnSignal(interruption, self.seal)
        super().__init__(
            model=model,
            args=training_arguments(settings, steps, output_dir, self.recipe.evaluates_first and start == 0),
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=evenly(data.eval, settings.eval_rows),
            processing_class=data.tokenizer,
            callbacks=[
                FlagsGovern(),
                self.guard,
                self.stop,
                self.best,
                self.seal,
                *([log, *log.trackers] if log else []),
            ],
        )
        self.order = self.data_order(0)
        # Our loss is normalised over the whole step already (law 8). Without this the Trainer would divide it again.
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)

    def train(self, resume_from_checkpoint: str | None = None):
        """Train, from a checkpoint's directory if one is given, with the state that the Trainer does not restore."""
        if resume_from_checkpoint:
            for part in self.checkpoint_state:
                part.load(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the recipe's optimizer, or the Trainer's AdamW."""
        if self.optimizer is None:
            self.optimizer = self.recipe.optimizer(self.model, self.args.adam_beta2)
        return super().create_optimizer(model)

    def data_order(self, batches: int, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
        """Return the order in which process `rank` sees the rows."""
        s, rows = self.settings, len(self.data.train)
        step_rows = s.batch_size * s.gradient_accumulation_steps * self.args.world_size
        return Batches(rows, s.batch_size, s.seed, batches, start, rank, world, self.groups, step_rows)

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's batches from the step that training resumes from; nothing before it is read."""
        s, world, rank = self.settings, self.args.world_size, self.args.process_index
        each = s.gradient_accumulation_steps
        order = self.data_order(self.steps * each, self.start * each, rank, world)
        return DataLoader(
            self.train_dataset,
            batch_sampler=order,
            collate_fn=self.data_collator,
            num_workers=s.num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # without it every iterator draws from the global one, also in evaluations
        )

    # E-step ---------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], None]:
        """Return the micro-batches of one optimizer step, cut at the branch point, with a thought for every row."""
        raw, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        g = torch.Generator().manual_seed(self.step_seed)
        point = int(torch.randint(1, self.settings.seq_length, (), generator=g))
        batches = [{name: t.to(device) for name, t in branch(b, point).items()} for b in raw]
        if batches and self.state.global_step >= self.em_steps:
            return self.match_answers(batches, g), None
        if batches:
            self.assign(batches, g)
        return batches, None

    @property
    def step_seed(self) -> int:
        """All randomness of a step comes from it: the run's seed and the step's number."""
        return self.settings.seed * 1_000_003 + self.state.global_step

    def assign(self, batches: list[dict[str, Tensor]], g: torch.Generator) -> None:
        """Add to every micro-batch its rows of the `Assignment`, and the totals that the M-step's means divide by.

        Thought sequences (L > 1) are too many to compare: N of them, drawn for the step, are its N thoughts.
        """
        s, N, M = self.settings, self.settings.num_thoughts, min(DIVERSITY_THOUGHTS, self.settings.num_thoughts)
        sizes, world = [len(b["prompt"]) for b in batches], self.args.world_size
        B, device = sum(sizes) * world, batches[0]["prompt"].device
        local_rows, gathered_rows = row_offsets(sizes, self.args.process_index, world)
        carries_B = torch.rand(B, generator=g) >= s.thought_dropout
        candidates_NL = draw_sequences(N, N, s.thought_length, g)
        rows_B, winner_B, mates = self.known_rows(carries_B)
        scored_B = carries_B & (winner_B < 0)

        of_R = self.score_rows(batches, scored_B, local_rows, candidates_NL)
        of_B = torch.empty(B, of_R.shape[1])  # one exchange between the processes
        of_B[gathered_rows] = gather(of_R).cpu()
        scores_BN, router_BN, targets_B = of_B.split([N, N, 1], 1)

        step = Assignment.empty(B, N, M, s.thought_length)
        if self.thoughts and carries_B.any():
            tokens_NL, tau = torch.tensor(self.thoughts)[candidates_NL], self.temperature()
            if scored_B.any():
                winner_B[scored_B] = match(
                    step, scores_BN, router_BN, scored_B, candidates_NL, tokens_NL, tau, g, mates
                )
            if self.memory:
                self.memory.keep(rows_B[scored_B], winner_B[scored_B])
                if self.memory.scores_all(self.state.global_step):
                    self.memory.router_mean_N = step.router_mean_N
                recall(step, winner_B, carries_B & ~scored_B, tokens_NL, self.memory.router_mean_N)
            winner_C = winner_B[carries_B]
            if s.diversity_weight and self.state.global_step >= DIVERSITY_FROM * self.em_steps:
                choose_contrast(step, winner_C, carries_B, tokens_NL, g)
            self.window.add_usage(torch.bincount(candidates_NL[winner_C, 0], minlength=N).double())
        contrasted = int((step.contrast_BML[:, :1, 0] >= 0).sum())
        totals = {
            "target_tokens": int(targets_B.double().sum()),
            "carrying": max(1, int(carries_B.sum())),
            "contrasted": max(1, contrasted),
        }
        parts = (t[local_rows].split(sizes) for t in (step.thought_BL, step.q_BLN, step.contrast_BML))
        for b, thought, q, contrast in zip(batches, *parts, strict=True):
            b |= {"thought": thought.to(device), "q": q.to(device), "contrast": contrast.to(device)}
            b |= {"router_mean": step.router_mean_N.to(device), "totals": totals}
        self.window.add_step(self.state.global_step, totals["target_tokens"] + B, contrasted > 0)

    def known_rows(self, carries_B: Tensor) -> tuple[Tensor, Tensor, list[Mates]]:
        """Return what is known of a step's rows before they are scored: numbers [B], remembered winners [B], `Mates`.

        Winners are 0 .. N-1, or -1 for a row that must be scored or carries no thought.
        """
        B, step, rows = len(carries_B), self.state.global_step, len(self.data.train)
        unknown_B = torch.full((B,), -1)
        if not self.memory and self.groups is None:
            return unknown_B, unknown_B, []
        rows_B = torch.tensor(self.order.rows_of(step, B))
        winner_B = self.memory.of(rows_B, step).where(carries_B, -1) if self.memory else unknown_B
        if self.groups is None:
            return rows_B, winner_B, []
        # A step may reach into the next epoch, where the same rows come again.
        epoch_B = (step * B + torch.arange(B)) // rows
        prompt_B = torch.from_numpy(self.groups)[rows_B] + epoch_B * rows
        return rows_B, winner_B, mates_of(prompt_B, carries_B & (winner_B < 0), winner_B)

    def score_rows(
        self, batches: list[dict[str, Tensor]], carries_B: Tensor, local_rows: Tensor, candidates_NL: Tensor
    ) -> Tensor:
        """Return [R, 2 N + 1] of this process's rows: scores, router logits, and the number of the M-step's targets."""
        targets_R = torch.cat([b["prompt_mask"].sum(1) + b["completion_mask"].sum(1) - 1 for b in batches])
        scores_RN = router_RN = torch.zeros(len(targets_R), self.settings.num_thoughts)
        if self.thoughts and carries_B.any():  # the same in every process
            scores_RN, router_RN = self.score_thoughts(batches, carries_B[local_rows], candidates_NL)
        device = targets_R.device
        return torch.cat([scores_RN.to(device), router_RN.to(device), targets_R[:, None].float()], 1)

    def score_thoughts(
        self, batches: list[dict[str, Tensor]], carries_R: Tensor, candidates_NL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (mean log-likelihood, router logits) [R, N] of rows that carry a thought; zeros for the others."""
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
                    keep[0] = True  # the forward pass of a sharded model needs every process
                kept = {name: t[keep.to(t.device)] for name, t in keyed(b).items()}
                for some, part in by_length(kept, parts):
                    logp_BNT, router_BN, _ = thought_logprobs(
                        self.model, part, self.thoughts, self.scored_tokens, candidates_NL
                    )
                    length_B = part["completion_mask"][:, : logp_BNT.shape[-1]].sum(1)
                    places = rows[keep].to(device)[some]
                    scores_RN[places], router_RN[places] = logp_BNT.sum(-1) / length_B[:, None], router_BN
        return scores_RN, router_RN

    def temperature(self) -> float:
        """Return tau of the current step in nats per token; per continuation it is the same for any length."""
        cooled = COOLED ** min(1.0, self.state.global_step / max(1.0, ANNEAL * self.em_steps))
        return self.settings.estep_temperature * cooled / self.mean_scored

    def match_answers(self, batches: list[dict[str, Tensor]], g: torch.Generator) -> list[dict[str, Tensor]]:
        """Return micro-batches whose rows are verified answers of the thoughts (mot/training/matching.py).

        Every SLOTS rows of a micro-batch become SLOTS answers to the prompt of the first of them. Rows that carry no
        thought stay as they are, and so does a row for whose prompt there is nothing to learn.
        """
        sizes = [len(b["prompt"]) for b in batches]
        B = sum(sizes) * self.args.world_size
        local_rows, _ = row_offsets(sizes, self.args.process_index, self.args.world_size)
        carries_R = (torch.rand(B, generator=g) >= self.settings.thought_dropout)[local_rows]
        if self.state.global_step == self.em_steps:
            self.guard.loss_window.clear()  # answers that a thought does not give yet have a higher loss
        mixture = MixtureOfThoughts(self.model, self.data.tokenizer, self.thoughts)
        with torch.no_grad(), evaluating(self.model), self.compute_loss_context_manager():
            made = [
                answer_batch(mixture, self.verify, b, carries, self.settings, self.longest, self.step_seed)
                for b, carries in zip(batches, carries_R.split(sizes), strict=True)
            ]
        device = batches[0]["prompt"].device
        sums = reduce(torch.stack([sums for _, sums in made]).sum(0).to(device), "sum")
        totals = dict(zip(COUNTS, sums[: len(COUNTS)].tolist(), strict=True))
        totals |= {"carrying": max(1.0, totals["carrying"]), "contrasted": 1}
        self.window.add_step(self.state.global_step, round(totals["target_tokens"]) + B, False)
        self.window.add_matching(totals)
        router_mean = (sums[len(COUNTS) :] / totals["carrying"]).float()
        return [b | {"totals": totals, "router_mean": router_mean} for b, _ in made]

    # M-step ---------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """L = CE(x and y) + w_r router - w_d diversity - w_e entropy: this micro-batch's share of the step's mean."""
        s, totals = self.settings, inputs["totals"]
        batch = {name: inputs[name] for name in ("prompt", "prompt_mask", "completion", "completion_mask")}
        (B, P), L, M = batch["prompt"].shape, s.thought_length, inputs["contrast"].shape[1] + 1
        thought_BL, contrast_rows = inputs["thought"], inputs["contrast"][:, :1, 0].ge(0).flatten().nonzero()[:, 0]
        if len(contrast_rows):  # the same rows again under other thoughts, in the same forward pass
            again = contrast_rows.repeat_interleave(M - 1)
            batch = {name: torch.cat([t, t[again]]) for name, t in batch.items()}
            thought_BL = torch.cat([thought_BL, inputs["contrast"][contrast_rows].flatten(0, 1)])
        layout = lay_out(batch, thought_BL, self.pad)
        targets = layout.pop("labels")[:B, 1:]
        logits = model(**layout, use_cache=False).logits

        ce = F.cross_entropy(logits[:B, :-1].transpose(1, 2).float(), targets, reduction="none", ignore_index=-100)
        losses = {"lm_loss": ce.sum() / totals["target_tokens"]}
        loss = losses["lm_loss"]
        carrying = thought_BL[:B, 0] >= 0
        if carrying.any():
            router_logits = logits[:B][carrying, P - 1 : P - 1 + L][..., self.thoughts].float()
            losses["router_loss"] = router_loss(inputs["q"][carrying], router_logits).sum() / totals["carrying"]
            # Of first tokens only: later ones are read after a winner, and winners are drawn evenly.
            mean_N, share = router_logits[:, 0].softmax(-1).mean(0), carrying.sum() / totals["carrying"]
            losses["entropy"] = usage_entropy(mean_N, inputs["router_mean"]) * share
            loss = loss + s.router_weight * losses["router_loss"] - s.entropy_weight * losses["entropy"]
        if len(contrast_rows):
            of_winner, of_others = logits[contrast_rows, P - 1 + L : -1], logits[B:, P - 1 + L : -1]
            logits_MRTV = torch.cat([of_winner[None], of_others.unflatten(0, (-1, M - 1)).transpose(0, 1)])
            divergence_R = diversity(
                logits_MRTV, batch["completion"][contrast_rows], batch["completion_mask"][contrast_rows]
            )
            losses["diversity"] = divergence_R.sum() / totals["contrasted"]
            rewarded = divergence_R.clamp(max=DIVERSITY_CAP * math.log(M)).sum() / totals["contrasted"]
            loss = loss - s.diversity_weight * rewarded

        self.window.add_losses({name: value.detach() for name, value in losses.items()})
        self.guard.step_loss = self.guard.step_loss + losses["lm_loss"].detach()
        # Gradients are averaged over the processes, and ours are shares of a sum.
        return loss * self.args.world_size

    # The Trainer's public hooks ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the Trainer's numbers our averages since the last call (docs/monitoring.md), and the epoch."""
        if "loss" in logs and self.window.losses:
            logs |= self.window.averages(self.state.global_step, bool(self.thoughts), self.temperature())
            self.window.reset()
        rows = self.settings.batch_size * self.settings.gradient_accumulation_steps * self.args.world_size
        self.state.epoch = self.state.global_step * rows / len(self.train_dataset)
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Return what mot/training/evaluate.py measures on held-out rows, and write samples.

        A signal ends it early with no numbers; the checkpoint that follows is of the step it belongs to.
        """
        begin = time.perf_counter()
        with self.compute_loss_context_manager():
            measured = measure(
                self.model, self.data, self.eval_dataset, self.settings, self.args.device, self.stop.asked
            )
        if measured is None:
            self.stop.end(self.state, self.control)
            self.seal.require_room(self.args, self.state, self.control)
            return {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.last_evaluation, self.evaluated_at = dict(metrics), self.state.global_step
        if self.run_log and not self.is_fsdp_enabled:
            with self.compute_loss_context_manager():
                prompt, thoughts = sample(self.model, self.data, self.eval_dataset[0], self.settings)
            self.run_log.samples(self.state.global_step, prompt, thoughts)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.window.since += time.perf_counter() - begin  # tokens per second are training's
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model and tokenizer in Hugging Face's layout, without training_args.bin, which is a pickle.

        The Trainer calls this first when it writes a checkpoint. All processes call it, the first one writes.
        """
        if _internal_call:
            self.seal.begin(Path(output_dir))
        state_dict = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            self.recipe.save(unwrapped, output_dir, state_dict)
            self.processing_class.save_pretrained(output_dir)
