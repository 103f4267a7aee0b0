"""Are K thoughts different, and good? Thoughts against every sampler, with equal tuning, at matched quality. It can say
no.

    result = evaluate(EvaluateSettings(model="outputs/run", task="forks"))      # an Evaluation, see schema.py

Every sampler draws K texts of every prompt in each of its settings. The validation split selects: for the mixture the
most diverse of its best settings, for every sampler the most diverse setting that is as good as the mixture and the
best setting that is as diverse. The test split compares what was selected, with several seeds. OUTPUT/texts.jsonl keeps
texts as they are drawn, so an interrupted evaluation continues where it stopped.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mot.evaluation.measures import MEASURES, Case, info
from mot.evaluation.plan import Plan, ceiling, fingerprint, make_plan
from mot.evaluation.profile import profile
from mot.evaluation.samples import RESULT, Texts, draw_missing
from mot.evaluation.schema import (
    SCHEMA,
    VERSION,
    Comparison,
    Estimate,
    Estimates,
    Evaluation,
    Means,
    Sample,
    SampleColumn,
    SampleText,
    SettingResult,
)
from mot.evaluation.scores import Scores
from mot.evaluation.settings import EvaluateSettings
from mot.evaluation.statistics import Point, bootstrap
from mot.evaluation.verdict import (
    Points,
    against_all,
    compare_ablations,
    compare_from_rival,
    compare_rivals,
    decide,
    estimate,
    select,
)
from mot.inference.sampler import Setting
from mot.runtime.files import atomic_write

SHOWN_PROMPTS, SHOWN_TEXTS = 3, 24  # in the report


def evaluate(settings: EvaluateSettings, command: str = "") -> Evaluation:
    """Run the evaluation and write OUTPUT/diversity.json. Raises ValueError for a mistake of the user."""
    begin = time.perf_counter()
    plan = make_plan(settings)
    texts = Texts(settings.output(), fingerprint(settings, plan), settings.overwrite)
    if plan.left_out:
        print(plan.left_out, file=sys.stderr, flush=True)
    draw_missing(plan, texts)
    scores = Scores(plan, texts)
    validation = {s.name: scores.point(s, "validation") for s in plan.settings}
    test = {s.name: scores.point(s, "test") for s in plan.settings}
    selected = select(validation, plan)
    comparisons = compare_rivals(validation, test, plan, selected)
    reverse = compare_from_rival(comparisons, validation, test, plan)
    ablations = compare_ablations(validation, test, plan, selected)
    result = Evaluation(
        schema=SCHEMA,
        version=VERSION,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        command=command,
        versions={
            "mot": version("mixture-of-thoughts"),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        model=settings.model,
        num_thoughts=plan.mixture.num_thoughts,
        thought_length=plan.mixture.thought_length,
        plain=settings.plain,
        judge=settings.judge,
        task=settings.task,
        prompts=settings.prompts or settings.text,
        k=plan.k,
        seeds=plan.test.seeds,
        max_new_tokens=plan.max_new_tokens,
        quick=plan.left_out,
        num_validation=len(plan.validation.seeds if plan.single_prompt else plan.validation.items),
        num_test=len(plan.test.seeds if plan.single_prompt else plan.test.items),
        units="seeds" if plan.single_prompt else "prompts",
        quality=info(plan.quality) if plan.quality else None,
        diversity=info(plan.diversity),
        ceiling=ceiling(plan),
        settings=_results(plan, scores, validation, test, selected, comparisons + ablations, reverse),
        measures={name: info(name) for name in plan.measures},
        selected=selected.name if selected else None,
        comparisons=comparisons,
        from_rival=reverse,
        ablations=ablations,
        verdict=decide(comparisons, reverse, test, plan, selected),
        thoughts=profile(plan, scores, selected),
        samples=_samples(plan, scores, selected, comparisons),
    )
    result = dataclasses.replace(result, seconds=time.perf_counter() - begin)
    content = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(Path(settings.output()) / RESULT) as part:
        part.write_text(content)
    return result


def _results(
    plan: Plan,
    scores: Scores,
    validation: Points,
    test: Points,
    selected: Setting | None,
    comparisons: list[Comparison],
    reverse: Comparison | None,
) -> list[SettingResult]:
    """Every setting. Further measures are slow, so only settings that something compares have them."""
    compared = {(selected or plan.settings[0]).name} | {c.setting for c in comparisons}
    compared |= {reverse.mixture} if reverse else set()
    return [
        SettingResult(
            name=s.name,
            sampler=s.sampler.name,
            kind=s.sampler.kind,
            source=_source(s, plan),
            parameters=dict(s.parameters),
            seeds=len(plan.seeds(s, plan.test)),
            validation=_means(validation[s.name], plan),
            test=_estimates(test[s.name], plan),
            measures={
                name: estimate(bootstrap(scores.values(s, "test", name), seed=0))
                for name in plan.measures
                if s.name in compared
            },
        )
        for s in plan.settings
    ]


def _source(setting: Setting, plan: Plan) -> str:
    if setting.sampler.kind != "rival":
        return "mixture"
    if plan.base is not plan.mixture:
        return "plain"
    return "trunk" if plan.mixture.thoughts else "model"


def _estimates(point: Point, plan: Plan) -> Estimates:
    def unsigned(values: Sequence[float], measure: str) -> Estimate:
        return estimate(bootstrap([MEASURES[measure].sign * value for value in values], seed=0))

    quality = unsigned(point.quality, plan.quality) if plan.quality else None
    return Estimates(quality, unsigned(point.diversity, plan.diversity))


def _means(point: Point, plan: Plan) -> Means:
    estimates = _estimates(point, plan)
    return Means(estimates.quality.mean if estimates.quality else None, estimates.diversity.mean)


def _samples(plan: Plan, scores: Scores, selected: Setting | None, comparisons: list[Comparison]) -> list[Sample]:
    """Texts of the mixture beside those of its best rival, for the first test prompts."""
    rival = against_all(comparisons, "quality").setting if comparisons else None
    shown = [s for s in plan.settings if s == selected or s.name == rival] or plan.settings[:1]
    cases = [(s, scores.cases(s, "test")[0]) for s in shown]
    return [
        Sample(item.prompt, [_column(setting, cases_of_setting[i]) for setting, cases_of_setting in cases])
        for i, item in enumerate(plan.test.items[:SHOWN_PROMPTS])
    ]


def _column(setting: Setting, case: Case) -> SampleColumn:
    label = "thought" if setting.sampler.kind == "mixture" else "sample"
    texts = []
    for i, text in enumerate(case.texts[:SHOWN_TEXTS]):
        answer = case.answers[i] if case.answers else None
        texts.append(SampleText(f"{label} {i}", text, answer is not None if case.answers else None, answer))
    return SampleColumn(setting.name, texts)
