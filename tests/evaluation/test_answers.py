"""What K thoughts find on held-out prompts, and the line that a run ends with."""

import re

import pytest

from mot import tasks
from mot.evaluation.answers import Found, find_answers
from mot.inference.think import MixtureOfThoughts, Thought
from mot.tasks import chains, circle, countdown, forks


def greedy(c: int, path: str) -> str:
    """The likeliest path of a chain from a state, that state left out."""
    while len(path) < 16:
        row = chains.MATRICES[c][chains.STATES.index(path[-1])]
        path += chains.STATES[row.index(max(row))]
    return path[1:]


@pytest.fixture(scope="module")
def mixture(tiny_run) -> MixtureOfThoughts:
    return MixtureOfThoughts.from_pretrained(str(tiny_run))


@pytest.mark.parametrize("k", [None, 2])
def test_find_answers_counts_what_the_verifier_accepts(mixture, k):
    found = find_answers(mixture, "forks", k=k, prompts=70)
    assert found.k == (k or 4)
    assert found.prompts == len(found.samples) == 70
    assert [prompt for prompt, _, _ in found.samples] == [prompt for prompt, _ in tasks.held_out("forks")[:70]]
    for prompt, thoughts, answers in found.samples:
        assert len({t.index for t in thoughts}) == found.k
        assert answers == [forks.verify(prompt, t.text) for t in thoughts]
    accepted = [[a for a in answers if a] for _, _, answers in found.samples]
    assert found.validity == sum(map(len, accepted)) / (70 * found.k)
    assert found.distinct == sum(len(set(a)) for a in accepted) / 70
    assert 0 <= found.validity <= 1
    assert 0 <= found.distinct <= found.k
    assert (found.answers, found.ceiling) == (8, tasks.independence_ceiling(8, found.k))


class FiveOfEight(MixtureOfThoughts):
    """Eight thoughts without a network: five give different answers, one repeats the first, two talk nonsense."""

    num_thoughts = 8

    def __init__(self):
        pass

    def think_batch(self, prompts, params):
        assert (params.num_thoughts, params.temperature) == (8, 0)
        assert params.max_new_tokens > forks.CHAIN  # room for the end, and for one symbol too many
        said = [[*map(forks.chain, prompt[:5]), forks.chain(prompt[0]), "nonsense", ""] for prompt in prompts]
        return [[Thought(k, 1 / 8, 0.0, text, ()) for k, text in enumerate(texts)] for texts in said]


def test_repeated_answers_count_as_valid_but_not_as_distinct():
    found = find_answers(FiveOfEight(), "forks")
    assert (found.prompts, found.distinct, found.validity) == (512, 5.0, 6 / 8)
    assert found.line("forks").startswith(
        "forks: 8 thoughts found 5.00 of 8 answers on unseen prompts (validity 0.750)"
    )


def test_find_answers_says_its_line(mixture, forks_line):
    line = find_answers(mixture, "forks", prompts=8).line("forks")
    assert re.fullmatch(forks_line, line), line
    assert line.startswith("forks: 4 thoughts found ")
    assert line.endswith(" at most 3.31")


def test_the_line_has_exactly_this_form(forks_line):
    found = Found(8, 512, 0.991, 7.62, 8, tasks.independence_ceiling(8, 8), [])
    assert found.line("forks") == (
        "forks: 8 thoughts found 7.62 of 8 answers on unseen prompts (validity 0.991); "
        "the best independent sampler finds at most 5.25"
    )
    assert re.fullmatch(forks_line, found.line("forks"))


@pytest.mark.parametrize("k", [20, 3])
def test_find_answers_samples_a_creative_task(mixture, k):
    found = find_answers(mixture, "circle", k=k)
    texts = [t.text for _, thoughts, _ in found.samples for t in thoughts]
    assert (found.k, found.prompts, found.answers) == (k, 1, 40_320)
    assert len(texts) == k
    assert all(len({t.index for t in thoughts}) == len(thoughts) for _, thoughts, _ in found.samples)
    assert [len(thoughts) for _, thoughts, _ in found.samples] == [4] * (k // 4) + [k % 4] * (k % 4 > 0)
    assert found.creativity == tasks.creativity("circle", texts, tasks.training("circle", 0))
    assert find_answers(mixture, "circle", k=k) == found


class Inventive(MixtureOfThoughts):
    """Four thoughts, each of which draws cycles, one of them the same cycle over and over."""

    num_thoughts = 4

    def __init__(self):
        pass

    def think_batch(self, prompts, params):
        assert (prompts, params.num_thoughts, params.temperature) == ([""], 1000, 1.0)
        assert params.max_new_tokens > 18
        texts = [text for _, text in circle.rows(750, 77)] + [circle.rows(1, 78)[0][1]] * 250
        return [[Thought(i // 250, 1 / 4, 0.0, text, ()) for i, text in enumerate(texts)]]


def test_the_line_of_a_creative_task():
    found = find_answers(Inventive(), "circle")
    assert found.validity == 1
    assert 0.55 < found.creativity < 0.61  # three quarters of what a perfect sampler has
    assert len(found.samples) == 250
    assert found.line("circle") == (
        f"circle: creativity {found.creativity:.3f} in 1000 samples (validity 1.000); "
        "a perfect sampler of the training law has 0.771"
    )


class Recovered(Inventive):
    """Every thought follows a chain's likeliest transitions."""

    def think_batch(self, prompts, params):
        return [[Thought(k, 1 / 4, 0.0, greedy(k, prompt), ()) for k in range(4)] for prompt in prompts]


def test_the_line_of_a_task_whose_prompts_recur():
    found = find_answers(Recovered(), "chains")
    assert (found.prompts, found.distinct, found.validity) == (1, 4, 1)
    assert found.line("chains") == (
        "chains: 4 thoughts found 4.00 of 4 answers (validity 1.000); the best independent sampler finds at most 2.73"
    )


def test_answers_and_ceiling_are_means_over_prompts():
    class Solver(Recovered):
        def think_batch(self, prompts, params):
            solved = [(countdown.solutions(prompt) * 4)[:4] for prompt in prompts]
            return [[Thought(k, 1 / 4, 0.0, text, ()) for k, text in enumerate(texts)] for texts in solved]

    found = find_answers(Solver(), "countdown", prompts=20)
    there_are = [countdown.answers(prompt) for prompt, _, _ in found.samples]
    assert found.validity == 1
    assert found.distinct == sum(min(4, n) for n in there_are) / 20
    assert found.answers == sum(there_are) / 20
    assert found.ceiling == pytest.approx(sum(n * (1 - (1 - 1 / n) ** 4) for n in there_are) / 20)
    assert f" of {found.answers:.1f} answers on unseen prompts " in found.line("countdown")
