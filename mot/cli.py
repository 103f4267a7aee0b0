"""The console script `mot`, and the functions that the guide's scripts call. `mot --help` lists the commands.

Each command parses its flags before it imports torch, so that --help and a mistyped flag answer at once.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mot.data.settings import DATASETS, DownloadSettings
from mot.evaluation.settings import EvaluateSettings
from mot.inference.settings import ExportSettings, ThinkSettings
from mot.runtime.flags import fail, parse
from mot.runtime.signals import SignalHandler
from mot.serving.settings import ServeSettings
from mot.training.settings import AdaptSettings, ReportSettings, RunSettings, TrainSettings

if TYPE_CHECKING:
    from mot.training.run import Result


def train(argv: list[str] | None = None, prog: str = "mot train") -> None:
    """train a mixture of thoughts on text, .jsonl rows or a built-in task"""
    _run(parse(TrainSettings, argv, prog, train.__doc__))


def adapt(argv: list[str] | None = None, prog: str = "mot adapt") -> None:
    """give a pretrained model N thoughts by adapters (LoRA), without changing its weights"""
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
    except OSError as e:  # the model is written already, so a full disk costs only the report
        page = f"not written: {e.strerror}"
    if result.remote:
        upload(result, ["report"])
    from rich.console import Console

    console = Console(highlight=False)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    console.print(report.summary(result.steps, result.seconds, result.metrics, result.start))
    print(report.where_to(result.output_dir, page))
    if settings.task:
        from mot import tasks
        from mot.inference.think import MixtureOfThoughts

        found = answers.find_answers(MixtureOfThoughts.from_pretrained(result.output_dir), settings.task)
        prompt, thoughts, answers = found.samples[0]
        what = "a prompt" if tasks.TASKS[settings.task].recurring else "an unseen prompt"
        console.print(f"\n{what}: {prompt}", markup=False)
        console.print(report.side_by_side(thoughts, [f"answers {a}" if a else "not an answer" for a in answers]))
        console.print(found.line(settings.task), soft_wrap=True)
    return result


def think(argv: list[str] | None = None, prog: str = "mot think") -> None:
    """continue one prompt in K different ways, side by side"""
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
    """compare K thoughts with tuned samplers, in diversity and quality"""
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
    """merge an adapter into a complete model, or print the command that converts one to GGUF"""
    settings = parse(ExportSettings, argv, prog, export.__doc__)
    _quiet()
    from mot.inference.export import gguf_command, merge

    if settings.gguf:
        print(gguf_command(settings.model, settings.outtype, settings.output_dir))
        return
    merge(settings.model, settings.output_dir)
    print(f"{settings.output_dir}: a complete model; next: mot think --model {settings.output_dir} --prompt '...'")


def serve(argv: list[str] | None = None, prog: str = "mot serve") -> None:
    """serve an OpenAI-compatible API and a web page, with K thoughts per request"""
    settings = parse(ServeSettings, argv, prog, serve.__doc__)
    _quiet()
    from mot.serving.server import serve as run

    run(settings)


def data(argv: list[str] | None = None, prog: str = "mot data") -> None:
    """download a data set of the guide as plain text: shakespeare, wikitext103 or openwebtext"""
    settings = parse(DownloadSettings, argv, prog, data.__doc__)
    import os

    from mot.data.download import save_dataset

    output = settings.output or f"data/{settings.name}.txt"
    if os.path.exists(output):
        megabytes = os.path.getsize(output) / 1e6
        print(f"{output}: is there already ({megabytes:,.1f} MB) and is kept; remove it to download it again")
        return
    url, end = DATASETS[settings.name]
    size = save_dataset(url, output, end, settings.max_megabytes)
    print(f"{output}: {size / 1e6:,.1f} MB; next: python train_mot.py --train_file {output}")


def report(argv: list[str] | None = None, prog: str = "mot report") -> None:
    """write the report of a run that was interrupted or is still running"""
    settings = parse(ReportSettings, argv, prog, report.__doc__)
    from mot.training.report import write

    print(write(settings.run))


def cost(argv: list[str] | None = None, prog: str = "mot cost") -> None:
    """estimate the FLOPs, hours and dollars of a run, for one GPU or all of them"""
    from mot.training import costs

    print("\n".join(costs.report(parse(costs.CostSettings, argv, prog, cost.__doc__))))


def cloud(argv: list[str] | None = None, prog: str = "mot cloud") -> None:
    """print the exact commands to train on Google Cloud, as a machine (gce) or a job (vertex); --go runs them"""
    from importlib import import_module

    from mot import cloud
    from mot.cloud.plan import run

    argv = sys.argv[1:] if argv is None else argv
    clouds = {name: import_module(f"mot.cloud.{name}") for name in cloud.CLOUDS}
    name, action, args = (*argv[:1], "")[0], (*argv[1:2], "")[0], argv[2:]
    if name in ("", "-h", "--help") or (name in clouds and action in ("", "-h", "--help")):
        usage = [f"mot cloud {name} {'|'.join(module.ACTIONS)} [flags]" for name, module in clouds.items()]
        usage.append("... train|submit ... -- FLAGS OF train_mot.py OR train_lora_mot.py")
        print("usage: " + "\n       ".join(usage))
        print("\nwith an action, --help lists its flags; docs/cloud.md describes them")
        return
    if name not in clouds:
        raise ValueError(f"mot cloud {name}: unknown; there is {' and '.join(clouds)}")
    module = clouds[name]
    if action not in module.ACTIONS:  # before its flags are read
        raise ValueError(f"mot cloud {name} {action}: unknown; there is {', '.join(module.ACTIONS)}")
    flags, training = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    if (name, action) == ("vertex", "run"):
        _run_in_container(flags + training)
        return
    settings = parse(module.Settings, flags, f"{prog} {name} {action}", module.__doc__.split("\n")[0])
    plan = module.plan(action, settings, training)
    if settings.go:
        run(plan, settings.yes)
    else:
        print(plan.script())


def _run_in_container(args: list[str]) -> None:
    """Vertex AI: train into AIP_CHECKPOINT_DIR, resume from it, and put the finished model into AIP_MODEL_DIR."""
    import os

    from mot.cloud.vertex import container_flags

    flags = container_flags(args, dict(os.environ))
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
    """Call a command. A user's mistake (ValueError) is one line and exit code 2; a signal is exit code 143 or 130."""
    with SignalHandler():  # already while the libraries are imported
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
