"""Is the difference real? Bootstrap intervals, and the comparison of a mixture with a sampler at its best setting.

    bootstrap(values, seed=0)                     # mean [low, high] over prompts or runs
    paired_bootstrap(ours, theirs, seed=0)        # of the differences
    at_quality, at_diversity = matched(mixture, settings, seed=0, test=points)

Pure functions; randomness is a seed.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def negative(self) -> "Interval":
        return Interval(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)  # -0.0 would be shown


class Point(NamedTuple):
    """A setting (of the mixture or of a sampler) with its quality and diversity per prompt. Larger is better in both.

    Where smaller is better (self-BLEU, NLL), give the negative.
    """

    name: str
    quality: Sequence[float]
    diversity: Sequence[float]


class Matched(NamedTuple):
    """The best setting that qualifies, or else the nearest (`qualified` is False), and mixture minus that setting."""

    sentence: str
    qualified: bool
    setting: Point
    quality: Interval
    diversity: Interval


def bootstrap(values: Sequence[float], seed: int, resamples: int = 10_000) -> Interval:
    """Mean of the values, with the 2.5 % and 97.5 % percentiles of the means of resamples with replacement.

    The values must come from independent units: one per prompt (averaged over samples) or one per training run, never
    one per text. A single unit has the interval -inf .. inf. With few units the interval is too narrow: for normal
    values, 5 units give 82 % instead of 95 %, and 20 give 93 %. Raises ValueError if there are no values or one is not
    finite. Source: Efron and Tibshirani 1993, section 13.3.
    """
    population = torch.as_tensor(values, dtype=torch.float64)
    n = len(population)
    if n == 0 or not population.isfinite().all():
        raise ValueError(f"bootstrap: {n} values, all of them must be finite, at least one")
    mean = fmean(population.tolist())
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    generator = torch.Generator().manual_seed(seed)
    parts = [min(1000, resamples - i) for i in range(0, resamples, 1000)]
    means = [population[torch.randint(n, (part, n), generator=generator)].mean(1) for part in parts]
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)


def paired_bootstrap(a: Sequence[float], b: Sequence[float], seed: int, resamples: int = 10_000) -> Interval:
    """Mean of a - b and its interval, a[i] and b[i] of the same prompt. The difference is real if 0 is outside.

    Pairing removes the difficulty of prompts, which is most of the noise. Source: Koehn 2004.
    """
    if len(a) != len(b):
        raise ValueError(f"paired_bootstrap: {len(a)} values against {len(b)}; one each per prompt")
    return bootstrap([x - y for x, y in zip(a, b, strict=True)], seed, resamples)


SLACK = 1e-9  # for rounding: 0.134 - 0.01 is more than 0.124


def matched(
    mixture: Point,
    settings: list[Point],
    seed: int,
    tolerance: float = 0.01,
    test: dict[str, Point] | None = None,
) -> tuple[Matched, Matched]:
    """The mixture against a sampler at its best: (at the mixture's quality, at the mixture's diversity).

    At quality: the most diverse of the settings whose quality is at most `tolerance` below the mixture's. At diversity:
    the best of the settings that are not clearly less diverse than the mixture: the mean of the difference, or the low
    end of its 95 % interval, is at most 0. Both carry mixture minus setting, paired by prompt.
    Settings of *better* quality stay in the first choice, because a sampler that beats the mixture in both must be
    found. Where no setting qualifies, the nearest takes its place.

    `test`: the same points by name, on other prompts. Settings are then selected on the first prompts and compared on
    these. Without it one set of prompts does both, which can only favour the sampler.
    """
    if not settings:
        raise ValueError("matched: no settings to compare with")
    test = test or {point.name: point for point in (*settings, mixture)}
    _check([mixture, *settings])
    _check([test[point.name] for point in (mixture, *settings)])
    quality, diversity = fmean(mixture.quality), fmean(mixture.diversity)
    means = [(fmean(setting.quality), fmean(setting.diversity), setting) for setting in settings]
    by_quality = [((q, d), setting) for q, d, setting in means]
    by_diversity = [((d, q), setting) for q, d, setting in means]
    good = [pair for pair, (q, _, _) in zip(by_diversity, means, strict=True) if q >= quality - tolerance - SLACK]
    diverse = [pair for pair in by_quality if _as_diverse(pair[1], mixture, seed)]

    def compared(bound: str, qualified: list, best: str, nearest: list) -> Matched:
        (value, _), setting = max(qualified or nearest, key=lambda scores_and_setting: scores_and_setting[0])
        ours, theirs = test[mixture.name], test[setting.name]
        q = paired_bootstrap(ours.quality, theirs.quality, seed)
        d = paired_bootstrap(ours.diversity, theirs.diversity, seed)
        if qualified:
            choice = f"{len(qualified)} of {len(settings)} settings have {bound}, {setting.name} has the best {best}"
        else:
            choice = f"none of {len(settings)} settings has {bound}, {setting.name} is nearest with {value:.3f}"
        sentence = f"{choice}; {mixture.name} minus {setting.name}: quality {q}, diversity {d}"
        return Matched(sentence, bool(qualified), setting, q, d)

    return (
        compared(f"quality {quality - tolerance:.3f} or more", good, "diversity", by_quality),
        compared(f"diversity {diversity:.3f} or not clearly less", diverse, "quality", by_diversity),
    )


def _as_diverse(setting: Point, mixture: Point, seed: int) -> bool:
    lost = paired_bootstrap(mixture.diversity, setting.diversity, seed, resamples=1000)
    return lost.mean <= SLACK or -math.inf < lost.low <= SLACK


def _check(points: list[Point]) -> None:
    prompts = len(points[0].quality)
    for name, *values in points:
        if not all(len(v) == prompts > 0 and all(map(math.isfinite, v)) for v in values):
            raise ValueError(f"matched: {name}: needs a finite quality and diversity for every prompt of the mixture")
