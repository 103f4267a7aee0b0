"""A job of Vertex AI: its commands, its container, and the whole cycle with a bucket emulator."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from cloud_helpers import SUBMIT, TRAIN
from fake_gcloud import split_list, understand

from mot import cli
from mot.cloud import vertex
from mot.cloud.vertex import container_flags


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
    settings = vertex.Settings(project="p", base_output_dir="gs://b/o")
    words = vertex.plan("submit", settings, training).steps[1].args
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


TINY = shlex.split(
    "--vocab_size 100 --hidden_size 32 --num_layers 1 --num_thoughts 4 --seq_length 32 --batch_size 8 --max_steps 8 "
    "--save_every 2"
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
    """With the storage emulator and the real gcsfs: a run killed after its second upload ends like one left alone."""
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
    assert re.search(r"checkpoint-[45]: ", error)  # the last that was uploaded whole, of an interval or the best
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


def test_the_containers_recipe_copies_what_is_there_and_starts_our_command(root):
    recipe = (root / "Dockerfile.train").read_text()
    copies = [line.split()[1:-1] for line in recipe.splitlines() if line.startswith("COPY")]
    assert all((root / name).exists() for names in copies for name in names)
    entry = next(line for line in recipe.splitlines() if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["mot", "cloud", "vertex", "run"]
    build = yaml.safe_load((root / "configs" / "cloudbuild.yaml").read_text())
    assert "--file=Dockerfile.train" in build["steps"][0]["args"]
