"""Do K thoughts find K answers? Measured on a task's held-out prompts, greedily inside each thought.

found = find_answers(mixture, "forks")      # found.distinct of found.answers, found.validity
found = find_answers(mixture, "circle")     # found.creativity of 1,000 samples, found.validity
"""

from dataclasses import dataclass
from statistics import fmean

from mot import tasks
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts, Thought


@dataclass(frozen=True)
class Found:
    """The answers of K thoughts per prompt, as means over prompts. `samples`: (prompt, thoughts, answers or None) of
    each.

    A creative task has K samples in all. Each of its `samples` then holds every thought once, the last ones perhaps
    fewer.
    """

    k: int
    prompts: int
    validity: float  # share of all continuations that the task's verifier accepts
    distinct: float  # distinct valid answers per prompt, 0 .. min(k, answers)
    answers: float  # number of valid answers that a prompt has
    ceiling: float  # expectation of `distinct` for k independent draws at best; a perfect sampler's creativity
    samples: list[tuple[str, list[Thought], list[str | None]]]
    creativity: float | None = (
        None  # of a creative task: share of the k samples that are valid, unseen and not repeated
    )

    def line(self, task: str) -> str:
        if self.creativity is not None:
            return (
                f"{task}: creativity {self.creativity:.3f} in {self.k} samples (validity {self.validity:.3f}); "
                f"a perfect sampler of the training law has {self.ceiling:.3f}"
            )
        where = "" if tasks.TASKS[task].recurring else " on unseen prompts"
        rivals = f"the best independent sampler finds at most {self.ceiling:.2f}"
        if tasks.TASKS[task].plain and self.k == 8:
            rivals = f"a plain model: {tasks.TASKS[task].plain}"
        return (
            f"{task}: {self.k} thoughts found {self.distinct:.2f} of {round(self.answers, 1):g} answers{where} "
            f"(validity {self.validity:.3f}); {rivals}"
        )


def find_answers(
    mixture: MixtureOfThoughts,
    task: str,
    k: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    prompts: int = 512,
) -> Found:
    """Follow k thoughts on each of `prompts` different held-out prompts, and verify every answer.

    Default: every thought once at temperature 0. A creative task has one empty prompt; its default is 1,000 samples at
    temperature 1, spread evenly over the thoughts.
    """
    if tasks.TASKS[task].creative:
        return _create(mixture, task, k or 1000, 1.0 if temperature is None else temperature, seed)
    module, k = tasks.load(task), k or mixture.num_thoughts
    rows = tasks.held_out(task)
    different = list(dict.fromkeys(prompt for prompt, _ in rows))[:prompts]
    samples = []
    for i in range(0, len(different), 64):
        part = different[i : i + 64]
        thinking = mixture.think_batch(
            part, SamplingParams(k, tasks.TASKS[task].answer_tokens, temperature or 0.0, creativity=0, seed=seed)
        )
        for prompt, thoughts in zip(part, thinking, strict=True):
            samples.append((prompt, thoughts, [module.verify(prompt, t.text) for t in thoughts]))
    verified = [answers for _, _, answers in samples]
    valid = sum(answer is not None for answers in verified for answer in answers)
    distinct = sum(len(set(answers) - {None}) for answers in verified)
    there_are = [module.answers(prompt) for prompt in different]
    return Found(
        k,
        len(samples),
        valid / (k * len(samples)),
        distinct / len(samples),
        fmean(there_are),
        fmean(tasks.independence_ceiling(n, k) for n in there_are),
        samples,
    )


def _create(mixture: MixtureOfThoughts, task: str, k: int, temperature: float, seed: int) -> Found:
    module, training = tasks.load(task), tasks.training(task, 0)
    (thoughts,) = mixture.think_batch(
        [""], SamplingParams(k, tasks.TASKS[task].answer_tokens, temperature, creativity=0, seed=seed)
    )
    texts = [t.text for t in thoughts]
    answers = [module.verify("", text) for text in texts]
    # In rounds, as for any prompt: the first text of every thought, then the second, and so on.
    copies, rounds = {}, {}
    for thought, answer in zip(thoughts, answers, strict=True):
        copies[thought.index] = copies.get(thought.index, 0) + 1
        rounds.setdefault(copies[thought.index], []).append((thought, answer))
    return Found(
        k,
        1,
        sum(answer is not None for answer in answers) / k,
        len(set(answers) - {None}),
        module.answers(""),
        tasks.creativity_ceiling(task, training, k),
        [("", [t for t, _ in pairs], [a for _, a in pairs]) for pairs in rounds.values()],
        tasks.creativity(task, texts, training),
    )
