"""What is published: an sdist with everything, a wheel that gives `mot` and trains, a CI file that does what .ci/run does."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> Path:
    """The folder of `python -m build`, which built a copy: setuptools leaves things in the source."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("dist")
    skipped = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

    def ignored(folder: str, names: list[str]) -> set[str]:  # mot/data is ours, data/ at the root is not
        return skipped(folder, names) | ({"outputs", "data"} & set(names) if Path(folder) == root else set())

    shutil.copytree(root, source, ignore=ignored)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_the_sdist_is_the_project_and_the_wheel_is_the_package(built, root):
    assert sorted(p.name for p in built.iterdir()) == [
        "mixture_of_thoughts-0.1.0-py3-none-any.whl",
        "mixture_of_thoughts-0.1.0.tar.gz",
    ]
    with tarfile.open(built / "mixture_of_thoughts-0.1.0.tar.gz") as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    doors = {path.name for path in root.glob("*.py")}
    assert {"train_mot.py", "train_lora_mot.py", "evaluate_diversity.py"} <= doors
    assert doors | {"README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "Dockerfile.train"} <= inside
    for folder in ("mot", "tests", "docs", "configs", "bench", "notebooks"):
        files = {
            p.relative_to(root).as_posix()
            for p in (root / folder).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        assert files <= inside, folder
    with zipfile.ZipFile(built / "mixture_of_thoughts-0.1.0-py3-none-any.whl") as file:
        inside = set(file.namelist())
    package = {
        p.relative_to(root).as_posix() for p in (root / "mot").rglob("*") if p.suffix in (".py", ".yaml", ".html")
    }
    assert package <= inside
    assert not [name for name in inside if not name.startswith(("mot/", "mixture_of_thoughts-0.1.0.dist-info/"))]
    assert "mixture_of_thoughts-0.1.0.dist-info/licenses/LICENSE" in inside


def test_the_wheel_in_an_empty_environment_gives_mot_and_trains(built, tmp_path, text_file):
    """Its dependencies are those that are here: they come behind the wheel's own packages."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, built / "mixture_of_thoughts-0.1.0-py3-none-any.whl"], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*words) -> str:
        done = subprocess.run([*map(str, words)], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(python, "-c", "import mot; print(mot.__file__)").startswith(str(packages))
    small = (
        "--vocab_size 100 --hidden_size 32 --num_layers 1 --num_thoughts 4 --seq_length 32 --batch_size 8 --max_steps 5"
    )
    out = run(environment / "bin" / "mot", "train", "--train_file", text_file, *small.split(), "--output_dir", "run")
    assert "5" in out
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "l4" in run(environment / "bin" / "mot", "cost")
    version = re.search(r"mixture-of-thoughts 0\.1\.0", (tmp_path / "run" / "README.md").read_text())
    assert version


def test_ci_does_what_the_file_for_it_does(root):
    (job,) = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(root / ".ci" / "run", os.X_OK)


def test_what_setup_installs_is_pinned(root):
    import importlib.metadata
    import tomllib

    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (root / "constraints.txt").read_text().splitlines()[1:]
    }
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.match(r"[\w-]+", need)[0] for needs in extras.values() for need in needs} - {"mixture-of-thoughts"}
    assert wanted <= pinned
    for name in wanted:
        importlib.metadata.version(name)
