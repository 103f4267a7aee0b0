"""forks: eight answers to a prompt, no more and no less."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mot.tasks import forks

prompts = st.permutations(forks.ITEMS).map(lambda items: "".join(items[:8]) + ">")


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
