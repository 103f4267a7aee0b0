"""Verified set matching: what the thoughts of a prompt should learn, given a verifier and no labels.

    verify = load_verifier("spellings")                        # a task, or FILE.py:FUNCTION: (prompt, text) -> answer
    found = match_prompts(mixture, verify, prompts, labels, most, seed, rows)     # a Matched for every prompt
    found[0].repairs                                           # [(thought, token ids)] for thoughts that collide

Thoughts collide on a prompt if their greedy texts give one answer, or no valid one. A thought whose answer is its own
keeps it. The others share out the answers that are left:

    pool   = one text for each different valid answer, among the row's own completion, samples of all thoughts at
             temperature 1 and samples without a thought; more of the latter while the pool is short
    match  = Hungarian(log p(y_a | x, k)) over colliding thoughts k and free answers a, each at most once

The E-step of mot/training/em.py replaces the rows of a matched prompt by (prompt, thought, answer), and the M-step
learns them as it learns all rows. A prompt's matching depends on (seed, prompt) alone, so that processes need not talk.
Source: docs/results/winning.md. Shapes: see mot/thoughts.py.
"""

from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from mot.data.datasets import collate_rows
from mot.inference.sampling import generator_of
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.score import thought_logprobs
from mot.tasks.verifier import Verify
from mot.training.settings import COPIES, DIVERSITY_THOUGHTS, SLOTS, RunSettings

ROUNDS = 3  # of samples without a thought, for a prompt whose pool stays short


@dataclass
class Matched:
    """What the thoughts of one prompt should learn, as pairs (thought 0 .. N-1, token ids without an end).

    `repairs` are for colliding thoughts. `kept` is the row's own completion for the thought whose answer it gives, if
    that thought does not collide. `able` are the thoughts with an answer of their own after the repairs, and the router
    learns to give each of them the same probability. `router` is what it says now. `distinct` counts the different
    valid answers of the greedy texts, `pool` those found in all.
    """

    distinct: int
    pool: int
    repairs: list[tuple[int, list[int]]]
    kept: list[tuple[int, list[int]]]
    able: list[int]
    router: list[float]

    def rows(self, slots: int, g: torch.Generator) -> list[tuple[int, list[int]]]:
        """At most `slots` pairs to learn, repairs before kept ones, drawn at random."""
        pairs = []
        for some in (self.repairs, self.kept):
            pairs += [some[i] for i in torch.randperm(len(some), generator=g).tolist()]
        return pairs[:slots]


COUNTS = ("target_tokens", "carrying", "prompts", "distinct", "pool")  # what `answer_batch` counts, before the router


def answer_batch(
    mixture: MixtureOfThoughts,
    verify: Verify,
    batch: dict[str, Tensor],
    carries_R: Tensor,
    settings: RunSettings,
    most: int,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Match the prompts of every SLOTS-th row of a micro-batch, and lay their answers out as its rows.

    A text of `most` tokens or more is no answer. A prompt that leaves less room stays with its labelled rows. Returns
    the micro-batch, and the sums [5 + N] of COUNTS and of the router's probabilities over rows with a thought.
    """
    N, R = mixture.num_thoughts, len(carries_R)
    xs, ys = ([_real(batch, name, i) for i in range(R)] for name in ("prompt", "completion"))
    fitting = [len(x) + most <= settings.seq_length for x in xs]
    first = [i for i in range(0, R, SLOTS) if fitting[i] and carries_R[i : i + SLOTS].any()]
    found = match_prompts(
        mixture, verify, [xs[i] for i in first], [ys[i][:-1] for i in first], most, seed, settings.batch_size
    )
    rows, thought, q, router = list(zip(xs, ys, strict=True)), [-1] * R, torch.zeros(R, 1, N), torch.zeros(N)
    for i, matched in zip(first, found, strict=True):
        slots = [j for j in range(i, min(i + SLOTS, R)) if carries_R[j]]
        for j, (k, ids) in zip(slots, matched.rows(len(slots), generator_of(seed, xs[i], "rows")), strict=False):
            rows[j], thought[j] = (xs[i], [*ids, ys[i][-1]]), mixture.thoughts[k]
            q[j, 0, matched.able] = 1 / len(matched.able)
            router += torch.tensor(matched.router)
    made = collate_rows(rows, mixture.pad) | {"thought": torch.tensor(thought)[:, None], "q": q}
    made["contrast"] = torch.full((R, min(DIVERSITY_THOUGHTS, N) - 1, 1), -1)
    counts = [
        sum(len(x) + len(y) - 1 for x, y in rows),
        sum(k >= 0 for k in thought),
        len(found),
        sum(m.distinct for m in found),
        sum(m.pool for m in found),
    ]
    sums = torch.cat([torch.tensor(counts).double(), router.double()])
    return {name: t.to(batch["prompt"].device) for name, t in made.items()}, sums


def _real(batch: dict[str, Tensor], name: str, i: int) -> list[int]:
    """The token ids of row i, without pads."""
    return batch[name][i][batch[f"{name}_mask"][i].bool()].tolist()


@torch.no_grad()
def match_prompts(
    mixture: MixtureOfThoughts,
    verify: Verify,
    prompts: list[list[int]],
    labels: list[list[int]],
    most: int,
    seed: int,
    rows: int,
) -> list[Matched]:
    """Match the thoughts of each prompt with its verified answers.

    `labels` are completions of the prompts, without an end; `most` is the longest text in tokens; `rows` bounds how
    many answers are scored at once.
    """
    said = [mixture.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]

    @cache  # thoughts and samples often say the same, and a verifier may be slow
    def answer(b: int, token_ids: tuple[int, ...]) -> str | None:
        if len(token_ids) >= most:
            return None  # the text was cut, so it is not whole
        return verify(said[b], mixture.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    N, everyone = mixture.num_thoughts, range(len(prompts))
    greedy = mixture.think_batch(prompts, SamplingParams(N, most, 0.0, seed=seed))
    greedy = [sorted(thoughts, key=lambda t: t.index) for thoughts in greedy]
    own = [[answer(b, t.token_ids) for t in greedy[b]] for b in everyone]
    colliding = [[k for k, a in enumerate(o) if a is None or o.count(a) > 1] for o in own]
    taken = [{a for k, a in enumerate(o) if k not in colliding[b]} for b, o in enumerate(own)]
    pools: list[dict[str, list[int]]] = [{} for _ in prompts]

    def add(b: int, texts: list[tuple[int, ...]]) -> None:
        for token_ids in texts:
            if (a := answer(b, token_ids)) is not None:
                pools[b].setdefault(a, list(token_ids))

    def sample(some: list[int], params: SamplingParams, without_thought: bool = False) -> None:
        texts = mixture.think_batch([prompts[b] for b in some], params, without_thought) if some else []
        for b, thoughts in zip(some, texts, strict=True):
            add(b, [t.token_ids for t in thoughts])

    some = [b for b in everyone if colliding[b]]
    for b in some:
        add(b, [tuple(labels[b])])
    sample(some, SamplingParams(N, most, 1.0, seed=seed))
    for r in range(ROUNDS):
        some = [b for b in everyone if len(pools[b].keys() - taken[b]) < len(colliding[b])]
        sample(some, SamplingParams(COPIES, most, 1.0, seed=seed + r), without_thought=True)
    for b in everyone:
        add(b, [greedy[b][k].token_ids for k in colliding[b]])
    found = []
    for b, o in enumerate(own):
        keeping = [k for k in range(N) if k not in colliding[b]]
        # Learning its own greedy text would narrow the thought to that one spelling: only a completion will do.
        kept = [(k, list(labels[b])) for k in keeping if o[k] == answer(b, tuple(labels[b]))]
        answers = pools[b].keys() | (set(o) - {None})
        found.append(Matched(len(set(o) - {None}), len(answers), [], kept, keeping, [t.probability for t in greedy[b]]))
    _assign(mixture, prompts, colliding, taken, pools, found, rows)
    return found


def _assign(
    mixture: MixtureOfThoughts,
    prompts: list[list[int]],
    colliding: list[list[int]],
    taken: list[set[str]],
    pools: list[dict[str, list[int]]],
    found: list[Matched],
    rows: int,
) -> None:
    """Give free answers to colliding thoughts: the assignment of the largest total log-probability."""
    from scipy.optimize import linear_sum_assignment

    end = mixture.tokenizer.eos_token_id
    free = [(b, ids) for b, pool in enumerate(pools) if colliding[b] for a, ids in pool.items() if a not in taken[b]]
    scores = []
    for i in range(0, len(free), rows):
        batch = collate_rows([(prompts[b], [*ids, end]) for b, ids in free[i : i + rows]], mixture.pad)
        batch = {name: t.to(mixture.model.device) for name, t in batch.items()}
        scores += thought_logprobs(mixture.model, batch, mixture.thoughts)[0].sum(-1).float().cpu()
    for b, of_prompt in groupby(zip(free, scores, strict=True), key=lambda scored: scored[0][0]):
        answers, scores_AN = zip(*((ids, score_N) for (_, ids), score_N in of_prompt), strict=True)
        scores_AK = torch.stack(scores_AN)[:, colliding[b]].numpy()
        for a, k in zip(*linear_sum_assignment(scores_AK, maximize=True), strict=True):
            found[b].repairs.append((colliding[b][k], answers[a]))
            found[b].able.append(colliding[b][k])
