"""A verifier by name: a task's, or the user's own function.

    verify = load_verifier("spellings")                 # a task of this folder
    verify = load_verifier("checks.py:is_palindrome")   # (prompt, text) -> the answer in its one spelling, or None
    verify("abcdefgh>", "tcHR2")

The user's function must return a str or None, within a second. What it does wrong is one line that names it and the
prompt.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from mot import tasks
from mot.runtime.flags import one_line

Verify = Callable[[str, str], str | None]
SECONDS = 1.0  # most time for one text; it is given a second time before the run ends


def load_verifier(name: str, flag: str = "--verifier") -> Verify:
    """The verifier of a task, or the function of FILE.py:FUNCTION, checked in every call.

    Raises ValueError for a file or a function that is missing, and for a file that raises when it is loaded. The
    verifier raises ValueError if the function raises, takes longer than SECONDS, or returns anything but a str or None.
    """
    if name in tasks.TASKS:
        return tasks.load(name).verify
    where = f"{flag} {name}"
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{where}: must be FILE.py:FUNCTION, or a task ({', '.join(tasks.TASKS)})")
    if not Path(path).is_file():
        raise ValueError(f"{where}: no such file {path}; give the path of a Python file")
    check = getattr(_module(path, where), function, None)
    if not callable(check):
        raise ValueError(f"{where}: {path} has no function {function}; give FILE.py:FUNCTION(prompt, text)")

    def verify(prompt: str, text: str) -> str | None:
        return _checked(check, prompt, text, where)

    return verify


def identity(name: str) -> str:
    """What identifies a verifier: a task's name, or the function's name and the content of its file."""
    path, _, function = name.rpartition(":")
    return f"{function} {sha256(Path(path).read_bytes()).hexdigest()}" if Path(path).is_file() else name


def require_some_valid(verify: Verify, rows: list[tuple[str, str]], where: str) -> None:
    """Raise ValueError if the verifier accepts none of the rows (prompt, completion): it would teach nothing."""
    if all(verify(prompt, completion) is None for prompt, completion in rows):
        prompt, completion = rows[0]
        raise ValueError(
            f"{where}: accepts none of the first {len(rows)} completions, such as {completion[:40]!r} to the prompt "
            f"{prompt[:40]!r}; correct it, or leave --match_steps out"
        )


def _module(path: str, where: str):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"verifier_{Path(path).stem}", path)
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:  # whatever the user's file raises
        raise ValueError(f"{where}: loading {path} raised {type(e).__name__}: {_short(e)}; correct it") from None
    return module


def _checked(check: Callable, prompt: str, text: str, where: str) -> str | None:
    about = f"for the prompt {prompt[:60]!r} and the text {text[:60]!r}"
    for attempt in (1, 2):  # a machine that sleeps must not end a run
        try:
            with _within(SECONDS):
                found = check(prompt, text)
            break
        except _TooLongError:
            if attempt == 2:
                raise ValueError(f"{where}: took longer than {SECONDS:g} s {about}; make it faster") from None
        except Exception as e:  # whatever the user's function raises
            raise ValueError(f"{where}: raised {type(e).__name__} ({_short(e)}) {about}; correct it") from None
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{where}: returned {_short(repr(found))} {about}; it must return a str, or None")
    return found


class _TooLongError(BaseException):
    """Not an Exception: the user's function must not catch it."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _TooLongError after so many seconds; without a time limit where there are no interval timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum, frame):
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _short(error: Exception | str) -> str:
    return one_line(error, 80)
