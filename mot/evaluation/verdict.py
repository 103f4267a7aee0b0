"""Selection, comparison at matched quality and diversity, and the verdict.

    selected = select(validation, plan)                         # the mixture's setting
    comparisons = compare_rivals(validation, test, plan, selected)
    reverse = compare_from_rival(comparisons, validation, test, plan)   # the same question from the rival's side
    verdict = decide(comparisons, reverse, test, plan, selected)        # yes only if chance does not explain it

`validation` and `test` are points by name of setting, larger is better. Settings are selected on the first and compared
on the second.
"""

import math
from statistics import fmean

from mot.evaluation.measures import MEASURES
from mot.evaluation.plan import Plan
from mot.evaluation.schema import Comparison, Estimate, Verdict
from mot.evaluation.statistics import SLACK, Interval, Matched, Point, matched
from mot.inference.sampler import Setting

Points = dict[str, Point]
ANY = "any"  # the group of all rivals
NEAREST = " (no setting reaches the {} of thoughts, this is the nearest)"


def select(validation: Points, plan: Plan) -> Setting | None:
    """The most diverse of the mixture's settings whose quality equals that of its best one; None without thoughts."""
    ours = plan.settings_of("mixture")
    if not ours:
        return None
    best = max(fmean(validation[s.name].quality) for s in ours)
    tolerance = MEASURES[plan.quality].tolerance if plan.quality else 0
    good = [s for s in ours if fmean(validation[s.name].quality) >= best - tolerance - SLACK]
    return max(good, key=lambda s: fmean(validation[s.name].diversity))


def compare_rivals(validation: Points, test: Points, plan: Plan, selected: Setting | None) -> list[Comparison]:
    """The selected setting against all rivals and against each, and the mixture's other settings against all rivals."""
    rivals = plan.settings_of("rival")
    if selected is None or plan.quality is None or not rivals:
        return []
    comparisons = _compare(selected, ANY, rivals, validation, test, plan)
    for sampler, settings in _by_sampler(rivals).items():
        comparisons += _compare(selected, sampler, settings, validation, test, plan)
    for other in plan.settings_of("mixture"):
        if other != selected:
            comparisons += _compare(other, ANY, rivals, validation, test, plan)
    return comparisons


def compare_ablations(validation: Points, test: Points, plan: Plan, selected: Setting | None) -> list[Comparison]:
    """The selected setting against the mixture without a part of it. The verdict does not read them."""
    if selected is None or plan.quality is None:
        return []
    comparisons = []
    for sampler, settings in _by_sampler(plan.settings_of("ablation")).items():
        comparisons += _compare(selected, sampler, settings, validation, test, plan)
    return comparisons


def compare_from_rival(
    comparisons: list[Comparison], validation: Points, test: Points, plan: Plan
) -> Comparison | None:
    """The best of the mixture's settings that are as diverse as the best rival, against that rival."""
    if not comparisons:
        return None
    rival = next(s for s in plan.settings if s.name == against_all(comparisons, "quality").setting)
    ours = [validation[s.name] for s in plan.settings_of("mixture")]
    _, match = matched(validation[rival.name], ours, seed=0, test=test)
    found = next(s for s in plan.settings if s.name == match.setting.name)
    match = match._replace(
        setting=validation[rival.name], quality=match.quality.negative(), diversity=match.diversity.negative()
    )
    note = "" if match.qualified else f" (no setting of thoughts reaches the diversity of {rival.name})"
    return _comparison(found, "diversity", rival.sampler.name, match, plan, note)


def against_all(comparisons: list[Comparison], matched_on: str) -> Comparison:
    """The selected setting against all rivals; it is the first of its kind."""
    return next(c for c in comparisons if (c.sampler, c.matched_on) == (ANY, matched_on))


def _by_sampler(settings: list[Setting]) -> dict[str, list[Setting]]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.sampler.name, []).append(setting)
    return groups


def _compare(
    ours: Setting, sampler: str, settings: list[Setting], validation: Points, test: Points, plan: Plan
) -> list[Comparison]:
    """[at matched quality, at matched diversity]"""
    tolerance = MEASURES[plan.quality].tolerance
    at_quality, at_diversity = matched(
        validation[ours.name], [validation[s.name] for s in settings], seed=0, tolerance=tolerance, test=test
    )
    return [
        _comparison(ours, matched_on, sampler, match, plan, "" if match.qualified else NEAREST.format(matched_on))
        for matched_on, match in (("quality", at_quality), ("diversity", at_diversity))
    ]


def _comparison(ours: Setting, matched_on: str, sampler: str, match: Matched, plan: Plan, note: str) -> Comparison:
    q = estimate(match.quality, MEASURES[plan.quality].sign)
    d = estimate(match.diversity, MEASURES[plan.diversity].sign)
    sentence = (
        f"{ours.name} minus {match.setting.name}{note}: "
        f"{plan.quality} {difference(q)}, {plan.diversity} {difference(d)}"
    )
    return Comparison(ours.name, matched_on, sampler, match.setting.name, match.qualified, sentence, q, d)


def decide(
    comparisons: list[Comparison], reverse: Comparison | None, test: Points, plan: Plan, selected: Setting | None
) -> Verdict:
    """Yes only if the mixture is more diverse than the best rival of equal quality, with the whole 95 % interval."""
    if selected is None:
        return Verdict("none", "The model has no thoughts; these are its samplers alone.", [])
    if plan.quality is None:
        return Verdict(
            "none",
            "No measure says how good the texts are, and diversity alone is no merit; "
            "give --judge, --task, or prompts with references.",
            [],
        )
    if not comparisons:
        return Verdict("none", "There is no rival to compare with; give --baselines.", [])
    if _all_worthless(test, plan):
        return Verdict("none", f"No text of the mixture or of a rival is of use: {plan.quality} is 0 everywhere.", [])
    rival = against_all(comparisons, "quality")
    sign = MEASURES[plan.diversity].sign
    bound = rival.diversity.low if sign > 0 else rival.diversity.high
    yes = bound is not None and sign * bound > 0
    which = "of equal quality" if rival.qualified else "of nearest quality, because none is as good"
    return Verdict(
        "yes" if yes else "no",
        f"{'Different and good' if yes else 'Not more different'}: against the most diverse rival {which} "
        f"({rival.setting}), {selected.name} has {plan.diversity} {difference(rival.diversity)} "
        f"and {plan.quality} {difference(rival.quality)}.",
        [_best_at_its_diversity(against_all(comparisons, "diversity"), plan), _best_at_rivals_diversity(reverse, plan)],
    )


def _best_at_its_diversity(c: Comparison, plan: Plan) -> str:
    gap = f"{c.mixture} has {plan.quality} {difference(c.quality)} and {plan.diversity} {difference(c.diversity)}"
    if c.qualified:
        return f"At equal diversity: against the best rival that is as diverse ({c.setting}), {gap}."
    return f"At equal diversity: no rival setting is as diverse; against the most diverse one ({c.setting}), {gap}."


def _best_at_rivals_diversity(c: Comparison, plan: Plan) -> str:
    gap = f"{plan.quality} {difference(c.quality)} and {plan.diversity} {difference(c.diversity)}"
    if c.qualified:
        return (
            f"From the rival's side: the mixture's best setting that is as diverse as {c.setting} is {c.mixture}, "
            f"with {gap}."
        )
    return (
        f"From the rival's side: no setting of the mixture is as diverse as {c.setting}; "
        f"the most diverse one ({c.mixture}) has {gap}."
    )


def _all_worthless(test: Points, plan: Plan) -> bool:
    """Is no text of the mixture or of a rival of any use, such as valid?"""
    worthless = MEASURES[plan.quality].worthless
    compared = plan.settings_of("mixture") + plan.settings_of("rival")
    return worthless is not None and all(fmean(test[s.name].quality) == worthless for s in compared)


def estimate(interval: Interval, sign: int = 1) -> Estimate:
    """An interval of signed values as an estimate of the measure itself."""
    interval = interval if sign > 0 else interval.negative()
    low = interval.low if math.isfinite(interval.low) else None
    high = interval.high if math.isfinite(interval.high) else None
    return Estimate(interval.mean, low, high)


def difference(e: Estimate) -> str:
    if e.low is None:
        return f"{e.mean:+.3f}"
    return f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"
