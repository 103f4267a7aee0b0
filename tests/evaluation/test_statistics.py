"""Intervals on cases with a known value, pairing, and matching against the slow search."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.evaluation.statistics import Point, bootstrap, matched, paired_bootstrap

unhurried = settings(deadline=None)  # a busy machine is no failure


def test_bootstrap_is_near_the_exact_interval_of_all_resamples():
    values = [0.0, 1.0, 1.0, 3.0, 7.0]
    means = np.array([fmean(drawn) for drawn in itertools.product(values, repeat=5)])
    interval = bootstrap(values, seed=0, resamples=20_000)
    assert interval.mean == pytest.approx(2.4)
    assert interval[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.1)


def test_bootstrap_covers_the_truth_95_times_of_100():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 60, generator=generator) + 1
    covered = fmean(
        low <= 1 <= high for _, low, high in (bootstrap(s, seed=i, resamples=300) for i, s in enumerate(samples))
    )
    assert 0.91 <= covered <= 0.98


def test_bootstrap_repeats_itself_and_touches_no_global_seed():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    state = torch.random.get_rng_state()
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_bootstrap_of_few_values():
    assert bootstrap([2.0] * 5, seed=0) == (2, 2, 2)
    assert bootstrap([2.0], seed=0) == (2, -math.inf, math.inf)
    for values in ([], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="must be finite"):
            bootstrap(values, seed=0)


@unhurried
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5), st.floats(0, 3))
def test_bootstrap_moves_and_stretches_with_its_values(values, shift, scale):
    interval = bootstrap(values, seed=3, resamples=50)
    moved = bootstrap([scale * v + shift for v in values], seed=3, resamples=50)
    assert moved == pytest.approx([scale * end + shift for end in interval], abs=1e-9)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_pairing_finds_what_the_difficulty_of_prompts_hides():
    difficulty = 10 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    a, b = (difficulty + 0.5).tolist(), difficulty.tolist()
    assert paired_bootstrap(a, b, seed=0) == pytest.approx((0.5, 0.5, 0.5), abs=1e-5)
    assert paired_bootstrap(b, a, seed=0).high < 0
    assert paired_bootstrap(a, a, seed=0) == (0, 0, 0)
    apart = bootstrap(a, seed=0), bootstrap(b, seed=0)
    assert apart[0].low < apart[1].high  # unpaired, nothing is significant
    with pytest.raises(ValueError, match="3 values against 2"):
        paired_bootstrap([1, 2, 3], [1, 2], seed=0)


def point(name, quality, diverse):
    return Point(name, [quality - 0.01, quality + 0.01], [diverse - 1, diverse + 1])


MIXTURE = point("mixture", 0.97, 6.5)


def test_matched_takes_the_best_of_those_that_qualify():
    table = [
        point("T=0", 1.0, 1),
        point("T=0.5", 0.96, 4),
        point("T=0.6", 0.98, 3.9),
        point("T=1", 0.9, 7),
        point("T=2", 0.2, 8),
    ]
    at_quality, at_diversity = matched(MIXTURE, table, seed=0)
    assert at_quality.setting.name == "T=0.5"
    assert at_quality.diversity == pytest.approx((2.5, 2.5, 2.5))
    assert at_quality.quality == pytest.approx((0.01, 0.01, 0.01))
    assert at_diversity.setting.name == "T=1"
    assert at_diversity.quality.mean == pytest.approx(0.07)
    assert at_diversity.diversity.mean == pytest.approx(-0.5)
    assert at_quality.sentence == (
        "3 of 5 settings have quality 0.960 or more, T=0.5 has the best diversity; mixture minus T=0.5: "
        "quality 0.010 [0.010, 0.010], diversity 2.500 [2.500, 2.500]"
    )


def test_rounding_excludes_no_setting():
    assert 0.134 - 0.01 > 0.124
    at_quality, _ = matched(Point("mixture", [0.134], [6]), [Point("T=1", [0.124], [4])], seed=0)
    assert at_quality.setting.name == "T=1"


def test_matched_says_when_nothing_matches():
    at_quality, at_diversity = matched(MIXTURE, [point("T=1", 0.9, 5), point("T=2", 0.2, 6)], seed=0)
    assert not at_quality.qualified
    assert not at_diversity.qualified
    assert at_quality.sentence.startswith("none of 2 settings has quality 0.960 or more, T=1 is nearest with 0.900; ")
    assert at_diversity.sentence.startswith(
        "none of 2 settings has diversity 6.500 or not clearly less, T=2 is nearest with 6.000; "
    )
    assert at_quality.diversity.mean == pytest.approx(1.5)


def test_a_setting_that_is_not_clearly_less_diverse_is_as_diverse():
    mixture = Point("mixture", [0.9] * 8, [6, 4] * 4)
    noisy = Point("noisy", [0.95] * 8, [4, 5.9] * 4)  # 0.05 less in the mean, 2 more and 1.9 less by prompt
    clear = Point("clear", [0.99] * 8, [d - 0.05 for d in mixture.diversity])  # 0.05 less of every prompt
    _, at_diversity = matched(mixture, [noisy, clear], seed=0)
    assert at_diversity.qualified
    assert at_diversity.setting.name == "noisy"
    assert at_diversity.quality.mean == pytest.approx(-0.05)
    _, at_diversity = matched(mixture, [clear], seed=0)
    assert not at_diversity.qualified
    _, alone = matched(Point("m", [0.9], [6]), [Point("one", [0.9], [5.99])], seed=0)  # a single unit has no interval
    assert not alone.qualified


def test_matched_selects_on_some_prompts_and_compares_on_others():
    test = {p.name: p for p in (Point("mixture", [1.0], [8.0]), Point("a", [0.5], [1.0]), Point("b", [0.9], [9.0]))}
    at_quality, at_diversity = matched(MIXTURE, [point("a", 0.97, 5), point("b", 0.2, 7)], seed=0, test=test)
    assert (at_quality.setting.name, at_quality.quality.mean, at_quality.diversity.mean) == ("a", 0.5, 7.0)
    assert (at_diversity.setting.name, at_diversity.diversity.mean) == ("b", -1.0)


def test_a_setting_better_in_both_is_a_match_and_the_mixture_loses():
    for found in matched(MIXTURE, [point("beam", 1.0, 7)], seed=0):
        assert found.setting.name == "beam"
        assert found.quality.high < 0
        assert found.diversity.high < 0


def test_matched_breaks_ties_by_the_other_value_and_against_itself_there_is_no_difference():
    at_quality, at_diversity = matched(MIXTURE, [point("a", 0.98, 4), point("b", 0.99, 4), MIXTURE], seed=0)
    for found in (at_quality, at_diversity):
        assert found.setting is MIXTURE
        assert found.quality == found.diversity == (0, 0, 0)
    assert matched(MIXTURE, [point("a", 0.98, 4), point("b", 0.99, 4)], seed=0)[0].setting.name == "b"


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 8)), min_size=1, max_size=6), st.randoms())
def test_matched_is_the_slow_search_in_any_order(pairs, rng):
    table = [Point(str(i), [q, q], [d - 1, d + 1]) for i, (q, d) in enumerate(pairs)]  # differences without spread
    at_quality, at_diversity = matched(MIXTURE, rng.sample(table, len(table)), seed=0)
    best_d = max((d for q, d in pairs if q > 0.96 - 1e-9), default=None)
    best_q = max((q for q, d in pairs if d > 6.5 - 1e-9), default=None)
    assert (at_quality.setting.diversity[0] + 1 if at_quality.qualified else None) == pytest.approx(best_d)
    assert (at_diversity.setting.quality[0] if at_diversity.qualified else None) == best_q


@pytest.mark.parametrize(
    "setting",
    [Point("T=1", [0.9], [1.0]), Point("T=1", [0.9, 0.9], [1.0, math.nan]), Point("T=1", [0.9, math.inf], [1.0, 1.0])],
)
def test_matched_rejects_points_of_other_prompts_or_without_value(setting):
    with pytest.raises(ValueError, match="T=1: needs a finite quality and diversity for every prompt"):
        matched(MIXTURE, [setting], seed=0)
    with pytest.raises(ValueError, match="no settings"):
        matched(MIXTURE, [], seed=0)
