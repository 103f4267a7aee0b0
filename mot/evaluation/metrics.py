"""Measures of how different K texts are, and how good. Pure functions; randomness is a seed.

Texts of one prompt         distinct_n  ead  vendi_score  self_bleu  pairwise_bleu  compression_ratio
Similarity of any kind      ngram_similarity  vendi
Thoughts, from logits       pairwise_jsd  persistence
Answers and references      distinct_answers  coverage  chrf_coverage  pass_at_k  majority_at_k  bleu  chrf

Words are separated by white space, except in BLEU, which uses sacrebleu's tokens. Texts are continuations without their
prompt. No measure depends on the order of the texts. Shapes as in mot/thoughts.py: K thoughts, T positions, V
vocabulary.
"""

import gzip
import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from functools import cache
from itertools import permutations, zip_longest
from statistics import fmean

import torch
from torch import Tensor

# Texts of one prompt ------------------------------------------------------------------------------------------------


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Word n-grams, in order."""
    assert n >= 1, n
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: list[str], n: int) -> float:
    """Different n-grams over all n-grams of all texts: near 1/K for copies, 1 without repeats, 0 without n-grams.

    Longer texts score lower (see `ead`), so compare at equal length. Source: Li et al. 2016, "A Diversity-Promoting
    Objective Function for Neural Conversation Models", section 5.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(texts: list[str], n: int, vocabulary: int) -> float:
    """Expectation-adjusted distinct: different n-grams over the expectation for C uniform draws out of V, at any
    length.

        D / (V (1 - (1 - 1/V)^C)),   C n-grams of which D are different, V = `vocabulary`

    0 (no n-grams) .. 1 (as many as uniform draws) .. 1/(1 - 1/e) = 1.58 (all V exactly once). V is the number of
    possible n-grams: one number, counted once, for everything that is compared. Raises ValueError if the texts hold
    more. Source: Liu et al. 2022, "Rethinking and Refining the Distinct Metric".
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    different = len(set(grams))
    if vocabulary < max(2, different):
        raise ValueError(
            f"ead: vocabulary {vocabulary} is too small; at least 2 and the {different} n-grams of the texts"
        )
    # 1 - (1 - 1/V)^C. Written so, it rounds to 0 for V >= 1e16, and V may be that large for bigrams.
    seen = -math.expm1(len(grams) * math.log1p(-1 / vocabulary))
    return different / (vocabulary * seen) if grams else 0.0


def ngram_similarity(texts: list[str], n: int = 2) -> Tensor:
    """Cosine similarity [K, K] of the texts' word 1..n-gram counts, 0 (nothing shared) .. 1 (same counts).

    An empty text is similar to empty texts only.
    """
    counts = [Counter(gram for size in range(1, n + 1) for gram in ngrams(text, size)) or {(): 1} for text in texts]
    names = {gram: i for i, gram in enumerate({gram: None for count in counts for gram in count})}
    vectors = torch.zeros(len(texts), len(names), dtype=torch.float64)
    for row, count in zip(vectors, counts, strict=True):
        for gram, times in count.items():
            row[names[gram]] = times
    vectors = torch.nn.functional.normalize(vectors)
    return vectors @ vectors.T


def vendi(similarity_KK: Tensor) -> float:
    """Effective number of different items: exp of the entropy of the eigenvalues of similarity / K. 1 .. K.

    1 if all are the same (ones), K if no two are similar (identity). The similarity must be positive semi-definite with
    a unit diagonal, such as the cosines of embeddings. Raises ValueError otherwise. Source: Friedman and Dieng 2023,
    definition 3.1.
    """
    similarity = similarity_KK.double()
    K = len(similarity)
    if K == 0 or similarity.shape != (K, K) or not torch.allclose(similarity, similarity.T, atol=1e-5):
        raise ValueError("vendi: similarities must be a symmetric matrix [K, K] of numbers, K at least 1")
    if not torch.allclose(similarity.diagonal(), similarity.new_ones(K), atol=1e-4):
        raise ValueError("vendi: the diagonal must be 1; normalise the embeddings")
    eigenvalues = torch.linalg.eigvalsh(similarity / K)
    if eigenvalues.min() < -1e-4:  # rounding of float32 embeddings gives smaller negative values than real mistakes
        raise ValueError("vendi: the similarity is not positive semi-definite; cosines of vectors are")
    return torch.special.entr(eigenvalues.clamp_min(0)).sum().exp().item()


def vendi_score(texts: list[str], n: int = 2) -> float:
    """Effective number of different texts, 1 (copies) .. K (no word shared): `vendi` of `ngram_similarity`.

    The n-gram kernel of the paper averages the cosines of n = 1..4. This one counts 1..n-grams together.
    """
    return vendi(ngram_similarity(texts, n))


def self_bleu(texts: list[str]) -> float:
    """Mean BLEU of each text against all the others as its references: 0 (nothing shared) .. 100 (each has a copy).

    Lower is more diverse. Compare at equal K only, because more references match more. ValueError below two texts.
    Source: Zhu et al. 2018, "Texygen".
    """
    _at_least_two("self_bleu", texts)
    return fmean(_sentence_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts))


def pairwise_bleu(texts: list[str]) -> float:
    """Mean BLEU over ordered pairs of texts, one as the other's reference: 0 (nothing shared) .. 100 (copies).

    Lower is more diverse. Unlike `self_bleu` it does not grow with K. ValueError below two texts. Source: Shen et al.
    2019, "Mixture Models for Diverse Machine Translation", there over a corpus, here the mean over the pairs of one
    prompt.
    """
    _at_least_two("pairwise_bleu", texts)
    return fmean(_sentence_bleu(text, [other]) for text, other in permutations(texts, 2))


def _sentence_bleu(text: str, others: list[str]) -> float:
    # sacrebleu gives two empty texts 0, which would make a model that writes nothing the most diverse.
    return 100.0 if text.split() in [other.split() for other in others] else bleu([text], [others])


def _at_least_two(measure: str, items: Sequence) -> None:
    if len(items) < 2:
        raise ValueError(f"{measure}: needs 2 or more, and there is {len(items)}")


def compression_ratio(texts: list[str]) -> float:
    """Bytes of the texts over bytes after gzip: 0 (no text), below 1 (short), 2 to 3 (prose), towards 1,000 (copies).

    Lower is more diverse. It grows with length and K, so compare at equal K and length. gzip does not see repeats
    further than 32 kB apart. Source: Shaib et al. 2024, "Standardizing the Measurement of Text Diversity" (arXiv
    2403.00553).
    """
    # Sorted, because the result of gzip depends on the order and the K texts of a prompt have none.
    joined = " ".join(sorted(texts)).encode()
    return len(joined) / len(gzip.compress(joined))


# Thoughts, from logits ----------------------------------------------------------------------------------------------


def pairwise_jsd(logits_KTV: Tensor) -> Tensor:
    """Jensen-Shannon divergence [K, K, T], nats, between the next-token distributions of K thoughts at each position.

        JSD = H((p + q) / 2) - (H(p) + H(q)) / 2

    0 (the thoughts agree) .. log 2 (they share no token). The logits must be of one continuation, read under each
    thought. With a continuation per thought the texts would be compared, not the thoughts. Logits may be -inf. Source:
    Lin 1991, eq. 4.1 with weights of 1/2.
    """
    K, T, _ = logits_KTV.shape
    first, second = torch.triu_indices(K, K, offset=1)
    jsd_KKT = logits_KTV.new_zeros(K, K, T, dtype=torch.float64)
    for t in range(T):  # all positions at once would take K^2 T V numbers, which is gigabytes
        p_KV = logits_KTV[:, t].double().softmax(-1)
        entropy_K = torch.special.entr(p_KV).sum(-1)
        entropy_of_mean = torch.special.entr((p_KV[first] + p_KV[second]) / 2).sum(-1)
        jsd = (entropy_of_mean - (entropy_K[first] + entropy_K[second]) / 2).clamp_min(0)
        jsd_KKT[first, second, t] = jsd_KKT[second, first, t] = jsd
    return jsd_KKT


def persistence(logits_KTV: Tensor) -> Tensor:
    """Mean `pairwise_jsd` over the pairs of thoughts at each position [T], nats, 0 .. log 2.

    A curve that falls to 0 says that the model has forgotten its thought. Raises ValueError below two thoughts.
    """
    _at_least_two("persistence", logits_KTV)
    first, second = torch.triu_indices(len(logits_KTV), len(logits_KTV), offset=1)
    return pairwise_jsd(logits_KTV)[first, second].mean(0)


# Answers and references ---------------------------------------------------------------------------------------------
# An answer is the result of a task's `verify`: a text in its canonical spelling, or None if it is not valid.


def distinct_answers(answers: Sequence[Hashable | None]) -> int:
    """Number of different answers, 0 .. K; None does not count."""
    return len(set(answers) - {None})


def coverage(answers: Sequence[Hashable | None], references: Collection[Hashable]) -> float:
    """Share of the different references that are among the answers, 0 .. 1. ValueError without references."""
    if not references:
        raise ValueError("coverage: no references")
    return len(set(references) & set(answers)) / len(set(references))


def chrf_coverage(texts: list[str], references: list[str]) -> float:
    """Graded coverage: mean over the references of the chrF of the closest text, 0 .. 100.

        1/R sum_r  max_k  chrF(text_k, reference_r)

    Copies of one good text cover one reference; noise covers none. ValueError without texts or references.
    Source: recall of Zhao et al. 2017, "Learning Discourse-level Diversity for Neural Dialog Models".
    """
    if not texts or not references:
        raise ValueError("chrf_coverage: no texts" if references else "chrf_coverage: no references")
    return fmean(max(chrf([text], [[reference]]) for text in texts) for reference in references)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability, 0 .. 1, that k of n samples without replacement hold a correct one: 1 - C(n-c, k) / C(n, k).

    It is unbiased for independent samples. Thoughts are not independent: with each thought once, this is the mean over
    all choices of k thoughts, and for k = n it is whether any is correct. Source: Chen et al. 2021, eq. 1.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@k: needs 1 <= k <= n and 0 <= correct <= n, not k {k}, n {n}, correct {correct}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Collection[Hashable]) -> float:
    """Probability, 0 .. 1, that a majority vote among these k answers elects a correct one; ties are broken at random.

    Give answers as read from the texts, before verification, because every verified vote is correct. None does not
    vote. 0 without votes. Source: Wang et al. 2023, "Self-Consistency"; maj1@k of Lewkowycz et al. 2022.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    elected = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in correct for answer in elected) / len(elected) if elected else 0.0


def bleu(texts: list[str], references: list[list[str]]) -> float:
    """BLEU of a corpus, 0 .. 100, texts[i] against all of references[i]; their number may differ from text to text.

    sacrebleu's `case:mixed|eff:yes|tok:13a|smooth:exp`: the usual corpus BLEU, and the usual sentence BLEU for a single
    text. Raises ValueError if a text has no references. Source: Papineni et al. 2002; Post 2018.
    """
    return _corpus_score("bleu", _sacrebleu()[0], texts, references)


def chrf(texts: list[str], references: list[list[str]]) -> float:
    """chrF2 of a corpus, 0 .. 100: F-score of character 1..6-grams without spaces, recall with twice the weight.

    texts[i] is scored against the closest of references[i]. Raises ValueError if it has none. Source: Popović 2015;
    Post 2018.
    """
    return _corpus_score("chrf", _sacrebleu()[1], texts, references)


def _corpus_score(measure: str, metric, texts: list[str], references: list[list[str]]) -> float:
    if not texts or len(texts) != len(references):
        raise ValueError(
            f"{measure}: {len(texts)} texts and {len(references)} lists of references; give one list for each text"
        )
    if not all(references):
        raise ValueError(f"{measure}: text {[bool(r) for r in references].index(False) + 1} has no references")
    return metric.corpus_score(texts, list(zip_longest(*references))).score


@cache
def _sacrebleu() -> tuple:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ValueError('BLEU and chrF need sacrebleu; pip install "mixture-of-thoughts[evaluate]"') from None
    # Without effective_order a text of three words has BLEU 0 against itself. It does not change corpus BLEU.
    return BLEU(effective_order=True, force=True), CHRF()
