"""Public data sets as local text files (`mot data`). No torch here.

save_dataset(*DATASETS["wikitext103"], output="data/wikitext103.txt")     its size in bytes
"""

import math
from collections.abc import Iterator
from pathlib import Path

from mot.runtime.files import atomic_write
from mot.runtime.remote import EXTRA, as_user_error, fetch, filesystem, progress_bar


def save_dataset(url: str, output: str, end: str = "", max_megabytes: float = math.inf) -> int:
    """Write the text at `url` to the local file `output`, atomically. Returns its size in bytes.

    url: a text file, or a pattern of parquet files, whose column `text` is taken row by row.
    end: what follows each row. max_megabytes: stop before the row that would exceed it (1 MB = 10^6 bytes).
    Raises ValueError naming `mot data` or --output.
    """
    target, size = Path(output), 0
    limit = None if max_megabytes == math.inf else int(max_megabytes * 1e6)
    try:
        with atomic_write(target) as part, open(part, "wb") as file, progress_bar(target.name) as show:
            for row in _rows(url, "mot data"):
                text = (row.rstrip("\n") + end if end else row).encode()
                if size + len(text) > max_megabytes * 1e6:
                    break
                size += file.write(text)
                show(limit, size)
    except OSError as e:
        raise ValueError(
            f"--output {output}: cannot be written ({e.strerror}); "
            "free some space, lower --max_megabytes, or give another file"
        ) from e
    return size


def _rows(url: str, flag: str) -> Iterator[str]:
    if not url.endswith(".parquet"):
        with open(fetch(url, flag), encoding="utf-8", newline="") as file:
            yield from file
        return
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{flag} {url}: parquet needs pyarrow; {EXTRA.format('data')}") from None
    fs, pattern = filesystem(url, flag)
    with as_user_error(flag, url):
        paths = sorted(fs.glob(pattern))
        if not paths:
            raise FileNotFoundError(url)
        for path in paths:
            with fs.open(path, "rb") as file:
                for batch in ParquetFile(file).iter_batches(batch_size=256, columns=["text"]):
                    yield from batch.column("text").to_pylist()
