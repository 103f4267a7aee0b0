"""`mot data`: data sets are written complete or not at all, from http and from a bucket emulator."""

import os
import socket
import time
from pathlib import Path

import pytest
from remote_servers import BUCKET, leftovers, put, web_server

from mot.cli import main
from mot.data.download import save_dataset
from mot.data.settings import DATASETS, DownloadSettings
from mot.runtime.flags import parse


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture
def web(tmp_path):
    with web_server(tmp_path / "web") as server:
        yield server


def test_a_text_data_set_is_written_whole(web, tmp_path):
    (web.root / "input.txt").write_bytes("First Citizen:\r\nß\n".encode() * 1000)
    output = tmp_path / "data" / "shakespeare.txt"
    size = save_dataset(f"{web.url}/input.txt", str(output))
    assert output.read_bytes() == (web.root / "input.txt").read_bytes()
    assert size == output.stat().st_size
    assert os.listdir(output.parent) == ["shakespeare.txt"]
    size = save_dataset(f"{web.url}/input.txt", str(output), max_megabytes=0.0001)
    assert size == output.stat().st_size == 95  # whole lines only


@pytest.fixture
def parquet(bucket, tmp_path) -> str:
    import pyarrow
    import pyarrow.parquet

    for part, rows in (("00", ["", " = A = \n", "b\n"]), ("01", ["c\n\nd", "e\n"])):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows, "id": [1] * len(rows)}), tmp_path / "t.parquet")
        put(f"set/train-{part}-of-02.parquet", (tmp_path / "t.parquet").read_bytes())
    return f"{BUCKET}/set/train-*.parquet"


def test_parquet_is_written_row_by_row(parquet, tmp_path):
    output = tmp_path / "out.txt"
    save_dataset(parquet, str(output), "\n")
    assert output.read_text() == "\n = A = \nb\nc\n\nd\ne\n"
    save_dataset(parquet, str(output), "\n\n", max_megabytes=19e-6)
    assert output.read_text() == "\n\n = A = \n\nb\n\n"
    with pytest.raises(ValueError, match=r"mot data gs://bucket/set/none-\*.parquet: no such file"):
        save_dataset(f"{BUCKET}/set/none-*.parquet", str(output))


def test_a_data_set_that_breaks_off_leaves_nothing(web, parquet, tmp_path):
    put("set/train-02-of-02.parquet", b"not parquet at all")
    with pytest.raises(ValueError, match=r"^mot data gs://"):
        save_dataset(parquet, str(tmp_path / "a" / "out.txt"), "\n")
    (web.root / "input.txt").write_bytes(b"x" * 10_000)
    web.broken = 5_000
    with pytest.raises(ValueError, match=r"^mot data http://"):
        save_dataset(f"{web.url}/input.txt", str(tmp_path / "a" / "out.txt"))
    assert leftovers(tmp_path / "a") == []
    with pytest.raises(ValueError, match=r"^--output /proc/none/out.txt: cannot be written"):
        save_dataset(f"{web.url}/input.txt", "/proc/none/out.txt")


@pytest.mark.parametrize("name", DATASETS)
def test_without_a_network_mot_data_says_so_soon(name, tmp_path, monkeypatch, capsys):
    try:
        socket.getaddrinfo("raw.githubusercontent.com", 443)
        pytest.skip("there is a network here")
    except socket.gaierror:
        pass
    monkeypatch.chdir(tmp_path)
    before = time.monotonic()
    with pytest.raises(SystemExit) as e:
        main(["data", name])
    error = capsys.readouterr().err
    assert e.value.code == 2
    assert error.count("\n") == 1
    assert "no network" in error
    assert leftovers(tmp_path) == []
    assert time.monotonic() - before < 5


def test_mot_data_keeps_what_is_there_and_knows_its_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("mine")
    main(["data", "shakespeare", "--output", "mine.txt"])
    assert "mine.txt: is there already" in capsys.readouterr().out
    assert Path("mine.txt").read_text() == "mine"
    assert parse(DownloadSettings, ["--max_megabytes", "inf", "openwebtext"], "mot data", "").name == "openwebtext"
    for words, line in (
        ([], "no NAME given; there is shakespeare, wikitext103, openwebtext"),
        (["foo"], "foo: unknown"),
        (["shakespeare", "--max_megabytes", "0"], "--max_megabytes 0.0: must be > 0"),
        (["shakespeare", "--output", "gs://b/x"], "must be a local file"),
    ):
        with pytest.raises(SystemExit):
            main(["data", *words])
        assert line in capsys.readouterr().err
