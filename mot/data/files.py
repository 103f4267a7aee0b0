"""Which files a path means: one file, several, a directory, a pattern, an address, or standard input.

    files_of("data/*.jsonl", "--train_file")       [("data/a.jsonl", "data/a.jsonl"), ("data/b.jsonl", ...)]

Each file is (its name as in messages, its local copy), in the order of names.
"""

import glob
import hashlib
import os
import re
import sys
from pathlib import Path

from mot.data.formats import suffix_of
from mot.runtime.files import cache_dir, temp_sibling
from mot.runtime.remote import as_user_error, fetch, filesystem, is_remote

DATA = ("txt", "text", "jsonl", "ndjson", "json", "csv", "tsv", "parquet")  # suffixes of a directory's data files
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")  # of a data set
SPLITS = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-])")
STDIN = "-"


def files_of(path: str, flag: str) -> list[tuple[str, str]]:
    """(name, local path) of every file that `path` means. Raises ValueError naming `flag` if there is none.

    path: a file, an address, a directory, a pattern with * ? or [, several of these separated by commas, or "-" for
    standard input. A path that exists is never a pattern.
    """
    where = f"{flag} {path}"
    if path == STDIN:
        return [(path, _stdin(where))]
    if is_remote(path):
        return _remote(path, flag)
    if os.path.isfile(path):
        return [(path, path)]
    if os.path.isdir(path):
        found = sorted(str(p) for p in Path(path).rglob("*") if p.is_file())
        return [(p, p) for p in _of_one_split(_data_files(found, path), where)]
    if "," in path:
        return [file for part in path.split(",") if part.strip() for file in files_of(part.strip(), flag)]
    found = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p)) if glob.has_magic(path) else []
    if not found:
        if os.path.lexists(path):
            raise ValueError(f"{where}: is a pipe, a device or a broken link; give a file, or `-` for a pipe")
        raise ValueError(f"{where}: no such file; give the path of a text or .jsonl file")
    return [(p, p) for p in found]


def _remote(path: str, flag: str) -> list[tuple[str, str]]:
    if path.startswith(("http://", "https://")):  # their ? begins a query, and they cannot be listed
        return [(path, fetch(path, flag))]
    fs, root = filesystem(path, flag)
    with as_user_error(flag, path):
        fs.invalidate_cache()
        if glob.has_magic(root):
            found = sorted(p for p in fs.glob(root) if fs.isfile(p))
        elif fs.isdir(root):
            found = _of_one_split(_data_files(sorted(fs.find(root)), root), f"{flag} {path}")
        else:
            return [(path, fetch(path, flag))]
        if not found:
            raise FileNotFoundError(path)
        names = [fs.unstrip_protocol(p) for p in found]
    return [(name, fetch(name, flag)) for name in names]


def _data_files(found: list[str], root: str) -> list[str]:
    """Those of a directory's files that hold data, by their suffixes. Hidden files and descriptions do not."""
    inside = [(p, p[len(root) :].lstrip("/")) for p in found]
    visible = [(p, name) for p, name in inside if not any(part.startswith(".") for part in name.split("/"))]
    return [p for p, name in visible if suffix_of(name) in DATA and name.rsplit("/", 1)[-1] not in ABOUT]


def _of_one_split(found: list[str], where: str) -> list[str]:
    """The same files. Raises ValueError if there is none, or if they are of several splits, e.g. train and test."""
    if not found:
        raise ValueError(f"{where}: no such file; the directory has no {', .'.join(DATA)} in it")
    splits = {match[1] for p in found if (match := SPLITS.search(p.rsplit("/", 1)[-1]))}
    if len(splits) > 1:
        raise ValueError(
            f"{where}: has several splits ({', '.join(sorted(splits))}); give one of them by a pattern, e.g. "
            f"'{where.split(' ', 1)[1].rstrip('/')}/**/train*'"
        )
    return found


def _stdin(where: str) -> str:
    """A copy of standard input in the cache, named by its content, because training reads its data several times."""
    folder, digest = cache_dir() / "files", hashlib.sha256()
    part = temp_sibling(folder / "stdin")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            while block := sys.stdin.buffer.read(2**20):
                digest.update(block)
                file.write(block)
        local = folder / digest.hexdigest()[:24] / "stdin"
        local.parent.mkdir(exist_ok=True)
        part.replace(local)
    except OSError as e:
        raise ValueError(f"{where}: cannot be copied to {folder} ({e.strerror}); give a file") from None
    finally:
        part.unlink(missing_ok=True)
    return str(local)
