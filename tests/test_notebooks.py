"""The notebooks, executed from the first cell to the last by a real kernel at tiny settings, and their outputs."""

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from bases import make
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture
def execute(root, tmp_path, monkeypatch):
    """Run a notebook in an empty folder with other parameters, and return the cells with their outputs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mot").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from mot.cli import main; main()" "$@"\n')
    (folder / "mot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = tmp_path / "here"
    here.mkdir()

    def run(name: str, upto: str | None = None, **parameters) -> list[nbformat.NotebookNode]:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        known = notebook.cells[at].source
        assert all(re.search(rf"^{name} = ", known, re.MULTILINE) for name in parameters)
        values = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(values))
        if upto:
            (end,) = [i for i, cell in enumerate(notebook.cells) if upto in cell.metadata.get("tags", [])]
            notebook.cells = notebook.cells[: end + 1]
        NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(here)}}).execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    run.here = here
    return run


def text(cell) -> str:
    return "".join(out.get("text", "") for out in cell.outputs)


def pictures(cell) -> int:
    return sum("image/png" in out.get("data", {}) for out in cell.outputs)


def having(cells, code: str):
    """The one cell whose source holds `code`."""
    (found,) = [cell for cell in cells if code in cell.source]
    return found


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_in_the_repository_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "/work/" not in path.read_text()
    install = having([c for c in notebook.cells if c.cell_type == "code"], "pip install").source
    assert "torch=={version('torch')}" in install  # Colab's own torch keeps its version
    assert "-c keep.txt" in install


def test_colab(execute, text_file):
    """Data, training, curves, eight thoughts, the diversity report; and a second session resumes."""
    (execute.here / "data").mkdir()
    (execute.here / "data" / "shakespeare.txt").write_text(text_file.read_text() * 8)
    tiny = (
        "--vocab_size 300 --hidden_size 32 --num_layers 1 --num_thoughts 8 --seq_length 32 --batch_size 8 --max_steps 4"
    )
    evaluation = "--num_prompts 6 --seeds 1 --baselines temperature --measures none --max_new_tokens 6"
    cells = execute("colab", SIZE=tiny, PROMPT="the king", EVALUATION=evaluation)
    assert "16,000 characters" in text(having(cells, "characters:"))
    assert "report" in text(having(cells, "!mot train"))
    curves = having(cells, 'picture in ("nll", "losses")')
    assert pictures(curves) == 2
    assert "'eval_mixture_nll': " in text(curves)
    assert set(re.findall(r"thought (\d)  p [\d.e-]+", text(having(cells, "side_by_side")))) == set("01234567")
    judged = having(cells, 'result["verdict"]')
    assert pictures(judged) >= 2
    assert text(judged).strip()
    assert (execute.here / "outputs" / "colab_diversity" / "report.html").is_file()
    for step in ("checkpoint-4", "model.safetensors"):  # as if the session had been cut off before the end
        path = execute.here / "outputs" / "colab_run" / step
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = execute("colab", upto="train", SIZE=tiny, PROMPT="the king")
    assert re.search(r"going on from .*checkpoint-3", text(having(again, "!mot train")))


def test_lora(execute, tmp_path):
    """Adapters on a tiny base, a text of each thought, and a merged model that plain transformers runs."""
    base = make("llama", tmp_path / "base")
    tiny = "--lora_rank 4 --seq_length 48 --batch_size 8 --max_steps 4"
    cells = execute("lora", BASE=str(base), NUM_THOUGHTS=3, SIZE=tiny)
    assert "128 rows" in text(having(cells, "rows, e.g."))
    assert "without a thought, on held-out data" in text(having(cells, "!mot adapt"))
    assert len(re.findall(r"\d of 4", text(having(cells, "sorted(mixture.think")))) == 4
    plain = text(having(cells, "AutoModelForCausalLM"))
    assert [f"<|thought_{k}|>" in plain for k in range(4)] == [True, True, True, False]
    assert (execute.here / "outputs" / "merged" / "model.safetensors").is_file()


def test_diversity(execute):
    tiny = "--task forks --num_thoughts 4 --hidden_size 32 --num_layers 1 --seq_length 24 --batch_size 16 --max_steps 4"
    evaluation = "--num_prompts 4 --seeds 1 --baselines temperature --measures none"
    cells = execute("diversity", TRAINING=tiny, PROMPTS=4, EVALUATION=evaluation)
    assert re.search(
        r"forks: 4 thoughts found \d\.\d\d of 8 answers", text(having(cells, 'find_answers(mixture, "forks", prompts'))
    )
    assert [pictures(cell) for cell in cells if "plt.show()" in cell.source] == [1, 1, 1]
    router = text(having(cells, "mixture.route"))
    assert sum(float(p) for p in re.findall(r"0\.\d+", router.splitlines()[0])) == pytest.approx(1, abs=0.01)
    assert "1 different sets of 3 thoughts" in router  # creativity 0 draws nothing
    judged = having(cells, "outputs/judged/diversity.json")
    assert pictures(judged) == 1
    assert text(judged).strip()
