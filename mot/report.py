"""Pictures of a run, drawn from its metrics.jsonl: `curves(output_dir)` writes curves.png."""

import shlex
from pathlib import Path

from mot.tracking import METRICS, read_metrics

PANELS = (
    (
        "held-out NLL, nats per token",
        {"eval_base_nll": "base (no thought)", "eval_mixture_nll": "mixture", "eval_oracle_nll": "oracle"},
    ),
    (
        "training losses, nats",
        {"lm_loss": "lm", "router_loss": "router", "diversity": "diversity (JSD)", "entropy": "usage entropy"},
    ),
    ("effective thoughts", {"effective_thoughts": "E-step", "eval_effective_thoughts": "held out"}),
    ("tokens per second", {"tokens_per_second": "training"}),
)


def curves(output_dir: str) -> Path:
    """Draw the run's curves, one panel per unit, and return the PNG's path."""
    from matplotlib.figure import Figure

    metrics = read_metrics(Path(output_dir) / METRICS)
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(Path(output_dir).name)
    for axes, (title, lines) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name, label in lines.items():
            points = [(m["step"], m[name]) for m in metrics if name in m]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 20 else None)
        axes.set(title=title, xlabel="step", ylim=(0, None) if "per second" in title else None)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small")
    path = Path(output_dir) / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def summary(steps: int, seconds: float, metrics: dict[str, float]):
    """A table for the end of a run: what was reached."""
    from rich.table import Table

    names = {
        "eval_base_nll": "base NLL",
        "eval_mixture_nll": "mixture NLL",
        "eval_oracle_nll": "oracle NLL",
        "eval_specialisation": "specialisation",
        "eval_effective_thoughts": "effective thoughts",
    }
    table = Table(title=f"{steps:,} steps in {seconds:,.0f} s", show_header=False, title_justify="left")
    for name, words in names.items():
        if name in metrics:
            table.add_row(words, f"{metrics[name]:.4f}" + (" nats per token" if "nll" in name else ""))
    return table


def where_to(output_dir: str, picture: Path) -> str:
    """What was written where, and what to try next: plain lines, so that a path can be copied from any terminal."""
    return "\n".join(
        [
            f"model, tokenizer  {output_dir}/",
            f"numbers           {output_dir}/{METRICS}",
            f"curves            {picture}",
            f"try next          mot think --model {shlex.quote(output_dir)} --prompt '...'",
        ]
    )


def side_by_side(thoughts, verdicts: list[str] | None = None):
    """Thoughts in columns, each headed by its index and probability, as many to a row as the terminal has room for."""
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    longest = max(len(line) for t in thoughts for line in [*t.text.splitlines(), " " * 24])
    width = min(longest + 4, 46)
    panels = []
    for i, t in enumerate(thoughts):
        footer = verdicts[i] if verdicts else f"{t.mean_logprob:.2f} nats/token"
        panels.append(
            Panel(
                Text(t.text.strip("\n")),
                title=f"thought {t.index}  p {t.probability:.2f}",
                subtitle=footer,
                width=width,
            )
        )
    return Columns(panels)
