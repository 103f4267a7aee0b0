"""The report of a run: figures of its metrics, samples of its thoughts, and its settings on one page.

    write("outputs/run")       # OUTPUT/report/index.html and the figures as PNG

The page holds its figures inside, requests nothing from a server and runs no script, so it can be mailed. A run that
was interrupted or is still running has a report of what it has logged.
"""

import dataclasses
import json
import math
import shlex
import statistics
from pathlib import Path

from mot.reporting.figures import write_figures
from mot.reporting.page import page
from mot.training.best import best_of
from mot.training.run_log import METRICS, SAMPLES, read_metrics
from mot.training.settings import AdaptSettings, TrainSettings

NLLS = {"eval_base_nll": "base", "eval_mixture_nll": "mixture", "eval_oracle_nll": "oracle"}
LOSSES = {
    "lm_loss": ("language modelling", "nats per token"),
    "router_loss": ("router", "nats"),
    "diversity": ("diversity (JSD)", "nats per continuation"),
    "entropy": ("usage entropy", "nats"),
}
NUMBERS = {
    "eval_base_nll": ("base NLL", "nats per token", ".4f"),
    "eval_general_nll": ("base NLL on other text", "nats per token", ".4f"),
    "eval_mixture_nll": ("mixture NLL", "nats per token", ".4f"),
    "eval_oracle_nll": ("oracle NLL", "nats per token", ".4f"),
    "eval_specialisation": ("specialisation", "0 to 1", ".3f"),
    "eval_effective_thoughts": ("effective thoughts", "thoughts", ".2f"),
}


def write(output_dir: str) -> Path:
    """Write OUTPUT/report/ and return the path of its index.html. Raises ValueError if OUTPUT does not exist."""
    run, folder = Path(output_dir), Path(output_dir) / "report"
    if not run.is_dir():
        raise ValueError(f"{output_dir}: no such directory; give the --output_dir of a run")
    metrics, samples = read_metrics(run / METRICS), read_metrics(run / SAMPLES)
    settings = json.loads((run / "run.json").read_text()) if (run / "run.json").is_file() else {}
    folder.mkdir(exist_ok=True)
    text = page(
        "run.html.j2",
        title=settings.get("run_name") or run.resolve().name,
        facts=[_state(run, metrics, settings), *_speed_and_memory(metrics)],
        numbers=_numbers(metrics),
        figures=write_figures(folder, FIGURES, metrics),
        samples=_first_and_last_samples(samples),
        settings=_settings(settings),
    )
    (folder / "index.html").write_text(text, encoding="utf-8", errors="replace")
    return folder / "index.html"


# The content of the page --------------------------------------------------------------------------------------------


def _state(run: Path, metrics: list[dict], settings: dict) -> str:
    step, last, best = metrics[-1]["step"] if metrics else 0, settings.get("max_steps"), best_of(metrics)
    if any(run.glob("*.safetensors")):
        publishes_best = (settings.get("publish") or ("last" if settings.get("task") else "best")) == "best"
        at = best["step"] if best and publishes_best else step
        return f"finished at step {step:,}; the model is of step {at:,}" + (", the best" if publishes_best else "")
    return f"at step {step:,}" + (f" of {last:,}" if last else "") + ": still running, or interrupted"


def _speed_and_memory(metrics: list[dict]) -> list[str]:
    speed = [value for _, value in _points(metrics, "tokens_per_second")]
    memory = [value for _, value in _points(metrics, "peak_memory_gib")]
    facts = []
    if speed:
        facts.append(f"{statistics.median(speed):,.0f} tokens per second (median)")
    if memory:
        facts.append(f"{max(memory):.2f} GiB at most")
    return facts


def _numbers(metrics: list[dict]) -> dict:
    """The table of evaluations, first, best and last: the steps of its columns, and rows (label, unit, values)."""
    evaluations = [m for m in metrics if m.keys() & NUMBERS.keys()]
    of_step = {m["step"]: m for m in evaluations[:1] + evaluations[-1:] + [m for m in [best_of(metrics)] if m]}
    shown = [of_step[step] for step in sorted(of_step)]
    rows = [
        (label, unit, [format(m[name], form) if name in m else "" for m in shown])
        for name, (label, unit, form) in NUMBERS.items()
        if any(name in m for m in shown)
    ]
    return {"steps": [m["step"] for m in shown], "rows": rows}


def _first_and_last_samples(samples: list[dict]) -> list[dict]:
    """Samples of the last evaluation and, to show the progress, of the first; thoughts in the order of their index."""
    if not samples:
        return []
    groups = []
    for when, step in (("last", samples[-1]["step"]), ("first", samples[0]["step"])):
        rows = [s | {"thoughts": sorted(s["thoughts"], key=lambda t: t["index"])} for s in samples if s["step"] == step]
        groups.append({"when": when, "step": step, "rows": rows})
    return groups[:1] if groups[0]["step"] == groups[1]["step"] else groups


def _settings(settings: dict) -> dict[bool, list[tuple[str, object, str]]]:
    """(name, value, unit): True for values that differ from the default, False for defaults."""
    fields = {f.name: f for f in dataclasses.fields(AdaptSettings if "base_model" in settings else TrainSettings)}
    rows = {True: [], False: []}
    for name, value in settings.items():
        chosen = name not in fields or value != fields[name].default
        rows[chosen].append((name, value, fields[name].metadata["unit"] if name in fields else ""))
    return rows


# Figures ------------------------------------------------------------------------------------------------------------


def _nll(figure, metrics: list[dict]) -> None:
    lines = {label: _points(metrics, name) for name, label in NLLS.items() if _points(metrics, name)}
    if lines:
        axes, best = figure.subplots(), best_of(metrics)
        _lines(axes, lines, "nats per token")
        if best:
            axes.axvline(best["step"], linestyle=":", linewidth=1.2, color="C1")


def _losses(figure, metrics: list[dict]) -> None:
    shown = [name for name in LOSSES if _points(metrics, name)]
    if not shown:
        return
    across = 1 if len(shown) == 1 else 2
    panels = figure.subplots(math.ceil(len(shown) / across), across, squeeze=False)
    thoughts = _num_thoughts(metrics)
    for axes, name in zip(panels.flat, shown, strict=False):
        label, unit = LOSSES[name]
        _lines(axes, {"": _points(metrics, name)}, unit)
        axes.set_title(label, loc="left")
        if name in ("router_loss", "entropy") and thoughts > 1:
            _reference(axes, math.log(thoughts))
        if axes in panels[:-1]:
            axes.set_xlabel("")
    for axes in panels.flat[len(shown) :]:
        axes.remove()


def _usage(figure, metrics: list[dict]) -> None:
    rows, N = [m for m in metrics if "usage/0" in m], _num_thoughts(metrics)
    if N < 2 or not rows:
        return
    every = math.ceil(len(rows) / 60)  # a column is the mean of several log lines, because one line covers few rows
    columns = [rows[i : i + every] for i in range(0, len(rows), every)]
    ends = [column[-1]["step"] for column in columns]
    begin = max(0, rows[0]["step"] - (rows[1]["step"] - rows[0]["step"] if len(rows) > 1 else 1))
    shares = [[statistics.fmean(m.get(f"usage/{k}", 0) for m in column) for column in columns] for k in range(N)]
    axes = figure.subplots()
    mesh = axes.pcolormesh([begin, *ends], range(N + 1), shares, cmap="cividis", vmin=0)
    figure.colorbar(mesh, label=f"share of rows (even: {1 / N:.2f})").outline.set_visible(False)
    axes.set(xlabel="step", ylabel="thought", ylim=(N, 0))
    if N <= 16:
        axes.set_yticks([k + 0.5 for k in range(N)], range(N))
        axes.tick_params(axis="y", length=0)


def _effective(figure, metrics: list[dict]) -> None:
    names = {"training": "effective_thoughts", "held out": "eval_effective_thoughts"}
    lines = {label: _points(metrics, name) for label, name in names.items() if _points(metrics, name)}
    if lines:
        axes = figure.subplots()
        _lines(axes, lines, "effective thoughts", low=1)
        _reference(axes, _num_thoughts(metrics))


def _throughput(figure, metrics: list[dict]) -> None:
    units = {"tokens_per_second": "tokens per second", "peak_memory_gib": "peak memory, GiB"}
    shown = [name for name in units if _points(metrics, name)]
    if shown:
        for axes, name in zip(figure.subplots(len(shown), sharex=True, squeeze=False).flat, shown, strict=True):
            _lines(axes, {"": _points(metrics, name)}, units[name], low=0)
            axes.label_outer()
            axes.yaxis.set_major_formatter("{x:,g}")


def _lines(axes, lines: dict[str, list[tuple[int, float]]], unit: str, low: float | None = None) -> None:
    """Draw lines, each labelled at its end. A long line is drawn pale behind its running mean."""
    from matplotlib.ticker import MaxNLocator

    for i, points in enumerate(lines.values()):
        steps, values = zip(*points, strict=True)
        if len(points) > 60:
            axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
            reach = len(points) // 60
            values = [statistics.fmean(values[max(0, j - reach) : j + reach + 1]) for j in range(len(values))]
        axes.plot(steps, values, color=f"C{i}", linewidth=1.6, marker="o" if len(points) < 20 else "", markersize=3.5)
    axes.set(xlabel="step", ylabel=unit)
    if low is not None:
        axes.set_ylim(bottom=low)
    axes.margins(x=0.02)
    axes.grid()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    # Labels are at the ends of their lines, but no closer to each other than the height of a line of text.
    bottom, top = axes.get_ylim()
    ends = sorted((points[-1][1], i, label) for i, (label, points) in enumerate(lines.items()) if label)
    height, lowest = 0.075, 0.0
    for n, (value, i, label) in enumerate(ends):
        at = min(max((value - bottom) / (top - bottom), lowest), 1 - height * (len(ends) - 1 - n))
        axes.text(1.02, at, label, transform=axes.transAxes, color=f"C{i}", va="center")
        lowest = at + height


def _reference(axes, value: float) -> None:
    axes.axhline(value, linestyle=":", linewidth=1.2, color="C1")


def _points(metrics: list[dict], name: str) -> list[tuple[int, float]]:
    return [(m["step"], m[name]) for m in metrics if name in m and math.isfinite(m[name])]


def _num_thoughts(metrics: list[dict]) -> int:
    """N, from the names usage/0 .. usage/N-1."""
    return max((sum(name.startswith("usage/") for name in m) for m in metrics), default=0)


FIGURES = {
    "nll": (
        _nll,
        "Negative log-likelihood of held-out text. The mixture is at the base or below it once thoughts help. The "
        "oracle picks the best thought after seeing the answer, so the gap to it is what a better router could gain. "
        "Dotted: the step with the lowest mixture NLL.",
    ),
    "losses": (
        _losses,
        "The training losses. Dotted: log N; the router loss of a thought of L tokens starts near L log N. The "
        "router has learnt something once its loss is below the line. All thoughts are in use while the usage "
        "entropy is near it. Diversity is measured in the last 40 % of the steps.",
    ),
    "usage": (
        _usage,
        "Which thoughts win the training rows. A row that stays dark is a thought that is never used. Thoughts of "
        "several tokens are counted by their first token.",
    ),
    "effective": (
        _effective,
        "How many thoughts are in use: the exponential of the entropy of usage, from 1 to N (dotted). For thoughts "
        "of several tokens: the winners' first tokens in training, and the N sequences that held-out rows are scored "
        "with.",
    ),
    "throughput": (_throughput, "Training speed without evaluations, and the peak memory so far."),
}


# The terminal -------------------------------------------------------------------------------------------------------


def summary(steps: int, seconds: float, metrics: dict[str, float], start: int = 0):
    """A table for the end of a run of steps `start` .. `steps`: every evaluation metric of the published model."""
    from rich.table import Table

    resumed = f" (of {steps:,})" if start else ""
    title = f"{steps - start:,} steps{resumed} in {seconds:,.0f} s"
    table = Table(title=title, show_header=False, title_justify="left")
    for name, (label, _, _) in NUMBERS.items():
        if name in metrics:
            table.add_row(label, f"{metrics[name]:.4f}" + (" nats per token" if "nll" in name else ""))
    return table


def where_to(output_dir: str, page: str) -> str:
    """The files of a run and a command to try next, as plain lines, so that a path can be copied from any terminal."""
    return "\n".join(
        [
            f"model, tokenizer  {output_dir}/",
            f"numbers           {output_dir}/{METRICS}",
            f"report            {page}",
            f"try next          mot think --model {shlex.quote(output_dir)} --prompt '...'",
        ]
    )


def side_by_side(thoughts, verdicts: list[str] | None = None):
    """Thoughts in columns under their index and probability, as many in a row as the terminal has room for."""
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    longest = max(len(line) for t in thoughts for line in [*t.text.splitlines(), " " * 24])
    width = min(longest + 4, 46)
    panels = []
    for i, t in enumerate(thoughts):
        footer = verdicts[i] if verdicts else f"{t.mean_logprob:.2f} nats/token"
        form = ".2f" if t.probability >= 0.005 else ".1g"
        panels.append(
            Panel(
                Text(t.text.strip("\n")),
                title=f"thought {t.index}  p {t.probability:{form}}",
                subtitle=footer,
                width=width,
            )
        )
    return Columns(panels)
