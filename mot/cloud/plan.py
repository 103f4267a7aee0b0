"""Google Cloud: settings in, exact commands out. No torch, and nothing runs unless told to.

    plan = gce("create", GceSettings(name="mot", gpu="l4", spot=True), [])
    print(plan.script())                  what a person could type
    run(plan, settings)                   --go: asks before what costs money, lists what was left behind if a step fails

A machine of Compute Engine (`gce`) trains in tmux from a script, run.sh, that its start-up script starts again whenever it
boots; a job of Vertex AI (`vertex`) trains in the container of Dockerfile.train. Both resume from the newest checkpoint.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mot.runtime.flags import check_ranges, parse, setting
from mot.training.costs import price_of, prices, require_gpu
from mot.training.settings import AdaptSettings, TrainSettings

GCE = ("create", "setup", "upload", "train", "status", "logs", "download", "stop", "delete")
VERTEX = ("build", "submit", "logs", "run")
IMAGE_FAMILY = (
    "pytorch-2-9-cu129-ubuntu-2404-nvidia-580"  # brings the driver; `gcloud compute images list` has newer ones
)
FOLDER = "mixture-of-thoughts"  # on the machine, below the home directory
NO_ROOM = (
    "RESOURCE_POOL_EXHAUSTED",
    "does not have enough resources",
    "resource pool exhausted",
    "is not available in",
)
# Compute Engine gives a machine about 30 seconds before it is taken back; training needs ten for its checkpoint.
# No commas in these two: gcloud splits --metadata there. Double quotes, so that they print well inside single ones.
TRAINS = "train_(lora_)?mot[.]py"
SHUTDOWN = f"""#!/bin/bash
pkill -TERM -f "{TRAINS}"
for second in $(seq 20); do pgrep -f "{TRAINS}" >/dev/null || break; sleep 1; done"""
STARTUP = f"""#!/bin/bash
for run in /home/*/{FOLDER}/run.sh; do
  [ -f "$run" ] && su - "$(stat -c %U "$run")" -c "tmux new-session -d -s training \\"bash $run\\""
done"""


@dataclass
class CloudSettings:
    """What both routes can be told."""

    name: str = setting("mot-training", "of the machine or the job", group="what")
    gpu: str = setting("l4", "t4, l4, a100 or h100", group="what")
    spot: bool = setting(False, "a machine that may be taken back at any moment, for less", group="what")
    max_hours: float = setting(
        8.0, "the machine ends itself after so long, whatever happens", "hours", "what", above=0, high=168
    )
    project: str | None = setting(None, "default: gcloud's own", group="where")
    go: bool = setting(False, "run the commands instead of printing them", group="how")
    yes: bool = setting(False, "with --go: answer its question, in a script", group="how")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(f"--name {self.name}: must be lower-case letters, digits and hyphens, a letter first")
        # The machine is there already where it is not created; whether it is sold on these terms is not asked again.
        require_gpu(self.gpu, spot=True)
        if self.yes and not self.go:
            raise ValueError("--yes: answers the question of --go; give both or neither")


@dataclass
class GceSettings(CloudSettings):
    """Everything `mot cloud gce` can be told."""

    zone: str | None = setting(
        None, "create: default, each zone that has the GPU in turn; else required", group="where"
    )
    at_end: str = setting(
        "stop", "what --max_hours and spot do: stop (the disk stays, and is paid for) or delete", group="what"
    )
    disk_gb: int = setting(100, "boot disk", "GB", "what", low=50, high=4096)
    file: str | None = setting(None, "upload: the file to train on, into data/ on the machine", group="what")
    poweroff: bool = setting(False, "train: stop the machine when training has succeeded", group="what")

    def validate(self) -> None:
        super().validate()
        if self.at_end not in ("stop", "delete"):
            raise ValueError(f"--at_end {self.at_end}: unknown; there is stop, delete")
        zones = prices()["gpus"][self.gpu]["zones"]
        if self.zone and not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.zone):
            raise ValueError(f"--zone {self.zone}: is no zone; e.g. --zone {zones[0]}")


@dataclass
class VertexSettings(CloudSettings):
    """Everything `mot cloud vertex` can be told."""

    region: str = setting("us-central1", "of job, image and bucket", group="where")
    base_output_dir: str | None = setting(
        None, "gs://BUCKET/PATH: checkpoints go to its checkpoints/, the model to its model/", group="where"
    )
    image: str | None = setting(
        None, "the container; default REGION-docker.pkg.dev/PROJECT/mot/train:latest", group="what"
    )
    engine: str = setting("gcloud", "gcloud, or sdk: google-cloud-aiplatform's CustomJob", group="how")

    def validate(self) -> None:
        super().validate()
        if self.engine not in ("gcloud", "sdk"):
            raise ValueError(f"--engine {self.engine}: unknown; there is gcloud, sdk")
        if self.base_output_dir and not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]+(/.+)?", self.base_output_dir):
            raise ValueError(f"--base_output_dir {self.base_output_dir}: must be gs://BUCKET/PATH")


@dataclass
class Step:
    """One command, and what is to be known about it."""

    words: list[str]
    instead: list[list[str]] = field(default_factory=list)  # the same elsewhere, if there is no room
    unless: list[str] | None = None  # not needed if this command succeeds
    makes: str = ""  # what stays when a later step fails ...
    undo: list[str] = field(default_factory=list)  # ... and how to be rid of it
    check: list[str] | None = None  # succeeds if it is there although the step failed
    writes: tuple[str, str] | None = None  # (path, text) of a file that the command reads
    heard: Callable[[str], str] | None = None  # its output becomes this line
    may_fail: bool = False
    feeds: list[str] | None = None  # the command behind it, which takes its output as last word


@dataclass
class Plan:
    """Steps, the question before them, and what to say behind them."""

    steps: list[Step]
    question: str = ""
    after: str = ""
    program: str = ""  # Python, instead of steps

    def script(self) -> str:
        """The commands as a person could type them."""
        lines = [self.program] if self.program else []
        for step in self.steps:
            if step.writes:
                path, text = step.writes
                lines.append(f"mkdir -p {Path(path).parent}\ncat > {path} <<'END'\n{text.rstrip()}\nEND")
            line = typed(step.words)
            if step.feeds:
                line = f'{typed(step.feeds[:-1])} "$({shlex.join(step.words)})"'
            lines.append(f"{shlex.join(step.unless)} >/dev/null 2>&1 || {line}" if step.unless else line)
            if step.instead:
                zones = ", ".join(
                    word.partition("=")[2] for words in step.instead for word in words if "--zone=" in word
                )
                lines.append(f"# no room there? the same with --zone={zones.replace(', ', ' or ')}")
        notes = [f"# {line}" for line in self.after.splitlines()]
        return "\n".join(
            [*lines, *notes, "# printed only; --go runs it" + (" and asks first" if self.question else "")]
        )


def typed(words: list[str]) -> str:
    """A command over several lines, a flag on each."""
    head = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return " \\\n    ".join([shlex.join(words[:head]), *(shlex.quote(word) for word in words[head:])])


# Compute Engine -----------------------------------------------------------------------------------------------------


def gce(action: str, settings: GceSettings, training: list[str]) -> Plan:
    """What an action on a machine takes. `training`: flags of train_mot.py (or, with --base_model, train_lora_mot.py)."""
    assert action in GCE
    if training and action != "train":
        raise ValueError(f"mot cloud gce {action}: takes no training flags ({training[0]}); they go with `train`")
    if settings.zone is None and action != "create":
        raise ValueError("--zone: missing; the one in which create made the machine")
    where = [f"--zone={settings.zone}", *_project(settings)]
    ssh = ["gcloud", "compute", "ssh", settings.name, *where]
    machine = f"machine {settings.name} in {settings.zone}"
    match action:
        case "create":
            return _create(settings)
        case "setup":
            archive = "outputs/mot.tar.gz"
            unpack = (
                "sudo apt-get update -q && sudo apt-get install -qy python3-venv tmux && "
                f"tar xzf mot.tar.gz && cd {FOLDER} && mkdir -p data outputs && python3 -m venv .venv && "
                '.venv/bin/pip install -q -c constraints.txt -e ".[remote,data,lora,wandb,tensorboard]" && '
                '.venv/bin/python -c "import torch; print(torch.cuda.get_device_name())"'
            )
            pack = ["git", "archive", "--format=tar.gz", f"--prefix={FOLDER}/", f"--output={archive}", "HEAD"]
            send = ["gcloud", "compute", "scp", archive, f"{settings.name}:", *where]
            return Plan([Step(["mkdir", "-p", "outputs"]), Step(pack), Step(send), Step([*ssh, f"--command={unpack}"])])
        case "upload":
            if not settings.file:
                raise ValueError("--file: missing; the file to train on, e.g. --file data/shakespeare.txt")
            if settings.go and not Path(settings.file).is_file():
                raise ValueError(f"--file {settings.file}: no such file")
            target = f"{settings.name}:{FOLDER}/data/"
            return Plan([Step(["gcloud", "compute", "scp", settings.file, target, *where])])
        case "train":
            return Plan([Step([*ssh, f"--command={_start(settings, training)}"])], after=_keeps(settings, training))
        case "status":
            look = f"tmux list-sessions; nvidia-smi --query-gpu=name,utilization.gpu,memory.used --format=csv,noheader; tail -n 5 {FOLDER}/outputs/training.log"
            return Plan([_describe(settings), Step([*ssh, f"--command={look}"], may_fail=True)])
        case "logs":
            return Plan([Step([*ssh, f"--command=tail -n 100 -F {FOLDER}/outputs/training.log"])])
        case "download":
            source = f"{settings.name}:{FOLDER}/outputs"
            return Plan([Step(["gcloud", "compute", "scp", source, ".", "--recurse", *where])])
        case "stop":
            stop = ["gcloud", "compute", "instances", "stop", settings.name, *where]
            if prices()["gpus"][settings.gpu].get("local_ssd"):
                stop.append("--discard-local-ssd=true")
            disk = settings.disk_gb * prices()["boot_disk_per_gb_month"]
            again = shlex.join(["gcloud", "compute", "instances", "start", settings.name, *where])
            after = f"its disk goes on costing ${disk:.2f} a month ({settings.disk_gb} GB) until it is deleted\n"
            return Plan(
                [_describe(settings), Step(stop)], after=f"{after}start it again, and training goes on: {again}"
            )
        case "delete":
            delete = [
                "gcloud",
                "compute",
                "instances",
                "delete",
                settings.name,
                *where,
                "--delete-disks=all",
                "--quiet",
            ]
            question = f"Delete the {machine} and everything on its disk?"
            return Plan([_describe(settings), Step(delete)], question)
    raise AssertionError(action)


def _create(settings: GceSettings) -> Plan:
    about = require_gpu(settings.gpu, settings.spot)
    if settings.zone and settings.zone not in about["zones"]:
        raise ValueError(
            f"--zone {settings.zone}: has no {settings.gpu} that is known here; there is {', '.join(about['zones'])}"
        )
    zones = [settings.zone] if settings.zone else about["zones"]
    flags = [
        f"--machine-type={about['machine']}",
        *([f"--accelerator=type={about['attached']},count=1"] if "attached" in about else []),
        f"--image-family={IMAGE_FAMILY}",
        "--image-project=deeplearning-platform-release",
        f"--boot-disk-size={settings.disk_gb}GB",
        "--boot-disk-type=pd-balanced",
        "--maintenance-policy=TERMINATE",
        "--scopes=cloud-platform",
        f"--provisioning-model={'SPOT' if settings.spot else 'STANDARD'}",
        f"--max-run-duration={round(settings.max_hours * 3600)}s",
        f"--instance-termination-action={settings.at_end.upper()}",
    ]
    if about.get("local_ssd") and settings.at_end == "stop":
        flags.append("--discard-local-ssds-at-termination-timestamp=true")
    flags.append(f"--metadata=startup-script={STARTUP},shutdown-script={SHUTDOWN}")
    made = ["gcloud", "compute", "instances", "create", settings.name]
    commands = [[*made, f"--zone={zone}", *_project(settings), *flags] for zone in zones]
    price = price_of(about, settings.spot)
    kind = "spot" if settings.spot else "on demand"
    instances, there = ["gcloud", "compute", "instances"], [settings.name, f"--zone={zones[0]}", *_project(settings)]
    create = Step(
        commands[0],
        commands[1:],
        makes=f"machine {settings.name}",
        undo=[*instances, "delete", *there],
        check=[*instances, "describe", *there],
    )
    return Plan(
        [create],
        f"Create {about['machine']} with one {settings.gpu}, {kind}, about ${price:.2f} an hour and "
        f"${price * settings.max_hours:.2f} in {settings.max_hours:g} hours?",
        f"it costs about ${price:.2f} an hour ({kind}, {prices()['region']}, {prices()['date']}) until it is stopped, and its disk until it is deleted:\n"
        f"mot cloud gce delete --name {settings.name} --zone ZONE --go",
    )


def _start(settings: GceSettings, training: list[str]) -> str:
    flags = training_flags(training)
    door = "train_lora_mot.py" if "--base_model" in flags else "train_mot.py"
    last = "mv run.sh finished.sh" + (" && sudo poweroff" if settings.poweroff else "")
    script = "\n".join(
        [
            "# By mot cloud gce train. The start-up script runs it again after a stop; when it succeeds it is renamed.",
            f'cd "$HOME/{FOLDER}" && . .venv/bin/activate || exit',
            "exec > >(tee -a outputs/training.log) 2>&1",
            f"{shlex.join(['python', door, *flags])} && {last}",
        ]
    )
    # A script that runs must not be written over: bash reads it as it goes.
    free = '{ ! tmux has-session -t training 2>/dev/null || { echo "it trains already: tmux attach -t training"; false; }; }'
    return (
        f'cd {FOLDER} && {free} && cat > run.sh <<"END" && tmux new-session -d -s training "bash run.sh"\n{script}\nEND'
    )


def _keeps(settings: GceSettings, training: list[str]) -> str:
    look = f"watch it: mot cloud gce logs --name {settings.name} --zone {settings.zone} --go; in the machine: tmux attach -t training"
    if any(word.startswith(("gs://", "--output_dir=gs://")) for word in training[1:]):
        return look
    return f"{look}\nwhat it writes lies on the machine's disk and is lost with the machine; --output_dir gs://BUCKET/PATH keeps it"


def _describe(settings: GceSettings) -> Step:
    words = ["gcloud", "compute", "instances", "describe", settings.name, f"--zone={settings.zone}"]
    shown = "--format=json(status,machineType,lastStartTimestamp,scheduling)"
    return Step([*words, *_project(settings), shown], heard=cost_so_far)


def cost_so_far(described: str, now: datetime | None = None) -> str:
    """A line with the state of a machine and what it has cost since it was last started."""
    about = json.loads(described)
    machine, status = about["machineType"].rsplit("/", 1)[-1], about["status"]
    spot = about.get("scheduling", {}).get("provisioningModel") == "SPOT"
    price = next((price_of(gpu, spot) for gpu in prices()["gpus"].values() if gpu["machine"] == machine), None)
    if status == "TERMINATED":
        return f"{machine}: stopped; only its disk costs"
    hours = ((now or datetime.now(UTC)) - datetime.fromisoformat(about["lastStartTimestamp"])).total_seconds() / 3600
    money = f"about ${hours * price:.2f} so far" if price else "price unknown"
    return f"{machine}: {status.lower()} for {hours:.1f} hours since its last start, {money}; disk apart"


# Vertex AI ----------------------------------------------------------------------------------------------------------


def vertex(action: str, settings: VertexSettings, training: list[str]) -> Plan:
    """What an action takes: build the container, submit a job, follow its log."""
    assert action in VERTEX
    if training and action != "submit":
        raise ValueError(f"mot cloud vertex {action}: takes no training flags ({training[0]}); they go with `submit`")
    where = [f"--region={settings.region}", *_project(settings)]
    match action:
        case "build":
            repositories, mot = ["gcloud", "artifacts", "repositories"], ["mot", f"--location={settings.region}"]
            mot += _project(settings)
            create = Step(
                [*repositories, "create", *mot, "--repository-format=docker"],
                unless=[*repositories, "describe", *mot],
                makes=f"repository mot in {settings.region}",
                undo=[*repositories, "delete", *mot],
            )
            build = ["gcloud", "builds", "submit", ".", "--config=configs/cloudbuild.yaml", *_project(settings)]
            build.append(f"--substitutions=_IMAGE={_image(settings)}")
            return Plan(
                [create, Step(build)],
                "Build the container in Cloud Build (a few cents) and keep it in Artifact Registry?",
            )
        case "submit":
            return _submit(settings, training)
        case "logs":
            jobs = ["gcloud", "ai", "custom-jobs"]
            newest = [*jobs, "list", *where, f"--filter=displayName={settings.name}", "--sort-by=~createTime"]
            newest += ["--limit=1", "--format=value(name)"]
            return Plan([Step(newest, feeds=[*jobs, "stream-logs", *where, "JOB"])])
    raise AssertionError(action)


def _submit(settings: VertexSettings, training: list[str]) -> Plan:
    if not settings.base_output_dir:
        raise ValueError("--base_output_dir: missing; e.g. --base_output_dir gs://my-bucket/runs/one")
    about, out = require_gpu(settings.gpu, settings.spot), settings.base_output_dir.rstrip("/")
    flags = training_flags(training, container=True)
    price = price_of(about, settings.spot) * (1 + prices()["vertex_surcharge"])
    question = (
        f"Submit a job on {about['machine']} with one {settings.gpu}, about ${price:.2f} an hour and "
        f"${price * settings.max_hours:.2f} in {settings.max_hours:g} hours at most?"
    )
    seconds = round(settings.max_hours * 3600)
    if settings.engine == "sdk":
        return Plan([], question, program=_program(settings, about, out, flags, seconds))
    strategy = "SPOT" if settings.spot else "STANDARD"
    config = (
        "# A CustomJobSpec; machine, container and arguments are given on the command line.\n"
        f"baseOutputDirectory:\n  outputUriPrefix: {out}\n"
        f"scheduling:\n  strategy: {strategy}\n  timeout: {seconds}s\n  restartJobOnWorkerRestart: true\n"
    )
    path = f"outputs/{settings.name}.yaml"
    pool = f"machine-type={about['machine']},replica-count=1,accelerator-type={about['vertex']},accelerator-count=1"
    # gcloud splits --args at commas, unless told another mark.
    mark = next((m for m in ",;|~" if not any(m in flag for flag in flags)), "\t")
    joined = mark.join(flags) if mark == "," else f"^{mark}^{mark.join(flags)}"
    create = [
        "gcloud",
        "ai",
        "custom-jobs",
        "create",
        f"--region={settings.region}",
        *_project(settings),
        f"--display-name={settings.name}",
        f"--config={path}",
        f"--worker-pool-spec={pool},container-image-uri={_image(settings)}",
        f"--args={joined}",
    ]
    # The copy beside the run is a record of it, and shows that the bucket can be written before anything costs money.
    copy = ["gcloud", "storage", "cp", path, f"{out}/{settings.name}.yaml", *_project(settings)]
    remove = ["gcloud", "storage", "rm", f"{out}/{settings.name}.yaml"]
    return Plan(
        [Step(copy, writes=(path, config), makes=f"{out}/{settings.name}.yaml", undo=remove), Step(create)],
        question,
        f"watch it: mot cloud vertex logs --name {settings.name} --region {settings.region} --go\n"
        f"the model will be in {out}/model/, checkpoints in {out}/checkpoints/",
    )


def _program(settings: VertexSettings, about: dict, out: str, flags: list[str], seconds: int) -> str:
    project = f"project={settings.project!r}, " if settings.project else ""
    strategy = "SPOT" if settings.spot else "STANDARD"
    return f"""\
from google.cloud import aiplatform
from google.cloud.aiplatform_v1.types import Scheduling

aiplatform.init({project}location={settings.region!r}, staging_bucket={"/".join(out.split("/")[:3])!r})
job = aiplatform.CustomJob(
    display_name={settings.name!r},
    base_output_dir={out!r},
    worker_pool_specs=[
        {{
            "machine_spec": {{
                "machine_type": {about["machine"]!r},
                "accelerator_type": {about["vertex"]!r},
                "accelerator_count": 1,
            }},
            "replica_count": 1,
            "container_spec": {{"image_uri": {_image(settings)!r}, "args": {flags!r}}},
        }}
    ],
)
job.submit(timeout={seconds}, restart_job_on_worker_restart=True, scheduling_strategy=Scheduling.Strategy.{strategy})
print(job.resource_name)"""


def container_flags(training: list[str], environment: dict[str, str]) -> list[str]:
    """Training flags inside a Vertex container: its checkpoint directory is the output directory, and it always resumes."""
    flags = training_flags(training, container=True, check=False)
    if "--output_dir" not in [flag.partition("=")[0] for flag in flags]:
        directory = environment.get("AIP_CHECKPOINT_DIR", "").rstrip("/")
        if not directory:
            raise ValueError(
                "AIP_CHECKPOINT_DIR: not set; submit with --base_output_dir, or give --output_dir gs://BUCKET/PATH"
            )
        flags += ["--output_dir", directory]
    return flags


def training_flags(training: list[str], container: bool = False, check: bool = True) -> list[str]:
    """Flags of a training door, understood by its own parser here, before anything is made there; they resume."""
    names = [word.partition("=")[0] for word in training]
    flags = training + ([] if "--resume_from" in names else ["--resume_from", "auto"])
    if not check:
        return flags
    if not training:
        raise ValueError(
            "training flags: missing; they follow `--`, e.g. -- --train_file gs://my-bucket/train.txt --vocab_size 8192"
        )
    settings = parse(AdaptSettings if "--base_model" in names else TrainSettings, flags, "the flags behind --", "")
    for name in ("train_file", "eval_file"):
        path = getattr(settings, name)
        if container and path and "://" not in path:
            raise ValueError(
                f"--{name} {path}: is on this machine; gcloud storage cp {path} gs://BUCKET/, and give the gs:// address"
            )
    return flags


# Running ------------------------------------------------------------------------------------------------------------


def run(plan: Plan, settings: CloudSettings) -> None:
    """Run a plan's steps. Raises ValueError with one line that says what failed and what is left behind."""
    if not plan.program:
        _require_gcloud(settings)
    _confirm(plan.question, settings.yes)
    if plan.program:
        _run_program(plan.program)
        return
    left: list[str] = []
    words = plan.steps[0].words
    for step in plan.steps:
        try:
            code, words = _run_step(step)
        except SystemExit:  # Ctrl-C: the request may have arrived
            left += [f"perhaps {step.makes}, remove it with: {shlex.join(step.undo)}"] * bool(step.makes)
            print(f"left behind: {'; '.join(left) or 'nothing'}", file=sys.stderr)
            raise
        if step.makes and words is not step.unless:
            there = code == 0 or (step.check and _quietly(_in_zone_of(words, step.check)))
            left += [f"{step.makes}, remove it with: {shlex.join(_in_zone_of(words, step.undo))}"] * bool(there)
        if code and not step.may_fail:
            raise ValueError(
                f"{shlex.join(words[:4])}: failed with code {code}, see above; left behind: {'; '.join(left) or 'nothing'}"
            )
    if plan.after:
        zone = next((word.removeprefix("--zone=") for word in words if word.startswith("--zone=")), "")
        print(plan.after.replace("ZONE", zone))


def _in_zone_of(words: list[str], other: list[str]) -> list[str]:
    zone = next((word for word in words if word.startswith("--zone=")), "")
    return [zone if word.startswith("--zone=") else word for word in other]


def _quietly(words: list[str]) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


def _run_step(step: Step) -> tuple[int, list[str]]:
    if step.writes:
        path, text = step.writes
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    if step.unless and _quietly(step.unless):
        return 0, step.unless
    if step.heard or step.feeds:
        done = subprocess.run(step.words, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode, step.words
        if step.heard:
            print(step.heard(done.stdout))
            return 0, step.words
        job = done.stdout.strip()
        if not job:
            raise ValueError(f"{shlex.join(step.words[:4])}: found nothing; is --name or --region another?")
        return _call([*step.feeds[:-1], job])[0], step.feeds
    words = step.words
    for words in [step.words, *step.instead]:
        code, error = _call(words)
        if code == 0 or not any(reason in error for reason in NO_ROOM):
            break
    return code, words


def _call(words: list[str]) -> tuple[int, str]:
    print(f"$ {shlex.join(words[:5])} ...", file=sys.stderr, flush=True)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    error = ""
    for line in process.stderr:  # shown as it comes, and kept: it says why a zone would not do
        sys.stderr.write(line)
        error += line
    return process.wait(), error


def _run_program(program: str) -> None:
    try:
        import google.cloud.aiplatform  # noqa: F401
    except ImportError:
        raise ValueError(
            "--engine sdk: needs google-cloud-aiplatform; pip install google-cloud-aiplatform, or --engine gcloud"
        ) from None
    exec(compile(program, "vertex", "exec"), {})


def _require_gcloud(settings: CloudSettings) -> None:
    if shutil.which("gcloud") is None:
        raise ValueError(
            "--go: gcloud is not installed; https://cloud.google.com/sdk/docs/install, or leave --go out and copy the commands"
        )
    if not _project_of(settings):
        raise ValueError("--project: none is set; give one, or gcloud config set project PROJECT_ID")


def _project_of(settings: CloudSettings) -> str:
    """The flag's, the environment's, else what gcloud is set to; "" if nothing is. What is only printed asks nobody."""
    said = settings.project or os.environ.get("CLOUDSDK_CORE_PROJECT", "")
    if said or not settings.go or shutil.which("gcloud") is None:
        return said
    done = subprocess.run(["gcloud", "config", "get", "project"], capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip().removeprefix("(unset)")


def _confirm(question: str, yes: bool) -> None:
    if not question or yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"--go: nobody answers “{question}”; give --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("--go: not confirmed; nothing was made")


def _project(settings: CloudSettings) -> list[str]:
    return [f"--project={settings.project}"] if settings.project else []


def _image(settings: VertexSettings) -> str:
    if settings.image:
        return settings.image
    project = _project_of(settings)
    if not project:
        raise ValueError("--project: missing; it is part of the container's name (or give --image)")
    return f"{settings.region}-docker.pkg.dev/{project}/mot/train:latest"
