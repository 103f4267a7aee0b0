"""Google Cloud without Google: every command is understood by a gcloud that knows the real one's flags, and the scripts run."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from fake_gcloud import Misunderstood, install, split_list, understand

from mot import cli
from mot.cloud import plan
from mot.cloud.plan import GceSettings, VertexSettings, container_flags, cost_so_far, gce, vertex
from mot.training.costs import prices
from mot.training.settings import TrainSettings

ZONE = ["--zone", "us-central1-a"]
TRAIN = ["--", "--train_file", "gs://bucket/train.txt", "--vocab_size", "100"]
NO_ROOM = "code: ZONE_RESOURCE_POOL_EXHAUSTED"


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


def said(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["cloud", *words])
    return out.getvalue()


@pytest.fixture
def refused(capsys):
    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.cloud, list(words))
        captured = capsys.readouterr()
        assert stop.value.code == 2
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return line

    return run


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


DESCRIBED = json.dumps(
    {
        "status": "RUNNING",
        "machineType": "https://compute/zones/us-central1-a/machineTypes/g2-standard-4",
        "lastStartTimestamp": "2026-11-23T02:00:00.000-08:00",
        "scheduling": {"provisioningModel": "SPOT"},
    }
)


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


# A machine ----------------------------------------------------------------------------------------------------------


def created(**settings) -> dict[str, str]:
    words = gce("create", GceSettings(**settings), []).steps[0].words
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


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


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
    (home / "me" / plan.FOLDER).mkdir(parents=True)
    script = metadata()["startup-script"].replace("/home/", f"{home}/")
    subprocess.run(["bash", "-c", script])
    assert not Path("seen").exists()
    run = home / "me" / plan.FOLDER / "run.sh"
    run.write_text("")
    subprocess.run(["bash", "-c", script], check=True)
    user, *rest = Path("seen").read_text().split("|", 1)
    assert user == run.owner()
    assert rest[0].splitlines()[1:] == ["tmux", "new-session", "-d", "-s", "training", f"bash {run}"]


@pytest.fixture
def remote(gcloud, tmp_path, monkeypatch):
    """Run a command of `gcloud compute ssh` here: a home with the project's folder, whose python notes its words."""
    home = tmp_path / "machine"
    folder = home / plan.FOLDER
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "outputs").mkdir()
    (folder / ".venv" / "bin" / "activate").write_text(f'PATH="{folder}/.venv/bin:$PATH"\n')
    executable(folder / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" > seen; echo training; exit "${CODE:-0}"')
    executable(
        gcloud.folder / "bin" / "tmux", 'if [ "$1" = has-session ]; then [ -e busy ]; else exec bash -c "${@: -1}"; fi'
    )
    executable(gcloud.folder / "bin" / "sudo", 'echo "$@" > sudo')

    def run(words: list[str], code: int = 0) -> Path:
        step = gce(
            "train", GceSettings(zone="us-central1-a", poweroff="--poweroff" in words), words[words.index("--") + 1 :]
        ).steps[0]
        command = understand(step.words[1:])[2]["--command"]
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
    folder = tmp_path / "machine" / plan.FOLDER
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
        f"g2-standard-4: running for 3.0 hours since its last start, about ${3 * prices()['gpus']['l4']['spot']:.2f} so far; disk apart"
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


# A job --------------------------------------------------------------------------------------------------------------

SUBMIT = ["vertex", "submit", "--base_output_dir", "gs://bucket/runs/one/", "--project", "p"]


def test_a_job_has_its_arguments_outside_the_spec_and_the_rest_in_its_file(gcloud):
    cli.run(cli.cloud, [*SUBMIT, "--spot", "--max_hours", "2", "--gpu", "t4", "--go", "--yes", *TRAIN])
    _, _, flags = understand(gcloud.words("ai custom-jobs create"))
    assert split_list(flags["--args"]) == [*TRAIN[1:], "--resume_from", "auto"]
    assert flags["--worker-pool-spec"] == (
        "machine-type=n1-standard-4,replica-count=1,accelerator-type=NVIDIA_TESLA_T4,accelerator-count=1,"
        "container-image-uri=us-central1-docker.pkg.dev/p/mot/train:latest"
    )
    assert yaml.safe_load(Path(flags["--config"]).read_text()) == {
        "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/runs/one"},
        "scheduling": {"strategy": "SPOT", "timeout": "7200s", "restartJobOnWorkerRestart": True},
    }


def test_an_argument_with_a_comma_arrives_whole():
    training = [
        "--base_model=org/base",
        "--train_file=gs://b/x.jsonl",
        "--lora_targets=q_proj,v_proj",
        "--run_name=a;b",
    ]
    settings = VertexSettings(project="p", base_output_dir="gs://b/o")
    words = vertex("submit", settings, training).steps[1].words
    assert split_list(understand(words[1:])[2]["--args"]) == [*training, "--resume_from", "auto"]


def test_a_bucket_that_cannot_be_written_stops_before_the_job(gcloud, refused):
    gcloud.answer({"if": "storage cp", "code": 1, "stderr": "HTTPError 403: no storage.objects.create\n"})
    line = refused(*SUBMIT, "--go", "--yes", *TRAIN)
    assert "gcloud storage cp outputs/mot-training.yaml: failed with code 1" in line
    assert line.endswith("left behind: nothing")
    assert not any("custom-jobs create" in call for call in gcloud.calls())


def test_a_repository_is_made_once_and_named_when_the_build_fails(gcloud, refused):
    gcloud.answer({"if": "repositories describe", "code": 1}, {"if": "builds submit", "code": 1})
    line = refused("vertex", "build", "--project", "p", "--go", "--yes")
    assert "repository mot in us-central1, remove it with: gcloud artifacts repositories delete mot" in line
    gcloud.answer({"if": "builds submit", "code": 1})
    line = refused("vertex", "build", "--project", "p", "--go", "--yes")
    assert line.endswith("left behind: nothing")
    assert sum("repositories create" in call for call in gcloud.calls()) == 1


def test_logs_follow_the_newest_job_of_that_name(gcloud, refused):
    gcloud.answer({"if": "custom-jobs list", "stdout": "projects/1/locations/us-central1/customJobs/42\n"})
    cli.run(cli.cloud, ["vertex", "logs", "--go", "--name", "mine"])
    assert "--filter=displayName=mine" in gcloud.calls()[-2]
    assert gcloud.calls()[-1].split()[-1] == "projects/1/locations/us-central1/customJobs/42"
    assert "found nothing; is --name or --region another?" in refused("vertex", "logs", "--go")


def test_the_sdk_gets_the_same_job(monkeypatch, refused, gcloud):
    assert "needs google-cloud-aiplatform" in refused(*SUBMIT, "--engine", "sdk", "--go", "--yes", *TRAIN)
    seen = {}

    class CustomJob:
        resource_name = "jobs/1"

        def __init__(self, **words):
            seen["job"] = words

        def submit(self, **words):
            seen["submit"] = words

    sdk = types.ModuleType("google.cloud.aiplatform")
    sdk.CustomJob, sdk.init = CustomJob, lambda **words: seen.setdefault("init", words)
    types_module = types.ModuleType("google.cloud.aiplatform_v1.types")
    types_module.Scheduling = types.SimpleNamespace(Strategy=types.SimpleNamespace(SPOT="spot", STANDARD="standard"))
    import google.cloud

    monkeypatch.setattr(google.cloud, "aiplatform", sdk, raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform", sdk)
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform_v1", types.ModuleType("google.cloud.aiplatform_v1"))
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform_v1.types", types_module)
    cli.run(cli.cloud, [*SUBMIT, "--engine", "sdk", "--spot", "--go", "--yes", *TRAIN])
    (pool,) = seen["job"]["worker_pool_specs"]
    assert pool["container_spec"]["args"] == [*TRAIN[1:], "--resume_from", "auto"]
    assert pool["machine_spec"] == {
        "machine_type": "g2-standard-4",
        "accelerator_type": "NVIDIA_L4",
        "accelerator_count": 1,
    }
    assert seen["job"]["base_output_dir"] == "gs://bucket/runs/one"
    assert seen["submit"] == {"timeout": 28800, "restart_job_on_worker_restart": True, "scheduling_strategy": "spot"}
    assert seen["init"] == {"project": "p", "location": "us-central1", "staging_bucket": "gs://bucket"}
    assert gcloud.calls() == []


def test_the_container_begins_where_vertex_says_and_resumes():
    checkpoints = {"AIP_CHECKPOINT_DIR": "gs://b/o/checkpoints/"}
    assert container_flags(["--task", "forks"], checkpoints) == [
        *["--task", "forks", "--resume_from", "auto", "--output_dir", "gs://b/o/checkpoints"]
    ]
    own = ["--task", "forks", "--output_dir=gs://b/mine", "--resume_from=gs://b/other"]
    assert container_flags(own, checkpoints) == own
    with pytest.raises(ValueError, match="AIP_CHECKPOINT_DIR: not set"):
        container_flags(["--task", "forks"], {})


# The whole cycle ----------------------------------------------------------------------------------------------------

TINY = shlex.split(
    "--vocab_size 100 --hidden_size 32 --num_layers 1 --num_thoughts 4 --seq_length 32 --batch_size 8 --max_steps 8 --save_every 2"
)


def container(root: Path, where: Path, run: str, data: str) -> subprocess.Popen:
    """What the container does, in a machine of its own: an empty folder."""
    where.mkdir()
    base = f"gs://bucket/runs/{run}"
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MOT_CACHE": str(where / "cache")}
    environment |= {"AIP_CHECKPOINT_DIR": f"{base}/checkpoints/", "AIP_MODEL_DIR": f"{base}/model/"}
    words = ["-c", "from mot.cli import main; main()", "cloud", "vertex", "run", "--train_file", data, *TINY]
    return subprocess.Popen(
        [sys.executable, *words], cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_train_upload_lose_the_machine_resume_download(bucket, root, tmp_path, text_file, monkeypatch):
    """Against the storage emulator by the real gcsfs: killed behind its second upload, the run ends as one nobody touched."""
    import fsspec

    files = fsspec.filesystem("gs", token="anon")
    files.put_file(str(text_file), "bucket/data/train.txt")
    whole = container(root, tmp_path / "whole", "whole", "gs://bucket/data/train.txt")
    assert whole.wait(timeout=120) == 0, whole.stderr.read()

    lost = []

    def kill(name: str) -> None:  # the machine goes in the middle of the third upload
        if name.endswith("lost/checkpoints/checkpoint-6/optimizer.pt") and not lost:
            lost.append(first.kill())

    monkeypatch.setattr(bucket, "before_write", kill)
    first = container(root, tmp_path / "first", "lost", "gs://bucket/data/train.txt")
    assert first.wait(timeout=120) == -signal.SIGKILL
    time.sleep(0.5)  # what was under way arrives
    second = container(root, tmp_path / "second", "lost", "gs://bucket/data/train.txt")
    out, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    assert "resuming from" in error
    assert "checkpoint-4" in error
    assert out.splitlines()[-1] == "model    gs://bucket/runs/lost/model"

    def downloaded(run: str) -> Path:
        target = tmp_path / "downloaded" / run
        files.invalidate_cache()
        files.get(f"bucket/runs/{run}/model", str(target), recursive=True)
        return target

    ours, theirs = downloaded("lost"), downloaded("whole")
    digests = [hashlib.sha256((d / "model.safetensors").read_bytes()).hexdigest() for d in (ours, theirs)]
    assert digests[0] == digests[1]
    from transformers import AutoModelForCausalLM

    from mot import MixtureOfThoughts

    assert AutoModelForCausalLM.from_pretrained(ours).config.mot["num_thoughts"] == 4
    thoughts = MixtureOfThoughts.from_pretrained(str(ours)).think("the king", max_new_tokens=3, seed=0)
    assert len(thoughts) == 4
    assert not any("checkpoint-" in name for name in files.find("bucket/runs/lost/model"))
    monkeypatch.setattr(bucket, "before_write", lambda name: None)


# Mistakes -----------------------------------------------------------------------------------------------------------


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
        (["gce", "create", "--zone", "mars"], "--zone mars: is no zone"),
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


# Files for other tools ----------------------------------------------------------------------------------------------


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


def test_the_containers_recipe_copies_what_is_there_and_starts_our_command(root):
    recipe = (root / "Dockerfile.train").read_text()
    copies = [line.split()[1:-1] for line in recipe.splitlines() if line.startswith("COPY")]
    assert all((root / name).exists() for names in copies for name in names)
    entry = next(line for line in recipe.splitlines() if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["mot", "cloud", "vertex", "run"]
    build = yaml.safe_load((root / "configs" / "cloudbuild.yaml").read_text())
    assert "--file=Dockerfile.train" in build["steps"][0]["args"]
