"""The prompts of an evaluation, with what is known of their answers: from a file, a text or a task.

prompts = read_prompts("valid.jsonl", "--prompts")
prompts = cut_prompts("held_out.txt", 100)
prompts = task_prompts("forks")
validation, test = split(prompts)
"""

import json
from dataclasses import dataclass
from pathlib import Path

from mot import tasks
from mot.data.sources import check_text

CUT = 200  # characters of a prompt that is cut from a text


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt and its reference answers, possibly none."""

    prompt: str
    references: tuple[str, ...] = ()


def read_prompts(path: str, flag: str) -> list[EvaluationPrompt]:
    """The prompts of a file in its order, each once: lines of text, or rows of a .jsonl.

    A row has a text `prompt`. It may have `references`, a list of texts, or one `completion`. Rows of one prompt are
    merged. Raises ValueError that names flag, file and line.
    """
    where = f"{flag} {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a file of prompts, or --task for a task's own")
    check_text(path, where)
    references_of: dict[str, list[str]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        if path.endswith(".jsonl"):
            prompt, references = _row(line, f"{where}: line {number}")
        else:
            prompt, references = line.rstrip("\r"), []
        references_of.setdefault(prompt, []).extend(references)
    if not references_of:
        raise ValueError(f"{where}: has no prompts; give one a line, or .jsonl rows with `prompt`")
    return [EvaluationPrompt(p, tuple(dict.fromkeys(references))) for p, references in references_of.items()]


def _row(line: str, where: str) -> tuple[str, list[str]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where} is not JSON ({e.msg}); correct or remove it") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f'{where} has no text `prompt`; every row needs {{"prompt": "..."}}')
    references = row.get("references", [row["completion"]] if "completion" in row else [])
    if not isinstance(references, list) or not all(isinstance(r, str) and r.strip() for r in references):
        raise ValueError(f"{where}: `references` must be a list of texts, none of them empty")
    return row["prompt"], references


def cut_prompts(path: str, count: int) -> list[EvaluationPrompt]:
    """`count` prompts of CUT characters, evenly spaced, each from the start of a word. Raises ValueError."""
    where = f"--text {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a text that the model was not trained on")
    characters = check_text(path, where)
    count = min(count, characters // (2 * CUT))
    if count < 2:
        raise ValueError(f"{where}: has {characters} characters; at least {4 * CUT} are needed")
    text = Path(path).read_text(encoding="utf-8-sig")
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
