"""Fixtures that several tests share: small files, tiny trained models, rejected commands, and a bucket."""

import json
import os
import random
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a server for anything
CACHE = tempfile.TemporaryDirectory(prefix="mot-cache-")
os.environ["MOT_CACHE"] = CACHE.name  # no test writes to the user's cache

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def forks_line() -> str:
    """The pattern of the last line of a run on `forks`: thoughts, distinct answers, validity, ceiling."""
    return (
        r"forks: (\d+) thoughts found (\d\.\d\d) of 8 answers on unseen prompts "
        r"\(validity ([01]\.\d{3})\); the best independent sampler finds at most (\d\.\d\d)"
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository. Without it, a test that needs it is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data beside the repository, and there is none")
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """2,000 characters of plain text with 20-odd distinct characters, always the same."""
    draw = random.Random("text")
    words = ["the", "king", "of", "night", "and", "day", "speaks", "softly", "to", "a", "sleeping", "sea"]
    text = ""
    while len(text) < 2000:
        text += " ".join(draw.choices(words, k=6)) + "\n"
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text[:2000])
    return path


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """20 rows `{"prompt": "n = 7", "completion": " is 7"}`."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"n = {n}", "completion": f" is {n}"}) + "\n" for n in range(20)))
    return path


def trained(output: Path, **settings) -> Path:
    """The directory of a mixture of 4 thoughts and one narrow layer, trained 4 steps."""
    from mot.training.run import train
    from mot.training.settings import TrainSettings

    train(TrainSettings(num_thoughts=4, hidden_size=32, num_layers=1, max_steps=4, output_dir=str(output), **settings))
    return output


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run on `forks`."""
    output = tmp_path_factory.mktemp("forks") / "run"
    return trained(output, task="forks", seq_length=24, batch_size=16, eval_rows=32)


@pytest.fixture(scope="session")
def text_run(text_file, tmp_path_factory) -> Path:
    """A run on the characters of `text_file`; it has checkpoint-2 and checkpoint-4."""
    output = tmp_path_factory.mktemp("characters") / "run"
    return trained(output, train_file=str(text_file), vocab_size=100, seq_length=32, batch_size=8, save_every=2)


@pytest.fixture(scope="session")
def adapter_rows(tmp_path_factory) -> Path:
    """40 rows to adapt a pretrained model to."""
    from adapted import write_rows

    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def made(tmp_path_factory, adapter_rows):
    """made(architecture) -> (base, adapter, merged) directories of a tiny pretrained model, made once."""
    from adapted import adapt_and_merge

    done = {}

    def of(architecture: str) -> tuple[Path, Path, Path]:
        if architecture not in done:
            done[architecture] = adapt_and_merge(architecture, adapter_rows, tmp_path_factory.mktemp(architecture))
        return done[architecture]

    return of


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """The working directory is an empty folder, so a test sees whatever a command writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(capsys):
    """refused(command, argv, *names) -> the error line of a command that must reject its input.

    Checks exit code 2, one line on stderr that holds every name, an empty stdout and an unchanged working directory.
    With `alone=False` the command may have printed and written before it failed.
    """
    from mot import cli

    def run(command, argv, *names: str, alone: bool = True) -> str:
        before = contents(Path.cwd()) if alone else None
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(command, [str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2, err
        (line,) = [line for line in err.splitlines(keepends=True) if line.startswith("error: ")]
        assert line.endswith("\n")
        for name in names:
            assert str(name) in line, err
        if alone:
            assert (out, err) == ("", line)
            assert contents(Path.cwd()) == before
        return line.removesuffix("\n")

    return run


@pytest.fixture(scope="module")
def emulator():
    """A bucket server in this process; `arrived` lists the names it wrote (+) and deleted (-), in order."""
    import fsspec
    from gcp_storage_emulator.server import create_server
    from gcp_storage_emulator.storage import Storage
    from survive import free_port

    port, create, delete = free_port(), Storage.create_file, Storage.delete_file
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.arrived, server.before_write = [], lambda name: None

    def seen_create(self, bucket, name, *rest, **more):
        server.before_write(name)
        server.arrived.append(f"+{name}")
        return create(self, bucket, name, *rest, **more)

    def seen_delete(self, bucket, name, *rest, **more):
        server.arrived.append(f"-{name}")
        return delete(self, bucket, name, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "create_file", seen_create)
        patch.setattr(Storage, "delete_file", seen_delete)
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # Here too, because `put` of the tests may import gcsfs before mot.runtime.remote does.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("FSSPEC_GS", '{"token": "anon"}')  # for child processes; this process has read it already
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        server.start()
        yield server
        server.stop()


@pytest.fixture
def bucket(emulator):
    """An empty bucket."""
    emulator.wipe(keep_buckets=True)
    emulator.arrived.clear()
    return emulator
