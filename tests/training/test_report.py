"""The report of a run: its content, that the page requests nothing, and how a browser shows it."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mot import cli
from mot.inference.think import Thought
from mot.training import report
from mot.training.run_log import METRICS, SAMPLES, RunLog, read_metrics
from mot.training.settings import TrainSettings

NASTY = "<script>document.title='ran'</script> & \"x\" {{ 7 * 7 }}"
NASTIER = "<img src=x onerror=\"document.title='ran'\"></pre>\n\ud800 \x00 é 思"


@pytest.fixture
def run(text_run, tmp_path) -> Path:
    """A copy of a real run of 4 steps, with samples of two evaluations."""
    copy = tmp_path / "a run"
    shutil.copytree(text_run, copy, ignore=shutil.ignore_patterns("checkpoint-*", SAMPLES, "report"))
    log = RunLog(str(copy), 4, "t")
    for step, prompt in ((1, "early"), (2, "between"), (4, NASTY)):
        thoughts = [Thought(1, 0.25, -1.5, NASTIER, ()), Thought(0, 0.75, -2.0, f"said at {step}", ())]
        log.samples(step, prompt, thoughts)
    return copy


def page(run: Path) -> str:
    path = report.write(str(run))
    assert path == run / "report" / "index.html"
    return path.read_text(encoding="utf-8")


def keep(run: Path, lines: list[dict]) -> None:
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def pictures(run: Path) -> set[str]:
    return {path.name for path in (run / "report").glob("*.png")}


def test_the_page_holds_pictures_numbers_samples_and_settings(run):
    text = page(run)
    assert pictures(run) >= {"nll.png", "losses.png", "usage.png", "effective.png", "throughput.png"}
    embedded = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    assert len(embedded) == 2 * len(pictures(run))  # for light and for dark
    assert all((run / "report" / name).read_bytes() in embedded for name in pictures(run))
    last = [m for m in read_metrics(run / METRICS) if "eval_base_nll" in m][-1]
    for name in ("base", "mixture", "oracle"):
        assert f">{last[f'eval_{name}_nll']:.4f}<" in text
    assert "finished at step 4" in text
    assert "last evaluation, step 4" in text
    assert "first evaluation, step 1" in text
    assert "said at 2" not in text
    assert text.index(">thought 0<") < text.index(">thought 1<")  # in their own order, to compare
    for name in json.loads((run / "run.json").read_text()):
        assert f"<th>{name}</th>" in text


def test_the_page_needs_nothing_but_itself_and_text_stays_text(run):
    text = page(run)
    assert not re.findall(r"<script|<link|<iframe|@import|url\(", text)
    assert set(re.findall(r"\b(?:src|srcset|href)=\"([^,\"]*)", text)) == {"data:image/png;base64"}
    assert not re.findall(r"https?:", text)
    assert html.escape(NASTY, quote=False).replace('"', "&#34;").replace("'", "&#39;") in text
    assert "<img src=x" not in text


def test_an_interrupted_run_has_a_report_of_what_there_is(run):
    lines = read_metrics(run / METRICS)
    for path in run.glob("*.safetensors"):
        path.unlink()
    (run / SAMPLES).unlink()
    page(run)
    keep(run, [m for m in lines if "lm_loss" in m][:1])
    with (run / METRICS).open("a") as file:
        file.write('{"step": 2, "lo')
    text = page(run)
    assert "at step 1 of 4: still running, or interrupted" in text
    assert "nll.png" not in pictures(run)  # drawn before, nothing to show now
    assert "losses.png" in pictures(run)
    for heading in ("Held-out evaluation", "Samples of thoughts"):
        assert heading not in text


@pytest.mark.parametrize(
    "lines", [[], [{"step": 1}], [{"step": 1, "lm_loss": float("nan"), "eval_base_nll": float("inf")}]]
)
def test_no_numbers_no_pictures(run, lines):
    keep(run, lines)
    text = page(run)
    assert pictures(run) == set()
    assert "<figure>" not in text
    assert "Settings" in text


def test_a_directory_with_nothing_in_it_still_has_a_page(tmp_path):
    assert "at step 0" in page(tmp_path)


def test_a_plain_language_model_has_no_panels_of_thoughts(text_file, tmp_path):
    from mot.training.run import train

    small = {"vocab_size": 100, "hidden_size": 32, "num_layers": 1, "seq_length": 32, "batch_size": 8, "max_steps": 2}
    train(TrainSettings(train_file=str(text_file), num_thoughts=1, output_dir=str(tmp_path / "run"), **small))
    text = page(tmp_path / "run")
    assert {"usage.png", "effective.png"}.isdisjoint(pictures(tmp_path / "run"))
    assert {"nll.png", "losses.png"} <= pictures(tmp_path / "run")
    assert "specialisation" not in text


def test_many_thoughts_and_many_lines_are_drawn(run):
    N = 200
    lines = [{"step": s, "usage/0": 1.0, **{f"usage/{k}": 0.0 for k in range(1, N)}} for s in range(1, 500)]
    keep(run, [*lines, {"step": 500, "effective_thoughts": 1.0, "router_loss": 0.1, "entropy": 0.0, "lm_loss": 2.0}])
    page(run)
    assert pictures(run) == {"usage.png", "effective.png", "losses.png"}


def test_a_browser_shows_every_picture_and_runs_nothing(run, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium on PATH: apt-get install chromium")

    def dom(path: Path) -> str:
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        flags += (
            f" --disable-component-update --disable-sync --virtual-time-budget=3000 --user-data-dir={tmp_path}/profile"
        )
        words = [chromium, *flags.split(), "--dump-dom", path.as_uri()]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout

    text = page(run)
    seen = dom(run / "report" / "index.html")
    assert "<title>a run</title>" in seen
    assert "&lt;script&gt;document.title='ran'&lt;/script&gt; &amp; \"x\" {{ 7 * 7 }}" in seen
    # The same page without its policy, and with a script of ours that measures.
    probe = "onload = () => document.body.dataset.sizes = [...document.images].map(i => i.naturalWidth).join()"
    probe = f"<script>{probe}</script>"
    unguarded, count = re.subn(r"<meta http-equiv.*", "", text)
    assert count == 1
    (tmp_path / "probe.html").write_text(unguarded.replace("</body>", probe + "</body>"), errors="replace")
    seen = dom(tmp_path / "probe.html")
    sizes = re.search(r'data-sizes="([\d,]*)"', seen)[1].split(",")
    assert sizes == ["1040"] * len(pictures(run))
    assert "<title>a run</title>" in seen


def test_a_directory_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["report", str(tmp_path / "nowhere")])
    assert e.value.code == 2
    assert "no such directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
