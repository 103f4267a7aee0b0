"""The console script `mot` and what the guide's doors call. `mot --help` lists the commands.

Each command parses first and imports torch after, so that --help and a mistyped flag answer at once.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mot.data.settings import DATASETS, DownloadSettings
from mot.evaluation.settings import EvaluateSettings
from mot.inference.settings import ExportSettings, ThinkSettings
from mot.runtime.flags import fail, parse
from mot.runtime.signals import Interruption
from mot.serving.settings import ServeSettings
from mot.training.settings import AdaptSettings, ReportSettings, RunSettings, TrainSettings

if TYPE_CHECKING:
    from mot.training.run import Result


def train(argv: list[str] | None = None, prog: str = "mot train") -> None:
    """train a mixture of thoughts on text, .jsonl rows or a built-in task"""
    _run(parse(TrainSettings, argv, prog, train.__doc__))


def adapt(argv: list[str] | None = None, prog: str = "mot adapt") -> None:
    """give a pretrained model N thoughts by adapters (LoRA); its weights stay as they are"""
    _run(parse(AdaptSettings, argv, prog, adapt.__doc__))


def _run(settings: RunSettings) -> "Result | None":
    _quiet()
    from mot.evaluation import answers
    from mot.training import report
    from mot.training.run import train as run
    from mot.training.run import upload

    result = run(settings)
    if result is None:
        return None
    try:
        page = str(report.write(result.output_dir))
    except OSError as e:  # the model is written: a disk that is full now costs the pictures only
        page = f"not written: {e.strerror}"
    if result.remote:
        upload(result, ["report"])
    from rich.console import Console

    console = Console(highlight=False)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    console.print(report.summary(result.steps, result.seconds, result.metrics))
    print(report.where_to(result.output_dir, page))
    if settings.task:
        from mot import tasks
        from mot.inference.think import MixtureOfThoughts

        found = answers.find_answers(MixtureOfThoughts.from_pretrained(result.output_dir), settings.task)
        prompt, thoughts, answers = found.samples[0]
        what = "a prompt" if settings.task in tasks.RECURRING else "an unseen prompt"
        console.print(f"\n{what}: {prompt}", markup=False)
        console.print(report.side_by_side(thoughts, [f"answers {a}" if a else "not an answer" for a in answers]))
        console.print(found.line(settings.task), soft_wrap=True)
    return result


def think(argv: list[str] | None = None, prog: str = "mot think") -> None:
    """continue one prompt K different ways, side by side"""
    settings = parse(ThinkSettings, argv, prog, think.__doc__)
    _quiet()
    import dataclasses
    import json

    from rich.console import Console

    from mot.inference.think import MixtureOfThoughts
    from mot.training import report

    mixture = MixtureOfThoughts.from_pretrained(settings.model)
    thoughts = mixture.think(
        [{"role": "user", "content": settings.prompt}] if settings.chat else settings.prompt,
        settings.num_thoughts,
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p,
        creativity=settings.creativity,
        seed=settings.seed,
    )
    if settings.json:
        for thought in thoughts:
            print(json.dumps(dataclasses.asdict(thought), ensure_ascii=False))
    else:
        Console().print(report.side_by_side(thoughts))


def evaluate(argv: list[str] | None = None, prog: str = "mot evaluate") -> None:
    """judge K thoughts against every sampler, tuned alike: are they different, and good?"""
    settings = parse(EvaluateSettings, argv, prog, evaluate.__doc__)
    _quiet()
    import dataclasses
    import shlex

    from rich.console import Console

    from mot.evaluation.evaluate import evaluate as run
    from mot.evaluation.report import write
    from mot.evaluation.samples import RESULT, TEXTS
    from mot.evaluation.table import table

    command = shlex.join([prog, *(sys.argv[1:] if argv is None else argv)])
    result, output = dataclasses.asdict(run(settings, command)), settings.output()
    page = write(result, output)
    Console(highlight=False).print(table(result))
    print(f"report   {page}\nnumbers  {output}/{RESULT}\ntexts    {output}/{TEXTS}")


def export(argv: list[str] | None = None, prog: str = "mot export") -> None:
    """merge an adapter into a whole model, or print the command that makes a GGUF of one"""
    settings = parse(ExportSettings, argv, prog, export.__doc__)
    _quiet()
    from mot.inference.export import gguf_command, merge

    if settings.gguf:
        print(gguf_command(settings.model, settings.outtype, settings.output_dir))
        return
    merge(settings.model, settings.output_dir)
    print(f"{settings.output_dir}: a whole model; next: mot think --model {settings.output_dir} --prompt '...'")


def serve(argv: list[str] | None = None, prog: str = "mot serve") -> None:
    """answer over an OpenAI-compatible API, K thoughts to a request, and in a browser"""
    settings = parse(ServeSettings, argv, prog, serve.__doc__)
    _quiet()
    from mot.serving.server import serve as run

    run(settings)


def data(argv: list[str] | None = None, prog: str = "mot data") -> None:
    """fetch a data set of the guide as plain text: shakespeare, wikitext103 or openwebtext"""
    settings = parse(DownloadSettings, argv, prog, data.__doc__)
    import os

    from mot.runtime.remote import save_dataset

    output = settings.output or f"data/{settings.name}.txt"
    if os.path.exists(output):
        print(
            f"{output}: is there already ({os.path.getsize(output) / 1e6:,.1f} MB) and is kept; remove it to fetch it anew"
        )
        return
    url, end = DATASETS[settings.name]
    size = save_dataset(url, output, end, settings.max_megabytes)
    print(f"{output}: {size / 1e6:,.1f} MB; next: python train_mot.py --train_file {output}")


def report(argv: list[str] | None = None, prog: str = "mot report") -> None:
    """draw the report of a run that was interrupted or still goes on"""
    settings = parse(ReportSettings, argv, prog, report.__doc__)
    from mot.training.report import write

    print(write(settings.run))


def cost(argv: list[str] | None = None, prog: str = "mot cost") -> None:
    """what a run would take: FLOPs, hours and dollars, for one GPU or as a table of all"""
    from mot.training import costs

    print("\n".join(costs.report(parse(costs.CostSettings, argv, prog, cost.__doc__))))


def cloud(argv: list[str] | None = None, prog: str = "mot cloud") -> None:
    """train on Google Cloud: prints the exact commands for a machine (gce) or a job (vertex); --go runs them"""
    from mot.cloud import plan

    argv = sys.argv[1:] if argv is None else argv
    routes = {
        "gce": (plan.GCE, plan.GceSettings, plan.gce),
        "vertex": (plan.VERTEX, plan.VertexSettings, plan.vertex),
    }
    usage = [f"mot cloud {route} {'|'.join(actions)} [flags]" for route, (actions, _, _) in routes.items()]
    route, action, *words = [*argv[:2], *[""] * (2 - len(argv)), *argv[2:]]
    if route in ("", "-h", "--help") or (route in routes and action in ("", "-h", "--help")):
        print(
            "usage: " + "\n       ".join([*usage, "... train|submit ... -- FLAGS OF train_mot.py OR train_lora_mot.py"])
        )
        print("\nwith an action, --help lists its flags; docs/cloud.md tells the whole story")
        return
    if route not in routes:
        raise ValueError(f"mot cloud {route}: unknown; there is {' and '.join(routes)}")
    flags, training = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    actions, kind, make = routes[route]
    if action not in actions:  # before its flags are read
        raise ValueError(f"mot cloud {route} {action}: unknown; there is {', '.join(actions)}")
    if (route, action) == ("vertex", "run"):
        _run_in_container(flags + training)
        return
    settings = parse(kind, flags, f"{prog} {route} {action}", plan.__doc__.split("\n")[0])
    made = make(action, settings, training)
    if settings.go:
        plan.run(made, settings)
    else:
        print(made.script())


def _run_in_container(words: list[str]) -> None:
    """Vertex AI: train into AIP_CHECKPOINT_DIR, resume from it, and put the finished model into AIP_MODEL_DIR."""
    import os

    from mot.cloud.plan import container_flags

    flags = container_flags(words, dict(os.environ))
    kind = AdaptSettings if any(flag.startswith("--base_model") for flag in flags) else TrainSettings
    result = _run(parse(kind, flags, "mot cloud vertex run", ""))
    if result and os.environ.get("AIP_MODEL_DIR"):
        from mot.training.run import model_files, upload

        result.remote = os.environ["AIP_MODEL_DIR"].rstrip("/")
        upload(result, model_files(result.output_dir))
        print(f"model    {result.remote}")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "adapt": adapt,
    "think": think,
    "evaluate": evaluate,
    "export": export,
    "serve": serve,
    "data": data,
    "report": report,
    "cost": cost,
    "cloud": cloud,
}


def main(argv: list[str] | None = None) -> None:
    """`mot COMMAND ...`"""
    argv = sys.argv[1:] if argv is None else argv
    usage = "usage: mot COMMAND [flags]\n\n" + "\n".join(f"  {name:10}{f.__doc__}" for name, f in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(usage + "\n\nmot COMMAND --help lists its flags")
    elif argv[0] not in COMMANDS:
        fail(f"unknown command {argv[0]}; there is {', '.join(COMMANDS)}")
    else:
        run(COMMANDS[argv[0]], argv[1:])


def run(command: Callable[..., None], argv: list[str] | None = None, **where) -> None:
    """Call a command; a user's mistake (ValueError) is one line and exit code 2, a signal exit code 143 or 130."""
    with Interruption():  # from here on, while the libraries are still being imported
        try:
            command(argv, **where)
        except ValueError as e:
            fail(str(e))


def _quiet() -> None:
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
