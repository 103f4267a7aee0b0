"""What was tokenised once is read again, and a damaged entry is built anew."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from data_helpers import load, whole

from mot.data import cache as cache_module
from mot.data import encode as encode_module
from mot.data import load as load_module
from mot.data import sources as sources_module


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """An empty cache for this module's tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOT_CACHE", str(folder))
        yield folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["text_file", "rows_file"])
@pytest.mark.parametrize("vocab_size", [100, 300])
def test_a_file_is_tokenised_once(kind, vocab_size, request, own_cache, tmp_path, monkeypatch):
    path = request.getfixturevalue(kind)
    first = whole(load(path, vocab_size=vocab_size))
    for module, name in (
        (encode_module, "encode_all"),
        (load_module, "train_engine"),
        (sources_module, "check_text"),
        (sources_module, "texts_of"),
    ):
        monkeypatch.delattr(module, name)  # a call of it fails
    assert whole(load(path, vocab_size=vocab_size)) == first
    elsewhere = shutil.copy(path, tmp_path / f"other{path.suffix}")
    assert load(elsewhere, vocab_size=vocab_size, num_thoughts=2, seq_length=24).fingerprint == first[0]


def test_what_lies_in_the_cache(own_cache, rows_file):
    data = load(rows_file, vocab_size=300)
    entries = [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]
    assert {f.name for p in entries for f in p.iterdir()} == {"ids", "bounds", "meta.json"}
    assert sorted((p / "bounds").stat().st_size for p in entries) == [8 * 5, 8 * 37]
    assert sum((p / "ids").stat().st_size for p in entries) == 2 * (data.train.tokens() + data.eval.tokens())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [flip, halve, Path.unlink, lambda path: path.write_bytes(b"")])
def test_whatever_is_damaged_is_made_anew(own_cache, rows_file, spoil):
    first, files = (
        whole(load(rows_file)),
        sorted(p for p in own_cache.rglob("*") if p.is_file() and p.suffix != ".lock"),
    )
    before = [p.read_bytes() for p in files]
    assert len(files) == 2 * 3 + 3  # of the tokens, and facts: rows, split, tokenizer
    for path in files:
        spoil(path)
        assert whole(load(rows_file)) == first
        assert [p.read_bytes() for p in files] == before


def test_what_a_killed_process_left_is_not_used(own_cache, text_file):
    first = whole(load(text_file))
    for entry in [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]:
        (entry / "meta.json").unlink()  # it is written last
        entry.rename(entry.with_suffix(".partial"))
    assert whole(load(text_file)) == first
    assert not list(own_cache.rglob("*.partial"))


def _load_in_another_process(path, cache, begin, found):
    os.environ["MOT_CACHE"] = str(cache)
    begin.wait()
    found.put(load(path, vocab_size=300).fingerprint)


def test_processes_that_start_together_end_well(own_cache, tmp_path, text_file):
    path = tmp_path / "text.txt"
    path.write_text(text_file.read_text() * 300)
    context = multiprocessing.get_context(
        "forkserver"
    )  # a fork would inherit the tokenizer's locks without its threads
    begin, found = context.Event(), context.Queue()
    processes = [
        context.Process(target=_load_in_another_process, args=(path, own_cache, begin, found)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    begin.set()
    prints = [found.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    assert {*prints} == {load(path, vocab_size=300).fingerprint}
    assert sum(p.is_dir() for p in (own_cache / "tokens").iterdir()) == 2


def test_a_cache_that_cannot_be_written_is_named(text_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"MOT_CACHE .*file: cannot be written"):
        load(text_file)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(own_cache, text_file, monkeypatch):
    load(text_file)
    shutil.rmtree(own_cache / "tokens")

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_flush", full)
        with pytest.raises(ValueError, match=r"--train_file .*No space left.*MOT_CACHE"):
            load(text_file)
    assert not [p for p in (own_cache / "tokens").iterdir() if p.is_dir()]
