"""How different are K texts? Pure functions on lists of strings.

distinct_n(texts, 2)     share of the n-grams that are different, 0 .. 1
vendi_score(texts)       effective number of different texts, 1 .. K
"""

import torch


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Word n-grams, in order."""
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: list[str], n: int) -> float:
    """Different n-grams over all n-grams of all texts: 1/K-ish for copies, 1 where nothing repeats. 0 if there are none.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def vendi_score(texts: list[str], n: int = 2) -> float:
    """Effective number of different texts: exp of the entropy of the eigenvalues of kernel / K. 1 for copies, K for disjoint.

    The kernel is the cosine similarity of word 1..n-gram counts. Source: Friedman and Dieng 2023, definition 3.1.
    """
    counts: list[dict[tuple[str, ...], int]] = []
    for text in texts:
        grams = [gram for size in range(1, n + 1) for gram in ngrams(text, size)] or [("",)]
        counts.append({gram: grams.count(gram) for gram in grams})
    names = {gram: i for i, gram in enumerate({gram: None for count in counts for gram in count})}
    vectors = torch.zeros(len(texts), len(names), dtype=torch.float64)
    for row, count in zip(vectors, counts, strict=True):
        for gram, times in count.items():
            row[names[gram]] = times
    vectors = torch.nn.functional.normalize(vectors)
    eigenvalues = torch.linalg.eigvalsh(vectors @ vectors.T / len(texts)).clamp_min(0)
    return torch.special.entr(eigenvalues).sum().exp().item()
