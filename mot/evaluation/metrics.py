"""How different are K texts, and how good? Pure functions; randomness is a seed.

Texts of one prompt         distinct_n  ead  vendi_score  self_bleu  pairwise_bleu  compression_ratio
Similarity of any kind      ngram_similarity  vendi
Thoughts, from logits       pairwise_jsd  persistence
Answers and references      distinct_answers  coverage  chrf_coverage  pass_at_k  majority_at_k  bleu  chrf

A word is what stands between white space, except for BLEU, which has sacrebleu's words. No text is ever sought in its prompt:
give continuations only. All are invariant to the order of the texts. Shapes as in mot/thoughts.py: K thoughts, T positions,
V vocabulary.
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
    """Different n-grams over all n-grams of all texts: 1/K-ish for copies, 1 where nothing repeats. 0 if there are none.

    Longer texts score lower (see `ead`): compare at equal length. Source: Li et al. 2016, "A Diversity-Promoting Objective
    Function for Neural Conversation Models", section 5.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(texts: list[str], n: int, vocabulary: int) -> float:
    """Expectation-adjusted distinct: different n-grams over those expected of C uniform draws out of V, whatever the length.

        D / (V (1 - (1 - 1/V)^C)),   C n-grams of which D are different, V = `vocabulary`

    0 (there are none) .. 1 (as many as uniform draws) .. 1/(1 - 1/e) = 1.58 (all V exactly once). V is the number of
    n-grams that could have been said: one number, counted once, for all that is compared. Raises ValueError if the texts
    hold more. Source: Liu et al. 2022, "Rethinking and Refining the Distinct Metric".
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    different = len(set(grams))
    if vocabulary < max(2, different):
        raise ValueError(
            f"ead: vocabulary {vocabulary} is too small; at least 2 and the {different} n-grams of the texts"
        )
    # 1 - (1 - 1/V)^C, which in this spelling is 0 in floating point from V = 1e16 on, and V is a square for bigrams.
    seen = -math.expm1(len(grams) * math.log1p(-1 / vocabulary))
    return different / (vocabulary * seen) if grams else 0.0


def ngram_similarity(texts: list[str], n: int = 2) -> Tensor:
    """Cosine similarity [K, K] of the texts' word 1..n-gram counts, 0 (nothing shared) .. 1 (same counts).

    An empty text resembles only empty texts.
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
    """Effective number of different things: exp of the entropy of the eigenvalues of similarity / K. 1 .. K.

    1 if all are alike (ones), K if nothing resembles anything (identity). Any positive semi-definite similarity with a
    unit diagonal will do, such as the cosines of embeddings; ValueError otherwise. Source: Friedman and Dieng 2023,
    definition 3.1.
    """
    similarity = similarity_KK.double()
    K = len(similarity)
    if K == 0 or similarity.shape != (K, K) or not torch.allclose(similarity, similarity.T, atol=1e-5):
        raise ValueError("vendi: similarities must be a symmetric matrix [K, K] of numbers, K at least 1")
    if not torch.allclose(similarity.diagonal(), similarity.new_ones(K), atol=1e-4):
        raise ValueError("vendi: everything must resemble itself by 1; normalise the embeddings")
    eigenvalues = torch.linalg.eigvalsh(similarity / K)
    if eigenvalues.min() < -1e-4:  # cosines of float32 embeddings are negative by rounding, real mistakes by more
        raise ValueError("vendi: the similarity is not positive semi-definite; cosines of vectors are")
    return torch.special.entr(eigenvalues.clamp_min(0)).sum().exp().item()


def vendi_score(texts: list[str], n: int = 2) -> float:
    """Effective number of different texts, 1 (copies) .. K (no word shared): `vendi` of `ngram_similarity`.

    The paper's own n-gram kernel averages the cosines of n = 1..4; this one counts 1..n-grams together.
    """
    return vendi(ngram_similarity(texts, n))


def self_bleu(texts: list[str]) -> float:
    """Mean BLEU of each text against all the others as its references: 0 (nothing shared) .. 100 (each has a copy).

    Lower is more diverse. Not to be compared between different K: more references match more. ValueError below two texts.
    Source: Zhu et al. 2018, "Texygen".
    """
    _at_least_two("self_bleu", texts)
    return fmean(_sentence_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts))


def pairwise_bleu(texts: list[str]) -> float:
    """Mean BLEU over ordered pairs of texts, one as the other's reference: 0 (nothing shared) .. 100 (copies).

    Lower is more diverse; unlike `self_bleu` it does not grow with K. ValueError below two texts. Source: Shen et al. 2019,
    "Mixture Models for Diverse Machine Translation" (there over a corpus; here the mean over the pairs of one prompt).
    """
    _at_least_two("pairwise_bleu", texts)
    return fmean(_sentence_bleu(text, [other]) for text, other in permutations(texts, 2))


def _sentence_bleu(text: str, others: list[str]) -> float:
    # To sacrebleu two empty texts have nothing in common: a model that says nothing would be the most diverse of all.
    return 100.0 if text.split() in [other.split() for other in others] else bleu([text], [others])


def _at_least_two(measure: str, items: Sequence) -> None:
    if len(items) < 2:
        raise ValueError(f"{measure} compares: it needs 2 or more, and there is {len(items)}")


def compression_ratio(texts: list[str]) -> float:
    """Bytes of the texts over bytes after gzip: 0 (no text), below 1 (short), 2 to 3 (prose), towards 1,000 (copies).

    Lower is more diverse. It grows with length and K, so compare at equal K and length; repeats further than 32 kB apart are
    not seen. Source: Shaib et al. 2024, "Standardizing the Measurement of Text Diversity" (arXiv 2403.00553).
    """
    # Sorted: what gzip finds depends on the order, and K texts of one prompt have none.
    joined = " ".join(sorted(texts)).encode()
    return len(joined) / len(gzip.compress(joined))


# Thoughts, from logits ----------------------------------------------------------------------------------------------


def pairwise_jsd(logits_KTV: Tensor) -> Tensor:
    """Jensen-Shannon divergence [K, K, T], nats, between the next-token distributions of K thoughts at each position.

        JSD = H((p + q) / 2) - (H(p) + H(q)) / 2

    0 (the thoughts agree) .. log 2 (they share no token). The logits are of one continuation, read under each thought:
    on continuations of their own, texts would be compared and not thoughts. Tokens suppressed with -inf are welcome.
    Source: Lin 1991, eq. 4.1 with weights of 1/2.
    """
    K, T, _ = logits_KTV.shape
    first, second = torch.triu_indices(K, K, offset=1)
    jsd_KKT = logits_KTV.new_zeros(K, K, T, dtype=torch.float64)
    for t in range(T):  # all positions at once would take K^2 T V numbers: gigabytes
        p_KV = logits_KTV[:, t].double().softmax(-1)
        entropy_K = torch.special.entr(p_KV).sum(-1)
        entropy_of_mean = torch.special.entr((p_KV[first] + p_KV[second]) / 2).sum(-1)
        jsd = (entropy_of_mean - (entropy_K[first] + entropy_K[second]) / 2).clamp_min(0)
        jsd_KKT[first, second, t] = jsd_KKT[second, first, t] = jsd
    return jsd_KKT


def persistence(logits_KTV: Tensor) -> Tensor:
    """Does a thought last? Mean `pairwise_jsd` over the pairs of thoughts, at each position [T], nats, 0 .. log 2.

    A curve that falls to 0 says that the model has forgotten which thought it follows. ValueError below two thoughts.
    """
    _at_least_two("persistence", logits_KTV)
    first, second = torch.triu_indices(len(logits_KTV), len(logits_KTV), offset=1)
    return pairwise_jsd(logits_KTV)[first, second].mean(0)


# Answers and references ---------------------------------------------------------------------------------------------
# An answer is what a task's `verify` makes of a text: spelt one way only, None where the text is no answer.


def distinct_answers(answers: Sequence[Hashable | None]) -> int:
    """How many different answers there are, 0 .. K; None is none."""
    return len(set(answers) - {None})


def coverage(answers: Sequence[Hashable | None], references: Collection[Hashable]) -> float:
    """Share of the different references that are among the answers, 0 .. 1. ValueError without references."""
    if not references:
        raise ValueError("coverage: no references")
    return len(set(references) & set(answers)) / len(set(references))


def chrf_coverage(texts: list[str], references: list[str]) -> float:
    """Coverage in degrees: mean over the references of the chrF of the text that is closest to it, 0 .. 100.

        1/R sum_r  max_k  chrF(text_k, reference_r)

    Copies of one good text cover one reference; noise covers none. ValueError without texts or references.
    Source: recall of Zhao et al. 2017, "Learning Discourse-level Diversity for Neural Dialog Models".
    """
    if not texts or not references:
        raise ValueError("chrf_coverage: no texts" if references else "chrf_coverage: no references")
    return fmean(max(chrf([text], [[reference]]) for text in texts) for reference in references)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability, 0 .. 1, that k of n samples, taken without replacement, hold one of the `correct`: 1 - C(n-c, k) / C(n, k).

    Unbiased for independent samples. Thoughts are not: with each thought once it is the mean over all choices of k
    thoughts, and k = n is simply whether any was right. Source: Chen et al. 2021, eq. 1.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@k: needs 1 <= k <= n and 0 <= correct <= n, not k {k}, n {n}, correct {correct}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Collection[Hashable]) -> float:
    """Probability, 0 .. 1, that a vote among these k answers elects a correct one; a tie is decided by lot.

    Answers as read from the texts, before anyone judged them: among verified ones every vote is right. None does not
    vote; without votes 0. Source: Wang et al. 2023, "Self-Consistency"; maj1@k of Lewkowycz et al. 2022.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    elected = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in correct for answer in elected) / len(elected) if elected else 0.0


def bleu(texts: list[str], references: list[list[str]]) -> float:
    """BLEU of a corpus, 0 .. 100, texts[i] against all of references[i]; their number may differ from text to text.

    sacrebleu's `case:mixed|eff:yes|tok:13a|smooth:exp`: the usual corpus BLEU, and for a single text the usual sentence
    BLEU. ValueError if a text has no references. Source: Papineni et al. 2002; Post 2018.
    """
    return _corpus_score("bleu", _sacrebleu()[0], texts, references)


def chrf(texts: list[str], references: list[list[str]]) -> float:
    """chrF2 of a corpus, 0 .. 100: F-score, recall twice as weighty, of character 1..6-grams, spaces left out.

    texts[i] is scored against the closest of references[i]. ValueError if it has none. Source: Popović 2015; Post 2018.
    """
    return _corpus_score("chrf", _sacrebleu()[1], texts, references)


def _corpus_score(measure: str, metric, texts: list[str], references: list[list[str]]) -> float:
    if not texts or len(texts) != len(references):
        raise ValueError(
            f"{measure}: {len(texts)} texts and {len(references)} lists of references; one each, at least one"
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
    # effective_order changes nothing in a corpus; without it a text of three words has BLEU 0 against itself.
    return BLEU(effective_order=True, force=True), CHRF()
