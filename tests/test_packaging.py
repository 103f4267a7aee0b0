"""What is published: an sdist with everything, a wheel that gives `mot` and trains, declared, pinned dependencies."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> Path:
    """The output folder of `python -m build`, run on a copy because setuptools leaves files in the source."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("dist")
    skipped = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

    def ignored(folder: str, names: list[str]) -> set[str]:  # mot/data is ours, data/ at the root is not
        return skipped(folder, names) | ({"outputs", "data"} & set(names) if Path(folder) == root else set())

    shutil.copytree(root, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
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
    """Its dependencies are those of this environment, on the path behind the wheel's own packages."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*pip, built / "mixture_of_thoughts-0.1.0-py3-none-any.whl"], env=clean, check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

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


# Dependencies ---------------------------------------------------------------------------------------------------------

# The extras that a folder of mot/ may import from, beside the base.
EXTRAS = {
    "runtime": {"remote", "data"},
    "data": {"data"},
    "tasks": {"isomers"},
    "model": {"lora"},
    "training": {"wandb", "tensorboard", "trackio"},
    "evaluation": {"evaluate"},
    "serving": {"serve"},
}
BY_HAND = {"google": "pip install google-cloud-aiplatform"}  # in no extra: the error message names the command


def normalised(need: str) -> str:
    """The name of a requirement, as pip compares names."""
    return re.match(r"[\w.-]+", need)[0].lower().replace("_", "-")


def declared(root: Path) -> dict[str, set[str]]:
    """Names of the packages that each extra requires; the base is ""."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needs = {"": project["dependencies"]} | project["optional-dependencies"]
    return {extra: {normalised(need) for need in names} - {project["name"]} for extra, names in needs.items()}


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a file imports anywhere in it, without the standard library and mot."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"mot"}


def undeclared(file: str, source: str, needs: dict[str, set[str]]) -> set[str]:
    """What a file of mot/, named relative to it, imports and neither the base nor an extra of its folder declares."""
    distributions = importlib.metadata.packages_distributions()
    allowed = set(needs[""]).union(*(needs[extra] for extra in EXTRAS.get(file.partition("/")[0], ())))
    return {
        name
        for name in imported(source)
        if name not in BY_HAND and not {normalised(d) for d in distributions.get(name, [name])} & allowed
    }


def test_every_import_is_declared_by_the_base_or_by_its_extra(root):
    needs, files = declared(root), sorted((root / "mot").rglob("*.py"))
    assert len(files) > 40
    wrong = {}
    for path in files:
        file, source = path.relative_to(root / "mot").as_posix(), path.read_text()
        if names := undeclared(file, source, needs):
            wrong[file] = names
    assert wrong == {}
    everything = "".join(path.read_text() for path in files)
    for command in BY_HAND.values():
        assert command in everything


def test_an_undeclared_import_is_found(root):
    """The negative control: what `mot serve --engine vllm` once did, and an extra imported from the wrong folder."""
    needs = declared(root)
    assert undeclared("serving/vllm_engine.py", "def f():\n    import httpx\n", needs) == set()
    without = needs | {"serve": needs["serve"] - {"httpx"}}
    assert undeclared("serving/vllm_engine.py", "def f():\n    import httpx\n", without) == {"httpx"}
    assert undeclared("training/run.py", "from fastapi.sse import x\n", needs) == {"fastapi"}
    assert undeclared("training/run.py", "import no_such_package\nfrom . import y\nimport os.path\n", needs) == {
        "no_such_package"
    }


def test_a_missing_package_of_serving_is_one_line(root, capsys, monkeypatch):
    from mot import cli
    from mot.serving.server import PACKAGES

    distributions = importlib.metadata.packages_distributions()
    assert {normalised(distributions[name][0]) for name in PACKAGES} == declared(root)["serve"]
    for names in (("httpx",), PACKAGES):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setitem(sys.modules, name, None)
            with pytest.raises(SystemExit) as e:
                cli.main(["serve", "--model", "outputs/run"])
        assert e.value.code == 2
        said = capsys.readouterr().err
        assert said == f"error: mot serve: needs {', '.join(names)}; pip install 'mixture-of-thoughts[serve]'\n"


def test_packages_whose_internals_we_use_have_an_upper_bound(root):
    text = (root / "pyproject.toml").read_text()
    for name in ("torch", "transformers", "uvicorn"):
        minor = [int(part) for part in importlib.metadata.version(name).split(".")[:2]]
        assert re.search(rf'"{name}>=[\d.]+,<{minor[0]}\.{minor[1] + 1}"', text), name  # the installed minor is tested


def test_what_setup_installs_is_pinned(root):
    lines = (root / "constraints.txt").read_text().splitlines()[1:]
    pinned = {normalised(line) for line in lines}
    wanted = set().union(*declared(root).values())
    assert wanted <= pinned
    for name in wanted:
        importlib.metadata.version(name)


def test_the_newest_releases_are_tried_without_upper_bounds(root):
    script = [sys.executable, root / "tests" / "newest_requirements.py"]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    assert {normalised(line) for line in lines} == set().union(*declared(root).values())
    assert {"torch>=2.9", "uvicorn>=0.40", "pyarrow>=20"} <= set(lines)
    assert not [line for line in lines if "<" in line]
