"""Settings with default, unit, range and help, and how a command line becomes them. No torch here.

    @dataclass
    class Settings:
        steps: int = setting(100, "updates", "steps", low=1)
        def validate(self): check_ranges(self)

    parse(Settings, ["--steps", "5"], "mot x", "what it does")     Settings(steps=5)

`parse` builds an argparse parser from the dataclass, without abbreviations. A YAML file (`--config`) gives the values
that the flags leave out. `validate` checks the result.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Mapping
from typing import NoReturn, TypeVar

Settings = TypeVar("Settings")


def setting(default, help, unit="", group="run", low=None, high=None, above=None, endless=False, positional=False):
    """A dataclass field with help text, unit, and range `[low, high]` or `> above`.

    group: heading in the help. endless: inf is allowed. positional: on the command line it has no flag.
    """
    about = {"help": help, "unit": unit, "group": group, "low": low, "high": high, "above": above, "endless": endless}
    about["positional"] = positional
    return dataclasses.field(default=default, metadata=about)


def check_ranges(settings) -> None:
    """Raise ValueError with one line for the first value that is out of its range; None is always allowed."""
    for f in dataclasses.fields(settings):
        value, m = getattr(settings, f.name), f.metadata
        if value is None:
            continue
        # NaN fails every comparison, so it is rejected if there is any bound.
        inside = (
            (m["low"] is None or value >= m["low"])
            and (m["above"] is None or value > m["above"])
            and (m["high"] is None or value <= m["high"])
            and (value != math.inf or m["endless"])
        )
        if not inside:
            raise ValueError(f"--{f.name} {value}: must be {_range(m, finite=value == math.inf)}")


def _range(m: Mapping, finite: bool) -> str:
    bounds = []
    if m["low"] is not None:
        bounds.append(f">= {m['low']}")
    if m["above"] is not None:
        bounds.append(f"> {m['above']}")
    if m["high"] is not None:
        bounds.append(f"<= {m['high']}")
    if finite:
        bounds.append("finite")
    return " and ".join(bounds)


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that names the remedy, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized"):
            words = message.removeprefix("unrecognized arguments: ").split()
            unknown = next((word for word in words if word.startswith("-")), None)
            switch = next((flag for flag in flags if f"--no-{flag[2:]}" in flags and self._gives(flag, words[0])), None)
            if unknown:
                close = _closest(unknown.split("=")[0].lstrip("-"), [flag.lstrip("-") for flag in flags])
                message = f"unknown flag {unknown}" + (f"; did you mean --{close}?" if close else "")
            elif switch:
                message = f"{switch} {words[0]}: takes no value; give {switch} or --no-{switch[2:]}"
        fail(f"{one_line(message, 300)}; {self.prog} --help lists every flag")

    def parse_args(self, args=None, namespace=None):
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def _gives(self, flag: str, word: str) -> bool:
        """Does `word` follow `flag` on the command line?"""
        return (flag, word) in zip(self._words, self._words[1:], strict=False)


# Settings that may name a local file or directory. Not `prompt`: a text may begin with ~.
PATHS = {"train_file", "eval_file", "general_file", "tokenizer", "base_model", "output_dir", "resume_from", "model"}
PATHS |= {"output", "prompts", "text", "tune_prompts", "plain", "judge", "api_key_file", "run"}
# What other trainers call a setting of ours, where spelling alone would not lead to it.
FOREIGN = {
    "learning_rate": "lr",
    "num_epochs": "epochs num_train_epochs",
    "max_steps": "steps iters max_iters",
    "base_model": "model model_name_or_path",
    "train_file": "data dataset dataset_name train_data input",
    "eval_file": "validation_file valid_file test_file",
    "batch_size": "per_device_train_batch_size micro_batch_size bs",
    "save_memory": "gradient_checkpointing activation_checkpointing",
    "seq_length": "block_size max_length max_seq_length context_length cutoff_len",
    "warmup_ratio": "warmup warmup_steps",
    "save_every": "save_steps",
    "eval_every": "eval_steps logging_steps",
    "resume_from": "resume resume_from_checkpoint",
    "output_dir": "out_dir out output save_dir",
    "early_stopping": "patience early_stopping_patience",
    "publish": "load_best_model_at_end",
    "track": "report_to logger",
    "hidden_size": "n_embd d_model dim",
    "num_layers": "n_layer depth",
    "num_heads": "n_head",
    "lora_rank": "r lora_r rank",
    "load_in": "load_in_4bit load_in_8bit",
    "max_new_tokens": "max_tokens",
}


def _closest(name: str, known: list[str]) -> str | None:
    """The known name that a wrong one most likely means: another trainer's name, a beginning, or a near spelling."""
    name = name.replace("-", "_").lower()
    known = [k for k in known if k not in ("help", "h")]
    for ours in known:
        if name in FOREIGN.get(ours, "").split():
            return ours
    if name in known:
        return name
    begins = [k for k in known if name and k.startswith(name)]
    near = begins or difflib.get_close_matches(name, known, n=1)
    return near[0] if near else None


def one_line(error: BaseException | str, longest: int = 160) -> str:
    """Return the text of an error in one line, cut to `longest` characters."""
    return " ".join(str(error).split())[:longest]


def fail(message: str) -> NoReturn:
    """Print one line for a user's mistake and exit with code 2."""
    print(f"error: {one_line(message, len(message))}", file=sys.stderr)
    raise SystemExit(2)


def parse(cls: type[Settings], argv: list[str] | None, prog: str, description: str) -> Settings:
    """Settings from flags, then from `--config FILE.yaml`, then from defaults. Raises ValueError."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups = {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for f in fields.values():
        group = groups.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        default = ""
        if f.default is not None and f.default is not False:
            default = f" [{f.default} {f.metadata['unit']}".rstrip() + "]"
        if _type(f) is bool:
            group.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=f.metadata["help"])
        elif f.metadata["positional"]:
            group.add_argument(f.name, nargs="?", metavar=f.name.upper(), help=f.metadata["help"])
        else:
            group.add_argument(
                f"--{f.name}", type=_type(f), metavar=_type(f).__name__.upper(), help=f.metadata["help"] + default
            )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="read settings from a file, by these names; flags override it"
    )
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config", None)
    values = (_read_yaml(os.path.expanduser(path), fields) if path else {}) | flags
    for name, value in values.items():  # a shell leaves the ~ of --flag=~/x alone, and YAML every ~
        if name in PATHS and isinstance(value, str):
            values[name] = os.path.expanduser(value)
    settings = cls(**values)
    for name in fields:
        if isinstance(value := getattr(settings, name), str):
            _check_characters(name, value)
    settings.validate()
    return settings


def _check_characters(name: str, value: str) -> None:
    """Raise ValueError for a text that no file can hold: a byte that is not UTF-8, or a zero byte."""
    if wrong := next((c for c in value if "\ud800" <= c <= "\udfff" or c == "\0"), None):
        shown = ascii(value)[1:-1][:100]
        reason = "a zero byte" if wrong == "\0" else "a byte that is not UTF-8"
        raise ValueError(f"--{name} {shown}: has {reason} (character {value.index(wrong) + 1}); give UTF-8 text")


def _type(f: dataclasses.Field) -> type:
    return next(
        t
        for t in (bool, int, float, str)
        if t.__name__ in str(f.type if isinstance(f.type, str) else getattr(f.type, "__name__", f.type))
    )


def _read_yaml(path: str, fields: dict) -> dict:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except RecursionError:
        raise ValueError(f"--config {path}: brackets are nested too deeply; give lines of `name: value`") from None
    except (OSError, ValueError, yaml.YAMLError) as e:  # ValueError: not UTF-8, or no such date or number
        raise ValueError(f"--config {path}: {one_line(e, 300)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must be lines of `name: value`")
    for name, value in values.items():
        if name not in fields:
            close = _closest(str(name), list(fields))
            raise ValueError(f"--config {path}: unknown name {name!r}" + (f"; did you mean {close}?" if close else ""))
        kind = _type(fields[name])
        if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                values[name] = value = float(value)  # YAML 1.1 reads 1e-3 as a string
        if value is None and fields[name].default is not None:
            raise ValueError(f"--config {path}: {name}: has no value; give one or leave the line out")
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ValueError(f"--config {path}: {name}: {value!r} is not {kind.__name__}")
    return values
