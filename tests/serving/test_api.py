"""The API as OpenAI's own client sees it. Its texts, thoughts and log-probabilities are those of `think`.

pytest tests/serving/test_api.py                 the short version, part of `make test`
TORTURE=1 pytest tests/serving/test_api.py       neighbours in full
"""

import asyncio
import copy
import json
import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from mixtures import untrained
from serving_client import TORTURE, Server, in_thread

from mot.inference.think import MixtureOfThoughts
from mot.model.tokenizer import PAD
from mot.serving import transformers_engine as engine_module

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}{{ m['content'] }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def mixture(text_run) -> MixtureOfThoughts:
    """Characters, 4 thoughts."""
    return MixtureOfThoughts.from_pretrained(str(text_run))


@pytest.fixture(scope="module")
def sequences() -> MixtureOfThoughts:
    """4 thought tokens, thoughts of two."""
    return untrained(["the king of night"], 100, 4, 2)


@pytest.fixture(scope="module")
def server(mixture):
    with in_thread(mixture) as server:
        yield server


@pytest.fixture(scope="module")
def chat(mixture):
    """The same with a chat template."""
    tokenizer = copy.deepcopy(mixture.tokenizer)
    tokenizer.chat_template = TEMPLATE
    with in_thread(MixtureOfThoughts(mixture.model, tokenizer, mixture.thoughts)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client()


# Served = think -------------------------------------------------------------------------------------------------------

CASES = {
    "every thought": {"num_thoughts": 4, "seed": 3},
    "greedy": {"num_thoughts": 4, "temperature": 0.0, "seed": 1},
    "some": {"num_thoughts": 2, "creativity": 1.0, "seed": 11},
    "the most probable": {"num_thoughts": 3, "creativity": 0.0, "seed": 5},
    "each twice": {"num_thoughts": 8, "temperature": 1.3, "seed": 8},
    "nucleus": {"num_thoughts": 4, "top_p": 0.6, "seed": 2},
}


def compare(server: Server, mixture: MixtureOfThoughts, prompt: str, fields: dict) -> None:
    fields = {"max_new_tokens": 24, "temperature": 0.9} | fields
    expected = mixture.think(prompt, **fields)
    renamed = {"num_thoughts": "n", "max_new_tokens": "max_tokens"}
    answer = server.complete(prompt=prompt, **{renamed.get(name, name): value for name, value in fields.items()})
    assert [choice["text"] for choice in answer["choices"]] == [t.text for t in expected]
    if mixture.thoughts:
        assert [choice["thought"]["index"] for choice in answer["choices"]] == [t.index for t in expected]
        got = [choice["thought"]["probability"] for choice in answer["choices"]]
        assert got == pytest.approx([t.probability for t in expected], rel=1e-4)
    else:
        assert all(choice["thought"] is None for choice in answer["choices"])


@pytest.mark.parametrize("case", CASES)
def test_served_texts_are_those_of_think(case, server, mixture):
    compare(server, mixture, "the king ", CASES[case])


@pytest.mark.parametrize("case", ["some", "the most probable", "each twice"])
def test_served_texts_of_thought_sequences_are_those_of_think(case, sequences):
    with in_thread(sequences) as server:
        compare(server, sequences, "the king", CASES[case] | {"max_new_tokens": 8})
        named = server.complete(prompt="the king", thoughts=[13, 2, 13], seed=4, max_tokens=8, temperature=0.9)
        everything = {t.index: t for t in sequences.think("the king", 16, 8, 0.9, seed=4)}
        for choice, k in zip(named["choices"], [13, 2, 13], strict=True):
            assert choice["thought"]["index"] == k
            assert choice["thought"]["probability"] == pytest.approx(everything[k].probability, rel=1e-4)
        assert [choice["text"] for choice in named["choices"][:2]] == [everything[k].text for k in (13, 2)]


def test_a_model_without_thoughts_gives_samples():
    plain = untrained(["the king of night"], 100, 1)
    with in_thread(plain) as server:
        compare(server, plain, "the king ", {"num_thoughts": 3, "seed": 6})
        assert len(set(server.texts(prompt="the king ", n=3, seed=6, max_tokens=24))) == 3
        assert server.post("/v1/route", {"prompt": "the king "}).status_code == 400
        assert server.post("/v1/completions", {"prompt": "a", "thoughts": [0]}).status_code == 400
        assert server.get("/v1/models").json()["data"][0]["thoughts"] == 0


def test_a_prompt_in_several_pieces_is_the_same_prompt(server, mixture, text_file, monkeypatch):
    prompt = text_file.read_text()[:1000]
    before = dict(server.engine.counts)
    compare(server, mixture, prompt, {"num_thoughts": 4, "seed": 1, "temperature": 0.0})
    after = server.engine.counts
    assert after["prefills"] - before["prefills"] == 1
    assert after["prefill_tokens"] - before["prefill_tokens"] == 1000
    monkeypatch.setattr(engine_module, "PREFILL", 7)
    compare(server, mixture, "the king of night and day ", {"num_thoughts": 4, "seed": 3})


def test_named_thoughts_say_what_they_say_among_others(server, mixture):
    expected = {t.index: t.text for t in mixture.think("the king ", 4, 24, 0.9, seed=9)}
    answer = server.complete(prompt="the king ", thoughts=[3, 0], seed=9, max_tokens=24, temperature=0.9)
    assert [choice["thought"]["index"] for choice in answer["choices"]] == [3, 0]
    assert [choice["text"] for choice in answer["choices"]] == [expected[3], expected[0]]


def test_route_is_the_router(server, mixture):
    answer = server.post("/v1/route", {"prompt": "the king "}).json()
    assert answer["probabilities"] == pytest.approx(mixture.route("the king ").tolist(), rel=1e-4)
    assert sum(answer["probabilities"]) == pytest.approx(1)


def test_best_of_returns_the_best(server, mixture):
    expected = sorted(mixture.think("the king ", 4, 24, 0.9, seed=7), key=lambda t: -t.mean_logprob)[:2]
    assert server.texts(prompt="the king ", n=2, best_of=4, seed=7, max_tokens=24, temperature=0.9) == [
        t.text for t in expected
    ]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_without_a_seed_rows_share_a_batch_and_come_apart_again(temperature, server, mixture):
    """Prompts and texts of different lengths: greedy texts are the same as alone, random ones differ every time."""
    asked = [{"prompt": "the king of night"[:n], "n": 1 + n % 4, "max_tokens": 5 + 3 * n} for n in range(1, 16)]
    with ThreadPoolExecutor(15) as pool:
        answers = list(pool.map(lambda body: server.texts(temperature=temperature, creativity=0, **body), asked))
    for body, texts in zip(asked, answers, strict=True):
        assert [len(text) for text in texts] == [body["max_tokens"]] * body["n"] or temperature
        if temperature == 0:
            alone = mixture.think(body["prompt"], body["n"], body["max_tokens"], 0, creativity=0)
            assert texts == [t.text for t in alone]
    assert server.texts(prompt="the ", n=4, max_tokens=30) != server.texts(prompt="the ", n=4, max_tokens=30)


def test_a_seeded_request_says_the_same_among_any_neighbours(server):
    draw, fields = random.Random(0), {"prompt": "the king ", "n": 4, "seed": 12, "max_tokens": 16, "temperature": 1.0}

    def neighbour(_):
        prompt = "".join(draw.choices("the kingofnd", k=draw.randint(1, 60)))
        body = {"prompt": prompt, "n": draw.randint(1, 4), "max_tokens": draw.randint(1, 30)}
        server.complete(**body, **({"seed": draw.randint(0, 9)} if draw.random() < 0.3 else {}))

    answers = set()
    with ThreadPoolExecutor(16) as pool:
        for _ in range(300 if TORTURE else 12):
            beside = [pool.submit(neighbour, i) for i in range(draw.randint(0, 15))]
            answer = server.complete(**fields, logprobs=2)["choices"]
            answers.add(json.dumps(answer))  # probabilities and log-probabilities to the last bit, too
            for future in beside:
                future.result()
    assert len(answers) == 1


def visible(tokens) -> str:
    """The text of tokens: special tokens have none."""
    return "".join(tokens).replace(PAD, "")


# OpenAI's client ------------------------------------------------------------------------------------------------------


def test_client_completes(client, server):
    done = client.completions.create(model="mixture", prompt="the king ", n=4, max_tokens=10, seed=1)
    assert done.object == "text_completion"
    assert done.id.startswith("cmpl-")
    assert done.model == "mixture"
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert {choice.thought["index"] for choice in done.choices} == {0, 1, 2, 3}
    assert done.usage.prompt_tokens == 9
    assert done.usage.total_tokens == 9 + done.usage.completion_tokens
    again = client.completions.create(model="mixture", prompt="the king ", n=4, max_tokens=10, seed=1)
    other = client.completions.create(model="mixture", prompt="the king ", n=4, max_tokens=10, seed=2)
    texts = [[choice.text for choice in answer.choices] for answer in (done, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_client_has_openais_defaults(client):
    done = client.completions.create(model="mixture", prompt="the king ")
    assert len(done.choices) == 1
    assert done.usage.completion_tokens <= 16
    # No seed: the end may be drawn at any token, the sixteenth among them.
    assert done.choices[0].finish_reason in ("stop", "length")
    assert done.choices[0].finish_reason == "stop" or done.usage.completion_tokens == 16
    assert done.choices[0].logprobs is None


def test_client_gives_ours_in_extra_body(client):
    done = client.completions.create(
        model="mixture", prompt="the king ", max_tokens=4, extra_body={"thoughts": [2, 1], "creativity": 0}
    )
    assert [choice.thought["index"] for choice in done.choices] == [2, 1]


def test_client_streams_what_it_would_get_whole(client):
    fields = {"model": "mixture", "prompt": "the king ", "n": 3, "max_tokens": 20, "seed": 4}
    whole = client.completions.create(**fields)
    texts, finish, usage = ["", "", ""], [None] * 3, None
    for chunk in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finish[choice.index] = choice.finish_reason or finish[choice.index]
            assert choice.thought == whole.choices[choice.index].thought
    assert texts == [choice.text for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_client_stops(client):
    for seed in range(50):
        fields = {"model": "mixture", "prompt": "the king ", "n": 2, "max_tokens": 40, "seed": seed}
        whole = [choice.text for choice in client.completions.create(**fields).choices]
        if min(map(len, whole)) > 20:
            break
    stop = [whole[0][10:13], whole[1][5]]
    for streamed in (False, True):
        if streamed:
            texts, finish = ["", ""], ["", ""]
            for chunk in client.completions.create(**fields, stop=stop, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
                    finish[choice.index] = choice.finish_reason
        else:
            choices = client.completions.create(**fields, stop=stop).choices
            texts, finish = [choice.text for choice in choices], [choice.finish_reason for choice in choices]
        assert texts == [text[: min(text.find(s) for s in stop if s in text)] for text in whole]
        assert finish == ["stop", "stop"]
    one = client.completions.create(**fields, stop=whole[0][10:13]).choices[0]
    assert one.text == whole[0][: whole[0].find(whole[0][10:13])]


def test_client_reads_logprobs(client, mixture):
    prompt = "the king "
    fields = {"model": "mixture", "prompt": prompt, "max_tokens": 8, "logprobs": 3, "seed": 1, "n": 2}
    for choice in client.completions.create(**fields).choices:
        ids = mixture.tokenizer.convert_tokens_to_ids([*prompt])
        said = mixture.tokenizer.convert_tokens_to_ids(choice.logprobs.tokens)
        ids += [mixture.thoughts[choice.thought["index"]], *said]
        with torch.no_grad():
            logits = mixture.model(torch.tensor([ids])).logits[0, len(prompt) : -1]
        logits[:, mixture.thoughts] = -torch.inf
        expected = logits.log_softmax(-1)
        given = choice.logprobs
        assert visible(given.tokens) == choice.text
        assert given.text_offset == [len(visible(given.tokens[:i])) for i in range(len(given.tokens))]
        chosen = expected.gather(1, torch.tensor(ids[len(prompt) + 1 :])[:, None])[:, 0]
        assert given.token_logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
        for row, top in zip(expected, given.top_logprobs, strict=True):
            assert sorted(top.values()) == pytest.approx(sorted(row.topk(3).values.tolist()), abs=1e-4)


def test_client_gets_an_echo(client, mixture):
    prompt = "the king "
    fields = {"model": "mixture", "prompt": prompt, "max_tokens": 3, "seed": 1, "echo": True}
    plain = client.completions.create(**fields).choices[0]
    assert plain.text.startswith(prompt)
    scored = client.completions.create(**fields, logprobs=1).choices[0]
    assert scored.text == plain.text
    assert visible(scored.logprobs.tokens) == scored.text
    assert scored.logprobs.text_offset[:10] == list(range(10))
    with torch.no_grad():
        logits = mixture.model(torch.tensor([mixture.tokenizer.convert_tokens_to_ids([*prompt])])).logits[0]
    logits[:, mixture.thoughts] = -torch.inf
    expected = logits.log_softmax(-1)[:-1].gather(
        1, torch.tensor(mixture.tokenizer.convert_tokens_to_ids([*prompt[1:]]))[:, None]
    )
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[1:9] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    alone = client.completions.create(**fields | {"max_tokens": 0}, logprobs=0).choices[0]  # what lm-eval asks
    assert alone.text == prompt
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    assert 0 < alone.thought["probability"] < 1
    streamed = list(client.completions.create(**fields, logprobs=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == plain.text
    tokens = [token for chunk in streamed for token in chunk.choices[0].logprobs.tokens]
    assert visible(tokens) == plain.text


def test_client_sends_prompts_in_every_form(client, mixture):
    fields = {"model": "mixture", "max_tokens": 6, "temperature": 0, "seed": 1, "n": 4}
    one = [choice.text for choice in client.completions.create(prompt="the king ", **fields).choices]
    other = [choice.text for choice in client.completions.create(prompt="a sea ", **fields).choices]
    both = client.completions.create(prompt=["the king ", "a sea "], **fields)
    assert [choice.text for choice in both.choices] == one + other
    assert [choice.index for choice in both.choices] == list(range(8))
    ids = [mixture.tokenizer.convert_tokens_to_ids([*text]) for text in ("the king ", "a sea ")]
    assert [choice.text for choice in client.completions.create(prompt=ids[0], **fields).choices] == one
    assert [choice.text for choice in client.completions.create(prompt=ids, **fields).choices] == one + other
    assert len(client.completions.create(prompt="", **fields).choices) == 4
    echoed = client.completions.create(prompt=ids[0], echo=True, **fields | {"temperature": 1, "n": 1}).choices[0].text
    assert echoed.startswith("the king ")


def test_client_chats(chat, mixture):
    client = chat.client()
    messages = [{"role": "user", "content": [{"type": "text", "text": "the king"}]}]
    fields = {
        "model": "mixture",
        "messages": messages,
        "n": 4,
        "temperature": 0,
        "seed": 3,
        "max_completion_tokens": 12,
    }
    expected = mixture.think("the king\n", 4, 12, 0.0, seed=3)
    done = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    assert done.object == "chat.completion"
    assert [choice.message.content for choice in done.choices] == [t.text for t in expected]
    assert [choice.thought["index"] for choice in done.choices] == [t.index for t in expected]
    for choice in done.choices:
        assert visible(part.token for part in choice.logprobs.content) == choice.message.content
        assert all(bytes(part.bytes).decode() == part.token for part in choice.logprobs.content)
        assert all(len(part.top_logprobs) == 2 for part in choice.logprobs.content)
    texts, roles = [""] * 4, [None] * 4
    stream = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] = choice.delta.role or roles[choice.index]
    assert texts == [t.text for t in expected]
    assert roles == ["assistant"] * 4
    assert chunk.usage == done.usage
    long = client.chat.completions.create(model="mixture", messages=[{"role": "user", "content": "a"}], stop=["e"])
    assert "e" not in long.choices[0].message.content
    for wrong in (
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        [{"role": "user", "content": "<|thought_1|>"}],
        [{"role": "user", "content": "\N{SNOWMAN}"}],
    ):
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(model="mixture", messages=wrong)
        assert e.value.param == "messages"


def test_async_client(server):
    async def talk():
        async with server.client(asynchronous=True) as client:
            fields = {"model": "mixture", "prompt": "the king ", "max_tokens": 12, "n": 2}
            answers = await asyncio.gather(*[client.completions.create(**fields, seed=i % 2) for i in range(6)])
            texts = [tuple(choice.text for choice in answer.choices) for answer in answers]
            assert len(set(texts)) == 2
            streamed = ["", ""]
            async for chunk in await client.completions.create(**fields, seed=0, stream=True):
                for choice in chunk.choices:
                    streamed[choice.index] += choice.text
            assert tuple(streamed) == texts[0]
            assert [model.id async for model in client.models.list()] == ["mixture"]

    asyncio.run(talk())


def test_client_lists_models(client):
    assert [model.id for model in client.models.list()] == ["mixture"]
    assert client.models.retrieve("mixture").thoughts == 4
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


WRONG = {
    "model": ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
    "n": ({"n": 65}, openai.BadRequestError, None, "n"),
    "temperature": ({"temperature": 2.1}, openai.BadRequestError, None, "temperature"),
    "top_p": ({"top_p": 0}, openai.BadRequestError, None, "top_p"),
    "stop": ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError, None, "stop"),
    "empty stop": ({"stop": [""]}, openai.BadRequestError, None, "stop"),
    "max_tokens": ({"max_tokens": 1025}, openai.BadRequestError, None, "max_tokens"),
    "a text for a number": ({"max_tokens": "5"}, openai.BadRequestError, None, "max_tokens"),
    "context": ({"prompt": "a" * 2040, "max_tokens": 16}, openai.BadRequestError, "context_length_exceeded", "prompt"),
    "character": ({"prompt": "\N{SNOWMAN}"}, openai.BadRequestError, None, "prompt"),
    "thought token": ({"prompt": [10**6]}, openai.BadRequestError, None, "prompt"),
    "no such thought": ({"extra_body": {"thoughts": [4]}}, openai.BadRequestError, None, "thoughts"),
    "greedy copies": ({"n": 5, "temperature": 0}, openai.BadRequestError, None, "temperature"),
    "n and thoughts": ({"n": 2, "extra_body": {"thoughts": [1]}}, openai.BadRequestError, None, "n"),
    "best_of below n": ({"n": 3, "best_of": 2}, openai.BadRequestError, None, "best_of"),
    "best_of streamed": ({"best_of": 2, "stream": True}, openai.BadRequestError, None, "best_of"),
    "unknown": ({"extra_body": {"colour": 1}}, openai.BadRequestError, None, "colour"),
    "penalty": ({"presence_penalty": 1}, openai.BadRequestError, None, "presence_penalty"),
    "stream_options": ({"stream_options": {"include_usage": True}}, openai.BadRequestError, None, "stream_options"),
}


@pytest.mark.parametrize("case", WRONG)
def test_client_raises_what_openais_server_makes_it_raise(case, client):
    fields, kind, code, param = WRONG[case]
    with pytest.raises(kind) as e:
        client.completions.create(**{"model": "mixture", "prompt": "the king "} | fields)
    assert (e.value.code, e.value.param) == (code, param)
    assert e.value.type == "invalid_request_error"
    assert e.value.message


def test_chat_without_a_template_says_where_to_go(client):
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="mixture", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat.completions.create(model="mixture", messages=[{"role": "user", "content": "a"}], top_logprobs=2)


def test_a_thought_token_in_a_prompt_is_refused(server, mixture):
    answer = server.post("/v1/completions", {"prompt": [1, mixture.thoughts[0]]})
    assert answer.status_code == 400
    assert "`thoughts`" in answer.json()["error"]["message"]


def test_a_failing_step_fails_its_requests_and_nothing_else(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "sample_tokens", broken)
        answer = server.post("/v1/completions", {"prompt": "the king "})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "memory" not in answer.text
        streamed = server.post("/v1/completions", {"prompt": "the king ", "stream": True}).text
        assert "server_error" in streamed
        assert streamed.rstrip().endswith("data: [DONE]")
    assert server.texts(prompt="the king ")
    counts = server.engine.counts
    assert counts["accepted"] == counts["completed"] + counts["aborted"] + counts["failed"]


def test_text_comes_whole_characters_at_a_time():
    """Bytes of an incomplete character are held back, and the pieces of a stream add up to the text."""
    bytewise = untrained(["ä€𝄞 text"], 300, 4)
    with in_thread(bytewise) as server:
        for seed in range(2):
            fields = {"prompt": "ä", "n": 4, "max_tokens": 60, "temperature": 2, "seed": seed}
            expected = [t.text for t in bytewise.think("ä", 4, 60, 2.0, seed=seed)]
            assert server.texts(**fields) == expected
            texts = [""] * 4
            for line in server.post("/v1/completions", fields | {"stream": True}).text.splitlines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        texts[choice["index"]] += choice["text"]
            assert texts == expected
