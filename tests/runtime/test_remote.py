"""Remote paths with a bucket emulator through the real gcsfs, and with real http servers. Nothing is mocked."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remote_servers import BUCKET, leftovers, put, web_server

from mot.runtime import remote
from mot.runtime.remote import Mirror, checkpoints, download, fetch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture
def web(tmp_path):
    with web_server(tmp_path / "web") as server:
        yield server


def checkpoint(directory: Path, step: int, manifest: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "state").mkdir(parents=True)
    files = {"model.safetensors": b"m" * 1000, "a.json": b"{}", "state/z.pt": b"z" * step}
    for name, data in files.items():
        (path / name).write_bytes(data)
    if manifest:
        about = {"step": step, "files": {name: {"bytes": len(data)} for name, data in files.items()}}
        (path / "manifest.json").write_text(json.dumps(about))
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# fetch


def test_a_local_path_stays_as_it_is():
    assert fetch("no/such file.txt", "--train_file") == "no/such file.txt"
    assert not remote.is_remote("C:/data")
    assert remote.is_remote("gs://bucket/file")


def test_a_web_file_is_downloaded_once_and_again_when_it_changed(web):
    (web.root / "rows.jsonl").write_bytes(b"first\n")
    url = f"{web.url}/rows.jsonl"
    one = fetch(url, "--train_file")
    assert one.endswith("/rows.jsonl")
    assert Path(one).read_bytes() == b"first\n"
    asked = len(web.asked)
    assert fetch(url, "--train_file") == one
    assert len(web.asked) == asked
    (web.root / "rows.jsonl").write_bytes(b"other\n")  # as many bytes: the date tells
    os.utime(web.root / "rows.jsonl", (1, 1))
    assert Path(fetch(url, "--train_file")).read_bytes() == b"other\n"
    assert Path(fetch(f"{url}?token=secret&x=1", "--train_file")).name == "rows.jsonl"


def test_a_bucket_file_is_downloaded_once_and_again_when_it_changed(bucket):
    put("text.txt", b"first")
    one = fetch(f"{BUCKET}/text.txt", "--train_file")
    assert Path(one).read_bytes() == b"first"
    assert one.endswith("/text.txt")
    written = os.stat(one).st_ino
    assert fetch(f"{BUCKET}/text.txt", "--train_file") == one
    assert os.stat(one).st_ino == written
    put("text.txt", b"other")
    assert Path(fetch(f"{BUCKET}/text.txt", "--train_file")).read_bytes() == b"other"


def test_many_processes_worth_of_threads_fetch_the_same_file(web):
    (web.root / "text.txt").write_bytes(b"x" * 100_000)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch(f"{web.url}/text.txt", "--train_file"), range(8)))
    assert [Path(p).stat().st_size for p in paths] == [100_000]


def test_a_download_that_breaks_off_leaves_nothing(web, cache):
    (web.root / "text.txt").write_bytes(b"x" * 10_000)
    web.broken = 5_000
    with pytest.raises(ValueError, match=r"^--eval_file http://.*text.txt: "):
        fetch(f"{web.url}/text.txt", "--eval_file")
    assert leftovers(cache) == []
    web.broken = -1
    assert Path(fetch(f"{web.url}/text.txt", "--eval_file")).stat().st_size == 10_000


def test_a_process_killed_while_it_downloads_leaves_nothing_that_counts(web, cache):
    (web.root / "text.txt").write_bytes(b"x" * 10_000)
    web.broken, web.hold = 5_000, 60
    call = f"from mot.runtime.remote import fetch; fetch('{web.url}/text.txt', '--train_file')"
    process = subprocess.Popen([sys.executable, "-c", call])
    assert web.sent.wait(30)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cache.glob("*/text.txt"))
    web.broken, web.hold = -1, 0
    assert Path(fetch(f"{web.url}/text.txt", "--train_file")).stat().st_size == 10_000


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("foo://x/y", "unknown protocol; give a local path, gs://"),
        ("gs://bucket/none.txt", "no such file; check the address"),
        ("gs://nobucket/none.txt", "no such file; check the address"),
        ("gs://bucket/folder", "is a directory; give a file"),
        ("WEB/none.txt", "no such file; check the address"),
        ("hf://datasets/Salesforce/wikitext/README.md", "no network, or no answer"),
        ("http://127.0.0.1:9/text.txt", "no network, or no answer"),
    ],
)
def test_a_mistake_is_one_line_soon(url, line, bucket, web):
    put("folder/file.txt", b"x")
    url = url.replace("WEB", web.url)
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"^--train_file ") as e:
        fetch(url, "--train_file")
    assert str(e.value).startswith(f"--train_file {url}: ")
    assert line in str(e.value)
    assert "\n" not in str(e.value)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(("status", "line"), [(403, r"no permission.*HTTP 403"), (401, "HTTP 401"), (503, "HTTP 503")])
def test_what_a_web_server_refuses(status, line, web):
    web.status = status
    with pytest.raises(ValueError, match=line):
        fetch(f"{web.url}/text.txt", "--train_file")


@pytest.mark.parametrize("status", [401, 403])
def test_what_a_bucket_refuses(status, web, emulator, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url)
    web.status = status
    for door in (lambda: fetch(f"{BUCKET}/x.txt", "--flag"), lambda: Mirror(f"{BUCKET}/run", "--flag")):
        with pytest.raises(
            ValueError, match=rf"^--flag gs://bucket/.*: no permission, or no such file \(HTTP {status}\)"
        ):
            door()


def test_a_missing_package_is_named_with_its_extra():
    pytest.importorskip("fsspec")
    for name, url, way_out in (
        ("gcsfs", "gs://b/x", 'pip install "mixture-of-thoughts[remote]"'),
        ("aiohttp", "https://example.org/x", 'pip install "mixture-of-thoughts[remote]"'),
        ("s3fs", "s3://b/x", "Install s3fs"),
    ):
        code = f"import sys; sys.modules[{name!r}] = None; "
        code += f"from mot.runtime.remote import fetch; fetch({url!r}, '--train_file')"
        environment = os.environ | {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        last = run.stderr.splitlines()[-1]
        assert last.startswith(f"ValueError: --train_file {url}: ")
        assert way_out in last


def test_without_a_network_a_bucket_is_one_line_soon(monkeypatch):
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except socket.gaierror:
        for name in ("STORAGE_EMULATOR_HOST", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ValueError, match="--output_dir gs://bucket/run: no network"):
            Mirror("gs://bucket/run")
    else:
        pytest.skip("there is a network here")


# Mirror


def test_opening_checks_that_it_can_be_written(bucket, web):
    Mirror(f"{BUCKET}/run")
    assert [what[0] for what in bucket.arrived] == ["+", "-"]
    assert checkpoints(f"{BUCKET}/run") == []
    with pytest.raises(ValueError, match=r"--output_dir gs://nobucket/run: no such bucket"):
        Mirror("gs://nobucket/run")
    with pytest.raises(ValueError, match="can only be read"):
        Mirror(web.url)
    with pytest.raises(ValueError, match=r"--out foo://x: unknown protocol"):
        Mirror("foo://x", "--out")


def test_manifest_arrives_last_and_a_checkpoint_comes_back_as_it_was(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/a/run/")
    source = checkpoint(tmp_path, 7)
    bucket.arrived.clear()
    mirror.upload(source)
    assert bucket.arrived[-1] == "+a/run/checkpoint-7/manifest.json"
    assert sorted(what for what in bucket.arrived if what[0] == "+") == sorted(
        f"+a/run/checkpoint-7/{name}" for name in content(source)
    )
    assert mirror.checkpoints() == checkpoints(f"{BUCKET}/a/run") == ["checkpoint-7"]
    back = download(f"{BUCKET}/a/run/checkpoint-7", tmp_path / "other")
    assert back == str(tmp_path / "other" / "checkpoint-7")
    assert content(Path(back)) == content(source)
    (Path(back) / "old").write_text("of another run")
    assert download(f"{BUCKET}/a/run/checkpoint-7/", tmp_path / "other") == back
    assert content(Path(back)) == content(source)
    assert os.listdir(tmp_path / "other") == ["checkpoint-7"]


def test_the_same_step_again_loses_its_marker_first(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/run")
    source = checkpoint(tmp_path, 7)
    mirror.upload(source)
    bucket.arrived.clear()
    mirror.upload(source)
    assert bucket.arrived[0] == "-run/checkpoint-7/manifest.json"
    assert bucket.arrived[-1] == "+run/checkpoint-7/manifest.json"


def test_a_large_file_goes_up_and_down_in_pieces(bucket, tmp_path):
    source = checkpoint(tmp_path, 1)
    (source / "model.safetensors").write_bytes(os.urandom(6 * 2**20))
    Mirror(f"{BUCKET}/run").upload(source)
    assert content(Path(download(f"{BUCKET}/run/checkpoint-1", tmp_path / "o"))) == content(source)


def test_files_and_directories_of_other_names(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/run")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    bucket.arrived.clear()
    mirror.upload(tmp_path / "report")
    mirror.upload(tmp_path / "metrics.jsonl")
    mirror.upload(tmp_path / "metrics.jsonl", "final/m.jsonl")
    assert bucket.arrived == ["+run/report/index.html", "+run/metrics.jsonl", "+run/final/m.jsonl"]
    assert Path(fetch(f"{BUCKET}/run/metrics.jsonl", "--x")).read_text() == "{}\n"


def test_nothing_is_left_out_in_silence(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/run")
    with pytest.raises(ValueError, match="missing or not a plain file"):
        mirror.upload(tmp_path / "none")
    source = checkpoint(tmp_path, 3)
    (source / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"link; it is missing or not a plain file"):
        mirror.upload(source)
    assert mirror.checkpoints() == []
    with pytest.raises(AssertionError):
        mirror.upload(checkpoint(tmp_path, 4, manifest=False))


def test_a_process_killed_while_it_uploads_leaves_no_checkpoint(bucket, tmp_path, monkeypatch):
    source = checkpoint(tmp_path, 5)
    reached, go_on = threading.Event(), threading.Event()

    def hold(name):
        if name.endswith("model.safetensors"):
            reached.set()
            go_on.wait(30)

    monkeypatch.setattr(bucket, "before_write", hold)
    call = f"from mot.runtime.remote import Mirror; Mirror('{BUCKET}/run').upload('{source}')"
    process = subprocess.Popen([sys.executable, "-c", call], stderr=subprocess.DEVNULL)
    assert reached.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    monkeypatch.undo()
    monkeypatch.setenv("MOT_CACHE", str(tmp_path / "cache"))
    assert checkpoints(f"{BUCKET}/run") == []
    assert any(what.startswith("+run/checkpoint-5/a.json") for what in bucket.arrived)
    with pytest.raises(ValueError, match=r"--resume_from gs://bucket/run/checkpoint-5: has no manifest.json"):
        download(f"{BUCKET}/run/checkpoint-5", tmp_path / "o")


def test_prune_takes_the_oldest_and_their_markers_first(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/run")
    for step in (900, 1000, 80, 9):
        mirror.upload(checkpoint(tmp_path, step))
    put("run/checkpoint-500/model.safetensors", b"half")  # of an upload that never ended
    put("run/checkpoint-2000/model.safetensors", b"half")  # of one that may still be going on
    put("run/checkpoint-x/manifest.json", b"{}")
    put("run/report/manifest.json", b"{}")
    assert mirror.checkpoints() == ["checkpoint-9", "checkpoint-80", "checkpoint-900", "checkpoint-1000"]
    bucket.arrived.clear()
    assert mirror.prune(2) == ["checkpoint-9", "checkpoint-80", "checkpoint-500"]
    directories = [what.split("/")[1] for what in bucket.arrived]
    assert list(dict.fromkeys(directories)) == ["checkpoint-9", "checkpoint-80", "checkpoint-500"]
    assert bucket.arrived[0] == "-run/checkpoint-9/manifest.json"
    assert bucket.arrived[4] == "-run/checkpoint-80/manifest.json"
    assert mirror.checkpoints() == ["checkpoint-900", "checkpoint-1000"]
    assert mirror.prune(2) == []
    assert mirror.prune(1) == ["checkpoint-900"]


def test_one_worker_thread_uploads_while_this_one_reads(bucket, tmp_path):
    mirror = Mirror(f"{BUCKET}/run")
    sources = [checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    with ThreadPoolExecutor(1) as worker:
        jobs = [worker.submit(mirror.upload, source) for source in sources] + [worker.submit(mirror.prune, 2)]
        put("text.txt", b"x")
        fetch(f"{BUCKET}/text.txt", "--x")
        for job in jobs:
            job.result()
    assert mirror.checkpoints() == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", "", ".", "a//b", "C:evil", "manifest.json"]
)
def test_a_manifest_that_leads_outside_is_refused(name, bucket, tmp_path):
    put("run/checkpoint-1/manifest.json", json.dumps({"files": {name: {"bytes": 1}}}).encode())
    with pytest.raises(ValueError, match="which is not a file of a checkpoint"):
        download(f"{BUCKET}/run/checkpoint-1", tmp_path / "o")
    assert leftovers(tmp_path / "o") == []


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"files": ["a.json"]}', b'{"files": null}', b"\xff", b"3"])
def test_a_broken_manifest_is_refused(manifest, bucket, tmp_path):
    put("run/checkpoint-1/manifest.json", manifest)
    with pytest.raises(ValueError, match=r"checkpoint-1: its manifest.json is broken; give another checkpoint"):
        download(f"{BUCKET}/run/checkpoint-1", tmp_path / "o")


def test_a_checkpoint_that_lacks_a_file_does_not_appear(bucket, tmp_path):
    put("run/checkpoint-1/a.json", b"{}")
    put("run/checkpoint-1/manifest.json", b'{"files": {"a.json": {}, "b.json": {}}}')
    with pytest.raises(ValueError, match="lacks a file that its manifest names"):
        download(f"{BUCKET}/run/checkpoint-1", tmp_path / "o")
    assert os.listdir(tmp_path / "o") == []


def test_a_checkpoint_comes_from_a_web_server_as_well(web, tmp_path):
    source = checkpoint(web.root / "run", 7)
    back = Path(download(f"{web.url}/run/checkpoint-7", tmp_path / "o"))
    assert content(back) == content(source)
    with pytest.raises(ValueError, match="give one that ends in checkpoint-STEP"):
        download("gs://bucket/..", tmp_path / "o")
