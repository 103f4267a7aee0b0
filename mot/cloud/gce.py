"""Google Compute Engine: commands for a machine with one GPU.

    plan("create", Settings(name="mot", gpu="l4", spot=True), []).script()

The machine trains in tmux from a script, run.sh. Its start-up script starts run.sh again at every boot, and training
resumes from the newest checkpoint.
"""

import json
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mot.cloud.google import GoogleSettings, project_flag, require_gcloud
from mot.cloud.plan import Plan, Step
from mot.cloud.settings import training_flags
from mot.runtime.flags import setting
from mot.training.costs import price_of, prices, require_gpu

ACTIONS = ("create", "setup", "upload", "train", "status", "logs", "download", "stop", "delete")
# The family brings the driver; `gcloud compute images list` shows newer ones.
IMAGE_FAMILY = "pytorch-2-9-cu129-ubuntu-2404-nvidia-580"
FOLDER = "mixture-of-thoughts"  # on the machine, below the home directory
INSTANCES = ["gcloud", "compute", "instances"]
NO_ROOM = (  # in gcloud's messages
    "RESOURCE_POOL_EXHAUSTED",
    "does not have enough resources",
    "resource pool exhausted",
    "is not available in",
)
# Compute Engine gives about 30 seconds before it takes a machine back; training needs ten for its checkpoint.
# gcloud splits --metadata at commas, so these scripts have none. Double quotes print well inside single quotes.
TRAINS = "train_(lora_)?mot[.]py"
SHUTDOWN = f"""#!/bin/bash
pkill -TERM -f "{TRAINS}"
for second in $(seq 20); do pgrep -f "{TRAINS}" >/dev/null || break; sleep 1; done"""
STARTUP = f"""#!/bin/bash
for run in /home/*/{FOLDER}/run.sh; do
  [ -f "$run" ] && su - "$(stat -c %U "$run")" -c "tmux new-session -d -s training \\"bash $run\\""
done"""


@dataclass
class Settings(GoogleSettings):
    """All settings of `mot cloud gce`."""

    zone: str | None = setting(
        None, "create: default, each zone that has the GPU in turn; other actions: required", group="where"
    )
    at_end: str = setting(
        "stop",
        "what happens at the end of --max_hours or spot: stop (the disk stays, and costs) or delete",
        group="what",
    )
    disk_gb: int = setting(100, "boot disk", "GB", "what", low=50, high=4096)
    file: str | None = setting(None, "upload: the file to train on; it goes into data/ on the machine", group="what")
    poweroff: bool = setting(False, "train: stop the machine when training has succeeded", group="what")

    def validate(self) -> None:
        super().validate()
        if self.at_end not in ("stop", "delete"):
            raise ValueError(f"--at_end {self.at_end}: unknown; there is stop, delete")
        zones = prices()["gpus"][self.gpu]["zones"]
        if self.zone and not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.zone):
            raise ValueError(f"--zone {self.zone}: is not a zone; e.g. --zone {zones[0]}")


def plan(action: str, settings: Settings, training: list[str]) -> Plan:
    """The commands of an action. `training`: flags of train_mot.py (or, with --base_model, of train_lora_mot.py).

    Raises ValueError with one line for a missing or wrong setting.
    """
    assert action in ACTIONS
    if training and action != "train":
        raise ValueError(f"mot cloud gce {action}: takes no training flags ({training[0]}); they go with `train`")
    if settings.zone is None and action != "create":
        raise ValueError("--zone: missing; give the zone in which create made the machine")
    made = _commands(action, settings, training)
    made.require = partial(require_gcloud, settings)
    return made


def _commands(action: str, settings: Settings, training: list[str]) -> Plan:
    where = _where(settings)
    ssh = ["gcloud", "compute", "ssh", settings.name, *where]
    scp = ["gcloud", "compute", "scp"]
    log = f"{FOLDER}/outputs/training.log"
    match action:
        case "create":
            return _create(settings)
        case "setup":
            return _setup(settings)
        case "upload":
            if not settings.file:
                raise ValueError("--file: missing; the file to train on, e.g. --file data/shakespeare.txt")
            if settings.go and not Path(settings.file).is_file():
                raise ValueError(f"--file {settings.file}: no such file")
            return Plan([Step([*scp, settings.file, f"{settings.name}:{FOLDER}/data/", *where])])
        case "train":
            return Plan([Step([*ssh, f"--command={_start(settings, training)}"])], after=_keeps(settings, training))
        case "status":
            query = "nvidia-smi --query-gpu=name,utilization.gpu,memory.used --format=csv,noheader"
            look = f"tmux list-sessions; {query}; tail -n 5 {log}"
            return Plan([_describe(settings), Step([*ssh, f"--command={look}"], may_fail=True)])
        case "logs":
            return Plan([Step([*ssh, f"--command=tail -n 100 -F {log}"])])
        case "download":
            return Plan([Step([*scp, f"{settings.name}:{FOLDER}/outputs", ".", "--recurse", *where])])
        case "stop":
            return _stop(settings)
        case "delete":
            delete = [*INSTANCES, "delete", settings.name, *where, "--delete-disks=all", "--quiet"]
            question = f"Delete the machine {settings.name} in {settings.zone} and everything on its disk?"
            return Plan([_describe(settings), Step(delete)], question)
    raise AssertionError(action)


def _where(settings: Settings, zone: str | None = None) -> list[str]:
    return [f"--zone={zone or settings.zone}", *project_flag(settings)]


def _create(settings: Settings) -> Plan:
    about = require_gpu(settings.gpu, settings.spot)
    if settings.zone and settings.zone not in about["zones"]:
        raise ValueError(
            f"--zone {settings.zone}: has no {settings.gpu} that is known here; there is {', '.join(about['zones'])}"
        )
    flags = [f"--machine-type={about['machine']}"]
    if "attached" in about:
        flags.append(f"--accelerator=type={about['attached']},count=1")
    flags += [
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
    price, kind = price_of(about, settings.spot), "spot" if settings.spot else "on demand"

    def after(zone: str) -> str:
        return (
            f"it costs about ${price:.2f} an hour ({kind}, {prices()['region']}, {prices()['date']}) "
            "until it is stopped, and its disk until it is deleted:\n"
            f"mot cloud gce delete --name {settings.name} --zone {zone} --go"
        )

    def step(zone: str) -> Step:
        machine = [settings.name, *_where(settings, zone)]
        return Step(
            [*INSTANCES, "create", *machine, *flags],
            creates=f"machine {settings.name}",
            undo=[*INSTANCES, "delete", *machine],
            exists=[*INSTANCES, "describe", *machine],
            after=after(zone),
        )

    first, *others = [settings.zone] if settings.zone else about["zones"]
    create = step(first)
    create.elsewhere, create.no_room = [step(zone) for zone in others], NO_ROOM
    if others:
        create.note = f"no room there? the same with --zone={' or '.join(others)}"
    question = (
        f"Create {about['machine']} with one {settings.gpu}, {kind}, about ${price:.2f} an hour and "
        f"${price * settings.max_hours:.2f} in {settings.max_hours:g} hours?"
    )
    return Plan([create], question, after("ZONE"))


def _setup(settings: Settings) -> Plan:
    archive = "outputs/mot.tar.gz"
    unpack = (
        "sudo apt-get update -q && sudo apt-get install -qy python3-venv tmux && "
        f"tar xzf mot.tar.gz && cd {FOLDER} && mkdir -p data outputs && python3 -m venv .venv && "
        '.venv/bin/pip install -q -c constraints.txt -e ".[remote,data,lora,wandb,tensorboard]" && '
        '.venv/bin/python -c "import torch; print(torch.cuda.get_device_name())"'
    )
    where = _where(settings)
    return Plan(
        [
            Step(["mkdir", "-p", "outputs"]),
            Step(["git", "archive", "--format=tar.gz", f"--prefix={FOLDER}/", f"--output={archive}", "HEAD"]),
            Step(["gcloud", "compute", "scp", archive, f"{settings.name}:", *where]),
            Step(["gcloud", "compute", "ssh", settings.name, *where, f"--command={unpack}"]),
        ]
    )


def _stop(settings: Settings) -> Plan:
    where = _where(settings)
    stop = [*INSTANCES, "stop", settings.name, *where]
    if prices()["gpus"][settings.gpu].get("local_ssd"):
        stop.append("--discard-local-ssd=true")
    disk = settings.disk_gb * prices()["boot_disk_per_gb_month"]
    again = shlex.join([*INSTANCES, "start", settings.name, *where])
    after = (
        f"its disk still costs ${disk:.2f} a month ({settings.disk_gb} GB) until it is deleted\n"
        f"start it again, and training resumes: {again}"
    )
    return Plan([_describe(settings), Step(stop)], after=after)


def _start(settings: Settings, training: list[str]) -> str:
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
    # bash reads a script while it runs, so a running script must not be overwritten.
    busy = 'echo "it trains already: tmux attach -t training"'
    free = f"{{ ! tmux has-session -t training 2>/dev/null || {{ {busy}; false; }}; }}"
    start = 'tmux new-session -d -s training "bash run.sh"'
    return f'cd {FOLDER} && {free} && cat > run.sh <<"END" && {start}\n{script}\nEND'


def _keeps(settings: Settings, training: list[str]) -> str:
    look = (
        f"watch it: mot cloud gce logs --name {settings.name} --zone {settings.zone} --go; "
        "in the machine: tmux attach -t training"
    )
    if any(arg.startswith(("gs://", "--output_dir=gs://")) for arg in training[1:]):
        return look
    return (
        f"{look}\nits output is on the machine's disk and is lost with the machine; "
        "--output_dir gs://BUCKET/PATH keeps it"
    )


def _describe(settings: Settings) -> Step:
    shown = "--format=json(status,machineType,lastStartTimestamp,scheduling)"
    return Step([*INSTANCES, "describe", settings.name, *_where(settings), shown], report=cost_so_far)


def cost_so_far(described: str, now: datetime | None = None) -> str:
    """A line with a machine's state and its cost since the last start. `described`: JSON of gcloud's `describe`."""
    about = json.loads(described)
    machine, status = about["machineType"].rsplit("/", 1)[-1], about["status"]
    spot = about.get("scheduling", {}).get("provisioningModel") == "SPOT"
    price = next((price_of(gpu, spot) for gpu in prices()["gpus"].values() if gpu["machine"] == machine), None)
    if status == "TERMINATED":
        return f"{machine}: stopped; only its disk costs"
    hours = ((now or datetime.now(UTC)) - datetime.fromisoformat(about["lastStartTimestamp"])).total_seconds() / 3600
    money = f"about ${hours * price:.2f} so far" if price else "price unknown"
    return f"{machine}: {status.lower()} for {hours:.1f} hours since its last start, {money}; disk apart"
