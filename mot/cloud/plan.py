"""Commands as data: printed as a script, or run one after another. No torch, and nothing runs unless `run` is called.

plan = Plan([Step(["gcloud", "compute", ...])], question="Create ...?")
print(plan.script())                  what a person could type
run(plan, yes=False)                  asks first, and lists what is left behind if a step fails
"""

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Step:
    """One command, and what must be known about it."""

    args: list[str]
    skip_if: list[str] | None = None  # not needed if this command succeeds
    file: tuple[str, str] | None = None  # (path, text) of a file to write first, because the command reads it
    then: list[str] | None = None  # a command to run afterwards; the output replaces its last argument
    report: Callable[[str], str] | None = None  # turns the output into a line to print
    may_fail: bool = False
    creates: str = ""  # what stays if a later step fails ...
    undo: list[str] = field(default_factory=list)  # ... and the command that removes it
    exists: list[str] | None = None  # succeeds if it was created although the step failed
    elsewhere: list["Step"] = field(default_factory=list)  # tried in turn while there is no room
    no_room: tuple[str, ...] = ()  # messages of the command if there is no room
    note: str = ""  # a comment in the script
    after: str = ""  # to print if the plan ends with this step, instead of the plan's


@dataclass
class Plan:
    """Steps, the question before them, and what to print after them."""

    steps: list[Step]
    question: str = ""
    after: str = ""
    program: str = ""  # Python code, instead of steps
    require: Callable[[], None] = lambda: None  # raises ValueError if the plan cannot run here

    def script(self) -> str:
        """The commands as a person could type them."""
        lines = [self.program] if self.program else []
        for step in self.steps:
            if step.file:
                path, text = step.file
                lines.append(f"mkdir -p {Path(path).parent}\ncat > {path} <<'END'\n{text.rstrip()}\nEND")
            line = typed(step.args)
            if step.then:
                line = f'{typed(step.then[:-1])} "$({shlex.join(step.args)})"'
            lines.append(f"{shlex.join(step.skip_if)} >/dev/null 2>&1 || {line}" if step.skip_if else line)
            if step.note:
                lines.append(f"# {step.note}")
        lines += [f"# {line}" for line in self.after.splitlines()]
        lines.append("# printed only; --go runs it" + (" and asks first" if self.question else ""))
        return "\n".join(lines)


def typed(args: list[str]) -> str:
    """A command over several lines, one flag on each."""
    head = next((i for i, arg in enumerate(args) if arg.startswith("--")), len(args))
    return " \\\n    ".join([shlex.join(args[:head]), *(shlex.quote(arg) for arg in args[head:])])


def run(plan: Plan, yes: bool) -> None:
    """Run a plan, after a question if it has one and not `yes`.

    Raises ValueError with one line that names the step that failed and what is left behind.
    """
    plan.require()
    _confirm(plan.question, yes)
    if plan.program:
        exec(compile(plan.program, "plan", "exec"), {})
        return
    left: list[str] = []
    after = plan.after
    for step in plan.steps:
        if step.skip_if and _succeeds(step.skip_if):
            continue
        for attempt in [step, *step.elsewhere]:
            try:
                code, args, error = _run_step(attempt)
            except SystemExit:  # Ctrl-C: the request may have arrived
                if attempt.creates:
                    left.append(f"perhaps {attempt.creates}, remove it with: {shlex.join(attempt.undo)}")
                print(f"left behind: {'; '.join(left) or 'nothing'}", file=sys.stderr)
                raise
            if code == 0 or not any(message in error for message in step.no_room):
                break
        if attempt.creates and (code == 0 or (attempt.exists and _succeeds(attempt.exists))):
            left.append(f"{attempt.creates}, remove it with: {shlex.join(attempt.undo)}")
        if code and not step.may_fail:
            raise ValueError(
                f"{shlex.join(args[:4])}: failed with code {code}, see above; "
                f"left behind: {'; '.join(left) or 'nothing'}"
            )
        after = attempt.after or plan.after
    if after:
        print(after)


def _run_step(step: Step) -> tuple[int, list[str], str]:
    """(exit code, arguments of the last command, its standard error)."""
    if step.file:
        path, text = step.file
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    if not step.report and not step.then:
        return _call(step.args)
    done = subprocess.run(step.args, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode, step.args, ""
    if step.report:
        print(step.report(done.stdout))
        return 0, step.args, ""
    if not done.stdout.strip():
        raise ValueError(f"{shlex.join(step.args[:4])}: found nothing; is --name or --region another?")
    return _call([*step.then[:-1], done.stdout.strip()])


def _call(args: list[str]) -> tuple[int, list[str], str]:
    print(f"$ {shlex.join(args[:5])} ...", file=sys.stderr, flush=True)
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    error = ""
    for line in process.stderr:  # shown at once, and kept to look for `no_room`
        sys.stderr.write(line)
        error += line
    return process.wait(), args, error


def _succeeds(args: list[str]) -> bool:
    return subprocess.run(args, capture_output=True).returncode == 0


def _confirm(question: str, yes: bool) -> None:
    if not question or yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"--go: nobody answers “{question}”; give --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("--go: not confirmed; nothing was made")
