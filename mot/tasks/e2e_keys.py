"""Keys for rows of restaurant descriptions: the plan of each text, so that thoughts divide plans (docs/tasks.md).

python -m mot.tasks.e2e keys IN.jsonl OUT.jsonl

key("name[Aromi], food[Thai]", "Thai food is at Aromi.")      "food name"
write("train.jsonl", "keyed.jsonl")                           the number of rows
"""

import json
from itertools import chain
from pathlib import Path

from mot.runtime.files import atomic_write_text
from mot.runtime.flags import one_line
from mot.tasks import e2e


def key(prompt: str, text: str) -> str:
    """A row's key: the plan of its text. Slots that an invalid text does not state come last, in the prompt's order."""
    sentences = e2e.mentioned(prompt, text)
    left = [name for slot in e2e.attributes(prompt) if (name := slot.split()[-1]) not in chain(*sentences)]
    return e2e.written([*sentences, left] if left else sentences)


def write(path: str, out: str) -> int:
    """Write the rows of a .jsonl file with their keys; returns their number.

    Raises ValueError with file and line for a row that is no description of a prompt, and writes nothing then.
    """
    if Path(out).resolve() == Path(path).resolve():
        raise ValueError(f"{out}: is the file that is read; give another name for the rows with keys")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read ({one_line(e)}); give a .jsonl file of rows") from None
    keyed = [_with_key(line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not keyed:
        raise ValueError(f'{path}: has no rows; every line is {{"prompt": "...", "completion": "..."}}')
    try:
        atomic_write_text(Path(out), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in keyed))
    except OSError as e:
        raise ValueError(f"{out}: cannot be written ({one_line(e)}); give another file") from None
    return len(keyed)


def _with_key(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where} is not JSON ({e.msg}); fix or remove it") from None
    for name in ("prompt", "completion"):
        if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f'{where} has no text `{name}`; every row needs {{"prompt": "...", "completion": "..."}}')
    if "key" in row:
        raise ValueError(f"{where} has a `key` already; remove it to get the plan in its place")
    try:
        return row | {"key": key(row["prompt"], row["completion"])}
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
