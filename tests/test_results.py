"""docs/results: every figure lies once in a JSON file, and every page shows what the files say."""

import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("tables", Path(__file__).parent.parent / "bench" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)
SUMMARIES = ("front", "rivals")
STUDIES = sorted(path.stem for path in tables.RESULTS.glob("*.json") if path.stem not in SUMMARIES)


def without_blocks(text: str) -> str:
    return tables.BLOCK.sub("", text)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A page and a study of its own: (page, the content of one.json)."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "docs" / "results")
    tables.RESULTS.mkdir(parents=True)
    page = tmp_path / "README.md"
    content = {
        "columns": {"model": "", "nll": "NLL", "gap": "gap"},
        "signed": ["gap"],
        "rows": [
            {"id": "a", "model": "a", "nll": 1.0, "gap": {"mean": 0.5, "low": -0.25, "high": 2}},
            {"model": "twice {one.a.nll}", "nll": [1, 2000], "gap": {"mean": -1, "half": 0.5}, "bold": ["gap"]},
            {"model": None},
        ],
    }
    (tables.RESULTS / "one.json").write_text(json.dumps(content).replace("1.0,", "1.00,"))
    return page, content


def test_the_demos_line_says_what_docs_results_say():
    from mot.tasks import TASKS

    rows = {row["id"]: row["distinct"]["mean"] for row in tables.study("spellings_rivals")["rows"]}
    best = max(value for name, value in rows.items() if name != "thoughts" and not name.startswith("beam"))
    assert TASKS["spellings"].plain == f"best sampler {best}, beam of 8 {rows['beam8']}"


def test_no_page_is_stale():
    assert [page for page in tables.pages() if page.read_text() != tables.written(page)] == []


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_names_where_its_figures_come_from(name):
    content = tables.study(name)
    assert {"study", "date", "commit", "machine", "command", "seeds", "columns", "rows"} <= set(content)
    assert re.fullmatch(r"2\d{3}-\d\d-\d\d(/\d\d)?", content["date"])
    assert re.fullmatch(r"[0-9a-f]{7,40}", content["commit"])
    assert content["command"]
    assert content["rows"]
    for row in content["rows"]:
        assert set(row.get("bold", ())) <= set(content["columns"])


@pytest.mark.parametrize("name", STUDIES + list(SUMMARIES))
def test_every_study_is_shown_on_a_page(name):
    assert any(f"<!-- table: {name} -->" in page.read_text() for page in tables.pages())


def test_the_front_page_has_few_rows_and_its_losses():
    rows = tables.study("front")["rows"]
    assert 10 <= len(rows) <= 15
    assert sum("thoughts lose" in row["verdict"] for row in rows) >= 4


def test_the_readme_writes_no_measured_figure_by_hand():
    text = without_blocks((tables.ROOT / "README.md").read_text())
    assert set(re.findall(r"\d\.\d\d+", text)) == {"5.25", "3.11"}  # the ceiling, which is a formula, and Python


def test_no_page_but_the_log_writes_another_number_for_forks():
    for page in tables.pages():
        if page.name != "log.md":
            assert not re.findall(r"\b7\.(?:6\d?|71)\b", without_blocks(page.read_text())), page


def test_a_block_shows_what_its_file_says(here):
    page, _ = here
    page.write_text("<!-- table: one -->old<!-- end --> and <!-- figure: one.a.gap.low -->old<!-- end -->")
    assert tables.written(page) == (
        "<!-- table: one -->\n"
        "|  | NLL | gap |\n|---|---|---|\n"
        "| a | 1.00 | +0.5 [-0.25, +2] |\n"
        "| twice 1.00 | 1 2,000 | **-1 ± 0.5** |\n"
        "|  |  |  |\n<!-- end -->"
        " and <!-- figure: one.a.gap.low -->-0.25<!-- end -->"
    )


def test_check_names_the_stale_page_and_leaves_it(here, monkeypatch, capsys):
    page, _ = here
    page.write_text("<!-- figure: one.a.nll -->2.00<!-- end -->")
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match="1"):
        tables.main()
    assert capsys.readouterr().out == "README.md: stale\n"
    assert "2.00" in page.read_text()
    monkeypatch.setattr("sys.argv", ["tables.py"])
    with pytest.raises(SystemExit, match="0"):
        tables.main()
    assert page.read_text() == "<!-- figure: one.a.nll -->1.00<!-- end -->"


def test_a_reference_to_nothing_is_an_error(here):
    page, _ = here
    page.write_text("<!-- figure: one.nobody.nll --><!-- end -->")
    with pytest.raises(ValueError, match="unpack"):
        tables.written(page)


def test_a_bench_records_what_a_page_shows(here, monkeypatch):
    page, _ = here
    monkeypatch.syspath_prepend(str(Path(tables.__file__).parent))
    record = importlib.import_module("record")
    rows = [
        {"id": "a", "nll": record.digits(1, 3), "gap": record.over_seeds([1.0, 2.0], 2)},
        {"nll": record.digits(2.5, 0)},
    ]
    record.record(tables.RESULTS / "two.json", "two?", {"nll": "NLL", "gap": "gap"}, rows, [1, 2], signed=["gap"])
    page.write_text("<!-- table: two --><!-- end -->")
    assert "| 1.000 | +1.50 ± 6.35 |\n| 2 |  |\n" in tables.written(page)
    content = tables.study("two")
    assert {"study", "date", "commit", "machine", "command", "seeds", "columns", "rows", "signed"} == set(content)
