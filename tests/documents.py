"""The pages of this repository and the commands, links and code blocks in them. Used by law 9 and the tests of pages.

fences("bash")   # the text of every bash block
commands()       # every command line of every bash block, once, without its comment
"""

import re
from pathlib import Path

from mot.data.settings import DownloadSettings
from mot.evaluation.settings import EvaluateSettings
from mot.inference.settings import ExportSettings, ThinkSettings
from mot.serving.settings import ServeSettings
from mot.training.costs import CostSettings
from mot.training.settings import AdaptSettings, ReportSettings, TrainSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")  # of this repository: (path, heading)
PARSED = {
    "train_mot.py": TrainSettings,
    "mot train": TrainSettings,
    "train_lora_mot.py": AdaptSettings,
    "mot adapt": AdaptSettings,
    "mot think": ThinkSettings,
    "mot evaluate": EvaluateSettings,
    "mot export": ExportSettings,
    "mot data": DownloadSettings,
    "mot report": ReportSettings,
    "mot cost": CostSettings,
    "mot serve": ServeSettings,
}


def fences(language: str, pages: list[Path] = PAGES) -> list[str]:
    return [body for page in pages for kind, body in FENCE.findall(page.read_text()) if kind == language]


def commands() -> list[str]:
    lines = "\n".join(fences("bash")).replace("\\\n", " ").splitlines()
    found = [command for line in lines if (command := line.split("  #")[0].strip()) and not command.startswith("#")]
    return list(dict.fromkeys(found))  # some stand on two pages
