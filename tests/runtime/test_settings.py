"""Settings and doors start without torch, so that --help and a mistyped flag answer at once."""

import subprocess
import sys
from pathlib import Path

import pytest

import mot

MOT = Path(mot.__file__).parent
LIGHT = ["mot.cli", *sorted(f"mot.{file.parent.name}.settings" for file in MOT.glob("*/settings.py"))]
WITHOUT_HEAVY = """
import importlib, sys
for name in ("torch", "transformers", "numpy"):
    sys.modules[name] = None  # an import of it raises ImportError
importlib.import_module({name!r})
"""


def started(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_folder_with_settings_is_looked_at():
    assert {"mot.cloud.settings", "mot.data.settings", "mot.serving.settings", "mot.training.settings"} <= {*LIGHT}


@pytest.mark.parametrize("name", LIGHT)
def test_settings_and_doors_are_imported_without_torch_transformers_and_numpy(name):
    done = started(WITHOUT_HEAVY.format(name=name))
    assert done.returncode == 0, done.stderr


def test_the_test_sees_a_heavy_import():
    assert "ModuleNotFoundError" in started(WITHOUT_HEAVY.format(name="mot.model.build")).stderr


@pytest.mark.parametrize(
    "command", ["train", "adapt", "think", "evaluate", "export", "serve", "data", "report", "cost"]
)
def test_help_needs_none_of_them(command):
    code = WITHOUT_HEAVY.format(name="mot.cli") + f"sys.modules['mot.cli'].main([{command!r}, '--help'])"
    done = started(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
