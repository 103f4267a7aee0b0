"""Google Vertex AI: commands for a job in the container of Dockerfile.train.

    plan("submit", Settings(base_output_dir="gs://bucket/runs/one"), ["--train_file", "gs://bucket/train.txt"]).script()

A job that is restarted resumes from its newest checkpoint.
"""

import re
from dataclasses import dataclass
from functools import partial

from mot.cloud.google import GoogleSettings, project_flag, project_of, require_gcloud
from mot.cloud.plan import Plan, Step
from mot.cloud.settings import training_flags
from mot.runtime.flags import setting
from mot.training.costs import price_of, prices, require_gpu

ACTIONS = ("build", "submit", "logs", "run")


@dataclass
class Settings(GoogleSettings):
    """All settings of `mot cloud vertex`."""

    region: str = setting("us-central1", "region of job, image and bucket", group="where")
    base_output_dir: str | None = setting(
        None, "gs://BUCKET/PATH; checkpoints go to its checkpoints/, the model to its model/", group="where"
    )
    image: str | None = setting(
        None, "address of the container; default REGION-docker.pkg.dev/PROJECT/mot/train:latest", group="what"
    )
    engine: str = setting("gcloud", "gcloud, or sdk: the CustomJob of google-cloud-aiplatform", group="how")

    def validate(self) -> None:
        super().validate()
        if self.engine not in ("gcloud", "sdk"):
            raise ValueError(f"--engine {self.engine}: unknown; there is gcloud, sdk")
        if self.base_output_dir and not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]+(/.+)?", self.base_output_dir):
            raise ValueError(f"--base_output_dir {self.base_output_dir}: must be gs://BUCKET/PATH")


def plan(action: str, settings: Settings, training: list[str]) -> Plan:
    """The commands of an action: build the container, submit a job, follow its log.

    `training`: flags of train_mot.py (or, with --base_model, of train_lora_mot.py). Raises ValueError with one line for
    a missing or wrong setting.
    """
    assert action in ACTIONS
    if training and action != "submit":
        raise ValueError(f"mot cloud vertex {action}: takes no training flags ({training[0]}); they go with `submit`")
    match action:
        case "build":
            made = _build(settings)
        case "submit":
            made = _submit(settings, training)
        case "logs":
            made = _logs(settings)
        case _:
            raise AssertionError(action)
    made.require = require_sdk if made.program else partial(require_gcloud, settings)
    return made


def require_sdk() -> None:
    """Raise ValueError if google-cloud-aiplatform is not installed."""
    try:
        import google.cloud.aiplatform  # noqa: F401
    except ImportError:
        raise ValueError(
            "--engine sdk: needs google-cloud-aiplatform; pip install google-cloud-aiplatform, or --engine gcloud"
        ) from None


def _build(settings: Settings) -> Plan:
    repositories = ["gcloud", "artifacts", "repositories"]
    mot = ["mot", f"--location={settings.region}", *project_flag(settings)]
    create = Step(
        [*repositories, "create", *mot, "--repository-format=docker"],
        skip_if=[*repositories, "describe", *mot],
        creates=f"repository mot in {settings.region}",
        undo=[*repositories, "delete", *mot],
    )
    build = ["gcloud", "builds", "submit", ".", "--config=configs/cloudbuild.yaml", *project_flag(settings)]
    build.append(f"--substitutions=_IMAGE={_image(settings)}")
    question = "Build the container in Cloud Build (a few cents) and keep it in Artifact Registry?"
    return Plan([create, Step(build)], question)


def _logs(settings: Settings) -> Plan:
    where = [f"--region={settings.region}", *project_flag(settings)]
    jobs = ["gcloud", "ai", "custom-jobs"]
    newest = [*jobs, "list", *where, f"--filter=displayName={settings.name}", "--sort-by=~createTime"]
    newest += ["--limit=1", "--format=value(name)"]
    return Plan([Step(newest, then=[*jobs, "stream-logs", *where, "JOB"])])


def _submit(settings: Settings, training: list[str]) -> Plan:
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
    # gcloud splits --args at commas, or at another mark that is given first.
    mark = next((m for m in ",;|~" if not any(m in flag for flag in flags)), "\t")
    joined = mark.join(flags) if mark == "," else f"^{mark}^{mark.join(flags)}"
    create = [
        "gcloud",
        "ai",
        "custom-jobs",
        "create",
        f"--region={settings.region}",
        *project_flag(settings),
        f"--display-name={settings.name}",
        f"--config={path}",
        f"--worker-pool-spec={pool},container-image-uri={_image(settings)}",
        f"--args={joined}",
    ]
    # The copy beside the run is a record, and proves that the bucket can be written before anything costs money.
    copy = ["gcloud", "storage", "cp", path, f"{out}/{settings.name}.yaml", *project_flag(settings)]
    remove = ["gcloud", "storage", "rm", f"{out}/{settings.name}.yaml"]
    return Plan(
        [Step(copy, file=(path, config), creates=f"{out}/{settings.name}.yaml", undo=remove), Step(create)],
        question,
        f"watch it: mot cloud vertex logs --name {settings.name} --region {settings.region} --go\n"
        f"the model will be in {out}/model/, checkpoints in {out}/checkpoints/",
    )


def _program(settings: Settings, about: dict, out: str, flags: list[str], seconds: int) -> str:
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
    """Training flags inside a Vertex container: the output goes to its checkpoint directory, and it always resumes."""
    flags = training_flags(training, container=True, check=False)
    if "--output_dir" not in [flag.partition("=")[0] for flag in flags]:
        directory = environment.get("AIP_CHECKPOINT_DIR", "").rstrip("/")
        if not directory:
            raise ValueError(
                "AIP_CHECKPOINT_DIR: not set; submit with --base_output_dir, or give --output_dir gs://BUCKET/PATH"
            )
        flags += ["--output_dir", directory]
    return flags


def _image(settings: Settings) -> str:
    if settings.image:
        return settings.image
    project = project_of(settings)
    if not project:
        raise ValueError("--project: missing; it is part of the container's name (or give --image)")
    return f"{settings.region}-docker.pkg.dev/{project}/mot/train:latest"
