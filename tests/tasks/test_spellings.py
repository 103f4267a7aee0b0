# ruff: noqa: RUF001
"""spellings: every spelling of an answer is that answer, and the ceilings on the exact distribution are what they must
be.
"""

import random

import pytest

from mot import tasks
from mot.tasks import ceilings, independence_ceiling, spellings
from mot.tasks.spellings import ITEMS, ExactLaw, Spellings, chain, spell


def test_rows_are_valid_and_their_key_is_the_plain_spelling():
    for prompt, completion, key in spellings.rows(500, 3):
        item = spellings.verify(prompt, completion)
        assert item in prompt
        assert chain(item) == key
        assert spellings.verify(prompt, key) == item


def test_every_answer_is_drawn_in_every_typeface():
    rows = spellings.rows(4000, 1)
    assert len({completion for _, completion, _ in rows}) > 3800  # of the 63,488 spellings of 62 chains
    assert {face for _, completion, _ in rows for face in map(typeface_of, completion)} == {0, 1, 2, 3}


def typeface_of(symbol: str) -> int:
    return next(face for face in range(4) for plain in ITEMS if spell(plain, face) == symbol)


def test_typefaces_are_different_characters():
    assert len({spell(symbol, face) for symbol in ITEMS for face in range(4)}) == 4 * len(ITEMS)


@pytest.mark.parametrize("text", ["", "abcd", "αbcde", "abcdefg"])
def test_other_texts_are_no_answers(text):
    assert spellings.verify("abcdefgh>", text) is None


def test_an_answer_to_another_prompt_is_none():
    assert spellings.verify("abcdefgh>", chain("z")) is None


def test_free_words_say_nothing_about_the_answer():
    task = Spellings(free_words=2)
    for prompt, completion, key in task.rows(50, 0):
        assert len(completion) == 7
        assert task.verify(prompt, "αβ" + key) == task.verify(prompt, completion) is not None
        assert task.verify(prompt, key) is None


def test_training_rows_have_no_held_out_prompt():
    held_out = {prompt for prompt, _ in tasks.held_out("spellings")}
    assert len(held_out) == tasks.HELD_OUT_ROWS
    assert not held_out & {row[0] for row in tasks.training("spellings", 0)}


PROMPTS = [row[0] for row in spellings.rows(150, 5)]


def test_the_exact_distribution_sums_to_one():
    law = ExactLaw(4)

    def total(place, state):
        return (
            1.0 if place == law.length else sum(p * total(place + 1, after) for _, p, after in law.next(place, state))
        )

    assert total(3, law.start(PROMPTS[0])) == pytest.approx(1)


def test_with_one_spelling_a_beam_finds_every_answer_and_samples_do_not():
    found = ceilings.ceilings(ExactLaw(1), PROMPTS)
    assert found["beam 8"] == 8
    assert found["independent"] == pytest.approx(independence_ceiling(8, 8), abs=0.2)


def test_with_four_spellings_beams_collapse():
    found = ceilings.ceilings(ExactLaw(4), PROMPTS)
    assert 2.3 < found["beam 8"] < 3.2
    assert 3.2 < found["beam 16"] < 4.4
    assert 5.0 < found["diverse beam"] < 6.0
    assert 5.0 < found["arithmetic"] < 6.0
    assert found["independent"] == pytest.approx(independence_ceiling(8, 8), abs=0.2)


def test_a_beam_of_all_texts_finds_every_answer():
    """The slow obvious case: a width of all 8 * 2 ** 5 texts loses none, and all of them are the K best."""
    law, rng = ExactLaw(2), random.Random(0)
    assert ceilings.beam(law, PROMPTS[0], K=256, width=256, rng=rng) == 8


def test_one_text_is_one_answer():
    law, rng = ExactLaw(4), random.Random(0)
    assert ceilings.arithmetic(law, PROMPTS[0], 1, ord, rng) == 1
    assert ceilings.diverse_beam(law, PROMPTS[0], 1, 1.0, rng) == 1
    assert ceilings.independent(law, PROMPTS[0], 1, 1.0, rng) == 1
