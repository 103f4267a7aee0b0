"""The prompts of an evaluation, with what is known of their answers: from a file, a text or a task.

prompts = read_prompts("valid.jsonl", "--prompts")
prompts = cut_prompts("held_out.txt", 100)
prompts = task_prompts("forks")
validation, test = split(prompts)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mot import tasks
from mot.data.formats import format_of, open_text, records
from mot.data.rows import makes_rows, shape_of, texts_of
from mot.data.sources import check_text
from mot.model.tokenizer import LONE_SURROGATE

CUT = 200  # characters of a prompt that is cut from a text


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt and its reference answers, possibly none."""

    prompt: str
    references: tuple[str, ...] = ()


def read_prompts(path: str, flag: str) -> list[EvaluationPrompt]:
    """The prompts of a file in its order, each once: lines of text, or rows as training reads them.

    A row has a text `prompt`. It may have `references`, a list of texts, or one `completion`. Rows of one prompt are
    merged. Raises ValueError that names flag, file and line.
    """
    where = f"{flag} {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a file of prompts, or --task for a task's own")
    format = format_of(path, path, where, lambda names: makes_rows(names, {}))
    if format != "parquet":
        check_text(path, where)
    references_of: dict[str, list[str]] = {}
    for prompt, references in _lines(path) if format == "text" else _rows(path, format, where):
        references_of.setdefault(prompt, []).extend(references)
    if not references_of:
        raise ValueError(f"{where}: has no prompts; give one a line, or .jsonl rows with `prompt`")
    return [EvaluationPrompt(p, tuple(dict.fromkeys(references))) for p, references in references_of.items()]


def _lines(path: str) -> Iterator[tuple[str, list[str]]]:
    with open_text(path, newline="\n") as file:
        yield from ((line.rstrip("\r\n"), []) for line in file if line.strip())


def _rows(path: str, format: str, where: str) -> Iterator[tuple[str, list[str]]]:
    shape = None
    for place, record in records(path, format, where):
        named = isinstance(record, dict) and "prompt" in record
        if shape is None and isinstance(record, dict) and not named:
            shape = shape_of(record, {}, place)  # rows that name their prompt otherwise, e.g. `instruction`
            if shape.kind != "rows":
                raise ValueError(f'{place} has no text `prompt`; every row needs {{"prompt": "..."}}')
        if shape is not None and not named:
            ((prompt, completion, *_),) = texts_of([(place, record)], shape)
            yield prompt, [completion]
            continue
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
            raise ValueError(f'{place} has no text `prompt`; every row needs {{"prompt": "..."}}')
        references = record.get("references", [record["completion"]] if "completion" in record else [])
        if not isinstance(references, list) or not all(isinstance(r, str) and r.strip() for r in references):
            raise ValueError(f"{place}: `references` must be a list of texts, none of them empty")
        if any(LONE_SURROGATE.search(text) for text in [record["prompt"], *references]):
            raise ValueError(f"{place} has half of a surrogate pair; fix or remove it")
        yield record["prompt"], references


def cut_prompts(path: str, count: int) -> list[EvaluationPrompt]:
    """`count` prompts of CUT characters, evenly spaced, each from the start of a word. Raises ValueError."""
    where = f"--text {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a text that the model was not trained on")
    if format_of(path, path, where, lambda names: makes_rows(names, {})) != "text":
        raise ValueError(f"{where}: has rows; give plain text, or the rows as --prompts")
    characters = check_text(path, where)
    count = min(count, characters // (2 * CUT))
    if count < 2:
        raise ValueError(f"{where}: has {characters} characters; at least {4 * CUT} are needed")
    with open_text(path, newline="\n") as file:
        text = file.read()
    starts = [text.find(" ", i * (len(text) - 2 * CUT) // count) + 1 for i in range(count)]
    return [EvaluationPrompt(text[start : start + CUT]) for start in starts]


def task_prompts(task: str) -> list[EvaluationPrompt]:
    """The different held-out prompts of a task."""
    return [EvaluationPrompt(prompt) for prompt in dict.fromkeys(prompt for prompt, _ in tasks.held_out(task))]


def split(prompts: list[EvaluationPrompt]) -> tuple[list[EvaluationPrompt], list[EvaluationPrompt]]:
    """(validation split: every third prompt, test split: the others).

    A single prompt is in both splits, which then differ in the seeds of their draws.
    """
    if len(prompts) == 1:
        return prompts, prompts
    return prompts[::3], [prompt for i, prompt in enumerate(prompts) if i % 3]
