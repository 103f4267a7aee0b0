"""Scores: the drawn texts, verified, judged and measured, each once.

scores = Scores(plan, texts)
scores.values(setting, "test", "validity")      # one value per prompt, or per seed of a single prompt
scores.point(setting, "test")                   # quality and diversity, larger is better
"""

from functools import lru_cache
from statistics import fmean

import torch

from mot import tasks
from mot.data.datasets import collate_rows
from mot.evaluation import metrics
from mot.evaluation.measures import MEASURES, Case
from mot.evaluation.plan import Plan
from mot.evaluation.samples import Texts
from mot.evaluation.statistics import Point
from mot.inference.sampler import Setting, prompt_ids
from mot.model.score import base_logprobs
from mot.model.tokenizer import encode


class Scores:
    def __init__(self, plan: Plan, texts: Texts):
        self.plan, self.texts = plan, texts
        self.splits = {part.name: part for part in (plan.validation, plan.test)}
        self.verify = lru_cache(None)(tasks.load(plan.task).verify) if plan.task else None
        self.nll: dict[tuple[str, str], float] = {}
        self._cases: dict[tuple[Setting, str], list[list[Case]]] = {}
        self._values: dict[tuple[Setting, str, str], list[float]] = {}
        test_texts = {text for (_, part, *_), row in texts.drawn.items() if part == plan.test.name for text in row}
        self.vocabulary = max(2, len({gram for text in test_texts for gram in metrics.ngrams(text, 2)}))

    def cases(self, setting: Setting, part: str) -> list[list[Case]]:
        """A case for every seed and prompt; a deterministic setting has one seed."""
        if (setting, part) not in self._cases:
            seeds = self.plan.seeds(setting, self.splits[part])
            self._cases[setting, part] = [self._cases_of_seed(setting, part, seed) for seed in seeds]
        return self._cases[setting, part]

    def _cases_of_seed(self, setting: Setting, part: str, seed: int) -> list[Case]:
        items = self.splits[part].items
        rows = [(item, self.texts.drawn[setting.name, part, seed, i]) for i, item in enumerate(items)]
        if self.plan.judge:
            self._judge([(item.prompt, text) for item, texts in rows for text in texts])
        return [
            Case(
                item,
                texts,
                [self.verify(item.prompt, text) for text in texts] if self.verify else None,
                [self.nll[item.prompt, text] for text in texts] if self.plan.judge else None,
                self.vocabulary,
                self.plan.task,
            )
            for item, texts in rows
        ]

    @torch.no_grad()
    def _judge(self, pairs: list[tuple[str, str]]) -> None:
        """NLL per token of every text after its prompt; an empty text is scored as the end-of-text token."""
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self.nll))
        judge, size = self.plan.judge, self.plan.batch_size
        tokenizer, end = judge.tokenizer, judge.tokenizer.eos_token_id
        for i in range(0, len(new), size):
            batch_pairs = new[i : i + size]
            texts = [ids or [end] for ids in encode(tokenizer, [text for _, text in batch_pairs], "--judge")]
            rows = list(zip(prompt_ids(judge, [prompt for prompt, _ in batch_pairs]), texts, strict=True))
            batch = {name: t.to(judge.model.device) for name, t in collate_rows(rows, judge.pad).items()}
            nll = -base_logprobs(judge.model, batch, judge.pad) / batch["completion_mask"].sum(1)
            self.nll |= dict(zip(batch_pairs, nll.tolist(), strict=True))

    def values(self, setting: Setting, part: str, name: str) -> list[float]:
        """A measure, once per unit: per prompt as the mean over seeds, or per seed where there is a single prompt."""
        key = setting, part, name
        if key not in self._values:
            rows = [[MEASURES[name].value(case) for case in cases] for cases in self.cases(setting, part)]
            if len(self.splits[part].items) > 1:
                self._values[key] = [fmean(column) for column in zip(*rows, strict=True)]
            elif setting.random:
                self._values[key] = [row[0] for row in rows]
            else:
                self._values[key] = [rows[0][0] for _ in self.splits[part].seeds]
        return self._values[key]

    def point(self, setting: Setting, part: str) -> Point:
        """Quality and diversity, larger is better. Without a measure of quality all settings are equally good."""
        d = self._signed(setting, part, self.plan.diversity)
        q = self._signed(setting, part, self.plan.quality) if self.plan.quality else [0.0] * len(d)
        return Point(setting.name, q, d)

    def _signed(self, setting: Setting, part: str, name: str) -> list[float]:
        return [MEASURES[name].sign * value for value in self.values(setting, part, name)]
