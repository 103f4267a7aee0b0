"""The page of an evaluation, to read and to mail.

    write(result, "outputs/eval")      # report.html, frontier.png, similarity.png, persistence.png, usage.png

`result` is diversity.json, see mot/evaluation/schema.py. Intervals are of 95 %.
"""

from pathlib import Path

from mot.evaluation.figures import figures_of
from mot.evaluation.rows import (
    ANSWERS,
    AXES,
    SOURCES,
    cell,
    columns,
    decimals,
    direction,
    further_measures,
    look,
    order,
)
from mot.inference.samplers import SAMPLERS
from mot.reporting.figures import write_figures
from mot.reporting.page import page

FACTS = {
    "model": ("mixture", ""),
    "plain": ("plain model", ""),
    "judge": ("judge", ""),
    "task": ("task", ""),
    "prompts": ("prompts", ""),
    "k": ("texts per prompt, K", ""),
    "num_thoughts": ("thoughts, N", ""),
    "thought_length": ("tokens of a thought", ""),
    "max_new_tokens": ("tokens of a text", "at most"),
    "num_validation": ("validation split", "{units}"),
    "num_test": ("test split", "other {units}"),
}
FACTS_OF_THOUGHTS = ("num_thoughts", "thought_length")
NEAREST = {
    "quality": "no setting is as good, this is the nearest",
    "diversity": "no setting is as diverse, this is the nearest",
}
TITLES = {
    "quality": "At matched quality: is the mixture more diverse?",
    "diversity": "At matched diversity: is the mixture better?",
}
SIGNS = {"better": "▲ better", "worse": "▼ worse", "same": "≈ no clear difference"}


def write(result: dict, output_dir: str) -> Path:
    """Write OUTPUT/report.html and its figures; returns the path of the page."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = sorted(result["settings"], key=order)
    text = page(
        "evaluation.html.j2",
        title=f"Diversity of {Path(result['model']).name}",
        r=result,
        mark=ANSWERS[result["verdict"]["answer"]],
        summary=_summary(result),
        facts=_facts(result),
        figures={f["name"]: f for f in write_figures(folder, figures_of(result), result)},
        comparisons=_comparisons(result, "comparisons"),
        ablations=_comparisons(result, "ablations"),
        columns=columns(result, settings),
        settings=settings,
        measures=_measures(result),
        samples=[sample | {"columns": [_column(c) for c in sample["columns"]]} for sample in result["samples"]],
        sources=SOURCES,
        signs=SIGNS,
    )
    (folder / "report.html").write_text(text, encoding="utf-8", errors="replace")
    return folder / "report.html"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _summary(result: dict) -> list[str]:
    summary = [Path(result["model"]).name]
    if result["task"]:
        summary.append(f"task {result['task']}")
    summary.append(f"K = {result['k']}")
    if result["units"] == "prompts":
        summary.append(_count(result["num_test"], "prompt"))
    return [*summary, _count(len(result["seeds"]), "seed"), _count(len(result["settings"]), "setting")]


def _facts(result: dict) -> list[tuple[str, str]]:
    facts = []
    for name, (label, unit) in FACTS.items():
        if result["num_thoughts"] < 2:
            if name in FACTS_OF_THOUGHTS:
                continue
            label = "model" if name == "model" else label
        if result[name]:
            facts.append((label, f"{result[name]} {unit.format_map(result)}".strip()))
    made = result["made"].replace("T", " ").replace("+00:00", " UTC")
    return [
        *facts,
        ("seeds", ", ".join(map(str, result["seeds"]))),
        ("intervals", f"95 %, over {result['units']}"),
        ("made", f"{made}, in {result['seconds']:,.0f} s"),
        ("with", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]


def _comparisons(result: dict, key: str) -> list[dict]:
    """Comparisons by what is matched: the selected setting first, and against all rivals before each of them."""
    groups = []
    for matched_on, title in TITLES.items():
        rows = [c for c in result[key] if c["matched_on"] == matched_on]
        names = ["any", *SAMPLERS, *(c["sampler"] for c in rows)]
        rows.sort(key=lambda c: (c["mixture"] != result["selected"], c["mixture"], names.index(c["sampler"])))
        digits = {axis: decimals([c[axis] for c in rows]) for axis in AXES}
        shown = []
        for c in rows:
            cells = {axis: cell(c[axis], digits[axis], "+") for axis in AXES if result[axis]}
            for axis, formatted in cells.items():
                formatted.sign = direction(c[axis], result[axis]["better"])
            label = "all rivals" if c["sampler"] == "any" else look(c["sampler"]).label
            shown.append(c | {"label": label, "cells": cells, "note": _note(c)})
        if shown:
            groups.append({"title": title, "rows": shown})
    return groups


def _note(comparison: dict) -> str:
    if comparison["setting"] is None:
        return comparison["sentence"]
    return "" if comparison["qualified"] else NEAREST[comparison["matched_on"]]


def _measures(result: dict) -> list[dict]:
    axes = [result[axis] for axis in AXES if result[axis]]
    return axes + [measure | {"name": name} for name, measure in further_measures(result).items()]


def _column(column: dict) -> dict:
    """Texts, each with the label of the first text of the same answer, or of the same words without answers."""
    first, texts = {}, []
    for text in column["texts"]:
        key = text["text"].strip() if text["answer"] is None else ("answer", text["answer"])
        texts.append(text | {"repeats": first.get(key)})
        first.setdefault(key, text["label"])
    different = sum(text["valid"] is not False and text["repeats"] is None for text in texts)
    verified = any(text["valid"] is not None for text in texts)
    return {"name": column["name"], "texts": texts, "different": different, "verified": verified}
