"""What `mot cloud` prints, runs and rejects, with a gcloud that knows the real one's flags."""

import contextlib
import importlib
import io
import shlex
import subprocess
import sys
import types

import pytest
import yaml
from cloud_helpers import DESCRIBED, SUBMIT, TRAIN, ZONE
from fake_gcloud import Misunderstood, understand

from mot import cli
from mot.cloud import CLOUDS
from mot.cloud.plan import Plan, Step, run
from mot.training.settings import TrainSettings


def said(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["cloud", *words])
    return out.getvalue()


# What is printed ----------------------------------------------------------------------------------------------------

PRINTED = [
    ["gce", "create"],
    ["gce", "create", "--gpu", "t4", "--max_hours", "0.5", "--at_end", "delete", "--project", "p"],
    ["gce", "create", "--gpu", "h100", "--spot", "--zone", "us-east4-b"],
    ["gce", "setup", *ZONE],
    ["gce", "upload", *ZONE, "--file", "train.txt"],
    ["gce", "train", *ZONE, *TRAIN],
    ["gce", "train", *ZONE, "--", "--base_model", "org/it's", "--train_file", "a b.jsonl"],
    ["gce", "status", *ZONE],
    ["gce", "logs", *ZONE, "--project", "p"],
    ["gce", "download", *ZONE],
    ["gce", "stop", *ZONE, "--gpu", "h100"],
    ["gce", "delete", *ZONE],
    ["vertex", "build", "--project", "p"],
    ["vertex", "submit", "--project", "p", "--base_output_dir", "gs://bucket/runs/one", "--spot", *TRAIN],
    ["vertex", "logs", "--project", "p", "--region", "europe-west4"],
]


@pytest.mark.parametrize("words", PRINTED, ids=" ".join)
def test_what_is_printed_is_a_script_that_gcloud_understands(words, gcloud):
    script = said(*words)
    assert script.splitlines()[-1].startswith("# printed only; --go runs it")
    assert gcloud.calls() == []
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert gcloud.calls()


@pytest.mark.parametrize("words", PRINTED, ids=" ".join)
def test_go_runs_what_is_printed(words, gcloud):
    gcloud.answer(
        {"if": "describe mot-training", "stdout": DESCRIBED}, {"if": "custom-jobs list", "stdout": "jobs/7\n"}
    )
    subprocess.run(["bash", "-e", "-c", said(*words)], capture_output=True, check=True)
    printed = gcloud.calls()
    (gcloud.folder / "calls").unlink()
    gcloud.answer(
        {"if": "describe mot-training", "stdout": DESCRIBED}, {"if": "custom-jobs list", "stdout": "jobs/7\n"}
    )
    said(*words[:2], "--go", "--yes", *words[2:])
    assert [call for call in gcloud.calls() if call != "config get project"] == printed


@pytest.mark.parametrize(
    "wrong",
    [
        "compute instances create a --zone=z --gpu=l4",
        "compute instances create a --zone=z --accelerator=kind=t4",
        "compute instances create a --zone=z --instance-termination-action=REBOOT",
        "compute instances create a",
        "compute instances make a",
        "compute scp a --zone=z",
        # The guide's: arguments inside the spec, and a spec without a container.
        "ai custom-jobs create --region=r --display-name=a --worker-pool-spec=machine-type=m,args=b",
        "ai custom-jobs create --display-name=a --worker-pool-spec=machine-type=m",
        "storage cp a gs://b --location=r",
    ],
)
def test_the_fake_refuses_what_the_real_one_refuses(wrong):
    with pytest.raises(Misunderstood):
        understand(wrong.split())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["aws"], "mot cloud aws: unknown; there is gce and vertex"),
        (["gce", "make"], "mot cloud gce make: unknown; there is create, setup"),
        (["gce", "create", "--gpu", "v100"], "--gpu v100: today's CUDA builds"),
        (["gce", "create", "--gpu", "k80"], "--gpu k80: unknown; there is t4, l4, a100, h100"),
        (["gce", "create", "--gpu", "h100"], "--gpu h100: a3-highgpu-1g is sold as spot only; give --spot"),
        (
            ["gce", "create", "--zone", "us-west4-a"],
            "--zone us-west4-a: has no l4 that is known here; there is us-central1-a",
        ),
        (["gce", "create", "--zone", "mars"], "--zone mars: is not a zone"),
        (["gce", "create", "--name", "My_VM"], "--name My_VM: must be lower-case"),
        (["gce", "create", "--max_hours", "0"], "--max_hours 0.0: must be > 0"),
        (["gce", "create", "--at_end", "burn"], "--at_end burn: unknown; there is stop, delete"),
        (["gce", "create", "--yes"], "--yes: answers the question of --go"),
        (["gce", "create", "--gup", "l4"], "unknown flag --gup; did you mean --gpu?"),
        (["gce", "create", "--", "--task", "forks"], "takes no training flags (--task); they go with `train`"),
        (["gce", "stop"], "--zone: missing"),
        (["gce", "upload", *ZONE], "--file: missing"),
        (["gce", "upload", *ZONE, "--file", "nowhere.txt", "--go"], "--file nowhere.txt: no such file"),
        (["gce", "train", *ZONE], "training flags: missing; they follow `--`"),
        (["gce", "train", *ZONE, "--", "--train_fil", "x"], "unknown flag --train_fil; did you mean --train_file?"),
        (["gce", "train", *ZONE, "--", "--train_file", "x", "--num_thoughts", "0"], "--num_thoughts 0: must be >= 1"),
        (["vertex", "submit", "--project", "p", *TRAIN], "--base_output_dir: missing"),
        (["vertex", "submit", "--project", "p", "--base_output_dir", "s3://b", *TRAIN], "must be gs://BUCKET/PATH"),
        (
            [*SUBMIT, "--", "--train_file", "data/x.txt"],
            "--train_file data/x.txt: is on this machine; gcloud storage cp",
        ),
        ([*SUBMIT, "--engine", "terraform", *TRAIN], "--engine terraform: unknown; there is gcloud, sdk"),
        (["vertex", "build"], "--project: missing; it is part of the container's name"),
    ],
)
def test_mistakes_are_one_line_and_run_nothing(words, line, refused, gcloud):
    assert line in refused(*words)
    assert [call for call in gcloud.calls() if call != "config get project"] == []


def test_what_costs_money_is_confirmed(gcloud, refused, monkeypatch):
    assert "nobody answers" in refused("gce", "create", "--go")
    for answer, goes in (("", False), ("n", False), ("y", True)):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
        asked = []
        monkeypatch.setattr(
            "builtins.input", lambda question, answer=answer, asked=asked: asked.append(question) or answer
        )
        if goes:
            said("gce", "create", "--go")
        else:
            assert "not confirmed; nothing was made" in refused("gce", "create", "--go")
        assert "about $0.71 an hour and $5.66 in 8 hours" in asked[0]
    assert sum("instances create" in call for call in gcloud.calls()) == 1


def test_without_gcloud_or_project_it_says_so(gcloud, refused, monkeypatch):
    gcloud.answer({"if": "config get project", "stdout": "(unset)\n"})
    assert "--project: none is set; give one" in refused("gce", "create", "--go", "--yes")
    monkeypatch.setenv("PATH", str(gcloud.folder))
    assert "gcloud is not installed" in refused("gce", "create", "--go", "--yes")
    assert not any("instances" in call for call in gcloud.calls())


def test_help_names_routes_actions_and_flags(capsys):
    out = said()
    assert "mot cloud gce create|setup|upload|train|status|logs|download|stop|delete" in out
    assert "mot cloud vertex build|submit|logs" in out
    with pytest.raises(SystemExit) as stop:
        cli.main(["cloud", "gce", "create", "--help"])
    assert stop.value.code == 0
    assert "--max_hours" in capsys.readouterr().out


def test_sky_yaml_trains_with_flags_that_exist_and_resumes(root):
    task = yaml.safe_load((root / "configs" / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    line = (
        task["run"]
        .replace("\\\n", " ")
        .replace('"$DATA"', task["envs"]["DATA"])
        .replace('"$OUTPUT"', task["envs"]["OUTPUT"])
    )
    python, door, *flags = shlex.split(line)
    settings = cli.parse(TrainSettings, flags, door, "")
    assert (python, door, settings.resume_from) == (".venv/bin/python", "train_mot.py", "auto")
    assert settings.output_dir.startswith("gs://")


# The engine knows no cloud -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_is_a_file_with_actions_settings_and_plan(name):
    cloud = importlib.import_module(f"mot.cloud.{name}")
    assert cloud.__doc__
    assert all(isinstance(action, str) for action in cloud.ACTIONS)
    cloud.Settings().validate()
    assert callable(cloud.plan)


def test_a_step_is_tried_elsewhere_while_there_is_no_room_and_says_where_it_ended(capsys):
    def place(name: str, code: int, message: str) -> Step:
        return Step(["bash", "-c", f"echo {message} >&2; exit {code}"], after=f"made in {name}")

    step = place("a", 1, "full")
    step.elsewhere, step.no_room = [place("b", 1, "full"), place("c", 0, "fine"), place("d", 0, "fine")], ("full",)
    run(Plan([step], after="made somewhere"), yes=True)
    assert capsys.readouterr().out == "made in c\n"
    step.no_room = ("nothing like it",)
    with pytest.raises(ValueError, match="failed with code 1, see above; left behind: nothing"):
        run(Plan([step]), yes=True)
