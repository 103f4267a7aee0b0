"""Tasks with known answers: the generator repeats itself, the verifier is strict, the ceiling is real, the final line is exact."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot import tasks
from mot.evaluate import Found, find_answers
from mot.tasks import forks
from mot.think import MixtureOfThoughts, Thought

prompts = st.permutations(forks.ITEMS).map(lambda items: "".join(items[:8]) + ">")


# Generator and verifier ---------------------------------------------------------------------------------------------


def test_rows_are_the_same_for_the_same_seed_and_others_for_another():
    assert forks.rows(50, 1) == forks.rows(50, 1)
    assert not set(forks.rows(50, 1)) & set(forks.rows(50, 2))


def test_every_row_is_well_formed_and_its_answer_is_valid():
    for prompt, answer in forks.rows(500, 3):
        assert re.fullmatch(r"[A-Za-z0-9+-]{8}>", prompt)
        assert len(set(prompt)) == 9
        assert len(answer) == forks.CHAIN == 5
        assert forks.verify(prompt, answer) in prompt[:8]


def test_answers_are_spread_evenly_over_the_places():
    places = [prompt.index(forks.verify(prompt, answer)) for prompt, answer in forks.rows(8000, 4)]
    assert all(900 < places.count(place) < 1100 for place in range(8))


@given(prompts)
def test_exactly_the_eight_chains_of_the_prompt_are_answers(prompt):
    accepted = {item for item in forks.ITEMS if forks.verify(prompt, forks.chain(item)) == item}
    assert accepted == set(prompt[:-1])
    assert len({forks.chain(item) for item in prompt[:-1]}) == forks.ANSWERS == 8


@given(prompts, st.data())
def test_the_verifier_is_strict(prompt, data):
    chain = forks.chain(data.draw(st.sampled_from(prompt[:-1])))
    absent = data.draw(st.sampled_from([item for item in forks.ITEMS if item not in prompt]))
    extra = data.draw(st.sampled_from(forks.ITEMS + " >\n"))
    wrong = ["", chain[:-1], chain[1:], chain + extra, extra + chain, chain[::-1], chain * 2, forks.chain(absent)]
    wrong += [chain.swapcase(), chain.upper(), chain.lower(), prompt, absent, ">"]
    right = {forks.chain(item) for item in prompt[:-1]}
    for answer in wrong:
        assert answer in right or forks.verify(prompt, answer) is None, answer


# Held-out prompts ---------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_always_the_same_and_never_trained_on():
    held_out = [prompt for prompt, _ in tasks.held_out("forks")]
    assert held_out == [prompt for prompt, _ in tasks.held_out("forks")]
    assert len(set(held_out)) == len(held_out) == 512
    assert not set(held_out) & {prompt for prompt, _ in tasks.training("forks", 42)}


def test_training_leaves_out_held_out_prompts_even_where_the_generator_draws_them():
    held_out = {prompt for prompt, _ in tasks.held_out("forks")}
    rows = tasks.training("forks", tasks.HELD_OUT_SEED)  # the very rows that are held out, and others behind them
    assert len(rows) == tasks.TRAIN_ROWS - len(held_out)
    assert not held_out & {prompt for prompt, _ in rows}


# The ceiling --------------------------------------------------------------------------------------------------------


def test_the_ceiling_of_eight_draws_is_5_25():
    assert f"{forks.independence_ceiling(8):.2f}" == "5.25"
    assert forks.independence_ceiling(1) == 1


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_the_ceiling_is_what_independent_draws_find(k):
    draw, n = random.Random(k), 20_000
    uniform = sum(len(set(draw.choices(range(8), k=k))) for _ in range(n)) / n
    assert uniform == pytest.approx(forks.independence_ceiling(k), abs=0.04)
    skewed = sum(len(set(draw.choices(range(8), weights=range(1, 9), k=k))) for _ in range(n)) / n
    assert skewed < forks.independence_ceiling(k) + 0.04


# Finding answers ----------------------------------------------------------------------------------------------------


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
    assert (found.answers, found.ceiling) == (8, forks.independence_ceiling(found.k))


class FiveOfEight(MixtureOfThoughts):
    """Eight thoughts without a network: five give different answers, one repeats the first, two talk nonsense."""

    num_thoughts = 8

    def __init__(self):
        pass

    def think_batch(self, prompts, num_thoughts, max_new_tokens, temperature, creativity, seed):
        assert (num_thoughts, temperature) == (8, 0)
        assert max_new_tokens > forks.CHAIN  # room for the end, and for saying too much
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
    found = Found(8, 512, 0.991, 7.62, 8, forks.independence_ceiling(8), [])
    assert found.line("forks") == (
        "forks: 8 thoughts found 7.62 of 8 answers on unseen prompts (validity 0.991); "
        "the best independent sampler finds at most 5.25"
    )
    assert re.fullmatch(forks_line, found.line("forks"))
