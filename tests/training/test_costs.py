"""What a run takes: the formulas against real models and against each other, the price list, and `mot cost` itself."""

import contextlib
import datetime
import io
import math
import re
import sys
from dataclasses import replace

import pytest

from mot.cli import main
from mot.training.costs import CostSettings, estimate, parameters, prices, report, work
from mot.training.settings import TrainSettings

GPUS = prices()["gpus"]


def said(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["cost", *words])
    return out.getvalue()


@pytest.mark.parametrize(
    ("hidden_size", "num_layers", "num_thoughts", "vocab_size"),
    [(32, 1, 4, 100), (96, 3, 8, 74), (100, 2, 1, 100), (128, 2, 16, 300)],
)
def test_parameters_are_those_of_the_model_that_is_built(
    hidden_size, num_layers, num_thoughts, vocab_size, shared_text
):
    from mot.model.build import build_model
    from mot.model.tokenizer import build_tokenizer

    settings = TrainSettings(train_file="x", hidden_size=hidden_size, num_layers=num_layers, num_thoughts=num_thoughts)
    tokenizer = build_tokenizer([shared_text], vocab_size, num_thoughts)
    assert parameters(settings, len(tokenizer)) == build_model(settings, tokenizer).num_parameters()
    bound = CostSettings(vocab_size=vocab_size, num_thoughts=num_thoughts).entries()
    assert len(tokenizer) <= bound
    if vocab_size == 74:
        assert len(tokenizer) == bound  # the text has 74 characters


@pytest.fixture(scope="module")
def shared_text() -> str:
    """74 distinct characters, and enough words for a byte-level BPE of 300."""
    return "".join(chr(ord("!") + i) for i in range(64)) + "the king of the night " * 20


def test_a_plain_model_costs_six_flops_per_weight_and_token():
    settings = CostSettings(num_thoughts=1, tokens=1000.0, seq_length=2, hidden_size=256)
    count, flops, ratio = work(settings)
    assert ratio == 1
    weights = count - settings.entries() * 256  # a table of input vectors multiplies nothing
    assert flops == pytest.approx(6 * weights * 1000, rel=1e-3)


def test_thoughts_cost_what_the_dry_run_says(text_file, capsys):
    words = (
        "--vocab_size 100 --hidden_size 32 --num_layers 2 --num_thoughts 4 --seq_length 32 --max_steps 100000".split()
    )
    main(["train", "--train_file", str(text_file), *words, "--dry_run"])
    plain_steps = int(re.search(r"--num_thoughts 1 --max_steps (\d+)", capsys.readouterr().out)[1])
    _, _, ratio = work(CostSettings(hidden_size=32, num_layers=2, num_thoughts=4, seq_length=32))
    assert round(ratio * 100_000) == plain_steps


def test_an_estimate_is_proportional_to_what_it_should_be():
    settings, l4 = CostSettings(tokens=1e9), GPUS["l4"]
    base = estimate(settings, l4)
    assert base.dollars == pytest.approx(base.hours * l4["on_demand"])
    assert estimate(replace(settings, tokens=3e9), l4).dollars == pytest.approx(3 * base.dollars)
    assert estimate(replace(settings, utilisation=0.5), l4).hours == pytest.approx(base.hours / 2)
    assert estimate(replace(settings, spot=True), l4).dollars == pytest.approx(base.hours * l4["spot"])
    slow = estimate(replace(settings, bf16=False), l4)
    assert slow.hours == pytest.approx(base.hours * l4["tflops"]["half"] / l4["tflops"]["single"])
    assert slow.gib > base.gib
    assert base.fits
    assert not estimate(replace(settings, hidden_size=4096, num_layers=32), l4).fits


def test_the_price_list_says_where_and_when_and_holds_whole_machines():
    known = prices()
    assert known["region"] == "us-central1"
    assert isinstance(known["date"], datetime.date)
    assert "skypilot-catalog" in known["source"]
    assert "v100" in known["unsupported"]
    for about in GPUS.values():
        assert math.isfinite(about["spot"])
        assert about["spot"] > 0
        assert about["on_demand"] is None or about["on_demand"] > about["spot"]
        assert about["zones"][0].startswith(known["region"])
        assert all(re.fullmatch(r"[a-z]+-[a-z]+\d-[a-f]", zone) for zone in about["zones"])
    assert GPUS["t4"]["on_demand"] > 0.35  # more than the GPU alone, which is what the guide's table had
    # An accelerator-optimised machine brings its GPU; only an N1 has one attached.
    assert [gpu for gpu, about in GPUS.items() if "attached" in about] == ["t4"]


def test_the_table_has_every_gpu_and_says_that_v100_is_gone():
    lines = said("--hidden_size", "768", "--num_layers", "12").splitlines()
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in [*GPUS, "v100"]}
    assert list(rows) == [*GPUS, "v100"]
    assert "unsupported" in rows["v100"]
    assert "spot only" in rows["h100"]
    price, hours, dollars = (float(number.replace(",", "")) for number in rows["l4"].split()[2:5])
    assert price == GPUS["l4"]["on_demand"]
    assert dollars == pytest.approx(price * hours, abs=0.05 * price)
    assert "25%" in lines[2]
    assert "us-central1, 2026-" in lines[3]


def test_one_gpu_is_one_row_and_a_training_command_can_be_pasted():
    out = said("--config", "configs/forks.yaml", "--gpu", "h100", "--spot", "--tokens", "1e6", "--fp16")
    assert [line.split()[0] for line in out.splitlines() if line.startswith(tuple(GPUS))] == ["h100"]
    assert "351," in out.splitlines()[0] or "3 layers of 96" in out.splitlines()[0]
    assert "gs://" in out.splitlines()[-1]


def test_too_large_a_model_is_told_so():
    assert "too much" in report(CostSettings(gpu="t4", hidden_size=4096, num_layers=32))[-1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--gpu", "v100"], "--gpu v100: today's CUDA builds of PyTorch hold no code for its architecture"),
        (["--gpu", "gtx"], "--gpu gtx: unknown; there is t4, l4, a100, h100"),
        (["--gpu", "h100"], "--gpu h100: a3-highgpu-1g is sold as spot only; give --spot"),
        (["--tokens", "0"], "--tokens 0.0: must be > 0"),
        (["--tokens", "inf"], "--tokens inf: must be > 0 and finite"),
        (["--utilisation", "2"], "--utilisation 2.0: must be > 0 and <= 1"),
        (["--hidden_size", "7", "--num_heads", "2"], "--hidden_size 7: not divisible by --num_heads 2"),
        (["--gpus", "l4"], "unknown flag --gpus; did you mean --gpu"),
    ],
)
def test_mistakes_are_one_line(words, line, capsys):
    from mot import cli

    with pytest.raises(SystemExit) as stop:
        cli.run(cli.cost, words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert line in error


def test_it_loads_no_torch(root):
    import subprocess

    code = "import sys; from mot.cli import main; main(['cost']); "
    code += "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
