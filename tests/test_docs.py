"""Law 9: every command in README and docs is run or parsed from its own text, and every internal link leads somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_gcloud import install, understand

from mot import cli
from mot.data.settings import DownloadSettings
from mot.evaluation.settings import EvaluateSettings
from mot.inference.settings import ExportSettings, ThinkSettings
from mot.runtime.flags import parse
from mot.serving.settings import ServeSettings
from mot.training.costs import CostSettings
from mot.training.settings import AdaptSettings, ReportSettings, TrainSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")  # of this repository: (path, heading)
PARSED = {
    "train_mot.py": TrainSettings,
    "mot train": TrainSettings,
    "train_lora_mot.py": AdaptSettings,
    "mot adapt": AdaptSettings,
    "mot think": ThinkSettings,
    "mot evaluate": EvaluateSettings,
    "mot export": ExportSettings,
    "mot data": DownloadSettings,
    "mot report": ReportSettings,
    "mot cost": CostSettings,
    "mot serve": ServeSettings,
}


def fences(language: str) -> list[tuple[str, str]]:
    return [(page.name, body) for page in PAGES for kind, body in FENCE.findall(page.read_text()) if kind == language]


def commands() -> list[str]:
    lines = "\n".join(body for _, body in fences("bash")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.split("  #")[0].strip()) and not command.startswith("#")]


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["python", "train_mot.py" | "train_lora_mot.py" as door, *flags]:
            parse(PARSED[door], flags, door, "")
        case ["torchrun", "--nproc_per_node", n, "train_mot.py", *flags] if n.isdecimal():
            parse(TrainSettings, flags, "train_mot.py", "")
        case ["mot", "cloud", *flags]:  # prints a script, which a gcloud that knows the real one's flags understands
            cli.main(["cloud", *flags])
            script = capsys.readouterr().out
            install(tmp_path / "fake", tmp_path / "here", monkeypatch)
            if "engine" in command:
                compile(script, command, "exec")
            else:
                subprocess.run(["bash", "-e", "-c", script], check=True)
                assert (tmp_path / "fake" / "calls").read_text()
        case ["gcloud", *flags]:
            understand(flags)
        case ["git", "clone", url]:
            assert url.endswith("/mixture-of-thoughts.git")
        case ["mkdir" | "echo", *_]:
            (tmp_path / "data").mkdir(exist_ok="mkdir" in command)
            subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, check=True)
        case ["wandb", name]:
            from wandb.cli.cli import cli as wandb

            assert name in wandb.commands
        case ["python", "evaluate_diversity.py", *flags]:
            parse(EvaluateSettings, flags, "evaluate_diversity.py", "")
        case ["python", "serve_mot.py", *flags]:
            parse(ServeSettings, flags, "serve_mot.py", "")
        case ["vllm", "serve", _, "--port", port] if (
            port.isdecimal()
        ):  # its flags are run by tests/serving/test_vllm.py
            pass
        case ["mot", name, *flags]:
            parse(PARSED[f"mot {name}"], flags, f"mot {name}", "")
        case ["make", target]:
            subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
        case ["source", script]:
            subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
        case ["python", script, *flags] if script.startswith("bench/"):
            usage = subprocess.run(
                [sys.executable, script, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout
            for flag in flags:
                assert not flag.startswith("--") or flag in usage
        case _:
            pytest.fail(f"no rule to check this command: {command}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path, heading in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        if heading:
            words = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", w.lower()).replace(" ", "-") for w in words}, (path, heading)


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        found = {
            (p.parent / path).resolve() for p in new for path, _ in LINK.findall(p.read_text()) if path.endswith(".md")
        }
        new = found - reached
    assert set(PAGES) <= reached


def test_readme_python_runs_as_it_stands(text_run, capsys):
    (code,) = [body for page, body in fences("python") if page == "README.md"]
    for there, here in (
        ("outputs/small", str(text_run)),
        ("max_new_tokens=120", "max_new_tokens=4"),
        ("ROMEO:", "the king"),
        (" But soft", " of"),
    ):
        code = code.replace(there, here)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_every_flag_of_the_guide_is_a_flag_here():
    guide = ROOT.parent / "shared" / "guide.md"
    if not guide.is_file():
        pytest.skip("the user's guide (../shared/guide.md) is not here")
    blocks = [body for _, body in FENCE.findall(guide.read_text()) if "gcloud" not in body]
    flags = set(re.findall(r"--([a-z0-9_]+)", "\n".join(blocks)))
    assert {"train_file", "num_thoughts", "warmup_ratio"} <= flags
    assert flags <= set(TrainSettings.__dataclass_fields__)


def idea(output: Path, *words: str) -> list[list[str]]:
    """bench/idea.py's picture, read again: the texts of every line, by class."""
    from xml.etree import ElementTree

    subprocess.run(
        [sys.executable, "bench/idea.py", "--output", output, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    texts = ElementTree.parse(output).getroot().iter("{http://www.w3.org/2000/svg}text")
    return [[text.get("class"), text.text] for text in texts]


def test_the_readmes_picture_is_drawn_by_the_project(tmp_path, tiny_run):
    texts = idea(tmp_path / "idea.svg")
    assert (tmp_path / "idea.svg").read_text() == (ROOT / "docs" / "idea.svg").read_text()
    said = [text for _, text in texts if text.startswith("answer")]
    assert len(said) == 16
    assert len({text.split()[1] for text in said[:8]}) == 5  # of eight draws: 5.25 are to be expected
    assert sum("again" in text for text in said[:8]) == sum(kind == "rep" for kind, _ in texts) == 3
    assert len(set(said[8:])) == 8
    measured = idea(tmp_path / "measured.svg", "--model", str(tiny_run))
    assert sum(text.startswith(("answer", "no answer")) for _, text in measured) == 8 + 4
    assert [text for _, text in measured if text.startswith("k = ")] == [f"k = {k}" for k in range(4)]
