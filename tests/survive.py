"""Training runs in processes of their own, which a test can stop in the middle of a named phase.

    run = start(["--train_file", ...], pause="evaluation", at=8)   # the child reports the phase and waits a moment
    run.wait_for_phase(); run.kill(signal.SIGTERM); run.exitcode()
    complete(short_run(text_file) + ["--output_dir", ...])         # 12 steps to the end

The children come from a fork server that has imported everything once, so a run starts in a fraction of a second.
A pause delays the entry into a real phase of a real run and changes nothing else in it.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

PHASES = ("tokenising", "first step", "training", "accumulation", "evaluation", "saving", "upload")
PAUSE = 0.7  # seconds
BUCKET = ("STORAGE_EMULATOR_HOST", "FSSPEC_GS", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
ENVIRONMENT = (*BUCKET, "MOT_CACHE", "HF_HUB_OFFLINE")
LOGS = tempfile.TemporaryDirectory(prefix="mot-runs-")

STEPS = 12
# 2,000 characters make 56 windows of 32: an epoch is 7 batches of 8, or 3.5 updates of two.
SHAPE = "--vocab_size 100 --hidden_size 32 --num_layers 1 --num_thoughts 4 --seq_length 32 --batch_size 8"
OFTEN = f"--max_steps {STEPS} --dropout 0.1 --eval_rows 8 --eval_every 4 --save_every 4 --save_total_limit 99"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["mot.training.run", "mot.training.report", "mot.evaluation.answers", "rich.console", "matplotlib.figure"]
)


class Run:
    """A training process. `phase` is readable once the process has reached the phase in which it pauses."""

    def __init__(self, argv: list[str], pause: str | None, at: int, drop_rng: bool, world: tuple[int, int, int]):
        self.log = Path(LOGS.name) / f"{time.monotonic_ns()}.log"
        self.phase, theirs = _context.Pipe(duplex=False)
        where = (
            {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            os.getcwd(),
        )  # not the fork server's
        self.process = _context.Process(
            target=_child, args=(argv, pause, at, drop_rng, world, theirs, str(self.log), where)
        )
        self.process.start()
        theirs.close()

    def wait_for_phase(self) -> None:
        assert self.phase.poll(60), self.log.read_text()
        assert self.phase.recv() == "there"

    def kill(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    def exitcode(self, within: float = 120) -> int:
        """The exit code; -s after signal s killed the process."""
        self.process.join(within)
        assert self.process.exitcode is not None, f"still running after {within} s: {self.log.read_text()}"
        return self.process.exitcode


def start(
    argv: list[str],
    pause: str | None = None,
    at: int = 0,
    drop_rng: bool = False,
    world: tuple[int, int, int] = (0, 1, 0),
) -> Run:
    """Train, or adapt a `--base_model`, with these flags in a process of its own; `world`: (rank, processes, port)."""
    return Run([str(word) for word in argv], pause, at, drop_rng, world)


def complete(argv: list[str]) -> None:
    """Train to the end."""
    run = start(argv)
    assert run.exitcode() == 0, run.log.read_text()


def two_processes(argv: list, **how) -> list[Run]:
    """The same training command in two processes that share the work."""
    port = free_port()
    return [start(argv, world=(rank, 2, port), **how) for rank in (0, 1)]


def stop_in(phase: str, at: int, signum: int, argv: list, second: bool = False) -> tuple[int, float]:
    """Send a signal while a run is in the phase; (exit code, seconds from the last signal to the end)."""
    run = start(argv, pause=phase, at=at)
    run.wait_for_phase()
    time.sleep(0.05)
    begin = time.monotonic()
    run.kill(signum)
    if second:
        time.sleep(0.05)
        begin = time.monotonic()
        run.kill(signum)
    return run.exitcode(), time.monotonic() - begin


def short_run(text_file: Path, accumulate: int = 2) -> list[str]:
    """Flags of a run of 12 steps with dropout. Its losses compare thoughts from step 8 on."""
    return [
        *SHAPE.split(),
        *OFTEN.split(),
        "--train_file",
        str(text_file),
        "--gradient_accumulation_steps",
        str(accumulate),
    ]


def cut_and_resumed(flags: list, directory: Path, steps: tuple[int, ...], phase: str = "training") -> Path:
    """`directory`, in which a run was stopped by SIGTERM in each of the steps, and then resumed to its end."""
    from mot.training.checkpoint import newest

    argv = [*flags, "--output_dir", directory, "--resume_from", "auto"]
    for step in steps:
        assert stop_in(phase, step, signal.SIGTERM, argv)[0] == 143
        assert newest(str(directory))[1]["step"] == step + 1
    complete(argv)
    return directory


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def last_state(run: Path) -> str:
    """The digest of the last checkpoint of a short run."""
    return state_digest(run / f"checkpoint-{STEPS}")


def state_digest(checkpoint: Path) -> str:
    """sha256 over parameters, optimizer, schedule and random states of a checkpoint."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    (weights,) = checkpoint.glob("*.safetensors")
    digest = hashlib.sha256(weights.read_bytes())

    def feed(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                feed(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                feed(item)
        else:
            digest.update(repr(value).encode())

    with safe_globals():
        for file in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
            feed(torch.load(file, weights_only=True))
    feed(json.loads((checkpoint / "watch.json").read_text()))
    return digest.hexdigest()


def _child(
    argv: list[str], pause: str | None, at: int, drop_rng: bool, world: tuple[int, int, int], pipe, log: str, where
):
    environment, directory = where
    os.environ |= environment
    os.chdir(directory)
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    rank, processes, port = world
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    import torch

    torch.set_num_threads(1)
    from mot import cli
    from mot.data import encode
    from mot.runtime import remote
    from mot.training import callbacks, em, evaluate

    owner, name, when = {
        "tokenising": (encode, "encode", lambda *args: True),
        "first step": (em.MixtureTrainer, "compute_loss", lambda *args: True),
        "training": (
            callbacks.SpikeGuard,
            "on_pre_optimizer_step",
            lambda self, args, state, *_: state.global_step == at,
        ),
        "accumulation": (em.MixtureTrainer, "compute_loss", lambda self, *_: self.state.global_step == at),
        "evaluation": (evaluate, "score", lambda *args: True),
        "saving": (em.MixtureTrainer, "save_model", lambda self, *_: self.state.global_step == at),
        "stuck": (em.MixtureTrainer, "compute_loss", lambda self, *_: self.state.global_step == at),
        "upload": (remote.Mirror, "upload", lambda *args: True),
    }.get(pause, (None, None, None))
    if owner:
        original, paused = getattr(owner, name), []

        def slow(*args, **kwargs):
            if not paused and when(*args):
                paused.append(True)
                pipe.send("there")
                end = time.monotonic() + (60 if pause == "stuck" else PAUSE)
                while (left := end - time.monotonic()) > 0:
                    time.sleep(left)
            return original(*args, **kwargs)

        setattr(owner, name, slow)
    if drop_rng:
        batches, state = em.MixtureTrainer.get_batch_samples, [1]

        def from_another_state(*args):
            if state:
                torch.manual_seed(state.pop())
            return batches(*args)

        em.MixtureTrainer.get_batch_samples = from_another_state
    name, command = ("train_lora_mot.py", cli.adapt) if "--base_model" in argv else ("train_mot.py", cli.train)
    sys.argv = [name, *argv]
    cli.run(command, argv, prog=name)
