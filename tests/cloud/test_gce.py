"""A machine of Compute Engine: its commands, its scripts, and what is left behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cloud_helpers import DESCRIBED, NO_ROOM, ZONE, executable
from fake_gcloud import understand

from mot import cli
from mot.cloud import gce
from mot.cloud.gce import cost_so_far
from mot.training.costs import prices


def created(**settings) -> dict[str, str]:
    words = gce.plan("create", gce.Settings(**settings), []).steps[0].args
    return understand(words[1:])[2]


def test_only_an_n1_machine_has_its_gpu_attached():
    assert created(gpu="t4")["--accelerator"] == "type=nvidia-tesla-t4,count=1"
    for gpu, machine in (("l4", "g2-standard-4"), ("a100", "a2-highgpu-1g"), ("h100", "a3-highgpu-1g")):
        flags = created(gpu=gpu, spot=True)
        assert flags["--machine-type"] == machine
        assert "--accelerator" not in flags


def test_a_machine_ends_itself_and_spot_is_spot():
    flags = created(gpu="l4", max_hours=1.5)
    assert flags["--max-run-duration"] == "5400s"
    assert flags["--instance-termination-action"] == "STOP"
    assert flags["--provisioning-model"] == "STANDARD"
    assert flags["--maintenance-policy"] == "TERMINATE"  # a GPU cannot migrate
    assert flags["--scopes"] == "cloud-platform"  # for gs://
    flags = created(gpu="l4", spot=True, at_end="delete")
    assert flags["--provisioning-model"] == "SPOT"
    assert flags["--instance-termination-action"] == "DELETE"
    # Stopping loses a local SSD's content, and gcloud wants that said.
    assert created(gpu="h100", spot=True)["--discard-local-ssds-at-termination-timestamp"] == "true"
    assert "--discard-local-ssds-at-termination-timestamp" not in created(gpu="h100", spot=True, at_end="delete")


def metadata() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in created()["--metadata"].split(","))


def test_shutdown_tells_training_and_waits_until_it_is_gone(gcloud):
    executable(gcloud.folder / "bin" / "pkill", 'echo "pkill $*" >> seen')
    executable(gcloud.folder / "bin" / "pgrep", 'echo "pgrep $*" >> seen; [ "$(grep -c pgrep seen)" -lt 4 ]')
    executable(gcloud.folder / "bin" / "sleep", 'echo "sleep $*" >> seen')
    subprocess.run(["bash", "-c", metadata()["shutdown-script"]], check=True)
    seen = Path("seen").read_text().splitlines()
    assert seen[0] == "pkill -TERM -f train_(lora_)?mot[.]py"
    assert seen[1:] == ["pgrep -f train_(lora_)?mot[.]py", "sleep 1"] * 3 + ["pgrep -f train_(lora_)?mot[.]py"]


def test_a_start_goes_on_with_the_script_that_is_there(gcloud, tmp_path):
    executable(gcloud.folder / "bin" / "su", 'echo "$2|$4" >> seen; bash -c "$4"')
    executable(gcloud.folder / "bin" / "tmux", 'printf "%s\\n" "tmux" "$@" >> seen')
    home = tmp_path / "home"
    (home / "me" / gce.FOLDER).mkdir(parents=True)
    script = metadata()["startup-script"].replace("/home/", f"{home}/")
    subprocess.run(["bash", "-c", script])
    assert not Path("seen").exists()
    run = home / "me" / gce.FOLDER / "run.sh"
    run.write_text("")
    subprocess.run(["bash", "-c", script], check=True)
    user, *rest = Path("seen").read_text().split("|", 1)
    assert user == run.owner()
    assert rest[0].splitlines()[1:] == ["tmux", "new-session", "-d", "-s", "training", f"bash {run}"]


@pytest.fixture
def remote(gcloud, tmp_path, monkeypatch):
    """Run a command of `gcloud compute ssh` here: a home with the project's folder, whose python notes its words."""
    home = tmp_path / "machine"
    folder = home / gce.FOLDER
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "outputs").mkdir()
    (folder / ".venv" / "bin" / "activate").write_text(f'PATH="{folder}/.venv/bin:$PATH"\n')
    executable(folder / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" > seen; echo training; exit "${CODE:-0}"')
    executable(
        gcloud.folder / "bin" / "tmux", 'if [ "$1" = has-session ]; then [ -e busy ]; else exec bash -c "${@: -1}"; fi'
    )
    executable(gcloud.folder / "bin" / "sudo", 'echo "$@" > sudo')

    def run(words: list[str], code: int = 0) -> Path:
        step = gce.plan(
            "train", gce.Settings(zone="us-central1-a", poweroff="--poweroff" in words), words[words.index("--") + 1 :]
        ).steps[0]
        command = understand(step.args[1:])[2]["--command"]
        environment = os.environ | {"HOME": str(home), "CODE": str(code)}
        subprocess.run(["bash", "-c", command], cwd=home, env=environment, timeout=20)
        return folder

    return run


def test_training_runs_in_tmux_with_its_words_and_a_log(remote):
    folder = remote(["--poweroff", "--", "--train_file", "it's $HOME/a b.txt", "--vocab_size", "100"])
    seen = (folder / "seen").read_text().splitlines()
    assert seen == [
        "train_mot.py",
        "--train_file",
        "it's $HOME/a b.txt",
        "--vocab_size",
        "100",
        "--resume_from",
        "auto",
    ]
    for _ in range(50):
        if (folder / "outputs" / "training.log").read_text() == "training\n":
            break
        time.sleep(0.1)
    assert (folder / "outputs" / "training.log").read_text() == "training\n"
    assert (folder / "sudo").read_text() == "poweroff\n"
    assert (folder / "finished.sh").exists()
    assert not (folder / "run.sh").exists()  # else the next start would train again


def test_a_run_that_was_cut_off_stays_to_be_gone_on_with(remote):
    folder = remote(
        ["--poweroff", "--", "--base_model", "org/base", "--train_file", "a.jsonl", "--resume_from", "auto"], code=143
    )
    seen = (folder / "seen").read_text().splitlines()
    assert seen == ["train_lora_mot.py", "--base_model", "org/base", "--train_file", "a.jsonl", "--resume_from", "auto"]
    assert (folder / "run.sh").exists()
    assert not (folder / "sudo").exists()


def test_a_run_that_goes_on_is_not_written_over(remote, tmp_path):
    folder = tmp_path / "machine" / gce.FOLDER
    (folder / "busy").touch()
    (folder / "run.sh").write_text("the first run's")
    remote(["--", "--task", "forks"])
    assert (folder / "run.sh").read_text() == "the first run's"
    assert not (folder / "seen").exists()


def test_a_zone_without_room_is_left_for_the_next(gcloud, capsys):
    zones = prices()["gpus"]["l4"]["zones"]
    gcloud.answer(*[{"if": f"--zone={zone}", "code": 1, "stderr": f"{NO_ROOM}\n"} for zone in zones[:2]])
    cli.run(cli.cloud, ["gce", "create", "--go", "--yes"])
    out = capsys.readouterr()
    assert [call.split("--zone=")[1].split()[0] for call in gcloud.calls()[1:]] == zones[:3]
    assert f"mot cloud gce delete --name mot-training --zone {zones[2]} --go" in out.out
    assert "$0.71 an hour" in out.out
    assert NO_ROOM in out.err


def test_nothing_is_said_to_be_left_where_nothing_is(gcloud, refused):
    zones = prices()["gpus"]["a100"]["zones"]
    no_room = [{"if": f"--zone={zone}", "code": 1, "stderr": f"{NO_ROOM}\n"} for zone in zones]
    gcloud.answer(*no_room, {"if": "describe", "code": 1})
    line = refused("gce", "create", "--gpu", "a100", "--go", "--yes")
    assert "gcloud compute instances create: failed with code 1" in line
    assert line.endswith("left behind: nothing")


def test_what_is_left_is_listed_with_the_command_that_removes_it(gcloud, refused):
    gcloud.answer(
        {"if": "--zone=us-central1-a", "code": 1, "stderr": f"{NO_ROOM}\n"},
        {"if": "instances create", "code": 1, "stderr": "the connection was lost\n"},
    )
    line = refused("gce", "create", "--go", "--yes", "--project", "p")
    (undo,) = [part.split("remove it with: ")[1] for part in line.split("; ") if "remove it with" in part]
    assert undo == "gcloud compute instances delete mot-training --zone=us-central1-b --project=p"
    understand(shlex.split(undo)[1:])
    assert gcloud.calls()[-1] == "compute instances describe mot-training --zone=us-central1-b --project=p"


def test_ctrl_c_says_what_may_be_left(gcloud, root):
    gcloud.answer({"if": "instances create", "sleep": 60})
    words = ["-c", "from mot.cli import main; main()", "cloud", "gce", "create", "--go", "--yes", *ZONE]
    process = subprocess.Popen(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True
    )
    while not any("instances create" in call for call in gcloud.calls()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "perhaps machine mot-training, remove it with: gcloud compute instances delete mot-training" in error
    assert "Traceback" not in error


def test_status_and_deletion_say_what_it_has_cost(gcloud, capsys):
    now = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
    assert cost_so_far(DESCRIBED, now) == (
        "g2-standard-4: running for 3.0 hours since its last start, "
        f"about ${3 * prices()['gpus']['l4']['spot']:.2f} so far; disk apart"
    )
    stopped = json.loads(DESCRIBED) | {"status": "TERMINATED"}
    assert cost_so_far(json.dumps(stopped), now) == "g2-standard-4: stopped; only its disk costs"
    odd = json.loads(DESCRIBED) | {"machineType": "zones/z/machineTypes/e2-micro"}
    assert "price unknown" in cost_so_far(json.dumps(odd), now)
    for action in ("status", "stop", "delete"):
        gcloud.answer({"if": "describe", "stdout": DESCRIBED})
        cli.run(cli.cloud, ["gce", action, *ZONE, "--go", *["--yes"] * (action == "delete")])
        assert "g2-standard-4: running for" in capsys.readouterr().out
    gcloud.answer({"if": "describe", "stdout": DESCRIBED}, {"if": "compute ssh", "code": 255})
    cli.run(cli.cloud, ["gce", "status", *ZONE, "--go"])  # a machine that cannot be reached has a status all the same
