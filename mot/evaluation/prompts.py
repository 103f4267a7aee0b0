"""What is asked in an evaluation: prompts with what is known of their answers, from a file, a text or a task.

asked, tuned = read("valid.jsonl", "--prompts"), read("other.jsonl", "--tune_prompts")
asked = cut("held_out.txt", 100), of_task("forks")
tuned, judged = split(asked)
"""

import json
from dataclasses import dataclass
from pathlib import Path

from mot import tasks
from mot.data.sources import check_text

CUT = 200  # characters of a prompt that is cut from a text


@dataclass(frozen=True)
class Asked:
    """A prompt and its reference answers, of which there may be none."""

    prompt: str
    references: tuple[str, ...] = ()


def read(path: str, flag: str) -> list[Asked]:
    """Prompts of a file, each once, in its order: lines of text, or rows of a .jsonl.

    A row has a text `prompt` and may have `references`, a list of texts, or one `completion`; the rows of one prompt are
    put together. Raises ValueError that names flag, file and line.
    """
    where = f"{flag} {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a file of prompts, or --task for a task's own")
    check_text(path, where)
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    asked: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt, references = (
                _row(line, f"{where}: line {number}") if path.endswith(".jsonl") else (line.rstrip("\r"), [])
            )
            asked.setdefault(prompt, []).extend(references)
    if not asked:
        raise ValueError(f"{where}: has no prompts; give one a line, or .jsonl rows with `prompt`")
    return [Asked(prompt, tuple(dict.fromkeys(references))) for prompt, references in asked.items()]


def _row(line: str, where: str) -> tuple[str, list[str]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where} is not JSON ({e.msg}); mend or remove it") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f'{where} has no text `prompt`; every row needs {{"prompt": "..."}}')
    references = row.get("references", [row["completion"]] if "completion" in row else [])
    if not isinstance(references, list) or not all(isinstance(r, str) and r.strip() for r in references):
        raise ValueError(f"{where}: `references` must be a list of texts, none of them empty")
    return row["prompt"], references


def cut(path: str, count: int) -> list[Asked]:
    """`count` prompts of CUT characters, evenly spaced, each from the beginning of a word. Raises ValueError."""
    where = f"--text {path}"
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file; give a text that the model was not trained on")
    characters = check_text(path, where)
    count = min(count, characters // (2 * CUT))
    if count < 2:
        raise ValueError(f"{where}: has {characters} characters; at least {4 * CUT} are needed")
    text = Path(path).read_text(encoding="utf-8-sig")
    starts = [text.find(" ", i * (len(text) - 2 * CUT) // count) + 1 for i in range(count)]
    return [Asked(text[start : start + CUT]) for start in starts]


def of_task(task: str) -> list[Asked]:
    """The different held-out prompts of a task."""
    return [Asked(prompt) for prompt in dict.fromkeys(prompt for prompt, _ in tasks.held_out(task))]


def split(asked: list[Asked]) -> tuple[list[Asked], list[Asked]]:
    """(every third prompt, to tune on; the others, to judge by). A single prompt is both: draws of it are split instead."""
    return (asked[::3], [a for i, a in enumerate(asked) if i % 3]) if len(asked) > 1 else (asked, asked)
