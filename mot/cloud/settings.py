"""The settings that every cloud has, and the training flags behind `--`. No torch here."""

import re
from dataclasses import dataclass

from mot.runtime.flags import check_ranges, parse, setting
from mot.training.settings import AdaptSettings, TrainSettings


@dataclass
class CloudSettings:
    """Settings of every cloud."""

    name: str = setting("mot-training", "name of the machine or job", group="what")
    gpu: str = setting("l4", "t4, l4, a100 or h100", group="what")
    spot: bool = setting(False, "a cheaper machine that may be taken back at any moment", group="what")
    max_hours: float = setting(8.0, "the machine ends after this time in any case", "hours", "what", above=0, high=168)
    go: bool = setting(False, "run the commands instead of printing them", group="how")
    yes: bool = setting(False, "with --go: do not ask for confirmation", group="how")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
        check_ranges(self)
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(f"--name {self.name}: must be lower-case letters, digits and hyphens, a letter first")
        if self.yes and not self.go:
            raise ValueError("--yes: answers the question of --go; give both or neither")


def training_flags(training: list[str], container: bool = False, check: bool = True) -> list[str]:
    """The flags of a training command, with `--resume_from auto` unless they have one.

    check: parse them here, before anything is created. container: files must have addresses, because a container does
    not see this machine. Raises ValueError with one line.
    """
    names = [arg.partition("=")[0] for arg in training]
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
                f"--{name} {path}: is on this machine; "
                f"gcloud storage cp {path} gs://BUCKET/, and give the gs:// address"
            )
    return flags
