"""All tasks alike: generators repeat themselves, verifiers are strict, held-out rows stay unseen, ceilings are real."""

import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot import tasks
from mot.data.load import load_data
from mot.tasks import OWN_ROWS, TASKS, circle
from mot.training.settings import TrainSettings


@pytest.mark.parametrize("name", OWN_ROWS)
def test_rows_are_the_same_for_the_same_seed_and_others_for_another(name):
    task = tasks.load(name)
    assert task.rows(50, 1) == task.rows(50, 1)
    assert len(set(task.rows(50, 1)) & set(task.rows(50, 2))) <= 1


FIRST_ROWS = {
    "forks": ("3MNgT7OW>", "pdhDf"),
    "chains": ("A", "HEGAHEHEGHBFFAH"),
    "circle": ("", "LGAIBAFMMLHFGBKHIK"),
    "siblings": ("", "MrrG4"),
    "countdown": ("2,8,11,13=14>", "11+13-2-8"),
    "countdown_free": ("2,8,11,13=14>", "(13-8)+11-2"),
    "spellings": ("T9nJrCcj>", "\U0001d7ee\U0001d7f5\U0001d5e6\U0001d5b1A"),
}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_the_first_row_is_the_one_that_published_figures_were_made_with(name):
    assert tasks.load(name).rows(1, 0)[0][:2] == FIRST_ROWS[name]


@pytest.mark.parametrize("name", OWN_ROWS)
def test_every_completion_is_an_answer_and_there_are_no_more_than_answers_says(name):
    task, said = tasks.load(name), {}
    for prompt, completion, *_ in task.rows(2000, 3):
        answer = task.verify(prompt, completion)
        assert answer
        said.setdefault(prompt, set()).add(answer)
    for prompt, found in list(said.items())[:50]:
        assert len(found) <= task.answers(prompt)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_the_example_in_the_words_of_the_task_is_true(name):
    task = tasks.load(name)
    (prompt,), (answer,) = (
        re.findall(rf'^    {word} +"(.*?)"', task.__doc__, re.MULTILINE) for word in ("prompt", "answer")
    )
    assert task.verify(prompt, answer)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_every_symbol_is_one_token_and_rows_are_short(name, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN_ROWS", 500)
    held_out = tasks.held_out(name)
    data = load_data(TrainSettings(task=name, seq_length=48), (tasks.training(name, 1), held_out))
    assert data.notes == []  # nothing is cut
    for (prompt, completion), (prompt_ids, ids) in zip(held_out, data.eval, strict=True):
        assert len(prompt_ids) == max(1, len(prompt))
        assert len(ids) == len(completion) + 1


symbols = st.characters() | st.sampled_from(
    "ABCDEFGHIJKLMNO0123456789+-*/()=> \n_e.\u00b2\u0663\u0967\u2468\uff21\u0430\0"
)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_garbage_is_no_answer(name):
    task = tasks.load(name)
    rows = [row[:2] for row in task.rows(20, 5)]

    @given(st.sampled_from(rows), st.text(symbols, max_size=50))
    def alone(row, garbage):
        assert task.verify(row[0], garbage) is None or set(garbage) <= set(map(chr, range(40, 123)))

    @given(
        st.sampled_from(rows),
        st.sampled_from([" ", "\n", "\0", "_", "\u00b2", "\u0663", "\u200b", "\uff21", ">", "="]),
        st.integers(0, 30),
    )
    def added(row, trick, place):
        prompt, text = row
        assert task.verify(prompt, text[:place] + trick + text[place:]) is None
        if place < len(text):
            assert task.verify(prompt, text[:place] + trick + text[place + 1 :]) is None

    alone()
    added()
    assert task.verify(rows[0][0], "") is None


@pytest.mark.parametrize("name", TASKS)
def test_every_task_offers_what_a_task_must(name):
    task, facts = tasks.load(name), TASKS[name]
    assert all(callable(getattr(task, function)) for function in ("rows", "verify", "answers", *facts.measures))
    if facts.own_rows:
        assert task.answers(task.rows(1, 0)[0][0]) >= 1
    else:
        with pytest.raises(ValueError, match=f"^{name}: its rows come from a file"):
            task.rows(1, 0)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_there_is_room_for_the_longest_answer_and_no_more_than_two_tokens_besides(name):
    room = TASKS[name].answer_tokens - max(len(answer) for _, answer in tasks.held_out(name))
    assert 1 <= room <= 2


def test_the_names_of_the_tasks_cost_no_heavy_import():
    code = """
import sys
for name in ("torch", "numpy", "rdkit", "transformers"):
    sys.modules[name] = None
from mot import tasks
assert not {f"mot.tasks.{name}" for name in tasks.TASKS} & set(sys.modules)
for name in tasks.TASKS:
    tasks.load(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_held_out_rows_are_always_the_same_and_never_trained_on(name, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN_ROWS", 5000)
    held_out = tasks.held_out(name)
    assert held_out == tasks.held_out(name)
    assert len(held_out) == 512
    training = tasks.training(name, 42)
    assert not set(held_out) & {row[:2] for row in training}
    if not TASKS[name].recurring:
        assert not {prompt for prompt, _ in held_out} & {row[0] for row in training}
    assert {len(prompt) for prompt, _ in held_out} == {0} or not TASKS[name].creative


def test_forks_has_512_held_out_prompts_and_countdown_506():
    assert len({prompt for prompt, _ in tasks.held_out("forks")}) == 512
    assert len({prompt for prompt, _ in tasks.held_out("countdown")}) == 506


def test_training_leaves_out_held_out_prompts_even_where_the_generator_draws_them():
    held_out = {prompt for prompt, _ in tasks.held_out("forks")}
    rows = tasks.training("forks", tasks.HELD_OUT_SEED)  # the very rows that are held out, and others behind them
    assert len(rows) == tasks.TRAIN_ROWS - len(held_out)
    assert not held_out & {prompt for prompt, _ in rows}


@pytest.mark.parametrize("name", tasks.CREATIVE)
def test_a_creative_task_has_one_training_set(name):
    assert tasks.training(name, 1) == tasks.training(name, 2)
    assert 0.999 * TASKS[name].training_rows < len(tasks.training(name, 1)) <= TASKS[name].training_rows


def test_the_ceiling_of_eight_draws_is_5_25():
    assert f"{tasks.independence_ceiling(8, 8):.2f}" == "5.25"
    assert tasks.independence_ceiling(8, 1) == 1


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_the_ceiling_is_what_independent_draws_find(k):
    draw, n = random.Random(k), 20_000
    uniform = sum(len(set(draw.choices(range(8), k=k))) for _ in range(n)) / n
    assert uniform == pytest.approx(tasks.independence_ceiling(8, k), abs=0.04)
    skewed = sum(len(set(draw.choices(range(8), weights=range(1, 9), k=k))) for _ in range(n)) / n
    assert skewed < tasks.independence_ceiling(8, k) + 0.04


def test_creativity_counts_what_is_valid_unseen_and_no_repeat():
    training = [("", "ABBCCDDEEFFGGHHIIA")]
    (one, other) = (text for _, text in circle.rows(2, 1))
    renamed = one.translate(str.maketrans(circle.NODES, circle.NODES[::-1]))
    seen = "BCCDDEEFFGGHHIIAAB"  # the training row's plan with other names
    assert tasks.creativity("circle", [one], training) == 1
    assert tasks.creativity("circle", [one, one, renamed, other], training) == 2 / 4
    assert tasks.creativity("circle", [one, seen, "nonsense", "ABBA"], training) == 1 / 4
    assert tasks.creativity("circle", [one, other], [("", renamed)]) == 1 / 2
    assert tasks.creativity("siblings", ["kQ", "", "\n"], []) == 0
    with pytest.raises(ValueError, match="no texts"):
        tasks.creativity("circle", [], training)


@pytest.mark.parametrize(("name", "known"), [("circle", "0.771"), ("siblings", "0.922")])
def test_the_ceiling_of_creativity_is_what_a_perfect_sampler_gets(name, known):
    task, training = tasks.load(name), tasks.training(name, 1)
    ceiling = tasks.creativity_ceiling(name, training, 1000)
    assert f"{ceiling:.3f}" == known
    drawn = [tasks.creativity(name, [text for _, text in task.rows(1000, seed)], training) for seed in range(20)]
    assert sum(drawn) / 20 == pytest.approx(ceiling, abs=0.01)
    M, R = task.answers(""), TASKS[name].training_rows  # and before the training rows are drawn:
    assert (1 - 1 / M) ** R * tasks.independence_ceiling(M, 1000) / 1000 == pytest.approx(ceiling, abs=0.002)
