"""What the thoughts of a mixture are like: how similar two of them are, how far they reach, and how probable each is.

profile(plan, scores, selected)     # None without thoughts
"""

import math
from statistics import fmean

import torch

from mot.evaluation import metrics
from mot.evaluation.measures import Case
from mot.evaluation.plan import Plan
from mot.evaluation.schema import Profile
from mot.evaluation.scores import Scores
from mot.inference.sampler import Setting, prompt_ids
from mot.inference.think import MixtureOfThoughts
from mot.model.tokenizer import encode

MAX_READ = 32  # prompts whose continuations are read under every thought


def profile(plan: Plan, scores: Scores, selected: Setting | None) -> Profile | None:
    """Similarity and persistence are known where every thought was drawn once and a thought is one token."""
    if selected is None:
        return None
    mixture = plan.mixture
    usage = torch.stack([mixture.route(prompt) for prompt in plan.test.prompts]).mean(0).tolist()
    if plan.k != mixture.num_thoughts or mixture.thought_length > 1:
        return Profile(None, "", None, usage)
    cases = scores.cases(selected, "test")[0]
    if plan.task:
        agree = [[[float(a == b and a is not None) for b in case.answers] for a in case.answers] for case in cases]
        similarity = torch.tensor(agree).mean(0)
        description = "share of the prompts to which both give the same valid answer"
    else:
        similarity = torch.stack([metrics.ngram_similarity(case.texts) for case in cases]).mean(0)
        description = "cosine of the two texts' counts of words and word pairs, mean over the prompts"
    return Profile(similarity.tolist(), description, _persistence(mixture, cases[:MAX_READ]), usage)


@torch.no_grad()
def _persistence(mixture: MixtureOfThoughts, cases: list[Case]) -> list[float] | None:
    """Mean divergence of the thoughts at each position after the branch point, in nats.

    A continuation is read under every thought: that of thought 0 for the first prompt, of thought 1 for the next, and
    so on. The curve ends where fewer than half of the continuations are that long.
    """
    curves = []
    for i, case in enumerate(cases):
        (continuation,) = encode(mixture.tokenizer, [case.texts[i % len(case.texts)]], "--prompts")
        if continuation:
            curves.append(_divergence(mixture, case.item.prompt, continuation))
    longest = max(map(len, curves), default=0)
    columns = [[curve[t] for curve in curves if t < len(curve)] for t in range(longest)]
    return [fmean(column) for column in columns if 2 * len(column) >= len(curves)] or None


def _divergence(mixture: MixtureOfThoughts, prompt: str, continuation: list[int]) -> list[float]:
    """By position [T], nats."""
    (ids,) = prompt_ids(mixture, [prompt])
    rows = [[*ids, *mixture.tokens_of(k), *continuation] for k in range(mixture.num_thoughts)]
    logits_KTV = mixture.model(torch.tensor(rows, device=mixture.model.device)).logits
    logits_KTV = logits_KTV[:, -len(continuation) - 1 : -1].float()
    logits_KTV[..., mixture.thoughts] = -math.inf  # thought tokens are never generated
    return metrics.persistence(logits_KTV).tolist()
