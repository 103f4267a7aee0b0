"""What the table, the figures and the page of an evaluation share: order of settings, groups, columns and cells.

`result` is diversity.json, see mot/evaluation/schema.py. Numbers are shown as they are; nothing is computed here.
"""

from dataclasses import dataclass

from mot.inference.samplers import SAMPLERS

AXES = ("quality", "diversity")
SOURCES = {"mixture": "mixture", "trunk": "mixture, no thought", "plain": "plain model", "model": "model"}
ANSWERS = {"yes": ("✓", "Yes"), "no": ("✗", "No"), "none": ("?", "No verdict")}


@dataclass(frozen=True)
class Look:
    """A sampler's label, colour and marker. Colour is never the only difference: every marker has another shape."""

    label: str
    color: str
    marker: str


def look(sampler: str) -> Look:
    known = SAMPLERS.get(sampler)
    return Look(known.label, known.color, known.marker) if known else Look(sampler, "C6", "x")


def order(setting: dict) -> tuple:
    """Sorts settings as SAMPLERS is sorted; the settings of one sampler stay as they came."""
    names = [*SAMPLERS, setting["sampler"]]
    return (names.index(setting["sampler"]), setting["sampler"], [*SOURCES].index(setting["source"]))


def groups(settings: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Settings by (sampler, source), in order."""
    found: dict[tuple[str, str], list[dict]] = {}
    for setting in sorted(settings, key=order):
        found.setdefault((setting["sampler"], setting["source"]), []).append(setting)
    return found


def decisive(result: dict) -> list[tuple[str, str, str]]:
    """(setting, marker, role) of the two settings that the verdict compares: the selected one and its best rival."""
    found = [(result["selected"], "o", "selected")] if result["selected"] else []
    for c in result["comparisons"]:
        about_verdict = (c["mixture"], c["matched_on"], c["sampler"]) == (result["selected"], "quality", "any")
        if about_verdict and c["setting"]:
            return [*found, (c["setting"], "s", "best rival" if c["qualified"] else "nearest rival")]
    return found


@dataclass
class Cell:
    """An estimate as text: mean, ` [low, high]` and `low to high`; the last two are empty without a known spread."""

    mean: str = ""
    brackets: str = ""
    range: str = ""
    sign: str = ""


def cell(estimate: dict | None, digits: int, form: str = "") -> Cell:
    if estimate is None:
        return Cell()
    numbers = [estimate[name] for name in ("mean", "low", "high")]
    mean, low, high = (None if x is None else format(x, f"{form}.{digits}f") for x in numbers)
    return Cell(mean, f" [{low}, {high}]", f"{low} to {high}") if low and high else Cell(mean)


def decimals(estimates: list[dict | None]) -> int:
    """Decimals that leave about three digits, one number for a whole column."""
    largest = max((abs(e["mean"]) for e in estimates if e), default=0)
    return 3 if largest < 2 else 2 if largest < 100 else 1


def further_measures(result: dict) -> dict[str, dict]:
    """The measures other than quality and diversity."""
    axes = [result[name]["name"] for name in AXES if result[name]]
    return {name: measure for name, measure in result["measures"].items() if name not in axes}


def columns(result: dict, settings: list[dict]) -> list[dict]:
    """Quality (if there is one), diversity and further measures of the settings on the test split, as text."""
    found = []
    for name in AXES:
        if result[name]:
            values = [s["test"][name] for s in settings]
            found.append((name, result[name]["name"], result[name]["better"], values))
    for name, measure in further_measures(result).items():
        found.append((name, name, measure["better"], [s["measures"].get(name) for s in settings]))
    return [
        {
            "name": name,
            "label": label.replace("_", " "),
            "better": better,
            "cells": [cell(value, decimals(values)) for value in values],
        }
        for name, label, better, values in found
    ]


def direction(difference: dict | None, better: str) -> str:
    """`better`, `worse` or `same` (0 is inside the interval); empty where the spread is unknown."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return ""
    if difference["low"] <= 0 <= difference["high"]:
        return "same"
    return "better" if (difference["mean"] > 0) == (better == "higher") else "worse"
