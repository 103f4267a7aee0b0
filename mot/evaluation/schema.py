"""The schema of diversity.json: `Evaluation` and its parts. The file is `asdict` of one, the document is made from
here.

    python -m mot.evaluation.schema > docs/diversity_json.md

Numbers are in the unit that a field names. `None` means that there is no such thing, or that it cannot be known.
"""

import dataclasses
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_args, get_origin, get_type_hints

SCHEMA, VERSION = "mot-diversity", 3


class Doc(NamedTuple):
    """What the document says of a field."""

    text: str
    unit: str = ""  # or range


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval: the 2.5 % and 97.5 % percentiles of its bootstrap.

    `low` and `high` are None where the spread is unknown, as it is for a single unit.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeasureInfo:
    name: Annotated[str, Doc("its name")]
    description: Annotated[str, Doc("what it is")]
    unit: Annotated[str, Doc("unit and range")]
    better: Annotated[str, Doc("which values are better", "`higher` or `lower`")]
    tolerance: Annotated[float, Doc("a difference of at most this counts as equal quality", "its unit")]


@dataclass(frozen=True)
class Ceiling:
    independent: Annotated[float, Doc("expectation for K independent draws from the best possible distribution")]
    answers: Annotated[float, Doc("the most that K texts can reach")]


@dataclass(frozen=True)
class Means:
    quality: Annotated[float | None, Doc("mean", "unit of quality")]
    diversity: Annotated[float, Doc("mean", "unit of diversity")]


@dataclass(frozen=True)
class Estimates:
    quality: Annotated[Estimate | None, Doc("mean with interval", "unit of quality")]
    diversity: Annotated[Estimate, Doc("mean with interval", "unit of diversity")]


@dataclass(frozen=True)
class SettingResult:
    name: Annotated[str, Doc("e.g. `temperature 0.7`", "unique")]
    sampler: Annotated[str, Doc("a name in mot/inference/samplers.py, e.g. `thoughts` or `top_p`")]
    kind: Annotated[
        str, Doc("the method, the method without a part, or an alternative to it", "`mixture`, `ablation`, `rival`")
    ]
    source: Annotated[str, Doc("the model that wrote the texts", "`mixture`, `trunk`, `plain` or `model`")]
    parameters: Annotated[dict[str, float], Doc("values by name")]
    seeds: Annotated[int, Doc("number of test draws; 1 for a deterministic setting")]
    validation: Annotated[Means, Doc("on the validation split, where settings are selected")]
    test: Annotated[Estimates, Doc("on the test split")]
    measures: Annotated[
        dict[str, Estimate],
        Doc("test estimates by name; empty for settings that no comparison selected", "see `measures`"),
    ]


@dataclass(frozen=True)
class Comparison:
    mixture: Annotated[str, Doc("a setting of the mixture", "name of a setting")]
    matched_on: Annotated[
        str,
        Doc(
            "what is held equal: the most diverse setting of equal quality, or the best setting that is not clearly "
            "less diverse",
            "`quality` or `diversity`",
        ),
    ]
    sampler: Annotated[
        str, Doc("the samplers compared with; `any` is every setting of every rival", "a sampler, or `any`")
    ]
    setting: Annotated[str | None, Doc("the setting selected on the validation split; null: none", "name of a setting")]
    qualified: Annotated[bool, Doc("false: no setting qualifies, and this one is nearest")]
    sentence: Annotated[str, Doc("the same as a sentence")]
    quality: Annotated[
        Estimate | None, Doc("mixture minus the setting, on the test split, paired by unit", "unit of quality")
    ]
    diversity: Annotated[Estimate | None, Doc("mixture minus the setting, likewise", "unit of diversity")]


@dataclass(frozen=True)
class Verdict:
    answer: Annotated[
        str,
        Doc(
            "are thoughts more diverse than the best rival of equal quality? none: there is nothing to compare",
            "`yes`, `no` or `none`",
        ),
    ]
    sentence: Annotated[str, Doc("the same with its numbers")]
    frontier: Annotated[
        list[str],
        Doc(
            "two sentences: quality against the best rival of equal diversity, and the mixture's best setting that is "
            "as diverse as the best rival",
            "empty where the answer is `none`",
        ),
    ]


@dataclass(frozen=True)
class Profile:
    similarity: Annotated[
        list[list[float]] | None, Doc("how alike two thoughts are; null if K is not N", "[N][N], 1: the same")
    ]
    similarity_description: Annotated[str, Doc("what this similarity is")]
    persistence: Annotated[
        list[float] | None,
        Doc(
            "divergence of two thoughts' distributions of the next token, by position after the branch point",
            "nats, 0 to log 2",
        ),
    ]
    usage: Annotated[
        list[float], Doc("router probability of each thought, mean over the test prompts", "[N], sums to 1")
    ]


@dataclass(frozen=True)
class SampleText:
    label: Annotated[str, Doc("e.g. `thought 3`")]
    text: Annotated[str, Doc("as it was drawn")]
    valid: Annotated[bool | None, Doc("does the verifier accept it? null: there is no verifier")]
    answer: Annotated[str | None, Doc("the answer in its canonical spelling; null: no answer")]


@dataclass(frozen=True)
class SampleColumn:
    name: Annotated[str, Doc("the setting", "name of a setting")]
    texts: Annotated[list[SampleText], Doc("its texts", "at most 24")]


@dataclass(frozen=True)
class Sample:
    prompt: Annotated[str, Doc("the prompt")]
    columns: Annotated[list[SampleColumn], Doc("texts of the mixture, and of its best rival")]


@dataclass(frozen=True)
class Evaluation:
    schema: Annotated[str, Doc("identifies the format", f"`{SCHEMA}`")]
    version: Annotated[int, Doc("version of this table", str(VERSION))]
    made: Annotated[str, Doc("end of the evaluation", "ISO 8601 time")]
    seconds: Annotated[float, Doc("duration of this call; texts of an interrupted evaluation are reused", "seconds")]
    command: Annotated[str, Doc("the command line")]
    versions: Annotated[dict[str, str], Doc("versions of `mot`, `torch` and `transformers`")]
    model: Annotated[str, Doc("the evaluated model")]
    num_thoughts: Annotated[int, Doc("N; 1 for a model without thoughts", ">= 1")]
    thought_length: Annotated[int, Doc("thought tokens of one thought", "tokens")]
    plain: Annotated[str | None, Doc("the model that rivals are drawn from, if not the evaluated one")]
    judge: Annotated[str | None, Doc("the model whose NLL is the quality")]
    task: Annotated[str | None, Doc("a task with known answers")]
    prompts: Annotated[str | None, Doc("the file of the prompts; null: the task has its own")]
    k: Annotated[int, Doc("K, texts per prompt", "texts")]
    seeds: Annotated[list[int], Doc("seeds of the test draws")]
    max_new_tokens: Annotated[int, Doc("longest text", "tokens")]
    quick: Annotated[
        str | None, Doc("what `--quick` left out, as a sentence, so that the verdict is preliminary; null: nothing")
    ]
    num_validation: Annotated[int, Doc("size of the validation split", "`units`")]
    num_test: Annotated[int, Doc("size of the test split", "`units`")]
    units: Annotated[str, Doc("what intervals are over", "`prompts` or `seeds`")]
    quality: Annotated[MeasureInfo | None, Doc("the measure of how good texts are; null: there is none")]
    diversity: Annotated[MeasureInfo, Doc("the measure of how different the K texts of a prompt are")]
    ceiling: Annotated[Ceiling | None, Doc("bounds of a task with known answers; null: unknown", "unit of diversity")]
    settings: Annotated[list[SettingResult], Doc("every setting that was drawn")]
    measures: Annotated[dict[str, MeasureInfo], Doc("every further measure by name, with fields as of `quality`")]
    selected: Annotated[
        str | None,
        Doc("the mixture's setting, selected on the validation split; null: no thoughts", "name of a setting"),
    ]
    comparisons: Annotated[list[Comparison], Doc("the mixture against rivals, each at its best setting")]
    from_rival: Annotated[
        Comparison | None,
        Doc(
            "the mixture's best setting that is as diverse as the best rival of the verdict, against that rival; "
            "null: no rival"
        ),
    ]
    ablations: Annotated[list[Comparison], Doc("the selected setting against the mixture without a part of it")]
    verdict: Annotated[Verdict, Doc("the answer")]
    thoughts: Annotated[Profile | None, Doc("what the thoughts are like; null: there are none")]
    samples: Annotated[list[Sample], Doc("texts of the first test prompts")]


# The document -------------------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# diversity.json

`evaluate_diversity.py` writes this file. It holds every number that was measured, and what was asked. `report.html`
beside it shows nothing else. The file is UTF-8 JSON without NaN. `null` means that there is no such thing, or that it
cannot be known. A later version may add fields. A change of meaning changes `version`. Version 1 said `tuned` and
`judged` for the validation and test split. Up to version 2, a setting was of equal diversity only if its mean was.

An *estimate* is `{"mean": float, "low": float or null, "high": float or null}`: a mean and the 2.5 % and 97.5 %
percentiles of its bootstrap. `low` and `high` are null where the spread is unknown, as it is for a single unit.

A *setting* is a sampler with values for its parameters. Its texts come from the mixture (`mixture`), from the mixture
without a thought in its context (`trunk`), from the model of `--plain` (`plain`), or from a model that has no thoughts
(`model`).

This page is generated: `python -m mot.evaluation.schema > docs/diversity_json.md`.

| name | type | unit, range | what it is |
|---|---|---|---|
"""
_JSON = {str: "string", int: "int", float: "float", bool: "bool", Estimate: "estimate"}


def document() -> str:
    """docs/diversity_json.md, the whole page."""
    return _INTRODUCTION + "".join(_rows(Evaluation))


def _rows(cls: type, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, doc = get_args(hint)
        yield f"| `{prefix}{name}` | {_type(kind)} | {doc.unit} | {doc.text} |\n"
        part, path = _part(kind)
        if part not in _JSON and dataclasses.is_dataclass(part):
            yield from _rows(part, f"{prefix}{name}{path}.")


def _part(kind) -> tuple[type, str]:
    """(the type inside lists and `| None`, how a path to it continues)"""
    if get_origin(kind) is list:
        part, path = _part(get_args(kind)[0])
        return part, "[]" + path
    if get_origin(kind) is types.UnionType:
        return _part(get_args(kind)[0])
    return kind, ""


def _type(kind) -> str:
    if get_origin(kind) is types.UnionType:
        return f"{_type(get_args(kind)[0])} or null"
    if get_origin(kind) is list:
        (part,) = get_args(kind)
        return "list" if dataclasses.is_dataclass(part) else f"list of {_type(part)}"
    return _JSON.get(kind, "object")


if __name__ == "__main__":
    print(document(), end="")
