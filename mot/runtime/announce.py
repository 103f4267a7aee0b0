"""A line on standard error for work that takes more than two seconds, while it goes on. No torch here.

with announced("tokenising --train_file x"): ...
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
