"""Measures on cases with a known value: K copies, K disjoint texts, and one worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot.diversity import distinct_n, vendi_score

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_copies_count_as_one_and_disjoint_texts_as_k(k):
    assert vendi_score(["the cat sat"] * k) == pytest.approx(1)
    assert vendi_score([f"a{i} b{i} c{i}" for i in range(k)]) == pytest.approx(k)
    assert distinct_n(["the cat sat"] * k, 2) == pytest.approx(1 / k)
    assert distinct_n([f"a{i} b{i} c{i}" for i in range(k)], 2) == 1


def test_by_hand():
    assert distinct_n(["a b c", "a b d"], 2) == pytest.approx(3 / 4)
    # unigrams only: cosine of (1, 1, 0) and (1, 0, 1) is 1/2, eigenvalues of [[1, .5], [.5, 1]] / 2 are 3/4 and 1/4
    assert vendi_score(["a b", "a c"], n=1) == pytest.approx((3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4))


@given(st.lists(words, min_size=1, max_size=6))
def test_between_one_and_k_and_order_does_not_matter(texts):
    assert 1 - 1e-9 <= vendi_score(texts) <= len(texts) + 1e-9
    assert vendi_score(texts[::-1]) == pytest.approx(vendi_score(texts))


def test_nothing_to_say_is_not_diverse():
    assert distinct_n(["", ""], 2) == 0
    assert vendi_score(["", ""]) == pytest.approx(1)
