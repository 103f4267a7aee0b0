"""What `evaluate_diversity.py` found, for people: a table for the terminal, pictures, and one page to mail.

    console.print(table(result))
    write(result, "outputs/judged")      # report.html, frontier.png, similarity.png, persistence.png, usage.png

`result` is what stands in diversity.json; docs/diversity_json.md has its fields, types, units and what may be null.
Intervals are of 95 %. Nothing is computed here that a reader could take for a result: numbers are shown as they are.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mot.reporting.figures import page, write_pictures

# What a sampler is called, its colour and its marker, in the order of all tables. Colours are only the half of it:
# every marker is of another shape.
SAMPLERS = {
    "thoughts": ("thoughts", "C1", "*"),
    "one_thought": ("one thought", "C1", "d"),
    "temperature": ("temperature", "C0", "o"),
    "top_p": ("top-p", "C3", "s"),
    "min_p": ("min-p", "C2", "^"),
    "top_k": ("top-k", "C4", "v"),
    "seed_prefix": ("random prefix", "C5", "X"),
    "beam": ("beam search", "C6", "D"),
    "diverse_beam": ("diverse beams", "C6", "P"),
}
OF = {"mixture": "mixture", "trunk": "mixture, no thought", "plain": "plain model", "model": "model"}
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
    "tuned_on": ("settings chosen on", "{units}"),
    "judged_on": ("judged on", "other {units}"),
}
_KEYS = ("mean", "low", "high")
RING = 13  # points across: the marker around a setting that the verdict is about
UNMET = {"quality": "none is as good, this is the nearest", "diversity": "none is as diverse, this is the nearest"}
ANSWERS = {"yes": ("✓", "Yes"), "no": ("✗", "No"), "none": ("?", "No verdict")}


def write(result: dict, output_dir: str) -> Path:
    """Write OUTPUT/report.html and its pictures, and return the path of the page."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = sorted(result["settings"], key=_order)
    text = page(
        BODY,
        CSS,
        title=f"Diversity of {Path(result['model']).name}",
        r=result,
        mark=ANSWERS[result["verdict"]["answer"]],
        summary=_summary(result),
        facts=_facts(result),
        pictures={p["name"]: p for p in write_pictures(folder, _pictures(result), result)},
        comparisons=_comparisons(result),
        columns=_columns(result, settings),
        settings=settings,
        measures=_measures(result),
        samples=[sample | {"columns": [_column(c) for c in sample["columns"]]} for sample in result["samples"]],
        OF=OF,
    )
    (folder / "report.html").write_text(text, encoding="utf-8", errors="replace")
    return folder / "report.html"


# The terminal -------------------------------------------------------------------------------------------------------


def table(result: dict):
    """The chosen setting of the mixture, every sampler at its best and at its most diverse, and the verdict.

    Made for 100 columns. As many extra measures as there is room for; at 80 columns long names are broken.
    """
    return _Table(result)


@dataclass
class _Table:
    result: dict

    def __rich_console__(self, console, options):
        from rich.text import Text

        extra = list(_further(self.result))
        while extra and self._drawn(extra).__rich_measure__(console, options.update(width=999)).maximum > (
            options.max_width
        ):
            extra.pop()
        yield self._drawn(extra)
        shown = [c for c in _columns(self.result, []) if c["name"] in ("quality", "diversity", *extra)]
        lower = [c["words"] for c in shown if c["better"] == "lower"]
        if lower:
            yield Text(f"lower is better: {', '.join(lower)}", "dim")
        if self.result["comparisons"]:
            yield Text(
                "as good: the most diverse of a sampler's settings that are as good as the chosen one; "
                "nearest: none is, this comes nearest",
                "dim",
            )
        answer = self.result["verdict"]["answer"]
        colour = {"yes": "bold green", "no": "bold red", "none": "bold"}[answer]
        yield Text.assemble((f"{ANSWERS[answer][1]}. ", colour), self.result["verdict"]["sentence"])

    def _drawn(self, extra: list[str]):
        from rich import box
        from rich.table import Table
        from rich.text import Text

        rows = _worth_showing(self.result)
        columns = _columns(self.result, [setting for setting, _ in rows])
        columns = [c for c in columns if c["name"] in ("quality", "diversity", *extra)]
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        drawn.add_column("setting")
        drawn.add_column("")
        headings = [column["words"].split(" ") for column in columns]
        for words in headings:
            above = [""] * (max(map(len, headings)) - len(words))
            drawn.add_column(Text("\n".join(above + words)), justify="right", no_wrap=True)
        for i, (setting, role) in enumerate(rows):
            cells = [c["cells"][i].mean + ("" if c["name"] in extra else c["cells"][i].brackets) for c in columns]
            style = "bold" if role == "chosen" else ""
            drawn.add_row(*(Text(cell, style) for cell in (setting["name"], role, *cells)))
        return drawn


def _worth_showing(result: dict) -> list[tuple[dict, str]]:
    """(setting, what it is there for), at most two of a baseline. Which is the most diverse is decided on the tuning
    prompts, as every choice is: by the numbers shown it would be the luckiest."""
    roles = {name: role for name, _, role in _named(result)}
    for c in result["comparisons"]:
        if (c["at"], c["mixture"]) == ("quality", result["headline"]) and c["setting"]:
            roles.setdefault(c["setting"], "as good" if c["met"] else "nearest")
    sign = -1 if result["diversity"]["better"] == "lower" else 1
    for group in _groups(result["settings"]).values():
        roles.setdefault(max(group, key=lambda s: sign * s["tuning"]["diversity"])["name"], "most diverse")
    return [(s, roles[s["name"]]) for s in sorted(result["settings"], key=_order) if s["name"] in roles]


# What the page says -------------------------------------------------------------------------------------------------


def _order(setting: dict) -> tuple:
    """Settings in the order of SAMPLERS, each sampler's in the order they came."""
    kinds = [*SAMPLERS]
    known = kinds.index(setting["sampler"]) if setting["sampler"] in SAMPLERS else len(kinds)
    return (known, setting["sampler"], [*OF].index(setting["of"]))


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("s" if n != 1 else "")


def _summary(result: dict) -> list[str]:
    return [
        Path(result["model"]).name,
        *([f"task {result['task']}"] if result["task"] else []),
        f"K = {result['k']}",
        *([_count(result["judged_on"], "prompt")] if result["units"] == "prompts" else []),
        _count(len(result["seeds"]), "seed"),
        _count(len(result["settings"]), "setting"),
    ]


def _facts(result: dict) -> list[tuple[str, str]]:
    rows = [
        (words, f"{result[name]} {unit.format_map(result)}".strip())
        for name, (words, unit) in FACTS.items()
        if result[name]
    ]
    if result["num_thoughts"] < 2:
        rows = [("model", value) if words == "mixture" else (words, value) for words, value in rows]
        rows = [(words, value) for words, value in rows if "thought" not in words]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        *rows,
        ("seeds", ", ".join(map(str, result["seeds"]))),
        ("intervals", f"95 %, over {result['units']}"),
        ("made", f"{result['made'].replace('T', ' ').replace('+00:00', ' UTC')}, in {result['seconds']:,.0f} s"),
        ("with", versions),
    ]


@dataclass
class _Cell:
    """An interval in words: mean, ` [low, high]` and `low to high`, the last two empty where nothing is known."""

    mean: str = ""
    brackets: str = ""
    range: str = ""
    sign: str = ""


def _cell(interval: dict | None, digits: int, form: str = "") -> _Cell:
    if interval is None:
        return _Cell()
    mean, low, high = (None if x is None else format(x, f"{form}.{digits}f") for x in map(interval.get, _KEYS))
    return _Cell(mean, f" [{low}, {high}]", f"{low} to {high}") if low and high else _Cell(mean)


def _digits(intervals: list[dict | None]) -> int:
    """Decimals that leave about three digits, one number for a whole column."""
    largest = max((abs(i["mean"]) for i in intervals if i), default=0)
    return 3 if largest < 2 else 2 if largest < 100 else 1


def _columns(result: dict, settings: list[dict]) -> list[dict]:
    """quality (if there is one), diversity and the extra measures of the settings, as words."""
    columns = []
    for name in ("quality", "diversity"):
        if result[name]:
            columns.append((name, result[name]["name"], result[name]["better"], [s["judged"][name] for s in settings]))
    for name, measure in _further(result).items():
        columns.append((name, name, measure["better"], [s["measures"].get(name) for s in settings]))
    return [
        {
            "name": name,
            "words": words.replace("_", " "),
            "better": better,
            "cells": [_cell(i, _digits(values)) for i in values],
        }
        for name, words, better, values in columns
    ]


def _comparisons(result: dict) -> list[dict]:
    """The comparisons by what is held equal: the chosen setting first, and against all samplers before each of them."""
    titles = {
        "quality": "At matched quality: is the mixture more diverse?",
        "diversity": "At matched diversity: is the mixture better?",
    }
    shown = {at: [] for at in titles}
    for at in titles:
        rows = [c for c in result["comparisons"] if c["at"] == at]
        kinds = ["any", *SAMPLERS, *(c["sampler"] for c in rows)]
        rows.sort(key=lambda c: (c["mixture"] != result["headline"], c["mixture"], kinds.index(c["sampler"])))
        digits = {name: _digits([c[name] for c in rows]) for name in titles}
        for c in rows:
            cells = {name: _cell(c[name], digits[name], "+") for name in titles if result[name]}
            for name, cell in cells.items():
                cell.sign = _sign(c[name], result[name]["better"])
            sampler = "all samplers" if c["sampler"] == "any" else SAMPLERS.get(c["sampler"], (c["sampler"],))[0]
            note = c["sentence"] if c["setting"] is None else "" if c["met"] else UNMET[at]
            shown[at].append(c | {"words": sampler, "cells": cells, "note": note})
    return [{"title": title, "rows": shown[at]} for at, title in titles.items() if shown[at]]


def _sign(difference: dict | None, better: str) -> str:
    if difference is None or difference["low"] is None or difference["high"] is None:
        return ""
    if difference["low"] <= 0 <= difference["high"]:
        return "same"
    return "better" if (difference["mean"] > 0) == (better == "higher") else "worse"


def _measures(result: dict) -> list[dict]:
    axes = [result[name] for name in ("quality", "diversity") if result[name]]
    return axes + [measure | {"name": name} for name, measure in _further(result).items()]


def _further(result: dict) -> dict[str, dict]:
    """The measures that are not quality or diversity already."""
    aims = [result[name]["name"] for name in ("quality", "diversity") if result[name]]
    return {name: measure for name, measure in result["measures"].items() if name not in aims}


def _column(column: dict) -> dict:
    """Texts with the label of the first text that gave the same answer, or said the same where nobody reads answers."""
    first, texts = {}, []
    for text in column["texts"]:
        key = text["text"].strip() if text["answer"] is None else ("answer", text["answer"])
        texts.append(text | {"repeats": first.get(key)})
        first.setdefault(key, text["label"])
    good = [text for text in texts if text["valid"] is not False and text["repeats"] is None]
    judged = any(text["valid"] is not None for text in texts)
    return {"name": column["name"], "texts": texts, "different": len(good), "judged": judged}


# Pictures -----------------------------------------------------------------------------------------------------------


def _frontier(figure, result: dict) -> None:
    from matplotlib.patches import Rectangle

    groups = _groups([s for s in result["settings"] if result["quality"] and s["judged"]["quality"]])
    if not groups:
        return _diversity_alone(figure, result)
    settings = [s for group in groups.values() for s in group]
    crowd = _crowd(settings, result)
    figure.set_size_inches(5.2, 8.2 if crowd else 5.2)
    panels = list(figure.subplots(2 if crowd else 1, squeeze=False).flat)
    for axes in panels:
        _draw_settings(axes, groups, result)
    panels[-1].set_xlabel(_axis(result["quality"]))
    if crowd:
        all_of_them, enlarged = panels
        _limits(enlarged, crowd)
        (left, right), (low, high) = enlarged.get_xlim(), enlarged.get_ylim()
        all_of_them.add_patch(Rectangle((left, low), right - left, high - low, color="C6", alpha=0.08, linewidth=0))
        all_of_them.set_title("all settings; the shaded part again below", loc="left")
        enlarged.set_title("the shaded part", loc="left")
    for axes in panels:
        for name, better in (("x", result["quality"]["better"]), ("y", result["diversity"]["better"])):
            getattr(axes, f"{name}axis").set_inverted(better == "lower")
        _ceilings(axes, settings, result)
    _legend(figure, panels[0])


def _draw_settings(axes, groups: dict, result: dict) -> None:
    several = len({of for sampler, of in groups if of != "mixture"}) > 1
    for (sampler, of), group in groups.items():
        words, colour, marker = SAMPLERS.get(sampler, (sampler, "C6", "x"))
        ours, hollow = sampler == "thoughts", several and of == "trunk"
        look = {"color": colour, "zorder": 5 if ours else 3}
        for line in _lines(group):
            axes.plot(*_means(line), linewidth=1.6 if ours else 0.7, alpha=1 if ours else 0.5, **look)
        for setting in group:
            (x, xerr), (y, yerr) = (_bar(setting["judged"][name]) for name in ("quality", "diversity"))
            axes.errorbar(x, y, yerr, xerr, fmt="none", elinewidth=0.9, alpha=0.6, **look)
        axes.plot(
            *_means(group),
            marker,
            markersize=11 if ours else 5,
            markerfacecolor="C7" if hollow else colour,
            markeredgecolor=colour if hollow else "C7",
            markeredgewidth=0.9 if hollow else 0.6,
            label=words,
            **look,
        )
    if several:
        axes.plot([], [], "o", markersize=5, markerfacecolor="C7", markeredgecolor="C6", label="hollow: no thought")
    for name, marker, words in _named(result):
        for s in (s for group in groups.values() for s in group if s["name"] == name):
            look = {"markersize": RING, "color": "C6", "markerfacecolor": "none", "markeredgewidth": 1.3, "zorder": 6}
            axes.plot(*_means([s]), marker, label=f"{words}: {name}", **look)
    axes.set_ylabel(_axis(result["diversity"]))
    axes.margins(0.06)
    axes.grid()


def _named(result: dict) -> list[tuple[str, str, str]]:
    """The two settings that the verdict is about: the mixture's, and the best of all others that are as good."""
    rivals = [
        (c["setting"], "s", "best rival" if c["met"] else "nearest rival")
        for c in result["comparisons"]
        if (c["mixture"], c["at"], c["sampler"]) == (result["headline"], "quality", "any") and c["setting"]
    ]
    ours = [(result["headline"], "o", "chosen")] if result["headline"] else []
    return ours + rivals[:1]


def _groups(settings: list[dict]) -> dict[tuple[str, str], list[dict]]:
    groups = {}
    for setting in sorted(settings, key=_order):
        groups.setdefault((setting["sampler"], setting["of"]), []).append(setting)
    return groups


def _lines(group: list[dict]) -> list[list[dict]]:
    """Settings along their parameter; of several, along the one with the most values, the others being equal."""
    names = list(dict.fromkeys(name for s in group for name in s["parameters"]))
    if not names:
        return [group]
    along = max(names, key=lambda name: len({s["parameters"].get(name) for s in group}))
    lines = {}
    for setting in sorted(group, key=lambda s: s["parameters"].get(along) or 0):
        others = tuple((name, value) for name, value in setting["parameters"].items() if name != along)
        lines.setdefault(others, []).append(setting)
    return list(lines.values())


def _crowd(settings: list[dict], result: dict) -> list[dict]:
    """The settings around the best quality, if so many are there that they cannot be told apart; else none."""
    sign = -1 if result["quality"]["better"] == "lower" else 1
    ranked = sorted(settings, key=lambda s: -sign * s["judged"]["quality"]["mean"])
    two_thirds = ranked[: math.ceil(len(ranked) * 2 / 3)]
    best, last, worst = (s["judged"]["quality"]["mean"] for s in (ranked[0], two_thirds[-1], ranked[-1]))
    if len(settings) < 12 or abs(best - last) > 0.3 * abs(best - worst):
        return []
    named = [name for name, _, _ in _named(result)]
    return two_thirds + [s for s in ranked if s["name"] in named]


def _limits(axes, settings: list[dict]) -> None:
    x, y = _means(settings)
    for values, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        room = 0.08 * (max(values) - min(values)) or 0.01
        limit(min(values) - room, max(values) + room)


def _ceilings(axes, settings: list[dict], result: dict) -> None:
    """Dotted lines, each with its name at the end where fewer points are."""
    words = {"independent": "best independent sampler", "answers": "every answer"}
    for value in (result["ceiling"] or {}).values():
        axes.axhline(value, linestyle=":", linewidth=1.1, color="C6", zorder=1)
    axes.autoscale_view()
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    places = [tuple(to_axes(xy)) for xy in zip(*_means(settings), strict=True)]
    for name, value in (result["ceiling"] or {}).items():
        _, at = to_axes((0, value))
        if not 0 <= at <= 1:
            continue
        crowded = [sum(abs(x - side) < 0.5 and 0 < y - at < 0.07 for x, y in places) for side in (0, 1)]
        right = crowded[1] < crowded[0]
        axes.text(
            0.99 if right else 0.01,
            at + 0.008,
            f"{words[name]}: {value:.3g}",
            transform=axes.transAxes,
            horizontalalignment="right" if right else "left",
            verticalalignment="bottom",
            fontsize=8,
        )


def _diversity_alone(figure, result: dict) -> None:
    """Without quality there is no frontier: one row for every sampler."""
    groups = _groups(result["settings"])
    if not groups:
        return
    figure.set_size_inches(5.2, 1.3 + 0.4 * len(groups))
    axes = figure.subplots()
    for row, ((sampler, _), group) in enumerate(groups.items()):
        _, colour, marker = SAMPLERS.get(sampler, (sampler, "C6", "x"))
        for setting in group:
            x, err = _bar(setting["judged"]["diversity"])
            axes.errorbar(x, row, xerr=err, fmt=marker, color=colour, markersize=6, elinewidth=0.9, alpha=0.8)
    names = [SAMPLERS.get(sampler, (sampler,))[0] for sampler, _ in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel=_axis(result["diversity"]))
    axes.xaxis.set_inverted(result["diversity"]["better"] == "lower")
    axes.grid(axis="x")


def _similarity(figure, result: dict) -> None:
    similarity = result["thoughts"] and result["thoughts"]["similarity"]
    if not similarity or len(similarity) < 2:
        return
    N = len(similarity)
    figure.set_size_inches(5.2, 4.6)
    axes = figure.subplots()
    values = [value for row in similarity for value in row]
    image = axes.imshow(similarity, cmap="cividis", vmin=min(0, *values), vmax=max(1, *values))
    figure.colorbar(image, label="similarity (1: the same)", shrink=0.9).outline.set_visible(False)
    axes.set(xlabel="thought", ylabel="thought")
    axes.spines[:].set_visible(False)
    if N <= 16:
        axes.set_xticks(range(N))
        axes.set_yticks(range(N))
        axes.tick_params(length=0)
    if N <= 10:
        for i, row in enumerate(similarity):
            for j, value in enumerate(row):
                colour = "#000000" if image.norm(value) > 0.5 else "#ffffff"
                axes.text(j, i, f"{value:.2f}", color=colour, fontsize=8, ha="center", va="center")


def _persistence(figure, result: dict) -> None:
    from matplotlib.ticker import MaxNLocator

    nats = result["thoughts"] and result["thoughts"]["persistence"]
    if not nats:
        return
    axes = figure.subplots()
    axes.plot(range(1, len(nats) + 1), nats, color="C0", marker="o" if len(nats) < 20 else "", markersize=4)
    axes.axhline(math.log(2), linestyle=":", linewidth=1.2, color="C1")
    axes.text(0.99, math.log(2) + 0.015, "log 2: no token shared", transform=axes.get_yaxis_transform(), ha="right")
    axes.set(xlabel="position behind the branch point, tokens", ylabel="nats", ylim=(0, 0.76))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()


def _usage(figure, result: dict) -> None:
    from matplotlib.ticker import MaxNLocator

    usage = result["thoughts"] and result["thoughts"]["usage"]
    if not usage or len(usage) < 2:
        return
    N = len(usage)
    axes = figure.subplots()
    axes.bar(range(N), usage, color="C0", width=0.8)
    axes.axhline(1 / N, linestyle=":", linewidth=1.2, color="C1")
    axes.set(xlabel="thought", ylabel="mean probability", xlim=(-0.6, N - 0.4), ylim=(0, 1.15 * max(*usage, 1 / N)))
    axes.text(1.01, 1 / N, f"even\n{1 / N:.3g}", transform=axes.get_yaxis_transform(), va="center", color="C1")
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axes.tick_params(axis="x", length=0)


def _means(settings: list[dict]) -> tuple[list[float], list[float]]:
    return tuple([s["judged"][name]["mean"] for s in settings] for name in ("quality", "diversity"))


def _bar(interval: dict) -> tuple[float, list[list[float]] | None]:
    """Mean, and how far the interval reaches below and above it."""
    mean, low, high = map(interval.get, _KEYS)
    known = low is not None and high is not None
    return mean, [[max(mean - low, 0)], [max(high - mean, 0)]] if known else None


def _axis(measure: dict) -> str:
    return f"{measure['name'].replace('_', ' ')}  (better \N{RIGHTWARDS ARROW})"


def _legend(figure, axes) -> None:
    # A sampler may be there twice, hollow and filled: its name is not.
    handles, labels = axes.get_legend_handles_labels()
    handles = dict(zip(labels, handles, strict=True))
    rings = {label: handle for label, handle in handles.items() if handle.get_markersize() == RING}
    samplers = {label: handle for label, handle in handles.items() if label not in rings}
    look = {"frameon": False, "fontsize": 8.5, "handletextpad": 0.3, "columnspacing": 1.2, "borderaxespad": 0.2}
    for place, shown, across, scale in (("upper", rings, 1, 0.65), ("lower", samplers, 3, 1)):
        if shown:
            place = f"outside {place} left"
            figure.legend(shown.values(), shown.keys(), loc=place, ncols=across, markerscale=scale, **look)


def _pictures(result: dict) -> dict:
    """Names, painters and captions; a caption says how to read the picture, not what is on it."""
    quality, diversity, units = result["quality"], result["diversity"], result["units"]
    chosen = (
        f"The ring is the setting of the mixture that was chosen on other {units}, the square its rival: the most diverse "
        "of all others that are as good, or the nearest if none is. "
        if result["headline"]
        else ""
    )
    independent = (
        "The lower dotted line is the most that any sampler can reach that draws its texts independently of each other, "
        "however good its model. "
        if result["ceiling"]
        else ""
    )
    frontier = (
        f"Every point is one setting of one sampler, judged on {units} it was not chosen on: further right its texts are "
        f"better ({quality['words']}), further up they are more different ({diversity['words']}). A sampler moves along "
        f"its thin line as its parameter is turned; who is above and to the right of a line beats all of it. {chosen}"
        f"{independent}Bars are 95 % intervals over {units}; without one the interval is smaller than the marker, or unknown."
        if quality
        else f"How different the texts of every setting are ({diversity['words']}). Nobody judged how good they are, and "
        f"noise is different too: without quality this picture says nothing about which sampler to use."
    )
    words = result["thoughts"]["similarity_words"] if result["thoughts"] else ""
    return {
        "frontier": (_frontier, frontier),
        "similarity": (
            _similarity,
            f"How alike two thoughts are: {words}. The diagonal is a thought with itself; a bright field off the "
            "diagonal is a pair of thoughts that say nearly the same.",
        ),
        "persistence": (
            _persistence,
            "How far two thoughts disagree about the next token of the same text, the further from the branch point: "
            "0 is full agreement, log 2 (dotted) no token in common. Where it is 0 the thought changes nothing any more: in "
            "a short answer because the words so far decide the rest, in a long text because it has been forgotten.",
        ),
        "usage": (
            _usage,
            "The router's probability of each thought, mean over the prompts; dotted: all alike. A thought near 0 is "
            "never taken when fewer than all are asked for.",
        ),
    }


# The page -----------------------------------------------------------------------------------------------------------

CSS = """
h1.verdict { display: flex; flex-wrap: wrap; gap: .5rem .9rem; align-items: baseline; font-size: 1.35rem; line-height: 1.35 }
h1 .says { flex: 1 1 16rem; min-width: 0 }
.mark { padding: .1rem .7rem; border-radius: 1rem; border: 2px solid; white-space: nowrap }
.yes, .better { color: var(--good) }
.no, .worse { color: var(--bad) }
.none { color: var(--dim) }
:root { --good: #00734f; --bad: #b34700 }
@media (prefers-color-scheme: dark) { :root { --good: #2fc79a; --bad: #f59a52 } }
.head { margin-top: 1.5rem; grid-template-columns: minmax(0, 34rem) minmax(0, 1fr); gap: 1rem 2rem }
.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem 2rem }
@media (max-width: 56rem) { .head { grid-template-columns: minmax(0, 1fr) } }
@media (max-width: 30rem) { h1.verdict { display: block } .mark { display: inline-block; margin-bottom: .5rem } .says { display: block } }
p, h3 { overflow-wrap: anywhere }
.head h2:first-child { margin-top: 0 }
.facts th { color: var(--dim); width: 11rem }
.facts { width: 100% }
.wide { overflow-x: auto }
.wide thead th { white-space: nowrap; vertical-align: bottom }
.wide tbody th { white-space: nowrap; position: sticky; left: 0; background: var(--paper) }
@media (max-width: 48rem) { .wide tbody th { white-space: normal; min-width: 8rem; max-width: 9rem; overflow-wrap: anywhere } }
.wide small { display: block }
.of { white-space: nowrap }
tr.chosen > * { background: var(--card); font-weight: 600 }
tr.chosen > th { background: var(--card) }
@media (max-width: 48rem) {
  .compared, .compared thead, .compared tbody { display: block }
  .compared tr { display: grid; grid-template-columns: 1fr 1fr 1fr; border-bottom: 1px solid var(--line) }
  .compared tr > * { border: 0; white-space: normal; min-width: 0; padding-right: .5rem }
  .compared tbody th { grid-column: 1 / -1; max-width: none; padding-bottom: 0 }
  .compared tbody th small { display: inline; margin-left: .5rem }
  .compared thead th:first-child { display: none }
  .compared td span { display: block }
}
.pair section { min-width: 0 }
.pair article { padding: .5rem .75rem; margin-top: .5rem }
.pair header { white-space: normal; overflow-wrap: anywhere }
.pair article.repeat, .pair article.invalid { border-style: dashed; background: none }
.pair article pre { margin-top: .25rem; max-height: 18rem; overflow-y: auto }
.command { padding: .6rem .8rem; background: var(--card) }
"""
BODY = """<h1 class="verdict"><span class="mark {{ r.verdict.answer }}">{{ mark[0] }} {{ mark[1] }}</span><span class="says">{{ r.verdict.sentence }}</span></h1>
<p class="dim">{{ summary | join(" · ") }}</p>
<div class="grid head">
{% if pictures.frontier %}
{{ figure(pictures.frontier) }}
{% endif %}
<div>
<h2>What was compared</h2>
<table class="facts">
{% for words, value in facts %}
<tr><th>{{ words }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% if r.command %}
<pre class="command">{{ r.command }}</pre>
{% endif %}
<h2>The measures in words</h2>
<table class="facts">
{% for m in measures %}
<tr><th>{{ m.name.replace("_", " ") }}<br><small>{{ m.unit ~ ", " if m.unit }}{{ m.better }} is better</small></th><td>{{ m.words }}</td></tr>
{% endfor %}
</table>
</div>
</div>
{% for group in comparisons %}
<h2>{{ group.title }}</h2>
{% if loop.first %}
<p class="dim">Mixture minus the other, with 95 % intervals over {{ r.units }} that both were judged on. A difference is real if 0 is outside its interval.{% if r.quality %} As good is at most {{ r.quality.tolerance }} worse, on the {{ r.units }} that settings were chosen on.{% endif %}</p>
{% endif %}
<div class="wide"><table class="compared">
<thead><tr><th>mixture</th><th>against the best of</th>{% for name in group.rows[0].cells %}<th class="number">{{ r[name].name.replace("_", " ") }}<small>{{ r[name].better }} is better</small></th>{% endfor %}</tr></thead>
<tbody>
{% for row in group.rows %}
<tr{% if row.mixture == r.headline and row.sampler == "any" %} class="chosen"{% endif %}><th>{{ row.mixture }}{% if row.mixture == r.headline %}<small>chosen</small>{% endif %}</th><td>{{ row.words }}{% if row.setting %}<small>{{ row.setting }}</small>{% endif %}{% if row.note %}<small>{{ row.note }}</small>{% endif %}</td>
{% for name, cell in row.cells.items() %}
<td class="number {{ cell.sign }}">{{ cell.mean }}<small>{% if cell.sign %}<span class="{{ cell.sign }}">{{ {"better": "▲ better", "worse": "▼ worse", "same": "≈ no clear difference"}[cell.sign] }}</span> {% endif %}{{ cell.range }}</small></td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% if pictures.similarity or pictures.persistence or pictures.usage %}
<h2>The thoughts</h2>
<div class="grid three">
{% for name in ("similarity", "persistence", "usage") if pictures[name] %}
{{ figure(pictures[name]) }}
{% endfor %}
</div>
{% endif %}
{% if samples %}
<h2>Texts</h2>
<p class="dim">Of the first prompts, not picked. A dashed frame is a text that adds nothing: not valid, or the same as one above it.</p>
{% for sample in samples %}
<pre class="prompt" dir="auto">{{ sample.prompt or "(no prompt)" }}</pre>
<div class="grid pair">
{% for column in sample.columns %}
<section><h3>{{ column.name }}</h3>
<p class="dim">{{ column.different }} different{{ " and valid" if column.judged }} of {{ column.texts | length }}{{ " that are shown" if column.texts | length < r.k }}</p>
{% for t in column.texts %}
<article class="{{ "invalid" if t.valid == false }}{{ " repeat" if t.repeats }}"><header><b>{{ t.label }}</b><small>{% if t.valid == true %}<span class="better">✓ valid</span>{% elif t.valid == false %}<span class="worse">✗ not valid</span>{% endif %}{{ " · " if t.repeats and t.valid is not none }}{% if t.repeats %}↻ repeats {{ t.repeats }}{% endif %}</small></header><pre dir="auto" tabindex="0">{{ t.text }}</pre></article>
{% endfor %}
</section>
{% endfor %}
</div>
{% endfor %}
{% endif %}
<h2>All settings</h2>
<p class="dim">Every point that was measured, the losing ones too. Tuning: on the {{ r.tuned_on }} prompts that settings were chosen on.</p>
<div class="wide"><table>
<thead><tr><th>setting</th><th>texts from</th><th class="number">seeds</th>{% for c in columns %}<th class="number">{{ c.words }}<small>{{ c.better }} is better</small></th>{% endfor %}{% if r.quality %}<th class="number">tuning<small>{{ r.quality.name.replace("_", " ") }}</small></th>{% endif %}<th class="number">tuning<small>{{ r.diversity.name.replace("_", " ") }}</small></th></tr></thead>
<tbody>
{% for s in settings %}
{% set row = loop.index0 %}
<tr{% if s.name == r.headline %} class="chosen"{% endif %}><th>{{ s.name }}{{ " (chosen)" if s.name == r.headline }}</th><td class="dim of">{{ OF[s.of] }}</td><td class="number dim">{{ s.seeds }}</td>
{% for c in columns %}
<td class="number">{{ c["cells"][row].mean }}<small>{{ c["cells"][row].range }}</small></td>
{% endfor %}
{% if r.quality %}<td class="number dim">{{ "" if s.tuning.quality is none else "%.3f" | format(s.tuning.quality) }}</td>{% endif %}<td class="number dim">{{ "%.3f" | format(s.tuning.diversity) }}</td></tr>
{% endfor %}
</tbody>
</table></div>
<p class="dim">The same numbers for programs: diversity.json beside this page.</p>
"""
