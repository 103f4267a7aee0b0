"""What Google's products share: project, GPUs and gcloud. No torch here."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from mot.cloud.settings import CloudSettings
from mot.runtime.flags import setting
from mot.training.costs import require_gpu


@dataclass
class GoogleSettings(CloudSettings):
    """Settings of Google's two products."""

    project: str | None = setting(None, "default: gcloud's own", group="where")

    def validate(self) -> None:
        super().validate()
        # `create` checks the terms of sale; for other actions the machine exists already.
        require_gpu(self.gpu, spot=True)


def require_gcloud(settings: GoogleSettings) -> None:
    """Raise ValueError unless gcloud is installed and has a project."""
    if shutil.which("gcloud") is None:
        raise ValueError(
            "--go: gcloud is not installed; https://cloud.google.com/sdk/docs/install, "
            "or leave --go out and copy the commands"
        )
    if not project_of(settings):
        raise ValueError("--project: none is set; give one, or gcloud config set project PROJECT_ID")


def project_of(settings: GoogleSettings) -> str:
    """The project of the flag, the environment or gcloud; "" if none is set. Without --go gcloud is not called."""
    project = settings.project or os.environ.get("CLOUDSDK_CORE_PROJECT", "")
    if project or not settings.go or shutil.which("gcloud") is None:
        return project
    done = subprocess.run(["gcloud", "config", "get", "project"], capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip().removeprefix("(unset)")


def project_flag(settings: GoogleSettings) -> list[str]:
    """The flag --project of a gcloud command, if the settings have one."""
    return [f"--project={settings.project}"] if settings.project else []
