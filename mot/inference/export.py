"""Export for other programs: adapters merged into a whole model, and the command that makes a GGUF file of one.

merge("outputs/adapter", "outputs/merged")    # opens in plain transformers, vLLM, llama.cpp's converter
gguf_command("outputs/merged", "f16")         # python convert_hf_to_gguf.py ...
"""

import json
import os
import shlex
import shutil
from pathlib import Path

from mot.model.adapters import ADAPTER, open_adapter
from mot.runtime.files import publish
from mot.runtime.lock import NAME as LOCK
from mot.runtime.lock import exclusive


def merge(adapter: str, output_dir: str) -> None:
    """Write the base of `adapter` with the adapters added to its weights, the tokenizer and `config.mot`.

    `output_dir` must be new or empty. Raises ValueError if it is not, if it cannot be written, and if `adapter` is no
    adapter.
    """
    where, target = f"--model {adapter}", Path(output_dir)
    if not Path(adapter, ADAPTER).is_file():
        whole = Path(adapter, "config.json").is_file()
        found = "is a whole model already" if whole else f"holds no adapter (no {ADAPTER})"
        raise ValueError(f"{where}: {found}; --merge is for what train_lora_mot.py wrote")
    partial = target / ".partial"
    if os.path.islink(target) and not os.path.exists(target):
        raise ValueError(f"--output_dir {output_dir}: is a link to what is not there; give a new directory")
    if os.path.exists(target) and not (target.is_dir() and {*target.iterdir()} <= {partial, target / LOCK}):
        raise ValueError(f"--output_dir {output_dir}: is there already; give a new directory")
    with exclusive(target, f"--output_dir {output_dir}"):
        shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
        model, tokenizer = open_adapter(adapter, quantised=False)
        merged = model.merge_and_unload()
        try:
            partial.mkdir(parents=True)
            merged.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            publish(partial, target)
        except OSError as e:
            raise ValueError(
                f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another directory"
            ) from None


def gguf_command(model: str, outtype: str, output_dir: str | None = None) -> str:
    """The shell command of llama.cpp's converter for a whole model; `outtype` is one of the converter's types.

    Raises ValueError for a model that the converter would reject.
    """
    where = f"--model {model}"
    if Path(model, ADAPTER).is_file():
        merge_first = f"mot export --model {shlex.quote(model)} --merge --output_dir MERGED"
        raise ValueError(f"{where}: is an adapter; first {merge_first}, then --model MERGED --gguf")
    if not Path(model, "config.json").is_file() or not Path(model, "tokenizer.json").is_file():
        raise ValueError(f"{where}: holds no whole model; give the --output_dir of a finished run, or of --merge")
    if json.loads(Path(model, "tokenizer.json").read_text())["model"]["type"] == "WordLevel":
        raise ValueError(
            f"{where}: its tokens are characters, for which GGUF has no tokenizer; train with --vocab_size 257 or more"
        )
    name = Path(model).resolve().name
    outfile = Path(output_dir or model) / f"{name}-{outtype}.gguf"
    return shlex.join(["python", "convert_hf_to_gguf.py", model, "--outfile", str(outfile), "--outtype", outtype])
