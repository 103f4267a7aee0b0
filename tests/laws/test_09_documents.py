"""Law 9. Every command in README and docs is run, or parsed by the real parser, from its own text.

The training guide is run from top to bottom by tests/test_guide.py. Links and pictures: tests/test_docs.py.
"""

import re
import shlex
import subprocess
import sys

import pytest
from documents import FENCE, PARSED, ROOT, commands, fences
from fake_gcloud import install, understand

from mot import cli
from mot.evaluation.settings import EvaluateSettings
from mot.runtime.flags import parse
from mot.serving.settings import ServeSettings
from mot.training.settings import TrainSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command, tmp_path, monkeypatch, capsys):
    args = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", args[0]):
        args = args[1:]
    match args:
        case ["python", "train_mot.py" | "train_lora_mot.py" as door, *flags]:
            parse(PARSED[door], flags, door, "")
        case ["torchrun", "--nproc_per_node", n, "train_mot.py", *flags] if n.isdecimal():
            parse(TrainSettings, flags, "train_mot.py", "")
        case ["mot", "cloud", *flags]:  # prints a script for gcloud; the fake one knows the real one's flags
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
        case ["vllm", "serve", _, "--port", port] if port.isdecimal():
            pass  # tests/serving/test_vllm.py runs its flags
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
                assert not re.fullmatch(r"--\w+", flag) or flag in usage
        case _:
            pytest.fail(f"no rule to check this command: {command}")


def test_readme_python_runs_as_it_stands(text_run, capsys):
    (code,) = fences("python", [ROOT / "README.md"])
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
