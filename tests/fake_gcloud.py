#!/usr/bin/env python3
"""A gcloud that only parses: an unknown command, flag or value is exit code 2, as with the real one.

What it understands is tests/gcloud_flags.json, taken from the real command reference. Each call is a line of
$FAKE_GCLOUD/calls. $FAKE_GCLOUD/answers.json may hold answers, each used once, in order:

    [{"if": "text of a call", "code": 1, "stdout": "", "stderr": "", "sleep": 0}, ...]
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

TABLE = json.loads(Path(__file__).resolve().with_name("gcloud_flags.json").read_text())
POSITIONALS = {  # how many arguments a command takes besides flags
    "compute instances create": 1,
    "compute instances describe": 1,
    "compute instances start": 1,
    "compute instances stop": 1,
    "compute instances delete": 1,
    "compute ssh": 1,
    "compute scp": 2,
    "ai custom-jobs stream-logs": 1,
    "ai custom-jobs cancel": 1,
    "artifacts repositories create": 1,
    "artifacts repositories describe": 1,
    "artifacts repositories delete": 1,
    "builds submit": 1,
    "storage cp": 2,
    "storage rm": 1,
    "storage ls": 1,
    "storage buckets create": 1,
    "config get": 1,
    "config set": 2,
}
KEYS = {  # flags whose value is key=value,key=value
    "--accelerator": {"type", "count"},
    "--metadata": {"startup-script", "shutdown-script"},
    "--worker-pool-spec": {
        "machine-type",
        "replica-count",
        "accelerator-type",
        "accelerator-count",
        "container-image-uri",
    },
}
REQUIRED = {
    "ai custom-jobs create": ["--display-name", "--region"],
    "artifacts repositories create": ["--repository-format", "--location"],
    "compute instances create": ["--zone"],
}


class Misunderstood(Exception):
    pass


def understand(args: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(command, positional arguments, flags) of the arguments of `gcloud`. Raises Misunderstood."""
    command = next((c for n in (3, 2) if (c := " ".join(args[:n])) in TABLE["commands"]), None)
    if command is None:
        raise Misunderstood(f"Invalid choice: {' '.join(args[:3])}")
    known = TABLE["everywhere"] | TABLE["commands"][command]
    rest, flags, plain = args[len(command.split()) :], {}, []
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            plain.append(arg)
            continue
        name, has_value, value = arg.partition("=")
        kind = known.get(name) or ("flag" if known.get("--" + name.removeprefix("--no-")) == "flag" else None)
        if kind is None:
            raise Misunderstood(f"unrecognized arguments: {name}")
        if kind == "flag":
            if has_value and value not in ("true", "false"):
                raise Misunderstood(f"argument {name}: ignored explicit argument {value!r}")
        elif not has_value:
            if not rest:
                raise Misunderstood(f"argument {name}: expected one argument")
            value = rest.pop(0)
        if isinstance(kind, list) and value not in kind:
            raise Misunderstood(f"argument {name}: Invalid choice: {value!r}")
        if name in KEYS:
            pairs = dict(pair.partition("=")[::2] for pair in value.split(","))
            if not set(pairs) <= KEYS[name] or not all(pairs.values()):
                raise Misunderstood(f"argument {name}: valid keys are {sorted(KEYS[name])}; received: {value}")
        flags[name] = value
    if len(plain) != POSITIONALS.get(command, 0):
        raise Misunderstood(f"{command}: {POSITIONALS.get(command, 0)} arguments expected, got {plain}")
    missing = [name for name in REQUIRED.get(command, []) if name not in flags]
    if missing:
        raise Misunderstood(f"argument {missing[0]}: Must be specified.")
    return command, plain, flags


def split_list(value: str) -> list[str]:
    """A gcloud list: comma-separated, or ^MARK^ first and then separated by the mark."""
    if found := re.match(r"\^(.+?)\^", value):
        return value[found.end() :].split(found[1])
    return value.split(",")


def install(folder: Path, here: Path, monkeypatch) -> None:
    """Put this gcloud first on PATH, its notes in `folder`. `here` becomes a git repository and current directory."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "gcloud").symlink_to(Path(__file__).resolve())
    (folder / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(folder))
    monkeypatch.delenv("CLOUDSDK_CORE_PROJECT", raising=False)
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    (here / "train.txt").write_text("to be or not to be\n" * 9)
    for args in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *args], check=True)


def main() -> int:
    folder, call = Path(os.environ["FAKE_GCLOUD"]), " ".join(sys.argv[1:])
    with (folder / "calls").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    try:
        command, _, _ = understand(sys.argv[1:])
    except Misunderstood as e:
        print(f"ERROR: (gcloud) {e}", file=sys.stderr)
        return 2
    answers = folder / "answers.json"
    waiting = json.loads(answers.read_text()) if answers.exists() else []
    for answer in waiting:
        if answer["if"] in call:
            waiting.remove(answer)
            answers.write_text(json.dumps(waiting))
            time.sleep(answer.get("sleep", 0))
            sys.stdout.write(answer.get("stdout", ""))
            sys.stderr.write(answer.get("stderr", ""))
            return answer.get("code", 0)
    if command == "config get":
        print("my-project")
    return 0


if __name__ == "__main__":
    sys.exit(main())
