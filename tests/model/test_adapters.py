"""Thoughts for a pretrained model: the files, the costs, chats, and every rejected input. Its laws: tests/laws.

The bases are tiny and random, which hides nothing: what holds for them holds for every weight.
"""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapted import COMPLETION, PROMPT, N, metrics, settings
from bases import TEXT, make, tokenizer
from transformers import AutoModelForCausalLM, models

from mot import cli
from mot.data.datasets import branch
from mot.data.encode import encode_prompts
from mot.data.load import load_data
from mot.inference.settings import ExportSettings
from mot.inference.think import MixtureOfThoughts
from mot.model import adapters
from mot.model.score import require_branching, score
from mot.model.tokenizer import encode, opening, thought_ids
from mot.runtime.flags import parse
from mot.training.run import train
from mot.training.settings import AdaptSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def rows(adapter_rows) -> Path:
    return adapter_rows


# What is made -------------------------------------------------------------------------------------------------------


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
    AutoModelForCausalLM.from_pretrained(make("qwen3", tmp_path / "qwen3")).bfloat16().save_pretrained(base)
    tokenizer().save_pretrained(base)
    train(settings(base, train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2))
    assert {t.dtype for t in load_file(tmp_path / "run" / "adapter_model.safetensors").values()} == {torch.float32}
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.model.dtype == torch.bfloat16
    assert len(mixture.think(PROMPT, max_new_tokens=3)) == N
    cli.run(cli.export, ["--model", str(tmp_path / "run"), "--merge", "--output_dir", str(tmp_path / "merged")])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_a_thought_may_be_a_word_of_several_tokens(made, rows, tmp_path):
    asked = settings(
        make("gemma3", tmp_path / "gemma3"), train_file=str(rows), output_dir=str(tmp_path / "run"), max_steps=2
    )
    train(dataclasses.replace(asked, thought_length=2))
    mixture = MixtureOfThoughts.from_pretrained(str(tmp_path / "run"))
    assert mixture.different_thoughts == N**2
    assert len({t.index for t in mixture.think(PROMPT, 6, max_new_tokens=3)}) == 6


def test_without_thoughts_it_is_plain_lora(made, rows, tmp_path):
    train(
        settings(
            make("neox", tmp_path / "neox"),
            train_file=str(rows),
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            num_thoughts=1,
        )
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
    )  # of so small a base; at the guide's size see docs/results/adapting.md


def test_gguf_prints_the_converters_command(made, capsys):
    _, _, merged = made("llama")
    capsys.readouterr()
    cli.run(cli.export, ["--model", str(merged), "--gguf", "--outtype", "bf16"])
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["python", "convert_hf_to_gguf.py", str(merged)]
    assert words[3:] == ["--outfile", str(merged / "merged-bf16.gguf"), "--outtype", "bf16"]


# What it costs --------------------------------------------------------------------------------------------------------


def test_what_the_trunk_was_and_became_is_said(made, rows, tmp_path, capsys):
    base = make("qwen3", tmp_path / "qwen3")
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
    base, here = make("phi3", tmp_path / "phi3"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    model = adapters.adapt(settings(base), adapters.base_tokenizer(settings(base)))
    words = f"--base_model {base} --train_file {rows} --num_thoughts {N} --lora_rank 4 --seq_length 48 --dry_run"
    capsys.readouterr()
    cli.run(cli.adapt, words.split())
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    trained, total = model.get_base_model().num_parameters(only_trainable=True), model.get_base_model().num_parameters()
    assert lines["parameters"] == f"{total:,}, of which {trained:,} are trained ({trained / total:.2%})"
    assert list(here.iterdir()) == []


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
    asked = settings(base, train_file=str(file), eval_file=str(file))  # so that nothing is held out
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
    shape = {"vocab_size", "tokenizer", "hidden_size", "num_layers", "num_heads", "dropout", "optimizer"}
    assert of_train - of_adapt == shape
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
