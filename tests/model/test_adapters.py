"""Thoughts for a pretrained model: seven architectures for real, from tiny random models, and what may not go wrong.

The bases are random, which hides nothing: what holds for them holds for every weight.
"""

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bases import ARCHITECTURES, TEXT, WINDOW, make, tokenizer
from serving_client import in_thread
from survive import complete, start, state_digest
from transformers import AutoModelForCausalLM, AutoTokenizer, models

from mot import cli
from mot.data.load import branch, collate_rows, encode_prompts, load_data
from mot.inference.settings import ExportSettings, SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model import adapters
from mot.model.score import require_branching, score, thought_logprobs
from mot.model.tokenizer import encode, opening, thought_ids
from mot.runtime.flags import parse
from mot.training.run import train
from mot.training.settings import AdaptSettings, TrainSettings

N = 4
PROMPT, COMPLETION = "the quick brown fox, n = 7", " is 7"  # more tokens than a sliding window of the bases sees


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"prompt": f"the quick brown fox, n = {n}", "completion": f" is {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(base: Path, **more) -> AdaptSettings:
    small = {"num_thoughts": N, "seq_length": 48, "batch_size": 8, "max_steps": 20, "lora_rank": 4, "eval_rows": 4}
    return AdaptSettings(base_model=str(base), **(small | more))


@pytest.fixture(scope="module")
def made(tmp_path_factory, rows):
    """Directories (base, adapter, merged), made once: a base, 20 steps of LoRA, `mot export --merge`."""
    done = {}

    def of(architecture: str) -> tuple[Path, Path, Path]:
        if architecture not in done:
            here = tmp_path_factory.mktemp(architecture)
            base = make(architecture, here / "base")
            with torch.enable_grad():  # whoever asks first
                asked = settings(base, train_file=str(rows), output_dir=str(here / "run"), learning_rate=5e-3)
                train(dataclasses.replace(asked, save_every=10))
            words = ["--model", here / "run", "--merge", "--output_dir", here / "merged"]
            cli.run(cli.export, [str(w) for w in words])
            done[architecture] = base, here / "run", here / "merged"
        return done[architecture]

    return of


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def batch_of(words, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    return collate_rows([[encode(words, [text], "")[0] for text in pair] for pair in pairs], words.eos_token_id)


# Seven architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_step_0_says_what_the_base_says(architecture, tmp_path):
    base = make(architecture, tmp_path / "base")
    words = adapters.base_tokenizer(settings(base))
    model = adapters.adapt(settings(base), words).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]])
    expected = plain(ids).logits
    ours = model(ids).logits[..., : expected.shape[-1]]
    # A product with N more rows may be summed in another order: one bit, no more.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_saved_reloaded_and_merged_are_the_model_that_was_trained(architecture, made):
    from peft import AutoPeftModelForCausalLM

    base, run, merged = made(architecture)
    ours, whole = (MixtureOfThoughts.from_pretrained(str(path)) for path in (run, merged))
    ids = torch.tensor(
        [[*encode(ours.tokenizer, [PROMPT], "")[0], ours.thoughts[1], *encode(ours.tokenizer, [COMPLETION], "")[0]]]
    )
    logits = ours.model(ids).logits
    standard = AutoPeftModelForCausalLM.from_pretrained(run).eval()
    for other in (whole.model, standard, AutoModelForCausalLM.from_pretrained(merged)):
        torch.testing.assert_close(other(ids).logits, logits, rtol=0, atol=1e-5)
    original = AutoModelForCausalLM.from_pretrained(base)
    assert type(whole.model) is type(original)
    assert whole.model.config.mot == {"num_thoughts": N, "thought_token_ids": ours.thoughts}
    assert whole.model.generation_config.suppress_tokens == ours.thoughts
    assert not torch.allclose(original(ids[:, :5]).logits, logits[:, :5, : original.config.vocab_size], atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_what_was_evaluated_in_training_is_what_is_loaded(architecture, made, rows):
    base, run, _ = made(architecture)
    mixture = MixtureOfThoughts.from_pretrained(str(run))
    data = load_data(settings(base, train_file=str(rows)), tokenizer=mixture.tokenizer)
    held_out = data.collate([data.eval[i] for i in range(len(data.eval))])
    scores = score(mixture.model, held_out, mixture.thoughts, mixture.tokenizer.pad_token_id)
    last = [m for m in metrics(run) if "eval_base_nll" in m][-1]
    for name in ("base_nll", "mixture_nll", "oracle_nll"):
        mean = (scores[name] * scores["tokens"]).sum() / scores["tokens"].sum()
        assert mean.item() == pytest.approx(last[f"eval_{name}"], abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_thoughts_share_a_prompt_longer_than_the_window(architecture, made):
    """Law 2 for every cache: one prefill and N branches = N whole computations, padded too, in scores and in texts."""
    mixture = MixtureOfThoughts.from_pretrained(str(made(architecture)[1]))
    pairs = [(PROMPT, COMPLETION), (PROMPT + " and n = 8", " is what it was"), ("the", COMPLETION)]
    batch = batch_of(mixture.tokenizer, *pairs)
    assert batch["prompt"].shape[1] > WINDOW
    fast, router_BN, _ = thought_logprobs(mixture.model, batch, mixture.thoughts)
    for b, pair in enumerate(pairs):
        x, y = (encode(mixture.tokenizer, [text], "")[0] for text in pair)
        for k, thought in enumerate(mixture.thoughts):
            logits = mixture.model(torch.tensor([[*x, thought, *y]]), use_cache=False).logits[0]
            slow = logits.log_softmax(-1)[range(len(x), len(x) + len(y)), y]
            torch.testing.assert_close(fast[b, k, : len(y)], slow, rtol=0, atol=1e-4)
            torch.testing.assert_close(router_BN[b, k], logits[len(x) - 1, thought], rtol=0, atol=1e-4)
    together = mixture.think_batch([prompt for prompt, _ in pairs], SamplingParams(max_new_tokens=10, temperature=0))
    for (prompt, _), thoughts in zip(pairs, together, strict=True):
        assert sorted(t.index for t in thoughts) == list(range(N))
        for t in thoughts:
            assert list(t.token_ids) == greedy_alone(mixture, prompt, t.index, 10)


def greedy_alone(mixture, prompt: str, k: int, length: int) -> list[int]:
    """The slow obvious version: no cache, no batch, no padding."""
    ids = [*encode_prompts(mixture.tokenizer, [prompt])[0], mixture.thoughts[k]]
    said = []
    while len(said) < length:
        logits = mixture.model(torch.tensor([ids + said]), use_cache=False).logits[0, -1]
        logits[mixture.thoughts] = -torch.inf
        if int(logits.argmax()) in mixture.ends:
            break
        said.append(int(logits.argmax()))
    return said


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_served_texts_are_those_of_think(architecture, made):
    """One with a seed, and several that share forward passes where the architecture's cache lets them."""
    mixture = MixtureOfThoughts.from_pretrained(str(made(architecture)[1]))
    with in_thread(mixture) as server:
        told = {"temperature": 0.9, "seed": 3}
        expected = mixture.think(PROMPT, 2 * N, max_new_tokens=16, **told)
        answer = server.complete(prompt=PROMPT, n=2 * N, max_tokens=16, **told)
        assert [choice["text"] for choice in answer["choices"]] == [t.text for t in expected]
        assert [choice["thought"]["index"] for choice in answer["choices"]] == [t.index for t in expected]
        prompts = [PROMPT, PROMPT + " and n = 8", "the", "the quick"] * 2
        with ThreadPoolExecutor(len(prompts)) as pool:
            texts = list(pool.map(lambda p: server.texts(prompt=p, n=N, max_tokens=16, temperature=0), prompts))
    assert texts == [[t.text for t in mixture.think(p, N, max_new_tokens=16, temperature=0)] for p in prompts]


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_base_with_windows_and_no_thoughts_can_be_asked_too(architecture, made):
    plain = MixtureOfThoughts.from_pretrained(str(made(architecture)[0]))
    (t,) = plain.think(PROMPT, max_new_tokens=6, temperature=0)
    assert list(t.token_ids) == greedy_alone_plain(plain, PROMPT, 6)


def greedy_alone_plain(plain, prompt: str, length: int) -> list[int]:
    ids = encode_prompts(plain.tokenizer, [prompt])[0]
    said = []
    while len(said) < length and (not said or said[-1] not in plain.ends):
        said.append(int(plain.model(torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax()))
    return said[: -1 if said[-1] in plain.ends else None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_and_the_rows_of_the_thoughts_are_all_that_learns(architecture, made):
    base, run, _ = made(architecture)
    original = AutoModelForCausalLM.from_pretrained(base)
    tied = original.get_input_embeddings().weight is original.get_output_embeddings().weight
    words = adapters.base_tokenizer(settings(base))
    model = adapters.adapt(settings(base), words)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    rows_ = {name for name in learning if "trainable_tokens_delta" in name}
    assert len(rows_) == (1 if tied else 2)
    assert all("lora_" in name for name in learning - rows_)
    attention_and_mlp = {name.split(".lora_")[0] for name in learning - rows_}
    inside = [
        n for n, m in original.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and re.search(r"\.\d+\.", n)
    ]
    assert len(attention_and_mlp) == len(inside)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in rows_}
    trained, _ = adapters.open_adapter(str(run))
    for name, p in trained.named_parameters():
        if name in before:
            assert (p - before[name]).abs().amax(1).min() > 1e-3, name  # every thought's row has moved
    # Of the base nothing but what is there: its weights are those on the disk.
    plain = dict(original.named_parameters())
    for name, p in trained.get_base_model().named_parameters():
        name = re.sub(r"\.(base_layer|token_adapter)\b", "", name)
        if name in plain:
            assert torch.equal(p[: len(plain[name])], plain[name]), name


def test_thoughts_begin_apart_and_the_same_for_the_same_seed(made):
    base, _, _ = made("llama")
    words = adapters.base_tokenizer(settings(base))
    ids = thought_ids(words, N)

    def first_rows(seed: int) -> torch.Tensor:
        model = adapters.adapt(settings(base, seed=seed), words).get_base_model()
        return torch.stack([m.weight[ids] for m in (model.get_input_embeddings(), model.get_output_embeddings())])

    assert torch.equal(first_rows(1), first_rows(1))
    assert not torch.equal(first_rows(1), first_rows(2))
    assert all(len(matrix.unique(dim=0)) == N for matrix in first_rows(1))


def test_spare_rows_of_a_padded_vocabulary_are_used(tmp_path, rows):
    from peft import AutoPeftModelForCausalLM

    base = make("qwen3", tmp_path / "base", spare=32)
    train(settings(base, train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2))
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.thoughts == list(range(len(tokenizer()), len(tokenizer()) + N))
    assert len(mixture.model.get_input_embeddings().weight) == len(tokenizer()) + 32
    cli.run(cli.export, ["--model", str(tmp_path / "run"), "--merge", "--output_dir", str(tmp_path / "merged")])
    ids = torch.tensor([[1, 2, 3, mixture.thoughts[2], 4]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    standard = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        for other in (merged, standard):
            torch.testing.assert_close(other(ids).logits, mixture.model(ids).logits, rtol=0, atol=1e-5)


def test_a_base_in_bfloat16_stays_so_and_its_adapters_are_float32(made, rows, tmp_path):
    from safetensors.torch import load_file

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(made("qwen3")[0]).bfloat16().save_pretrained(base)
    tokenizer().save_pretrained(base)
    train(settings(base, train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2))
    assert {t.dtype for t in load_file(tmp_path / "run" / "adapter_model.safetensors").values()} == {torch.float32}
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.model.dtype == torch.bfloat16
    assert len(mixture.think(PROMPT, max_new_tokens=3)) == N
    cli.run(cli.export, ["--model", str(tmp_path / "run"), "--merge", "--output_dir", str(tmp_path / "merged")])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_a_thought_may_be_a_word_of_several_tokens(made, rows, tmp_path):
    asked = settings(made("gemma3")[0], train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2)
    train(dataclasses.replace(asked, thought_length=2))
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.different_thoughts == N**2
    assert len({t.index for t in mixture.think(PROMPT, 6, max_new_tokens=3)}) == 6


def test_without_thoughts_it_is_plain_lora(made, rows, tmp_path):
    train(
        settings(made("neox")[0], train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2, num_thoughts=1)
    )
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.thoughts == []
    assert len(mixture.think(PROMPT, 1, max_new_tokens=3)) == 1


# Files that others read -----------------------------------------------------------------------------------------------

STRANGER = """
import sys
sys.modules["mot"] = None  # importing it is an error from here on
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

run, base, merged = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(run)
ids = torch.tensor([tokenizer("the quick")["input_ids"] + [tokenizer.convert_tokens_to_ids("<|thought_1|>"), 5]])
plain = AutoModelForCausalLM.from_pretrained(base)
plain.resize_token_embeddings(len(tokenizer))
with torch.no_grad():
    three = [model.eval()(ids).logits for model in (
        PeftModel.from_pretrained(plain, run),
        AutoPeftModelForCausalLM.from_pretrained(run),
        AutoModelForCausalLM.from_pretrained(merged),
    )]
assert all(torch.allclose(three[0], other, atol=1e-5) for other in three)
print("same")
"""


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_peft_and_transformers_open_it_in_a_process_without_mot(architecture, made):
    base, run, merged = made(architecture)
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, run, base, merged], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"
    names = {path.name for path in run.iterdir() if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "mot.json", "tokenizer.json"} <= names
    assert not names & {"config.json", "model.safetensors"}
    card = (run / "README.md").read_text()  # ours, not peft's form
    assert card.startswith(
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- mixture-of-thoughts\n- lora\n---\n"
    )
    assert "python train_lora_mot.py" in card


def test_an_adapter_weighs_little(made):
    base, run, _ = made("llama")
    size = (run / "adapter_model.safetensors").stat().st_size
    assert (
        size < (base / "model.safetensors").stat().st_size
    )  # of so small a base; at the guide's size see docs/RESULTS.md


def test_gguf_prints_the_converters_command(made, capsys):
    _, _, merged = made("llama")
    capsys.readouterr()
    cli.run(cli.export, ["--model", str(merged), "--gguf", "--outtype", "bf16"])
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["python", "convert_hf_to_gguf.py", str(merged)]
    assert words[3:] == ["--outfile", str(merged / "merged-bf16.gguf"), "--outtype", "bf16"]


# A run that cannot be lost --------------------------------------------------------------------------------------------


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_resumed_adaptation_is_the_one_that_never_stopped(made, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("SURVIVE_LOGS", str(tmp_path))
    base = made("gpt2")[0]  # it has dropout of its own
    words = f"--base_model {base} --train_file {rows} --num_thoughts {N} --seq_length 48 --batch_size 8 --lora_rank 4"
    words += " --lora_dropout 0.1 --max_steps 8 --save_every 4 --eval_every 4 --gradient_accumulation_steps 2"
    flags = [*words.split(), "--output_dir"]
    complete([*flags, tmp_path / "whole"])
    cut = start([*flags, tmp_path / "cut"], pause="training", at=5)
    cut.wait_for_phase()
    cut.kill(signal.SIGTERM)
    assert cut.exitcode() == 143
    assert not (tmp_path / "cut" / "adapter_config.json").exists()
    complete([*flags, tmp_path / "cut", "--resume_from", "auto"])
    for name in ("adapter_model.safetensors", "mot.json"):
        assert sha(tmp_path / "cut" / name) == sha(tmp_path / "whole" / name)
    assert state_digest(tmp_path / "cut" / "checkpoint-8") == state_digest(tmp_path / "whole" / "checkpoint-8")
    evaluations = [[m for m in metrics(tmp_path / name) if "eval_base_nll" in m] for name in ("whole", "cut")]
    assert evaluations[0] == evaluations[1]
    assert [m["step"] for m in evaluations[0]] == [0, 4, 8]


@pytest.mark.parametrize("more", ["", "--fsdp"])
def test_two_processes_adapt_as_one(more, made, rows, tmp_path, monkeypatch):
    """Law 10, sharded too: same rows, same losses, and the first process writes the whole adapter."""
    from safetensors.torch import load_file

    monkeypatch.setenv("SURVIVE_LOGS", str(tmp_path))
    words = f"--base_model {made('llama')[0]} --train_file {rows} --num_thoughts {N} --seq_length 48 --lora_rank 4"
    flags = [*words.split(), *"--max_steps 4 --eval_every 4 --learning_rate 5e-3 --output_dir".split()]
    complete([*flags, tmp_path / "one", "--batch_size", "16"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = [*flags, tmp_path / "two", "--batch_size", "8", *more.split()]
    for run in [start(both, world=(rank, 2, port)) for rank in range(2)]:
        assert run.exitcode() == 0, run.log.read_text()
    one, two = ([m["lm_loss"] for m in metrics(tmp_path / name) if "lm_loss" in m] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


# What it costs --------------------------------------------------------------------------------------------------------


def test_what_the_trunk_was_and_became_is_said(made, rows, tmp_path, capsys):
    base = made("qwen3")[0]
    other = tmp_path / "other.txt"
    other.write_text(TEXT * 20)
    words = f"--base_model {base} --train_file {rows} --num_thoughts {N} --seq_length 48 --batch_size 8 --max_steps 4"
    words += f" --general_file {other} --eval_rows 8 --output_dir {tmp_path / 'run'}"
    capsys.readouterr()
    cli.run(cli.adapt, words.split())
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    evaluations = [m for m in metrics(tmp_path / "run") if "eval_base_nll" in m]
    first, last = evaluations[0], evaluations[-1]
    for words, name in (("held-out data", "eval_base_nll"), ("other text", "eval_general_nll")):
        line = f"without a thought, on {words}: {first[name]:.4f} nats per token before, {last[name]:.4f} after"
        assert line in out, out


def test_the_trunk_at_step_0_is_the_base_but_for_the_share_of_the_new_tokens(made, rows):
    base, run, _ = made("llama")
    plain = MixtureOfThoughts.from_pretrained(str(base))
    data = load_data(settings(base, train_file=str(rows)), tokenizer=plain.tokenizer)
    scores = score(plain.model, data.collate([data.eval[i] for i in range(4)]), [], 0)
    mean = (scores["base_nll"] * scores["tokens"]).sum() / scores["tokens"].sum()
    first = metrics(run)[0]
    assert first["step"] == 0
    assert 0 < first["eval_base_nll"] - mean.item() < 0.1  # nats per token


def test_dry_run_counts_what_is_trained_and_writes_nothing(made, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = made("phi3")[0]
    model = adapters.adapt(settings(base), adapters.base_tokenizer(settings(base)))
    words = f"--base_model {base} --train_file {rows} --num_thoughts {N} --lora_rank 4 --seq_length 48 --dry_run"
    capsys.readouterr()
    cli.run(cli.adapt, words.split())
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    trained, total = model.get_base_model().num_parameters(only_trainable=True), model.get_base_model().num_parameters()
    assert lines["parameters"] == f"{total:,}, of which {trained:,} are trained ({trained / total:.2%})"
    assert list(tmp_path.iterdir()) == []


# What is read, and when it ends --------------------------------------------------------------------------------------


def test_training_and_thinking_open_a_text_alike(tmp_path, rows):
    base = make("llama", tmp_path / "base", bos=True)
    bos = tokenizer(bos=True).bos_token_id
    asked = settings(base, train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2)
    words = adapters.base_tokenizer(asked)
    assert opening(words) == [bos]
    prompt, completion = load_data(asked, tokenizer=words).train[7]
    assert prompt == words(PROMPT)["input_ids"]  # what anyone's engine feeds
    assert prompt[0] == bos
    assert completion == [*words(COMPLETION, add_special_tokens=False)["input_ids"], words.eos_token_id]
    train(asked)
    cli.run(cli.export, ["--model", str(tmp_path / "run"), "--merge", "--output_dir", str(tmp_path / "merged")])
    for name in ("run", "merged", "base"):
        mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / name))
        assert encode_prompts(mixture.tokenizer, [PROMPT, ""]) == [prompt, [bos]]
        if mixture.thoughts:
            with torch.no_grad():
                logits = mixture.model(torch.tensor([prompt])).logits[0, -1, mixture.thoughts]
            torch.testing.assert_close(mixture.route(PROMPT), logits.softmax(-1))


def test_windows_of_text_begin_as_any_text_does(tmp_path):
    base = make("llama", tmp_path / "base", bos=True)
    (tmp_path / "text.txt").write_text(TEXT * 30)
    asked = settings(base, train_file=str(tmp_path / "text.txt"), seq_length=16)
    words = adapters.base_tokenizer(asked)
    data = load_data(asked, tokenizer=words)
    ids = encode(words, [TEXT * 27], "")[0]
    assert data.train[0].tolist() == [words.bos_token_id, *ids[:15]]
    assert data.train[1].tolist() == [words.bos_token_id, *ids[15:30]]
    assert len(data.train) == len(ids) // 15
    assert branch(data.collate([data.train[3]]), 1)["prompt"].tolist() == [[words.bos_token_id]]


def chat(user: str, assistant: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> tuple[Path, Path]:
    """(a base with a chat template, rows with `messages`)"""
    here = tmp_path_factory.mktemp("chat")
    rows = [{"messages": [{"role": "system", "content": "be brief"}, *chat(f"n = {n}", f"is {n}")]} for n in range(30)]
    (here / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make("llama", here / "base", chat=True), here / "chat.jsonl"


def test_a_conversation_branches_before_its_last_turn(chats):
    base, file = chats
    asked = settings(base, train_file=str(file))
    words = adapters.base_tokenizer(asked)
    prompt, completion = load_data(asked, tokenizer=words).train[7]
    turn, end = words.convert_tokens_to_ids(["<|turn|>", "<|end|>"])
    assert words.decode(prompt) == "<|turn|>system\nbe brief<|end|>\n<|turn|>user\nn = 7<|end|>\n<|turn|>assistant\n"
    assert words.decode(completion) == "is 7<|end|>"
    assert prompt.count(turn) == 3  # one token, not its letters
    assert completion[-1] == end
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "n = 7"}]
    assert encode_prompts(words, [messages]) == [prompt]


def test_a_chat_model_thinks_about_messages_and_stops_at_the_end_of_its_turn(chats, tmp_path, capsys):
    base, file = chats
    words = f"--base_model {base} --train_file {file} --num_thoughts {N} --seq_length 64 --batch_size 8 --max_steps 2"
    cli.run(cli.adapt, [*words.split(), "--output_dir", str(tmp_path / "run")])
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    end = mixture.tokenizer.convert_tokens_to_ids("<|end|>")
    assert set(mixture.ends) == {mixture.tokenizer.eos_token_id, end}
    messages = [{"role": "user", "content": "n = 7"}]
    expected = [t.text for t in mixture.think(messages, max_new_tokens=4, temperature=0)]
    capsys.readouterr()
    flags = ["--model", str(tmp_path / "run"), "--prompt", "n = 7", "--max_new_tokens", "4", "--temperature", "0"]
    cli.run(cli.think, [*flags, "--chat", "--json"])
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == expected
    with torch.no_grad():  # now the end of the turn is what it would like best
        scored = mixture.model.get_output_embeddings().token_adapter.base_layer
        ids = [*encode_prompts(mixture.tokenizer, [messages])[0], mixture.thoughts[0]]
        scored.weight[end] = 10 * mixture.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    said = {t.index: t for t in mixture.think(messages, max_new_tokens=5, temperature=0)}
    assert said[0].text == ""
    assert all(end not in t.token_ids for t in said.values())


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command that must refuse; one line, exit code 2, nothing written; return the line."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(command, words, *names: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(command, [str(word) for word in words])
        out, err = capsys.readouterr()
        assert stop.value.code == 2, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        for name in names:
            assert str(name) in err, err
        assert list(Path.cwd().iterdir()) == []
        return err

    return run


def small(base, rows, *more) -> list:
    flags = f"--num_thoughts {N} --seq_length 48 --batch_size 8 --max_steps 2 --lora_rank 4 --output_dir run"
    return ["--base_model", base, "--train_file", rows, *flags.split(), *more]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--lora_rank 0", ["--lora_rank 0", ">= 1"]),
        ("--lora_alpha 0", ["--lora_alpha 0", "> 0"]),
        ("--lora_dropout 1", ["--lora_dropout 1"]),
        ("--lora_targets q_prj", ["--lora_targets q_prj", "q_proj", "down_proj"]),
        ("--lora_targets q_proj,elbow", ["--lora_targets elbow", "q_proj, up_proj, v_proj"]),
        ("--lora_targets q_proj,,v_proj", ["--lora_targets q_proj,,v_proj", "empty"]),
        ("--lora_targets lm_head", ["--lora_targets lm_head", "q_proj"]),
        ("--load_in 2bit", ["--load_in 2bit", "4bit"]),
        ("--hidden_size 64", ["unknown flag --hidden_size"]),
        ("--seq_length 4096", ["--seq_length 4096", "2048"]),
        ("--general_file nowhere.txt", ["--general_file nowhere.txt", "no such file"]),
    ],
)
def test_flags_that_will_not_do(refused, made, rows, flags, names):
    refused(cli.adapt, small(made("llama")[0], rows, *flags.split()), *names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no mistake")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_without_a_gpu(refused, made, rows, bits):
    refused(cli.adapt, small(made("llama")[0], rows, "--load_in", bits), f"--load_in {bits}", "GPU")


def test_base_model_missing_or_no_model(refused, made, rows, tmp_path):
    refused(cli.adapt, small("x", rows)[2:], "--base_model", "missing")
    refused(cli.adapt, small(tmp_path / "nowhere", rows), "--base_model", "nowhere", "no such")
    (tmp_path / "empty").mkdir()
    refused(cli.adapt, small(tmp_path / "empty", rows), "--base_model", "empty", "config.json")
    base = Path(shutil.copytree(made("llama")[0], tmp_path / "torn"))
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:5000])
    refused(cli.adapt, small(base, rows), "--base_model", "torn", "cannot be loaded")
    (base / "tokenizer.json").write_text("{")
    refused(cli.adapt, small(base, rows), "--base_model", "torn", "tokenizer")


@pytest.mark.parametrize(
    ("config", "architecture", "words"),
    [
        (models.bert.BertConfig(), "BertForMaskedLM", "not a causal language model"),
        (models.t5.T5Config(), "T5ForConditionalGeneration", "not a causal language model"),
        (models.llava.LlavaConfig(), "LlavaForConditionalGeneration", "not a causal language model"),
        (models.vit.ViTConfig(), "ViTForImageClassification", "not a causal language model"),
    ],
    ids=["encoder", "encoder-decoder", "vision and language", "vision"],
)
def test_models_of_another_kind(refused, rows, tmp_path, config, architecture, words):
    config.architectures = [architecture]
    config.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    refused(cli.adapt, small(tmp_path / "base", rows), "--base_model", architecture, words)


def of_config(config, directory: Path) -> Path:
    words = tokenizer()
    config.vocab_size, config.eos_token_id, config.pad_token_id = len(words), words.eos_token_id, None
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (models.bert.BertConfig(**SIZE), "bias"),
        (models.gptj.GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=4, n_positions=128), "bias"),
        (models.mamba.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4), "cannot"),
    ],
    ids=["reads both ways", "output bias", "recurrent"],
)
def test_architectures_that_cannot_have_thoughts(refused, rows, tmp_path, config, words):
    base = of_config(config, tmp_path / "base")
    refused(cli.adapt, small(base, rows), "--base_model", words)


def test_a_model_that_reads_later_tokens_is_found_out(made):
    class Both(torch.nn.Module):
        config, dtype, device, training = (
            AutoModelForCausalLM.from_pretrained(made("llama")[0]).config,
            torch.float32,
            "cpu",
            False,
        )

        def forward(self, input_ids, **_):
            seen = input_ids.float().mean(1, keepdim=True)
            return type("Out", (), {"logits": (input_ids.float() + seen)[..., None].expand(-1, -1, 9)})

    with pytest.raises(ValueError, match="reads later tokens"):
        require_branching(Both(), [100, 101], "--base_model x")


def test_a_base_that_has_thoughts_already(refused, made, text_run, rows):
    _, run, merged = made("llama")
    refused(cli.adapt, small(merged, rows), "--base_model", f"has {N} thoughts already", "--resume_from")
    refused(cli.adapt, small(text_run, rows), "--base_model", "has 4 thoughts already", "--resume_from")
    refused(cli.adapt, small(run, rows), "--base_model", "is an adapter", "--resume_from", "mot export --merge")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', "line 2 has no text `completion`"),
        ('{"prompt": "a", "completion": ""}', "line 2 has an empty `completion`"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2 has no text `prompt`"),
    ],
)
def test_rows_without_completions(refused, made, tmp_path, line, words):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    refused(cli.adapt, small(made("llama")[0], tmp_path / "bad.jsonl"), "--train_file", words)


GOOD_CHAT = json.dumps({"messages": chat("a", "b")}) + "\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2 does not end with an answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "line 2 does not end with an answer"),
        ({"messages": chat("a", "b")[::-1]}, "line 2 does not end with an answer"),
        ({"messages": chat("a", " ")}, "line 2 does not end with an answer"),
        ({"messages": []}, "line 2 does not end with an answer"),
        ({"messages": [{"role": "user", "content": 7}]}, "line 2 has no `messages`"),
        ({"messages": "a"}, "line 2 has no `messages`"),
        ({"prompt": "a", "completion": "b"}, "line 2 has no `messages`"),
    ],
)
def test_conversations_without_an_answer(refused, chats, tmp_path, row, words):
    (tmp_path / "bad.jsonl").write_text(GOOD_CHAT + json.dumps(row) + "\n" + GOOD_CHAT)
    refused(cli.adapt, small(chats[0], tmp_path / "bad.jsonl"), "--train_file", words)


def test_conversations_for_a_tokenizer_without_a_template(refused, made, chats, rows):
    refused(cli.adapt, small(made("llama")[0], chats[1]), "--train_file", "`messages`", "no chat template")
    refused(cli.train, ["--train_file", chats[1], "--output_dir", "run"], "--train_file", "no chat template")
    refused(cli.adapt, small(chats[0], chats[1], "--eval_file", rows), "--eval_file", "kind")
    words = ["--model", made("llama")[1], "--prompt", "a", "--chat"]
    refused(cli.think, words, "no chat template")


def test_an_adapter_whose_base_is_gone_or_another(refused, made, rows, tmp_path):
    base = Path(shutil.copytree(made("llama")[0], tmp_path / "base"))
    run = tmp_path / "run"
    train(settings(base, train_file=str(rows), output_dir=str(run), max_steps=1))
    think = ["--model", run, "--prompt", "the quick"]
    make("llama", base, spare=8)
    refused(cli.think, think, "--model", "does not match", "vocab_size", "base_model_name_or_path")
    make("llama", base, hidden_size=64)
    refused(cli.think, think, "--model", "does not match", "hidden_size 64, not 32")
    other = AutoModelForCausalLM.from_pretrained(made("llama")[0])
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(base)
    refused(cli.think, think, "--model", "other weights")
    refused(cli.export, ["--model", run, "--merge", "--output_dir", "merged"], "--model", "other weights")
    shutil.rmtree(base)
    refused(cli.think, think, "--model", str(base), "is not there", "adapter_config.json")
    shutil.copytree(made("llama")[0], base)
    assert MixtureOfThoughts.from_pretrained(str(run)).num_thoughts == N
    (run / "adapter_model.safetensors").write_bytes(b"torn")
    refused(cli.think, think, "--model", "cannot be loaded")
    (run / "mot.json").unlink()
    refused(cli.think, think, "--model", "mot.json")


def test_resuming_on_another_base_or_rank(refused, made, rows, tmp_path):
    base = Path(shutil.copytree(made("llama")[0], tmp_path / "base"))
    flags = ["--save_every", 1, "--output_dir", tmp_path / "run"]
    cli.run(cli.adapt, [str(w) for w in small(base, rows, *flags)])
    on = [*flags, "--resume_from", tmp_path / "run" / "checkpoint-1"]
    refused(cli.adapt, small(base, rows, *on, "--lora_rank", 8), "--resume_from", "lora_rank: 4, not 8")
    other = make("llama", tmp_path / "other", rms_norm_eps=1e-5)
    model = AutoModelForCausalLM.from_pretrained(other)
    torch.nn.init.ones_(model.model.layers[0].self_attn.q_proj.weight)
    model.save_pretrained(other)
    refused(cli.adapt, small(other, rows, *on, "--allow_changed"), "--resume_from", "another base")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--merge --output_dir new", ["--model: missing"]),
        ("--model {run}", ["--merge or --gguf", "neither"]),
        ("--model {run} --merge --gguf --output_dir new", ["--merge or --gguf", "both"]),
        ("--model {run} --merge", ["--output_dir: missing"]),
        ("--model {merged} --merge --output_dir new", ["--model {merged}", "whole model already"]),
        ("--model {base} --merge --output_dir new", ["--model {base}", "whole model already"]),
        ("--model nowhere --merge --output_dir new", ["--model nowhere", "no adapter"]),
        ("--model {run} --merge --output_dir {base}", ["--output_dir {base}", "is there already"]),
        ("--model {run} --gguf", ["--model {run}", "is an adapter", "--merge"]),
        ("--model nowhere --gguf", ["--model nowhere", "no whole model"]),
        ("--model {text} --gguf", ["characters", "--vocab_size 257"]),
        ("--model {merged} --gguf --outtype f8", ["--outtype f8", "q8_0"]),
    ],
)
def test_export_of_what_cannot_be(refused, made, text_run, words, names):
    base, run, merged = made("llama")
    there = {"base": base, "run": run, "merged": merged, "text": text_run}
    refused(cli.export, words.format(**there).split(), *(name.format(**there) for name in names))


# The door ------------------------------------------------------------------------------------------------------------


def test_the_door_has_the_flags_of_training_but_the_models_shape():
    of_train, of_adapt = ({f.name for f in dataclasses.fields(s)} for s in (TrainSettings, AdaptSettings))
    assert of_train - of_adapt == {"vocab_size", "tokenizer", "hidden_size", "num_layers", "num_heads", "dropout"}
    ours = {"base_model", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "load_in", "general_file"}
    assert of_adapt - of_train == ours


def test_help_answers_without_torch(root, tmp_path):
    code = f"""
import contextlib, io, runpy, sys
for argv in (["--help"], ["--lora_rnk", "4"], ["--train_file", "x", "--base_model", "y", "--lora_rank", "0"]):
    sys.argv = ["train_lora_mot.py", *argv]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path({str(root / "train_lora_mot.py")!r}, run_name="__main__")
        raise AssertionError(argv)
    if argv == ["--help"]:
        assert "--lora_targets" in out.getvalue() and "%%" not in out.getvalue()
print([name for name in ("torch", "transformers", "peft", "numpy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[]\n", done.stderr


def test_export_settings_are_parsed_with_their_defaults():
    assert parse(ExportSettings, ["--model", "a", "--gguf"], "mot export", "").outtype == "f16"
