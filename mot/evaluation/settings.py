"""The settings of an evaluation. No torch here."""

from dataclasses import dataclass
from typing import NamedTuple

from mot.runtime.flags import check_ranges, setting
from mot.tasks import OWN_ROWS, TASKS


class Size(NamedTuple):
    """How much an evaluation draws unless flags say otherwise."""

    prompts: int  # of the test split
    seeds: int
    creative_samples: int  # K of a creative task


FULL, QUICK = Size(256, 5, 1000), Size(64, 1, 200)


@dataclass
class EvaluateSettings:
    """All settings of `evaluate_diversity.py`."""

    model: str | None = setting(
        None, "the model to evaluate: a directory that train_mot.py wrote, or any causal language model", group="what"
    )
    prompts: str | None = setting(
        None,
        "a file of prompts: one per line, or .jsonl rows with `prompt` and optionally `references` or `completion`",
        group="what",
    )
    text: str | None = setting(None, "a held-out text instead; prompts are cut from it at even distances", group="what")
    task: str | None = setting(
        None,
        f"a built-in task with known answers: {', '.join(TASKS)}. Its verifier checks the texts; "
        f"{', '.join(OWN_ROWS)} also have held-out prompts",
        group="what",
    )
    tune_prompts: str | None = setting(
        None, "prompts of the validation split, on which samplers are tuned; default: every third prompt", group="what"
    )
    num_prompts: int | None = setting(
        None,
        f"the most prompts in the test split; default {FULL.prompts}, with --quick {QUICK.prompts}",
        "prompts",
        "what",
        low=1,
    )
    plain: str | None = setting(
        None,
        "a plain model for the baselines, e.g. trained with the same FLOPs; default: the model's own trunk",
        group="what",
    )
    judge: str | None = setting(
        None, "another causal language model; its NLL of the texts measures their quality", group="what"
    )

    num_thoughts: int | None = setting(
        None,
        "K, texts per prompt; default: every thought once, or 8 for a model without thoughts",
        group="how",
        low=2,
        high=4096,
    )
    baselines: str = setting("all", "samplers to compare with, separated by commas; or all, or none", group="how")
    measures: str = setting(
        "all", "further measures, separated by commas; or all that the prompts allow, or none", group="how"
    )
    max_new_tokens: int | None = setting(
        None, "longest text; default: what the task's answers need, else 60", "tokens", "how", low=1
    )
    seeds: int | None = setting(
        None,
        f"how often everything is sampled; default {FULL.seeds}, with --quick {QUICK.seeds} "
        f"({FULL.seeds} where there is a single prompt)",
        "seeds",
        "how",
        low=1,
        high=1000,
    )
    quick: bool = setting(
        False,
        "a preliminary answer in minutes: fewer prompts, one seed, every second setting of every sampler, no wide "
        "beams",
        group="how",
    )
    batch_size: int = setting(512, "texts generated at the same time", "texts", "how", low=1)

    output_dir: str | None = setting(None, "output directory; default outputs/diversity-NAME")
    overwrite: bool = setting(False, "replace the evaluation that output_dir already holds")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run --task forks")
        if self.task and self.task not in TASKS:
            raise ValueError(f"--task {self.task}: unknown; there is {', '.join(TASKS)}")
        sources = [f"--{name}" for name in ("prompts", "text") if getattr(self, name)]
        if len(sources) == 2:
            raise ValueError("--prompts and --text: give one of them")
        if sources and self.task in OWN_ROWS:
            raise ValueError(f"{sources[0]}: --task {self.task} brings its own held-out prompts; leave one of them out")
        if not sources and self.task not in OWN_ROWS:
            way_out = (
                f"{self.task} needs --prompts FILE.jsonl"
                if self.task
                else "give --prompts FILE, --text FILE or --task NAME"
            )
            raise ValueError(f"--prompts: missing; {way_out}")
        if self.tune_prompts and not self.prompts:
            raise ValueError(f"--tune_prompts {self.tune_prompts}: goes with --prompts; leave it out")
        if self.output_dir and "://" in self.output_dir:
            raise ValueError(
                f"--output_dir {self.output_dir}: must be a local directory; copy it to the bucket afterwards"
            )

    def output(self) -> str:
        model = self.model.rstrip("/").split("/")[-1]
        source = self.task or (self.prompts or self.text).split("/")[-1].rsplit(".", 1)[0]
        return self.output_dir or f"outputs/diversity-{model}-{source}{'-quick' if self.quick else ''}"

    @property
    def size(self) -> Size:
        return QUICK if self.quick else FULL
