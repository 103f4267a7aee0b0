"""The pages: every internal link leads somewhere, every page is reached, and the picture is drawn by the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import LINK, PAGES, ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, heading in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, (path, heading)


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        found = {
            (p.parent / path).resolve() for p in new for path, _ in LINK.findall(p.read_text()) if path.endswith(".md")
        }
        new = found - reached
    assert set(PAGES) <= reached


def idea(output: Path, *flags: str) -> list[list[str]]:
    """(class, text) of every text in the picture that bench/idea.py draws."""
    from xml.etree import ElementTree

    subprocess.run(
        [sys.executable, "bench/idea.py", "--output", output, *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    texts = ElementTree.parse(output).getroot().iter("{http://www.w3.org/2000/svg}text")
    return [[text.get("class"), text.text] for text in texts]


def test_the_readmes_picture_is_drawn_by_the_project(tmp_path, tiny_run):
    texts = idea(tmp_path / "idea.svg")
    assert (tmp_path / "idea.svg").read_text() == (ROOT / "docs" / "idea.svg").read_text()
    answers = [text for _, text in texts if text.startswith("answer")]
    assert len(answers) == 16
    assert len({text.split()[1] for text in answers[:8]}) == 5  # eight independent draws find 5.25 on average
    assert sum("again" in text for text in answers[:8]) == sum(kind == "rep" for kind, _ in texts) == 3
    assert len(set(answers[8:])) == 8
    measured = idea(tmp_path / "measured.svg", "--model", str(tiny_run))
    assert sum(text.startswith(("answer", "no answer")) for _, text in measured) == 8 + 4
    assert [text for _, text in measured if text.startswith("k = ")] == [f"k = {k}" for k in range(4)]
