"""What the speed benches share: the device, waiting for it, its description. No command of its own.

print(json.dumps({"bench": "think p5", **described(), **figures}))
"""

import platform
import re
import sys
from pathlib import Path

import torch
import transformers
from runs import ROOT  # noqa: F401  (this directory's mot, not the installed one)

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def synchronise() -> None:
    """Wait until the device has finished its work."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def described() -> dict[str, str]:
    """{"device", "torch", "transformers"}: a processor with its threads, and versions."""
    device = f"{_processor()}, {torch.get_num_threads()} threads"
    if DEVICE.type == "cuda":
        device = torch.cuda.get_device_name()
    return {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}


def _processor() -> str:
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return names[0] if names else platform.processor()
