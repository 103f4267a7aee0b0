"""Settings of an evaluation. No torch here."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting
from mot.tasks import TASKS


@dataclass
class EvaluateSettings:
    """All settings of `evaluate_diversity.py` and `mot evaluate`."""

    model: str | None = setting(
        None, "the model to evaluate: a directory that train_mot.py wrote, or any causal language model", group="what"
    )
    prompts: str | None = setting(
        None,
        "a file: one prompt a line, or .jsonl rows with `prompt` and optionally `references` or `completion`",
        group="what",
    )
    text: str | None = setting(None, "held-out text instead: prompts are cut from it, evenly spaced", group="what")
    task: str | None = setting(
        None, "a built-in task with known answers: its verifier and, except for e2e, its held-out prompts", group="what"
    )
    tune_prompts: str | None = setting(
        None, "like --prompts, for the validation split; default: every third prompt", group="what"
    )
    num_prompts: int = setting(256, "size of the test split, at most", "prompts", "what", low=1)
    plain: str | None = setting(
        None,
        "a plain model to draw rivals from, e.g. of the same training FLOPs; default: the model without a thought",
        group="what",
    )
    judge: str | None = setting(
        None, "another causal language model, whose NLL of the texts is their quality", group="what"
    )

    num_thoughts: int | None = setting(
        None, "K texts per prompt; default: every thought once, 8 without thoughts", group="how", low=2, high=4096
    )
    baselines: str = setting(
        "all", "samplers and ablations to compare with, separated by commas; all, or none", group="how"
    )
    measures: str = setting(
        "all", "further measures, separated by commas; all that fit the prompts, or none", group="how"
    )
    max_new_tokens: int | None = setting(
        None, "longest text; default: what the answers of a task need, else 60", "tokens", "how", low=1
    )
    seeds: int = setting(5, "number of draws of every prompt", "seeds", "how", low=1, high=1000)
    batch_size: int = setting(512, "texts generated at a time", "texts", "how", low=1)

    output_dir: str | None = setting(None, "directory of all results; default outputs/diversity-NAME")
    overwrite: bool = setting(False, "remove the evaluation that output_dir already holds")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run --task forks")
        if self.task and self.task not in (*TASKS, "e2e"):
            raise ValueError(f"--task {self.task}: unknown; there is {', '.join(TASKS)} and e2e")
        sources = [f"--{name}" for name in ("prompts", "text") if getattr(self, name)]
        if len(sources) == 2:
            raise ValueError("--prompts and --text: give one of them")
        if sources and self.task in TASKS:
            raise ValueError(f"{sources[0]}: --task {self.task} brings its own held-out prompts; leave one of them out")
        if not sources and self.task not in TASKS:
            way_out = (
                "e2e needs --prompts FILE.jsonl" if self.task else "give --prompts FILE, --text FILE or --task NAME"
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
        return self.output_dir or f"outputs/diversity-{model}-{source}"
