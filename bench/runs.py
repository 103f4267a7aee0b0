"""Training runs for the benches: none twice, two at a time, one thread each. Imported by them; no command of its own.

directory = train_once(Path("outputs/bench/one"), "--task forks --max_steps 100".split()).result()
"""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bench in a git worktree measures that worktree's mot, not the installed one
# -P keeps the working directory off the path, or a `mot` in it would come before ROOT's.
COMMAND = [sys.executable, "-P", "-c"]
# A constant is read before it is changed: one that has moved is an error, not a run of something else.
CODE = "import mot.model.adapters, mot.model.build, mot.training.em; {constant}\n{patch}\n"
CODE += "import sys; sys.path.append({bench!r}); import counting; counting.count_runs(); "
CODE += "from mot import cli; cli.run(cli.{command})"
POOL = ThreadPoolExecutor(2)


def train_once(directory: Path, flags: list[str], patch: str = "", command: str = "train") -> Future[Path]:
    """Train into `directory` unless a finished run is there already. Its output is kept in `printed(directory)`.

    `patch`, such as "mot.model.build.WAVELENGTHS = 2", changes one constant of mot.model.adapters, mot.model.build or
    mot.training.em in the run's own process. `command`: train, or adapt for a `--base_model`.
    """
    return POOL.submit(_train, directory, [*flags, "--output_dir", str(directory), "--overwrite"], patch, command)


def printed(directory: Path) -> Path:
    """The file beside a run's directory that holds its standard output."""
    return directory.with_name(f"{directory.name}.txt")


def _train(directory: Path, flags: list[str], patch: str, command: str) -> Path:
    if not any(directory.glob("*.safetensors")):
        directory.parent.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        code = CODE.format(bench=str(ROOT / "bench"), constant=patch.partition(" = ")[0], patch=patch, command=command)
        with printed(directory).open("w") as out:
            subprocess.run([*COMMAND, code, *flags], check=True, env=env, stdout=out)
    return directory
