"""The figures of an evaluation: the frontier of quality and diversity, and what the thoughts are like.

    write_figures(folder, figures_of(result), result)     # mot.reporting.figures

`result` is diversity.json. Every function draws nothing where the result has nothing for it.
"""

import math
from collections.abc import Callable

from mot.evaluation.rows import AXES, decisive, groups, look

RING = 13  # points: size of the marker around a setting that the verdict compares


def figures_of(result: dict) -> dict[str, tuple[Callable, str]]:
    """{name: (draw, caption)}; a caption says how to read the figure, not what it shows."""
    return {
        "frontier": (draw_frontier, _frontier_caption(result)),
        "similarity": (
            draw_similarity,
            "How alike two thoughts are: "
            f"{result['thoughts']['similarity_description'] if result['thoughts'] else ''}. The diagonal is a thought "
            "with itself. A bright field off the diagonal is a pair of thoughts with nearly equal texts.",
        ),
        "persistence": (
            draw_persistence,
            "How far two thoughts disagree about the next token of the same text, by distance from the branch point. "
            "0 is full agreement, log 2 (dotted) is no token in common. Where the curve is 0 the thought has no "
            "effect: in a short answer because the tokens so far decide the rest, in a long text because the model "
            "has forgotten it.",
        ),
        "usage": (
            draw_usage,
            "Router probability of each thought, mean over the prompts. Dotted: uniform. A thought near 0 is never "
            "chosen when fewer than all are asked for.",
        ),
    }


def _frontier_caption(result: dict) -> str:
    quality, diversity, units = result["quality"], result["diversity"], result["units"]
    if not quality:
        return (
            f"How different the texts of every setting are ({diversity['description']}). No measure says how good "
            "they are, and noise is different too, so this figure does not say which sampler to use."
        )
    caption = (
        f"Every point is one setting of one sampler on the test {units}. Texts further right are better "
        f"({quality['description']}), texts further up are more different ({diversity['description']}). A line joins "
        "the settings of a sampler. A point above and to the right of a line beats all of it. "
    )
    if result["selected"]:
        caption += (
            f"The ring marks the mixture's setting, selected on the validation {units}. The square marks its best "
            "rival: the most diverse setting of equal quality, or the nearest if there is none. "
        )
    if result["ceiling"]:
        caption += (
            "The lower dotted line bounds every sampler whose texts are independent draws, however good its model. "
        )
    return caption + (
        f"Bars are 95 % intervals over {units}. Without a bar the interval is unknown or smaller than the marker."
    )


# The frontier -------------------------------------------------------------------------------------------------------


def draw_frontier(figure, result: dict) -> None:
    from matplotlib.patches import Rectangle

    if not result["quality"]:
        return _diversity_alone(figure, result)
    grouped = groups([s for s in result["settings"] if s["test"]["quality"]])
    if not grouped:
        return _diversity_alone(figure, result)
    settings = [s for group in grouped.values() for s in group]
    crowd = _crowd(settings, result)
    figure.set_size_inches(5.2, 8.2 if crowd else 5.2)
    panels = list(figure.subplots(2 if crowd else 1, squeeze=False).flat)
    for axes in panels:
        _draw_settings(axes, grouped, result)
    panels[-1].set_xlabel(_axis(result["quality"]))
    if crowd:
        overview, enlarged = panels
        _limits(enlarged, crowd)
        (left, right), (low, high) = enlarged.get_xlim(), enlarged.get_ylim()
        overview.add_patch(Rectangle((left, low), right - left, high - low, color="C6", alpha=0.08, linewidth=0))
        overview.set_title("all settings; the shaded part is enlarged below", loc="left")
        enlarged.set_title("the shaded part", loc="left")
    for axes in panels:
        axes.xaxis.set_inverted(result["quality"]["better"] == "lower")
        axes.yaxis.set_inverted(result["diversity"]["better"] == "lower")
        _ceilings(axes, settings, result)
    _legend(figure, panels[0])


def _draw_settings(axes, grouped: dict, result: dict) -> None:
    several = len({source for _, source in grouped if source != "mixture"}) > 1
    for (sampler, source), group in grouped.items():
        shown, ours, hollow = look(sampler), group[0]["kind"] == "mixture", several and source == "trunk"
        style = {"color": shown.color, "zorder": 5 if ours else 3}
        for line in _lines(group):
            axes.plot(*_means(line), linewidth=1.6 if ours else 0.7, alpha=1 if ours else 0.5, **style)
        for setting in group:
            (x, xerr), (y, yerr) = (_bar(setting["test"][axis]) for axis in AXES)
            axes.errorbar(x, y, yerr, xerr, fmt="none", elinewidth=0.9, alpha=0.6, **style)
        axes.plot(
            *_means(group),
            shown.marker,
            markersize=11 if ours else 5,
            markerfacecolor="C7" if hollow else shown.color,
            markeredgecolor=shown.color if hollow else "C7",
            markeredgewidth=0.9 if hollow else 0.6,
            label=shown.label,
            **style,
        )
    if several:
        axes.plot([], [], "o", markersize=5, markerfacecolor="C7", markeredgecolor="C6", label="hollow: no thought")
    ring = {"markersize": RING, "color": "C6", "markerfacecolor": "none", "markeredgewidth": 1.3, "zorder": 6}
    for name, marker, role in decisive(result):
        for setting in (s for group in grouped.values() for s in group if s["name"] == name):
            axes.plot(*_means([setting]), marker, label=f"{role}: {name}", **ring)
    axes.set_ylabel(_axis(result["diversity"]))
    axes.margins(0.06)
    axes.grid()


def _lines(group: list[dict]) -> list[list[dict]]:
    """Settings along their parameter. With several parameters: along the one with the most values, the others equal."""
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
    """The settings of nearly the best quality, if they are too many to be told apart; else none."""
    sign = -1 if result["quality"]["better"] == "lower" else 1
    ranked = sorted(settings, key=lambda s: -sign * s["test"]["quality"]["mean"])
    two_thirds = ranked[: math.ceil(len(ranked) * 2 / 3)]
    best, last, worst = (s["test"]["quality"]["mean"] for s in (ranked[0], two_thirds[-1], ranked[-1]))
    if len(settings) < 12 or abs(best - last) > 0.3 * abs(best - worst):
        return []
    compared = [name for name, _, _ in decisive(result)]
    return two_thirds + [s for s in ranked if s["name"] in compared]


def _limits(axes, settings: list[dict]) -> None:
    x, y = _means(settings)
    for values, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        room = 0.08 * (max(values) - min(values)) or 0.01
        limit(min(values) - room, max(values) + room)


def _ceilings(axes, settings: list[dict], result: dict) -> None:
    """Dotted lines, each labelled at the end with fewer points."""
    labels = {"independent": "best independent sampler", "answers": "every answer"}
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
            f"{labels[name]}: {value:.3g}",
            transform=axes.transAxes,
            horizontalalignment="right" if right else "left",
            verticalalignment="bottom",
            fontsize=8,
        )


def _diversity_alone(figure, result: dict) -> None:
    """Without quality there is no frontier: one row for every sampler."""
    grouped = groups(result["settings"])
    if not grouped:
        return
    figure.set_size_inches(5.2, 1.3 + 0.4 * len(grouped))
    axes = figure.subplots()
    looks = [look(sampler) for sampler, _ in grouped]
    for row, (shown, group) in enumerate(zip(looks, grouped.values(), strict=True)):
        for setting in group:
            x, err = _bar(setting["test"]["diversity"])
            axes.errorbar(
                x, row, xerr=err, fmt=shown.marker, color=shown.color, markersize=6, elinewidth=0.9, alpha=0.8
            )
    axes.set_yticks(range(len(looks)), [shown.label for shown in looks])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(looks) - 0.5, -0.5), xlabel=_axis(result["diversity"]))
    axes.xaxis.set_inverted(result["diversity"]["better"] == "lower")
    axes.grid(axis="x")


# The thoughts -------------------------------------------------------------------------------------------------------


def draw_similarity(figure, result: dict) -> None:
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
                color = "#000000" if image.norm(value) > 0.5 else "#ffffff"
                axes.text(j, i, f"{value:.2f}", color=color, fontsize=8, ha="center", va="center")


def draw_persistence(figure, result: dict) -> None:
    from matplotlib.ticker import MaxNLocator

    nats = result["thoughts"] and result["thoughts"]["persistence"]
    if not nats:
        return
    axes = figure.subplots()
    axes.plot(range(1, len(nats) + 1), nats, color="C0", marker="o" if len(nats) < 20 else "", markersize=4)
    axes.axhline(math.log(2), linestyle=":", linewidth=1.2, color="C1")
    axes.text(0.99, math.log(2) + 0.015, "log 2: no token shared", transform=axes.get_yaxis_transform(), ha="right")
    axes.set(xlabel="position after the branch point, tokens", ylabel="nats", ylim=(0, 0.76))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()


def draw_usage(figure, result: dict) -> None:
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
    return tuple([s["test"][axis]["mean"] for s in settings] for axis in AXES)


def _bar(estimate: dict) -> tuple[float, list[list[float]] | None]:
    """Mean, and the reach of the interval below and above it."""
    mean, low, high = (estimate[name] for name in ("mean", "low", "high"))
    known = low is not None and high is not None
    return mean, [[max(mean - low, 0)], [max(high - mean, 0)]] if known else None


def _axis(measure: dict) -> str:
    return f"{measure['name'].replace('_', ' ')}  (better \N{RIGHTWARDS ARROW})"


def _legend(figure, axes) -> None:
    # A sampler that is drawn twice, hollow and filled, has one entry.
    handles, labels = axes.get_legend_handles_labels()
    handles = dict(zip(labels, handles, strict=True))
    rings = {label: handle for label, handle in handles.items() if handle.get_markersize() == RING}
    samplers = {label: handle for label, handle in handles.items() if label not in rings}
    style = {"frameon": False, "fontsize": 8.5, "handletextpad": 0.3, "columnspacing": 1.2, "borderaxespad": 0.2}
    for place, shown, across, scale in (("upper", rings, 1, 0.65), ("lower", samplers, 3, 1)):
        if shown:
            place = f"outside {place} left"
            figure.legend(shown.values(), shown.keys(), loc=place, ncols=across, markerscale=scale, **style)
