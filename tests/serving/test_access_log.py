"""The log is one JSON object per line, whoever writes to it."""

import json
import subprocess
import sys

SCRIPT = """
import logging
import warnings
from mot.serving.access_log import log_as_json

log_as_json()
warnings.warn("old name", FutureWarning, stacklevel=1)
logging.getLogger("mot.serving").info("request", extra={"facts": {"n": 8}})
logging.getLogger("uvicorn.error").info("not shown")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("mot.serving").exception("failed")
"""


def test_every_line_of_the_log_is_json(root):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    warning, request, failed = map(json.loads, done.stderr.splitlines())
    assert warning["level"] == "warning"
    assert "FutureWarning: old name" in warning["event"]
    assert (request["event"], request["n"]) == ("request", 8)
    assert "ZeroDivisionError" in failed["traceback"]
