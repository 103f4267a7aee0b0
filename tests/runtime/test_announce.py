"""Long work says what it does; short work says nothing; the cache needs a home."""

import os
import subprocess
import sys
import time

import pytest

from mot.runtime import announce
from mot.runtime.announce import announced


def test_only_long_work_is_announced(capsys, monkeypatch):
    monkeypatch.setattr(announce, "PATIENCE", 0.1)
    with announced("short work"):
        pass
    with announced("long work"):
        time.sleep(0.5)
    time.sleep(0.2)
    assert capsys.readouterr().err == "long work ...\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_without_a_home_directory_the_cache_is_asked_for():
    code = "from mot.runtime.files import cache_dir; cache_dir()"
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "MOT_CACHE")}
    paths = os.pathsep.join(p for p in sys.path if p)
    become = f"import os, sys; sys.path[:0] = {paths!r}.split(os.pathsep); import mot.runtime.files; os.setuid(54321)\n"
    run = subprocess.run([sys.executable, "-c", become + code], env=env, capture_output=True, text=True)
    assert "ValueError: MOT_CACHE ~/.cache/mixture-of-thoughts: no home directory; set MOT_CACHE or HOME" in run.stderr
