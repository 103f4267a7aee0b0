"""A fake gcloud for every test of this folder, and mistakes that are one line."""

import json
from pathlib import Path

import pytest
from fake_gcloud import install

from mot import cli


class FakeGcloud:
    """What the commands saw, and what they are told."""

    def __init__(self, folder: Path):
        self.folder = folder

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return [" ".join(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def words(self, start: str) -> list[str]:
        """The words of the one call that begins so."""
        lines = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        (found,) = [words for words in lines if " ".join(words).startswith(start)]
        return found

    def answer(self, *answers: dict) -> None:
        (self.folder / "answers.json").write_text(json.dumps(answers))


@pytest.fixture(autouse=True)
def gcloud(tmp_path, monkeypatch) -> FakeGcloud:
    """A fake gcloud first on PATH, in a folder that is a git repository with one commit."""
    folder = tmp_path / "fake"
    install(folder, tmp_path / "here", monkeypatch)
    return FakeGcloud(folder)


@pytest.fixture
def refused(refused):
    """The error line of a `mot cloud` command, which may have run other commands before."""
    return lambda *args: refused(cli.cloud, args, alone=False)
