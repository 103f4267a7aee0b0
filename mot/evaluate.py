"""Do K thoughts find K answers? Measured on a task's held-out prompts, greedily inside each thought.

found = find_answers(mixture, "forks")      # found.distinct of found.answers, found.validity
"""

from dataclasses import dataclass

from mot import tasks
from mot.think import MixtureOfThoughts, Thought


@dataclass(frozen=True)
class Found:
    """What K thoughts per prompt came to, averaged over prompts. `samples`: (prompt, thoughts, answers or None) of each."""

    k: int
    prompts: int
    validity: float  # share of all continuations that the task's verifier accepts
    distinct: float  # distinct valid answers per prompt, 0 .. min(k, answers)
    answers: int
    ceiling: float  # the most that k independent draws can find, in expectation
    samples: list[tuple[str, list[Thought], list[str | None]]]

    def line(self, task: str) -> str:
        return (
            f"{task}: {self.k} thoughts found {self.distinct:.2f} of {self.answers} answers on unseen prompts "
            f"(validity {self.validity:.3f}); the best independent sampler finds at most {self.ceiling:.2f}"
        )


def find_answers(
    mixture: MixtureOfThoughts,
    task: str,
    k: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    prompts: int = 512,
) -> Found:
    """Think k ways (default: every thought once) about each of `prompts` held-out prompts and verify every answer."""
    module, k = tasks.load(task), k or mixture.num_thoughts
    held_out = [prompt for prompt, _ in tasks.held_out(task)][:prompts]
    longest = 2 + max(len(completion) for _, completion in tasks.held_out(task))
    samples = []
    for i in range(0, len(held_out), 64):
        part = held_out[i : i + 64]
        for prompt, thoughts in zip(
            part, mixture.think_batch(part, k, longest, temperature, creativity=0, seed=seed), strict=True
        ):
            samples.append((prompt, thoughts, [module.verify(prompt, t.text) for t in thoughts]))
    verified = [answers for _, _, answers in samples]
    valid = sum(answer is not None for answers in verified for answer in answers)
    distinct = sum(len(set(answers) - {None}) for answers in verified)
    return Found(
        k,
        len(samples),
        valid / (k * len(samples)),
        distinct / len(samples),
        module.ANSWERS,
        module.independence_ceiling(k),
        samples,
    )
