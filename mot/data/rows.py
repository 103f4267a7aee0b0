"""From the records of a file to rows: what its columns mean, and the texts of each record.

    shape = shape_of({"instruction": "Add.", "input": "1 2", "output": "3"}, {}, "--train_file x: line 1")
    shape.kind, shape.prompt, shape.target                     "rows", ("instruction", "input"), "output"
    list(texts_of(records, shape))                             [("Add.\n\n1 2\n\n", "3")]

Three kinds: "rows" are (prompt, completion) texts, "chat" is a list of messages, "documents" is one text. A row or a
chat may have a `key`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mot.model.tokenizer import LONE_SURROGATE

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}  # ShareGPT
ROW_SHAPES = (  # (columns of the prompt, of which the others may be empty, column of the completion, what ends each)
    (("prompt",), "completion", ""),
    (("prompt",), "response", ""),
    (("question",), "answer", "\n\n"),
    (("instruction", "input"), "output", "\n\n"),
    (("instruction", "context"), "response", "\n\n"),
    (("input",), "output", "\n\n"),
)
NEEDED = {
    "rows": '{"prompt": "...", "completion": "..."}',
    "chat": '{"messages": [{"role": "user", "content": "..."}, ...]}',
    "documents": '{"text": "..."}',
}


@dataclass(frozen=True)
class Shape:
    """Which columns of a record are read.

    prompt: the columns of the prompt, each followed by `end`. target: the column of the completion, the messages or the
    text. If `target` holds only the answer of a chat, `prompt` names the messages before it.
    """

    kind: str
    prompt: tuple[str, ...]
    target: str
    end: str = ""
    key: str | None = None
    others: tuple[str, ...] = ()  # columns of the first record that are not read

    @property
    def parts(self) -> int:
        """Texts of a row: prompt, completion and, if there are three, key. 0: documents are one text."""
        return 0 if self.kind == "documents" else 3 if self.key else 2


def makes_rows(names: set[str], columns: dict[str, str]) -> bool:
    """Are these column names enough to read rows from?"""
    return bool(columns and names.issuperset(columns.values())) or any(
        names >= {prompt[0], target} for prompt, target, _ in ROW_SHAPES
    )


def shape_of(record: object, columns: dict[str, str], place: str) -> Shape:
    """The shape of a file with this first record. columns: our names of columns and the file's (`--columns`).

    Raises ValueError beginning with `place` if nothing of the record can be read.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place} has no text `prompt`; every row needs {NEEDED['rows']}")
    for ours, theirs in columns.items():
        if theirs not in record:
            raise ValueError(f"--columns {ours}={theirs}: {place} has no `{theirs}`, only {_listed(record)}")
    shape = _shape(record, columns, place)
    used = {*shape.prompt, shape.target, shape.key, *(["system"] if shape.target == "conversations" else [])}
    return replace(shape, others=tuple(name for name in record if name not in used))


def _shape(record: dict, columns: dict[str, str], place: str) -> Shape:
    key = columns.get("key", "key" if "key" in record else None)
    if "text" in columns:
        return Shape("documents", (), columns["text"])
    if "messages" in columns:
        return Shape("chat", (), columns["messages"], key=key)
    if columns.keys() & {"prompt", "completion"}:
        names = columns.get("prompt", "prompt"), columns.get("completion", "completion")
        return Shape("rows", names[:1], names[1], key=key)
    for name in ("messages", "conversations"):
        if name in record:
            return Shape("chat", (), name, key=key)
    for prompt, target, end in ROW_SHAPES:
        if prompt[0] in record and target in record:
            chat = isinstance(record[prompt[0]], list)
            return Shape("chat" if chat else "rows", prompt, target, end, key)
    if "text" in record and "prompt" not in record and "completion" not in record:
        return Shape("documents", (), "text")
    missing = "completion" if "prompt" in record else "prompt"
    raise ValueError(
        f"{place} has no text `{missing}`; every row needs {NEEDED['rows']}, `messages` or `text`. It has "
        f"{_listed(record)}: name its columns, e.g. --columns prompt=question,completion=answer, or read the file as "
        "text with --as_text"
    )


def _listed(record: dict) -> str:
    return ", ".join(f"`{str(name)[:30]}`" for name in list(record)[:8]) or "nothing"


def texts_of(records: Iterable[tuple[str, object]], shape: Shape) -> Iterator[tuple]:
    """(prompt, completion), (messages,) or (text,) of every record, and its key as the last if rows have keys.

    Raises ValueError that begins with the place of the record.
    """
    for place, record in records:
        key = _key(record, shape, place)
        if shape.kind == "documents":
            yield (_text(record, shape.target, shape, place),)
        elif shape.kind == "chat":
            yield _messages(record, shape, place), *key
        else:
            prompt = _text(record, shape.prompt[0], shape, place)
            if len(shape.prompt) > 1 and record.get(shape.prompt[1]):
                prompt += shape.end + _text(record, shape.prompt[1], shape, place)
            completion = _text(record, shape.target, shape, place)
            if not completion:
                raise ValueError(f"{place} has an empty `{shape.target}`; fix or remove it")
            yield prompt + shape.end, completion, *key


def _text(record: object, name: str, shape: Shape, place: str) -> str:
    text = record.get(name) if isinstance(record, dict) else None
    if not isinstance(text, str):
        plain = name in ("prompt", "completion", "text")
        needed = NEEDED[shape.kind] if plain else f"texts in the columns of the first row, `{name}` among them"
        raise ValueError(f"{place} has no text `{name}`; every row needs {needed}")
    if LONE_SURROGATE.search(text):
        raise ValueError(f"{place} has half of a surrogate pair; fix or remove it")
    return text


def _key(record: object, shape: Shape, place: str) -> tuple[str, ...]:
    """(key,), or () if the rows have no keys. Raises ValueError if this record differs from the first in that."""
    name = shape.key or "key"
    has_key = isinstance(record, dict) and name in record and shape.kind != "documents"
    if not has_key and not shape.key:
        return ()
    if has_key != bool(shape.key):
        raise ValueError(
            f"{place} has {'a' if has_key else 'no'} `{name}` and the lines before it have "
            f"{'none' if has_key else 'one'}; give every row a `{name}`, or none"
        )
    key = record[name]
    if not isinstance(key, str) or not key:
        raise ValueError(
            f"{place}: `{name}` is {json.dumps(key, default=str)[:40]}; it must be a text that says what should differ "
            "between thoughts"
        )
    if LONE_SURROGATE.search(key):
        raise ValueError(f"{place} has half of a surrogate pair; fix or remove it")
    return (key,)


def _messages(record: object, shape: Shape, place: str) -> list[dict[str, str]]:
    """The messages of a record, roles and contents as in OpenAI's format. The last is the assistant's."""
    record = record if isinstance(record, dict) else {}
    turns = record.get(shape.target)
    if shape.prompt and isinstance(record.get(shape.prompt[0]), list) and isinstance(turns, list):
        turns = record[shape.prompt[0]] + turns
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        needed = NEEDED["chat"] if shape.target == "messages" else "a list of messages there"
        raise ValueError(f"{place} has no `{shape.target}`; every row needs {needed}")
    messages = [_message(turn, place) for turn in turns]
    if shape.target == "conversations" and record.get("system"):
        messages.insert(0, _message({"role": "system", "content": record["system"]}, place))
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError(f"{place} does not end with an answer of the assistant to an earlier turn; fix or remove it")
    if any(LONE_SURROGATE.search(message["content"] + message["role"]) for message in messages):
        raise ValueError(f"{place} has half of a surrogate pair; fix or remove it")
    return messages


def _message(turn: dict, place: str) -> dict[str, str]:
    """One turn of OpenAI's format or of ShareGPT's (`from` and `value`), its content as one text."""
    if "role" not in turn and "from" in turn:
        role = ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise ValueError(f"{place} has a turn from {str(turn['from'])[:40]!r}; there is {', '.join(ROLES)}")
        turn = {"role": role, "content": turn.get("value")}
    content = turn.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"{place} has a part of type {str(kind)[:40]!r} in its messages; only text is read")
        content = "".join(part["text"] for part in content)
    if not isinstance(turn.get("role"), str) or not isinstance(content, str):
        raise ValueError(f"{place} has no `messages` of texts; every row needs {NEEDED['chat']}")
    return turn | {"content": content}
