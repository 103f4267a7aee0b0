"""What other programs open: adapters merged into a whole model, and the command that makes a GGUF of one.

merge("outputs/adapter", "outputs/merged")    # plain transformers, vLLM, llama.cpp's converter: no peft, no mot
gguf_command("outputs/merged", "f16")         # python convert_hf_to_gguf.py ...
"""

import json
import shlex
from pathlib import Path

from mot.model.adapters import ADAPTER, open_adapter
from mot.runtime.files import publish


def merge(adapter: str, output_dir: str) -> None:
    """Write the base of `adapter` with the adapters in its weights, the tokenizer, and `config.mot`, to a new directory.

    Raises ValueError for what is no adapter, and for a directory that holds something.
    """
    where, there = f"--model {adapter}", Path(output_dir)
    if not Path(adapter, ADAPTER).is_file():
        what = (
            "is a whole model already"
            if Path(adapter, "config.json").is_file()
            else "holds no adapter (no adapter_config.json)"
        )
        raise ValueError(f"{where}: {what}; --merge is for what train_lora_mot.py wrote")
    if there.exists() and not (there.is_dir() and not any(there.iterdir())):
        raise ValueError(f"--output_dir {output_dir}: is there already; give a new directory")
    model, tokenizer = open_adapter(adapter, quantised=False)
    merged = model.merge_and_unload()
    partial = there / ".partial"
    try:
        partial.mkdir(parents=True)
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        publish(partial, there)
    except OSError as e:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another directory"
        ) from None


def gguf_command(model: str, outtype: str, output_dir: str | None = None) -> str:
    """The command of llama.cpp's converter for a whole model. Raises ValueError for what it would refuse."""
    where = f"--model {model}"
    if Path(model, ADAPTER).is_file():
        raise ValueError(
            f"{where}: is an adapter; first mot export --model {shlex.quote(model)} --merge --output_dir MERGED, then --model MERGED --gguf"
        )
    if not Path(model, "config.json").is_file() or not Path(model, "tokenizer.json").is_file():
        raise ValueError(f"{where}: holds no whole model; give the --output_dir of a finished run, or of --merge")
    if json.loads(Path(model, "tokenizer.json").read_text())["model"]["type"] == "WordLevel":
        raise ValueError(
            f"{where}: its tokens are characters, for which GGUF has no tokenizer; train with --vocab_size 257 or more"
        )
    name = Path(model).resolve().name
    outfile = Path(output_dir or model) / f"{name}-{outtype}.gguf"
    return shlex.join(["python", "convert_hf_to_gguf.py", model, "--outfile", str(outfile), "--outtype", outtype])
