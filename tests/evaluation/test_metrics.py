"""Measures on cases with a known value, under changes that must not matter, and against slow implementations."""

import inspect
import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.evaluation import metrics
from mot.evaluation.metrics import (
    bleu,
    chrf,
    chrf_coverage,
    compression_ratio,
    coverage,
    distinct_answers,
    distinct_n,
    ead,
    majority_at_k,
    ngram_similarity,
    pairwise_bleu,
    pairwise_jsd,
    pass_at_k,
    persistence,
    self_bleu,
    vendi,
    vendi_score,
)

WORDS = ["a", "b", "c", "d", "e", "f"]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
maybe_empty = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
sets_of_texts = st.lists(maybe_empty, min_size=2, max_size=5)
answers = st.lists(st.one_of(st.none(), st.sampled_from("xyz")), min_size=1, max_size=6)

unhurried = settings(deadline=None)  # a busy machine is no failure


def copies(k):
    return ["the cat sat on it"] * k


def disjoint(k):
    return [f"a{i} b{i} c{i} d{i} e{i}" for i in range(k)]


# Texts of one prompt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 8])
def test_copies_count_as_one_and_disjoint_texts_as_k(k):
    assert vendi_score(copies(k)) == pytest.approx(1)
    assert vendi_score(disjoint(k)) == pytest.approx(k)
    assert distinct_n(copies(k), 2) == pytest.approx(1 / k)
    assert distinct_n(disjoint(k), 2) == 1


@pytest.mark.parametrize("measure", [self_bleu, pairwise_bleu])
@pytest.mark.parametrize("k", [2, 8])
def test_bleu_of_copies_is_100_and_of_disjoint_texts_0(measure, k):
    assert measure(copies(k)) == pytest.approx(100)
    assert measure(disjoint(k)) == 0
    assert measure(["no"] * k) == 100  # shorter than 4 words
    assert measure([""] * k) == 100  # or silence would be the most diverse
    assert measure([" ", *[""] * (k - 1)]) == 100


def test_one_copy_is_enough_for_self_bleu_and_not_for_pairwise():
    texts = copies(2) + disjoint(2)
    assert self_bleu(texts) == pytest.approx(50)
    assert pairwise_bleu(texts) == pytest.approx(100 * 2 / 12)


def test_by_hand():
    assert distinct_n(["a b c", "a b d"], 2) == pytest.approx(3 / 4)
    # unigrams only: cosine of (1, 1, 0) and (1, 0, 1) is 1/2, eigenvalues of [[1, .5], [.5, 1]] / 2 are 3/4 and 1/4
    assert vendi_score(["a b", "a c"], n=1) == pytest.approx((3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4))
    # 3 different words of 4; 4 draws from 10 find 10 (1 - 0.9^4) = 3.439
    assert ead(["a b", "a c"], 1, 10) == pytest.approx(3 / 3.439)


@unhurried
@given(st.lists(words, min_size=1, max_size=6))
def test_between_one_and_k_and_order_does_not_matter(texts):
    assert 1 - 1e-9 <= vendi_score(texts) <= len(texts) + 1e-9
    assert vendi_score(texts[::-1]) == pytest.approx(vendi_score(texts))


def test_nothing_to_say_is_not_diverse():
    assert distinct_n(["", ""], 2) == 0
    assert distinct_n(["a", "b"], 2) == 0  # shorter than n
    assert ead(["", "a"], 2, 100) == 0
    assert vendi_score(["", ""]) == pytest.approx(1)
    assert compression_ratio(["", ""]) < 0.1
    assert compression_ratio([]) == 0


@unhurried
@given(sets_of_texts, st.randoms())
@pytest.mark.parametrize(
    "measure",
    [
        lambda texts: distinct_n(texts, 2),
        lambda texts: ead(texts, 1, 6),
        vendi_score,
        self_bleu,
        pairwise_bleu,
        compression_ratio,
        lambda texts: chrf_coverage(texts, ["a b c", "d e f"]),
    ],
    ids=["distinct_n", "ead", "vendi_score", "self_bleu", "pairwise_bleu", "compression_ratio", "chrf_coverage"],
)
def test_the_order_of_texts_does_not_matter(measure, texts, rng):
    shuffled = rng.sample(texts, len(texts))
    assert measure(shuffled) == pytest.approx(measure(texts))


@unhurried
@given(maybe_empty, st.integers(2, 6))
def test_copies_are_the_least_diverse_whatever_they_say(text, k):
    assert vendi_score([text] * k) == pytest.approx(1)
    assert self_bleu([text] * k) == pytest.approx(100)
    assert pairwise_bleu([text] * k) == pytest.approx(100)


@unhurried
@given(sets_of_texts)
def test_measures_stay_in_their_range(texts):
    assert 0 <= distinct_n(texts, 2) <= 1
    assert 0 <= ead(texts, 1, 6) <= 1 / (1 - 1 / math.e)
    assert 0 <= self_bleu(texts) <= 100 + 1e-9
    assert 0 <= pairwise_bleu(texts) <= 100 + 1e-9


@pytest.mark.parametrize("measure", [self_bleu, pairwise_bleu])
def test_one_text_cannot_be_compared(measure):
    with pytest.raises(ValueError, match=r"^\w+_bleu: needs 2 or more, and there is 1$"):
        measure(["a b"])


def test_ead_of_uniform_draws_is_one_at_any_length():
    rng = random.Random(0)
    for length in (5, 50, 500):
        draws = [" ".join(str(rng.randrange(100)) for _ in range(length)) for _ in range(400)]
        assert fmean(ead([draw], 1, 100) for draw in draws) == pytest.approx(1, abs=0.01)
    assert distinct_n([draws[0]], 1) < 0.25  # where distinct-n would call the long one dull


def test_ead_of_a_vast_vocabulary_is_distinct_n_and_a_small_one_is_an_error():
    texts = ["a b a c", "b c d"]
    for vocabulary in (10**9, 10**18):
        assert ead(texts, 1, vocabulary) == pytest.approx(distinct_n(texts, 1), abs=1e-7)
    assert ead([" ".join(map(str, range(1000)))], 1, 1000) == pytest.approx(1 / (1 - 1 / math.e), abs=1e-3)
    for vocabulary in (0, 1, 3):
        with pytest.raises(ValueError, match="too small; at least 2 and the 4 n-grams of the texts"):
            ead(texts, 1, vocabulary)


@unhurried
@given(st.lists(words, min_size=1, max_size=6), st.integers(1, 3))
def test_vendi_score_is_the_entropy_of_the_singular_values_of_the_counts(texts, n):
    counts = [
        Counter(tuple(w[i : i + m]) for m in range(1, n + 1) for i in range(len(w) - m + 1))
        for w in map(str.split, texts)
    ]
    names = sorted(set().union(*counts))
    vectors = np.array(
        [[count[name] / math.sqrt(sum(c * c for c in count.values())) for name in names] for count in counts]
    )
    shares = np.linalg.svd(vectors / math.sqrt(len(texts)), compute_uv=False) ** 2
    assert vendi_score(texts, n) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares if p > 1e-15)))


def test_vendi_takes_any_similarity():
    assert vendi(torch.eye(5)) == pytest.approx(5)
    assert vendi(torch.ones(5, 5)) == pytest.approx(1)
    assert vendi(torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))) == pytest.approx(2)
    assert vendi(ngram_similarity(["a b", "b c"], 1)) == vendi_score(["a b", "b c"], 1)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    assert 1 < vendi(embeddings @ embeddings.T) <= 3 + 1e-3  # 3 dimensions cannot tell more apart
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert vendi(embeddings[order] @ embeddings[order].T) == pytest.approx(vendi(embeddings @ embeddings.T), abs=1e-4)


@pytest.mark.parametrize(
    ("similarity", "what"),
    [
        (torch.zeros(0, 0), "K at least 1"),
        (torch.ones(2, 3), "symmetric"),
        (torch.tensor([[1.0, 0.2], [0.5, 1.0]]), "symmetric"),
        (torch.full((2, 2), math.nan), "numbers"),
        (2 * torch.eye(2), "normalise the embeddings"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
    ],
)
def test_vendi_rejects_what_is_no_similarity(similarity, what):
    with pytest.raises(ValueError, match=what):
        vendi(similarity)


def test_compression_ratio_is_highest_for_copies_and_below_one_for_noise():
    rng = random.Random(0)
    noise = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=300)) for _ in range(8)]
    assert compression_ratio(noise) < 2
    assert compression_ratio(noise[:1] * 8) > 8
    assert compression_ratio(["ab"]) < 1


def test_compression_ratio_is_that_of_the_gzip_command():
    texts = sorted(["the cat sat on the mat", "a dog", "the cat ate the dog"] * 5)
    text = " ".join(texts).encode()
    zipped = subprocess.run(["gzip", "-9", "-n", "-c"], input=text, capture_output=True, check=True).stdout
    assert compression_ratio(texts) == pytest.approx(len(text) / len(zipped), rel=0.02)


# BLEU and chrF the slow way, on words of letters only, where 13a tokenisation is str.split.


def parts(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def slow_bleu(texts, references):
    """Papineni et al. 2002, with sacrebleu's smoothing: the i-th order without a match counts half the one before."""
    hit, total, said, wanted = [0] * 5, [0] * 5, 0, 0
    for text, refs in zip(texts, references, strict=True):
        text, refs = text.split(), [ref.split() for ref in refs]
        said += len(text)
        wanted += min((len(ref) for ref in refs), key=lambda length: (abs(length - len(text)), length))
        for n in range(1, 5):
            mine = parts(text, n)
            total[n] += sum(mine.values())
            hit[n] += sum(min(count, max(parts(ref, n)[gram] for ref in refs)) for gram, count in mine.items())
    orders = [n for n in range(1, 5) if total[n]]
    if not any(hit):
        return 0
    precisions, smooth = [], 1
    for n in orders:
        smooth *= 1 if hit[n] else 2
        precisions.append(hit[n] / total[n] if hit[n] else 1 / (smooth * total[n]))
    return 100 * min(1, math.exp(1 - wanted / said)) * math.prod(precisions) ** (1 / len(orders))


def slow_chrf(text, reference):
    """Popović 2015, beta 2, over the orders that both have."""
    text, reference = text.replace(" ", ""), reference.replace(" ", "")
    orders = range(1, min(6, len(text), len(reference)) + 1)
    if not orders:
        return 0
    hits = [(parts(text, n) & parts(reference, n)).total() for n in orders]
    precision = fmean(hit / parts(text, n).total() for hit, n in zip(hits, orders, strict=True))
    recall = fmean(hit / parts(reference, n).total() for hit, n in zip(hits, orders, strict=True))
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision else 0


@unhurried
@given(st.lists(st.tuples(maybe_empty, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_bleu_is_papinenis_with_any_number_of_references(rows):
    texts, references = zip(*rows, strict=True)
    assert bleu(list(texts), list(references)) == pytest.approx(slow_bleu(texts, references))


@unhurried
@given(maybe_empty, st.lists(words, min_size=1, max_size=3))
def test_chrf_is_popovics_with_the_closest_reference(text, references):
    assert chrf([text], [references]) == pytest.approx(max(slow_chrf(text, reference) for reference in references))


@unhurried
@given(st.lists(words, min_size=2, max_size=4))
def test_self_and_pairwise_bleu_the_slow_way(texts):
    others = [texts[:i] + texts[i + 1 :] for i in range(len(texts))]
    assert self_bleu(texts) == pytest.approx(fmean(slow_bleu([t], [o]) for t, o in zip(texts, others, strict=True)))
    pairs = [(a, b) for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]
    assert pairwise_bleu(texts) == pytest.approx(fmean(slow_bleu([a], [[b]]) for a, b in pairs))


def test_bleu_and_chrf_of_the_reference_and_of_something_else():
    for measure in (bleu, chrf):
        assert measure(["the cat sat", "a dog"], [["no", "the cat sat"], ["a dog"]]) == pytest.approx(100)
        assert measure(["xx", "xx"], [["yy"], ["zz", "ww"]]) == 0
        assert measure([""], [["a"]]) == 0
        assert measure([""], [[""]]) == 0


@pytest.mark.parametrize("measure", [bleu, chrf])
def test_texts_without_references_are_named(measure):
    with pytest.raises(ValueError, match="text 2 has no references"):
        measure(["a", "b"], [["a"], []])
    for texts, references in (([], []), (["a"], []), (["a"], [["a"], ["b"]])):
        with pytest.raises(ValueError, match=rf"{len(texts)} texts and {len(references)} lists of references"):
            measure(texts, references)


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)  # to Python it is not installed
    metrics._sacrebleu.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "mixture-of-thoughts\[evaluate\]"$'):
        pairwise_bleu(["a", "b"])
    assert vendi_score(["a", "b"]) == pytest.approx(2)


# Thoughts, from logits ----------------------------------------------------------------------------------------------


def random_logits(k, t, v, seed=0):
    return 3 * torch.randn(k, t, v, generator=torch.Generator().manual_seed(seed))


def test_jsd_of_equal_thoughts_is_zero_and_of_disjoint_ones_log_2():
    same = random_logits(1, 7, 11).expand(4, -1, -1)
    assert pairwise_jsd(same).abs().max() < 1e-12
    disjoint = torch.full((3, 5, 3), -math.inf)
    for k in range(3):
        disjoint[k, :, k] = 0
    expected = math.log(2) * (1 - torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(pairwise_jsd(disjoint), expected[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(persistence(disjoint), torch.full((5,), math.log(2), dtype=torch.float64))


def test_jsd_the_slow_way():
    logits = random_logits(3, 4, 6)
    for i, j, t in itertools.product(range(3), range(3), range(4)):
        p, q = ([math.exp(x) for x in logits[k, t].tolist()] for k in (i, j))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        kl = [sum(a * math.log(a / m) for a, m in zip(law, mean, strict=True)) for law in (p, q)]
        assert pairwise_jsd(logits)[i, j, t].item() == pytest.approx(sum(kl) / 2, abs=1e-9)


@unhurried
@given(st.permutations(range(4)), st.integers(0, 99))
def test_the_order_of_thoughts_permutes_the_jsd_and_leaves_persistence(order, seed):
    logits = random_logits(4, 3, 5, seed)
    jsd = pairwise_jsd(logits)
    torch.testing.assert_close(pairwise_jsd(logits[order]), jsd[order][:, order])
    torch.testing.assert_close(persistence(logits[order]), persistence(logits))
    assert jsd.min() >= 0
    assert jsd.max() <= math.log(2) + 1e-12
    torch.testing.assert_close(jsd, jsd.transpose(0, 1))
    torch.testing.assert_close(pairwise_jsd(logits.double() + 5), jsd)  # logits are known up to a constant only


def test_jsd_of_nearly_equal_thoughts_is_not_negative_by_rounding():
    logits = random_logits(1, 200, 50).double()
    nearly = torch.cat([logits, logits + 1e-9 * random_logits(1, 200, 50, seed=1)])
    assert pairwise_jsd(nearly).min() >= 0


def test_persistence_sees_the_position_where_a_thought_is_forgotten():
    logits = random_logits(3, 6, 9)
    logits[:, 4:] = logits[:1, 4:]
    curve = persistence(logits)
    assert curve[:4].min() > 0.05
    assert curve[4:].max() < 1e-12
    pairs = [pairwise_jsd(logits)[i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(curve, torch.stack(pairs).mean(0))


def test_a_single_thought_has_no_persistence():
    assert pairwise_jsd(random_logits(1, 3, 5)).tolist() == [[[0, 0, 0]]]
    with pytest.raises(ValueError, match="persistence: needs 2 or more"):
        persistence(random_logits(1, 3, 5))


# Answers and references ---------------------------------------------------------------------------------------------


def test_answers_are_counted_once_and_none_never():
    assert distinct_answers([]) == distinct_answers([None, None]) == 0
    assert distinct_answers(["x"] * 8) == 1
    assert distinct_answers("abcdefgh") == 8
    assert distinct_answers(["x", None, "y", "x"]) == 2


def test_coverage_of_references():
    assert coverage(["x", "x", None], ["x", "y"]) == 0.5
    assert coverage(["y", "x", "z"], ["x", "y", "y"]) == 1
    assert coverage([None], ["x"]) == coverage([], ["x"]) == 0
    with pytest.raises(ValueError, match="coverage: no references"):
        coverage(["x"], [])


def test_chrf_coverage_rewards_neither_copies_nor_noise():
    references = ["aaaaaa", "bbbbbb"]
    assert chrf_coverage(references, references) == pytest.approx(100)
    assert chrf_coverage(["aaaaaa"] * 8, references) == pytest.approx(50)
    assert chrf_coverage(["cdefgh", "ijklmn"], references) == 0
    for texts, wanted, missing in ((["a"], [], "references"), ([], ["a"], "texts")):
        with pytest.raises(ValueError, match=f"no {missing}"):
            chrf_coverage(texts, wanted)


def test_pass_at_k_counts_the_subsets():
    for n in range(1, 7):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([i < correct for i in range(n)], k))
                assert pass_at_k(n, correct, k) == pytest.approx(fmean(map(any, subsets)))
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)
    for n, correct, k in ((3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, correct, k)


def test_majority():
    assert majority_at_k(["x", "x", "y"], {"x"}) == 1
    assert majority_at_k(["x", "y", "y"], {"x"}) == 0
    assert majority_at_k(["x", "y", None, None], {"x"}) == 0.5  # a tie; None does not vote
    assert majority_at_k(["x", "y", "z"], {"x", "z"}) == pytest.approx(2 / 3)
    assert majority_at_k([None], {"x"}) == majority_at_k([], {"x"}) == 0


@unhurried
@given(answers, st.randoms())
def test_the_order_of_answers_does_not_matter(given_answers, rng):
    shuffled = rng.sample(given_answers, len(given_answers))
    assert majority_at_k(shuffled, {"x"}) == majority_at_k(given_answers, {"x"})
    assert distinct_answers(shuffled) == distinct_answers(given_answers)
    assert coverage(shuffled, "xy") == coverage(given_answers, "xy")


def test_the_module_docstring_names_every_measure():
    public = [
        n
        for n, f in inspect.getmembers(metrics, inspect.isfunction)
        if f.__module__ == metrics.__name__ and n[0] != "_"
    ]
    assert {"ngrams", *metrics.__doc__.split()} >= set(public)
