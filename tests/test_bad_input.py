"""Bad input gives one line that names the flag and the value, exit code 2, and nothing is written.

Every case goes through the real parser and the real command. The other flags are those of a good run.
"""

import contextlib
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from mot import cli
from mot.inference.settings import ThinkSettings
from mot.training.settings import TrainSettings

SMALL = shlex.split("--hidden_size 32 --num_layers 1 --num_thoughts 4 --vocab_size 100 --seq_length 32 --max_steps 2")


pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def train_refused(refused):
    """`refused` for a training run with small settings into `run`. `argv` comes last, so it wins."""

    def run(argv, *names: str) -> str:
        return refused(cli.train, [*SMALL, "--output_dir", "run", *argv], *names)

    return run


@pytest.fixture
def think_refused(refused):
    def run(argv, *names: str) -> str:
        return refused(cli.think, argv, *names)

    return run


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.jsonl", ".", "x" * 300])
def test_missing_file(train_refused, name):
    train_refused(["--train_file", name], "--train_file", name, "no such file")


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
@pytest.mark.parametrize(
    ("content", "ways"),
    [
        pytest.param(b"", ["empty"], id="nothing"),
        pytest.param(b" \n\n", ["empty"], id="white space"),
        pytest.param(b"\x7fELF\x02\x00\x00" * 99, ["binary"], id="binary"),
        pytest.param(("blah " * 99 + "café").encode("latin1"), ["UTF-8", "byte 498"], id="not UTF-8"),
    ],
)
def test_file_without_text(train_refused, name, content, ways):
    train_refused(["--train_file", write(name, content)], "--train_file", name, *ways)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, ["--eval_file", "held.txt", "no such file"]),
        ("", ["--eval_file", "held.txt", "empty"]),
        (b"\xff" * 9, ["--eval_file", "held.txt", "UTF-8"]),
        ("the king é " * 9, ["--eval_file", "é"]),  # é: a character that train_file lacks
        ("the king", ["--seq_length 32", "eval_file", "8 tokens"]),
    ],
    ids=["missing", "empty", "not UTF-8", "unknown character", "shorter than seq_length"],
)
def test_bad_eval_file(train_refused, text_file, content, names):
    if content is not None:
        write("held.txt", content)
    train_refused(["--train_file", text_file, "--eval_file", "held.txt"], *names)


def test_text_shorter_than_seq_length(train_refused):
    write("data.txt", "to be or not to be")
    train_refused(["--train_file", "data.txt"], "--seq_length 32", "train_file", "tokens")


def test_held_out_tenth_shorter_than_seq_length(train_refused, text_file):
    train_refused(["--train_file", text_file, "--seq_length", 512], "--seq_length 512", "200 tokens")


def test_more_characters_than_vocab_size(train_refused, text_file):
    distinct = len(set(text_file.read_text()))
    line = train_refused(["--train_file", text_file, "--vocab_size", 5], "--vocab_size 5", f"{distinct} distinct")
    assert f"--vocab_size {distinct}" in line.removeprefix("error: --vocab_size 5")  # what to give instead


def test_unknown_tokenizer(train_refused, text_file):
    Path("empty").mkdir()
    train_refused(["--train_file", text_file, "--tokenizer", "empty"], "--tokenizer", "empty")


@pytest.mark.parametrize("flag", ["--train_file", "--output_dir", "--run_name", "--tokenizer", "--resume_from"])
@pytest.mark.parametrize("value", ["a\udcffb", "a\0b"], ids=["broken byte", "zero byte"])
def test_a_text_that_no_file_can_hold(train_refused, text_file, flag, value):
    given = [] if flag == "--train_file" else ["--train_file", text_file]
    train_refused([*given, flag, value], flag, "character 2")


@pytest.mark.parametrize("value", ["a\udcffb", "a\0b"], ids=["broken byte", "zero byte"])
def test_a_prompt_that_is_no_text(think_refused, value):
    think_refused(["--model", "run", "--prompt", value], "--prompt", "character 2")


@pytest.mark.parametrize("content", ["a: " + "[" * 100_000, "max_steps: " + "9" * 5000, "train_file: 2024-99-99"])
def test_a_config_that_yaml_cannot_hold(train_refused, content):
    train_refused(["--config", write("c.yaml", content)], "--config c.yaml")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--vocab_size", 10**9), ("--hidden_size", 10**18), ("--num_workers", 10**9), ("--max_steps", "9" * 5000)],
)
def test_numbers_that_nothing_can_hold(train_refused, text_file, flag, value):
    assert len(train_refused(["--train_file", text_file, flag, value], flag)) < 500


def test_a_file_that_cannot_be_read(train_refused):
    train_refused(["--train_file", "/proc/self/mem"], "--train_file", "/proc/self/mem", "cannot be read")
    Path("link.txt").symlink_to("nowhere")
    train_refused(["--train_file", "link.txt"], "--train_file", "link.txt", "broken link")


def test_an_unknown_choice_for_long_rows(train_refused, text_file):
    train_refused(["--train_file", text_file, "--too_long", "foo"], "--too_long foo", "cut, skip, refuse")


# Rows ---------------------------------------------------------------------------------------------------------------

GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("bad", "way"),
    [
        ('{"completion": "b"}', "`prompt`"),
        ('{"prompt": "a"}', "`completion`"),
        ('{"prompt": "a", "completion": 7}', "`completion`"),
        ('{"prompt": null, "completion": "b"}', "`prompt`"),
        ('["a", "b"]', "`prompt`"),
        ('"a"', "`prompt`"),
        ('{"prompt": "a", "completion": ""}', "empty `completion`"),
        ('{"prompt": "a", "compl', "not JSON"),
        ("a,b", "not JSON"),
    ],
)
@pytest.mark.parametrize("flag", ["--train_file", "--eval_file"])
def test_bad_row_is_named_by_its_line(train_refused, rows_file, flag, bad, way):
    write("bad.jsonl", GOOD + "\n" + GOOD + bad + "\n" + GOOD)
    good = [] if flag == "--train_file" else ["--train_file", rows_file]
    train_refused([*good, flag, "bad.jsonl"], flag, "bad.jsonl", "line 4 ", way)


def test_half_of_a_surrogate_pair(train_refused):
    write("bad.jsonl", GOOD * 2 + r'{"prompt": "a", "completion": "\ud800"}' + "\n" + GOOD * 9)
    train_refused(["--train_file", "bad.jsonl"], "--train_file", "bad.jsonl", "line 3 ")


def test_one_row_cannot_be_split(train_refused):
    train_refused(["--train_file", write("one.jsonl", GOOD)], "--train_file", "one.jsonl", "one row")


@pytest.mark.parametrize("before", [2, 19], ids=["to train on", "held out"])
def test_prompt_that_fills_seq_length(train_refused, before):
    long = json.dumps({"prompt": "a" * 40, "completion": "b"}) + "\n"
    write("long.jsonl", GOOD * before + long + GOOD * (19 - before))
    train_refused(["--train_file", "long.jsonl"], "--seq_length 32", f"row {before + 1} ", "40 tokens")


# Numbers and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--hidden_size 33 --num_heads 2", ["--hidden_size 33", "--num_heads 2"]),
        ("--hidden_size 30 --num_heads 10", ["--hidden_size 30", "odd"]),
        ("--num_thoughts 0", ["--num_thoughts 0", ">= 1"]),
        ("--num_thoughts -3", ["--num_thoughts -3", ">= 1"]),
        ("--num_thoughts 1025", ["--num_thoughts 1025", "<= 1024"]),
        ("--num_thoughts two", ["--num_thoughts", "two"]),
        ("--num_thoughts 2.5", ["--num_thoughts", "2.5"]),
        ("--thought_length 2 --num_thoughts 1", ["--thought_length 2", "--num_thoughts 1", "leave"]),
        ("--thought_length 9", ["--thought_length 9", "<= 8"]),
        ("--hidden_size 0", ["--hidden_size 0"]),
        ("--num_layers 0", ["--num_layers 0"]),
        ("--num_heads 0", ["--num_heads 0"]),
        ("--seq_length 1", ["--seq_length 1"]),
        ("--vocab_size 1", ["--vocab_size 1"]),
        ("--batch_size 0", ["--batch_size 0"]),
        ("--gradient_accumulation_steps 0", ["--gradient_accumulation_steps 0"]),
        ("--max_steps 0", ["--max_steps 0"]),
        ("--num_epochs 0", ["--num_epochs 0", "> 0"]),
        ("--learning_rate 0", ["--learning_rate 0", "> 0"]),
        ("--save_every 0", ["--save_every 0"]),
        ("--num_workers -1", ["--num_workers -1"]),
        ("--seed -1", ["--seed -1"]),
        ("--seed 4294967296", ["--seed 4294967296"]),
        ("--thought_dropout 1.5", ["--thought_dropout 1.5", "<= 1"]),
        ("--warmup_ratio 1.5", ["--warmup_ratio 1.5", "<= 1"]),
        ("--fp16 --bf16", ["--fp16", "--bf16"]),
        ("--batch_size", ["--batch_size", "expected one argument"]),
    ],
)
def test_number_out_of_range(train_refused, text_file, flags, names):
    train_refused(["--train_file", text_file, *flags.split()], *names)


def float_flags(settings) -> list[str]:
    return [f.name for f in dataclasses.fields(settings) if "float" in str(f.type)]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-0.5", "much"])
@pytest.mark.parametrize("name", float_flags(TrainSettings))
def test_float_that_is_no_sensible_number(train_refused, text_file, name, value):
    train_refused(["--train_file", text_file, f"--{name}={value}"], f"--{name}", value)


@pytest.mark.parametrize("value", ["nan", "-inf", "-0.5", "much"])
@pytest.mark.parametrize("name", float_flags(ThinkSettings))
def test_float_that_is_no_sensible_number_to_think_with(think_refused, name, value):
    think_refused(["--model", "nowhere", "--prompt", "a", f"--{name}={value}"], f"--{name}", value)


VERIFIER = "def check(prompt, text):\n    return text or None\n"


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--match_steps 1", ["--match_steps 1", "needs --verifier", "FILE.py:FUNCTION"]),
        ("--verifier v.py:check", ["--verifier v.py:check", "give --match_steps"]),
        ("--match_steps 9 --verifier v.py:check", ["--match_steps 9", "--max_steps 2", "give fewer"]),
        ("--match_steps 1 --verifier v.py:check --num_thoughts 1", ["--match_steps 1", "--num_thoughts 1"]),
        ("--match_steps 1 --verifier v.py:check --thought_length 2", ["--match_steps 1", "--thought_length 2"]),
        ("--match_steps 1 --verifier v.py:check --fsdp", ["--match_steps 1", "--fsdp"]),
        ("--match_steps 1 --verifier none.py:check", ["--verifier none.py:check", "no such file none.py"]),
        ("--match_steps 1 --verifier v.py:nothing", ["--verifier v.py:nothing", "has no function nothing"]),
        ("--match_steps 1 --verifier v.py", ["--verifier v.py", "FILE.py:FUNCTION"]),
        (
            "--match_steps 1 --verifier raises.py:check",
            ["--verifier raises.py:check", "ZeroDivisionError", "prompt 'a"],
        ),
        ("--match_steps 1 --verifier never.py:check", ["--verifier never.py:check", "accepts none of the first"]),
        ("--match_steps 1 --verifier slow.py:check", ["--verifier slow.py:check", "longer than 1 s", "prompt 'a"]),
        ("--match_steps 1 --verifier number.py:check", ["--verifier number.py:check", "returned 3", "prompt 'a"]),
        ("--estep_rows 0", ["--estep_rows 0", "> 0"]),
        ("--estep_rows 2", ["--estep_rows 2", "<= 1"]),
        ("--estep_rows 0.5 --num_thoughts 1", ["--estep_rows 0.5", "leave it out"]),
        ("--estep_rows 0.5 --thought_length 2", ["--estep_rows 0.5", "leave it out"]),
        ("--estep_tokens -1", ["--estep_tokens -1", ">= 0"]),
        ("--group_prompts --thought_length 2", ["--group_prompts", "--thought_length"]),
        ("--optimizer sgd", ["--optimizer sgd", "adamw, muon"]),
        ("--optimizer muon --fsdp", ["--optimizer muon", "--fsdp"]),
    ],
)
def test_matching_and_its_neighbours(train_refused, flags, names):
    write("rows.jsonl", "".join(json.dumps({"prompt": f"a{n} ", "completion": f"b{n}"}) + "\n" for n in range(20)))
    write("v.py", VERIFIER)
    write("raises.py", "def check(prompt, text):\n    return 1 / 0\n")
    write("never.py", "def check(prompt, text):\n    return None\n")
    write("slow.py", "import time\n\n\ndef check(prompt, text):\n    time.sleep(5)\n")
    write("number.py", "def check(prompt, text):\n    return 3\n")
    train_refused(["--train_file", "rows.jsonl", *flags.split()], *names)


def test_a_task_without_prompts_has_nothing_to_match(train_refused):
    train_refused(["--task", "circle", "--match_steps", 1], "--match_steps 1", "needs --verifier")


def test_matching_needs_prompts(train_refused, text_file):
    write("v.py", VERIFIER)
    flags = ["--train_file", text_file, "--match_steps", 1, "--verifier", "v.py:check"]
    train_refused(flags, "--match_steps 1", "plain text has no prompts")
    train_refused(["--train_file", text_file, "--group_prompts"], "--group_prompts", "plain text has no prompts")
    train_refused(["--train_file", text_file, "--estep_rows", 0.5], "--estep_rows 0.5", "plain text has another")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so --fp16 is no mistake here")
def test_fp16_without_a_gpu(train_refused, text_file):
    train_refused(["--train_file", text_file, "--fp16"], "--fp16", "GPU")


# Flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--hiden_size", "--hidden_size"),
        ("--learning-rate", "--learning_rate"),
        ("--num_thought", "--num_thoughts"),
        ("--batch", "--batch_size"),
        ("--train", "--train_file"),
        ("--output", "--output_dir"),
    ],
)
@pytest.mark.parametrize("joint", [" ", "="])
def test_unknown_flags_and_abbreviations_are_refused_with_a_suggestion(train_refused, text_file, flag, meant, joint):
    given = f"{flag}{joint}4".split()
    line = train_refused(["--train_file", text_file, *given], f"unknown flag {flag}")
    assert f"did you mean {meant}?" in line


def test_unknown_flag_that_resembles_none(train_refused, text_file):
    assert "did you mean" not in train_refused(["--train_file", text_file, "--zzz"], "unknown flag --zzz", "--help")


def test_argument_that_belongs_to_no_flag(train_refused, text_file):
    train_refused(["--train_file", text_file, "stray"], "stray", "--help")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["--train_file", "--task", "neither"]),
        ("--train_file rows.jsonl --task forks", ["--train_file", "--task", "both"]),
        ("--task spoons", ["--task spoons", "forks"]),
        ("--task e2e", ["--task e2e", "rows come from a file", "--train_file"]),
        ("--task forks --eval_file rows.jsonl", ["--eval_file rows.jsonl"]),
    ],
)
def test_neither_data_nor_a_task_or_too_much_of_both(train_refused, rows_file, flags, names):
    shutil.copy(rows_file, "rows.jsonl")
    train_refused(flags.split(), *names)


@pytest.mark.parametrize("value", ["one\ntwo", "one\r\ntwo"])
def test_a_value_of_two_lines_is_still_one_line(train_refused, value):
    train_refused(["--train_file", value], "--train_file", "one")


# Where a run is written ---------------------------------------------------------------------------------------------


@pytest.fixture
def old_run(text_run) -> Path:
    """A finished run in the test's own folder."""
    return Path(shutil.copytree(text_run, "old"))


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--output_dir old", ["--output_dir old", "--overwrite"]),
        ("--run_name mine", ["--output_dir outputs/mine"]),
        # files that no run wrote are never removed
        ("--output_dir thesis", ["--output_dir thesis"]),
        ("--output_dir thesis --overwrite", ["--output_dir thesis"]),
        # what cannot be a directory
        ("--output_dir a_file", ["--output_dir a_file"]),
        ("--output_dir a_file/run", ["--output_dir a_file/run"]),
        (f"--output_dir {'x' * 300}", [f"--output_dir {'x' * 300}"]),
        # the old run is kept when the new one is rejected
        ("--output_dir old --overwrite --train_file nowhere.txt", ["--train_file nowhere.txt"]),
        ("--output_dir old --overwrite --vocab_size 5", ["--vocab_size 5"]),
        ("--output_dir old --overwrite --seq_length 512", ["--seq_length 512"]),
        ("--output_dir old --overwrite --num_thoughts 0", ["--num_thoughts 0"]),
    ],
)
def test_what_output_dir_holds_is_kept(refused, text_file, old_run, flags, names):
    shutil.copytree(old_run, "outputs/mine")
    Path("thesis/chapter").mkdir(parents=True)
    write("thesis/chapter/one.txt", "years of work")
    write("a_file", "text")
    refused(cli.train, [*SMALL, "--train_file", text_file, *flags.split()], *names)


def test_overwrite_removes_the_old_run_for_a_new_one(text_file, old_run):
    cli.run(cli.train, [*SMALL, "--train_file", str(text_file), "--output_dir", "old", "--overwrite"])
    assert (old_run / "model.safetensors").is_file()
    assert not (old_run / "checkpoint-4").exists()  # the new run has two steps
    assert json.loads((old_run / "run.json").read_text())["max_steps"] == 2


def test_overwrite_spares_the_text_it_trains_on(text_file, old_run):
    mine = Path(shutil.copy(text_file, old_run))
    with contextlib.suppress(SystemExit):  # it may reject the flags or train
        cli.run(cli.train, [*SMALL, "--train_file", str(mine), "--output_dir", str(old_run), "--overwrite"])
    assert mine.is_file()
    assert mine.read_text() == text_file.read_text()


# Resuming -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def resume_refused(train_refused, text_file, old_run):
    """`refused` for resuming the run in `old` from its checkpoint-2, which a test may damage first."""

    def run(argv, *names: str) -> str:
        unchanged = ["--train_file", text_file, "--batch_size", 8, "--max_steps", 4, "--save_every", 2]
        resume = ["--output_dir", "old", "--resume_from", "old/checkpoint-2"]
        return train_refused([*unchanged, *resume, *argv], *names)

    return run


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


PARTS = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
DAMAGED = [(Path.unlink, part, "missing") for part in PARTS]
DAMAGED += [(truncate, part, part) for part in ("model.safetensors", "optimizer.pt", "trainer_state.json")]


@pytest.mark.parametrize(("damage", "part", "way"), DAMAGED)
def test_resume_from_a_damaged_checkpoint(resume_refused, damage, part, way):
    damage(Path("old/checkpoint-2", part))
    resume_refused([], "--resume_from old/checkpoint-2", part, way)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--resume_from nowhere", ["--resume_from nowhere", "no such directory"]),
        ("--num_thoughts 8 --allow_changed", ["--resume_from old/checkpoint-2", "num_thoughts: 4, not 8"]),
        ("--thought_length 2 --allow_changed", ["--resume_from old/checkpoint-2", "thought_length: 1, not 2"]),
        ("--hidden_size 64", ["--resume_from old/checkpoint-2"]),
        ("--num_layers 2", ["--resume_from old/checkpoint-2"]),
        ("--num_thoughts 8", ["--resume_from old/checkpoint-2"]),
        ("--output_dir other", ["--output_dir other"]),  # another run, which must not be overwritten
    ],
)
def test_resume_with_what_does_not_fit(resume_refused, old_run, flags, names):
    shutil.copytree(old_run, "other")
    resume_refused(flags.split(), *names)


# A settings file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("hiden_size: 64", ["hiden_size", "did you mean hidden_size?"]),
        ("zzz: 64", ["zzz"]),
        ("7: 64", ["7"]),
        ("hidden_size: wide", ["hidden_size", "wide", "int"]),
        ("hidden_size: 64.5", ["hidden_size", "64.5", "int"]),
        ("hidden_size: true", ["hidden_size", "True", "int"]),
        ("batch_size:", ["batch_size"]),
        ("learning_rate: fast", ["learning_rate", "fast", "float"]),
        ("learning_rate: true", ["learning_rate", "True", "float"]),
        ("fp16: 1", ["fp16", "1", "bool"]),
        ("task: 7", ["task", "7", "str"]),
        ("- hidden_size", ["name: value"]),
        ("hidden_size", ["name: value"]),
        ("hidden_size: [", []),
        ("\x00", []),
    ],
)
def test_bad_settings_file(train_refused, text_file, content, names):
    train_refused(["--train_file", text_file, "--config", write("run.yaml", content)], "--config run.yaml", *names)


def test_settings_file_that_is_missing_or_no_text(train_refused, text_file):
    train_refused(["--train_file", text_file, "--config", "nowhere.yaml"], "--config nowhere.yaml")
    train_refused(["--train_file", text_file, "--config", write("run.yaml", b"\xff\xfe")], "--config run.yaml")


def test_settings_file_is_checked_like_the_flags(refused, text_file):
    write("run.yaml", "learning_rate: .nan")
    refused(cli.train, ["--train_file", text_file, "--config", "run.yaml"], "--learning_rate nan")


# Thinking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["--model"]),
        ("--prompt 'the king'", ["--model"]),
        ("--model old", ["--prompt"]),
        ("--model outputs/nowhere --prompt a", ["--model outputs/nowhere", "no such directory"]),
        ("--model empty --prompt a", ["--model empty", "config.json"]),
        ("--model old --prompt 'the kïng'", ["--prompt", "'ï'"]),  # a character the model never saw
    ],
)
def test_think_without_a_model_or_a_prompt_for_it(think_refused, old_run, flags, names):
    Path("empty").mkdir()
    think_refused(shlex.split(flags), *names)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--num_thoughts 5 --temperature 0", ["--num_thoughts 5", "has 4", "temperature"]),
        ("--num_thoughts 0", ["--num_thoughts 0"]),
        ("--max_new_tokens 0", ["--max_new_tokens 0"]),
        ("--top_p 0", ["--top_p 0"]),
        ("--top_p 1.5", ["--top_p 1.5"]),
        ("--temperature inf", ["--temperature inf"]),
        ("--seed -1", ["--seed -1"]),
        ("--temp 1", ["unknown flag --temp", "did you mean --temperature?"]),
        ("--num_thought 4", ["unknown flag --num_thought", "did you mean --num_thoughts?"]),
    ],
)
def test_think_with_a_bad_number_or_flag(think_refused, text_run, flags, names):
    think_refused(["--model", text_run, "--prompt", "the king", *flags.split()], *names)


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_think_with_a_half_written_model(think_refused, old_run, part, damage):
    damage(old_run / part)
    think_refused(["--model", "old", "--prompt", "the king"], "--model old")


# Commands -----------------------------------------------------------------------------------------------------------


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["unknowncommand"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: unknown command unknowncommand")
    assert "train" in err
