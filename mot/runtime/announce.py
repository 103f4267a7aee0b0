"""What long work says: a line on standard error after two seconds, and times as people say them. No torch here.

with announced("tokenising --train_file x"): ...
duration(3605)                                      "1 h 0 min"
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Print `what` once if the block takes more than PATIENCE seconds."""
    timer = threading.Timer(PATIENCE, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def duration(seconds: float) -> str:
    """Say a time as people do: 45 s, 12 min, 3 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
