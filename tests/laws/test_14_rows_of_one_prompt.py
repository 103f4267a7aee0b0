"""Law 14. Rows of one prompt stay together in a step and are won by different thoughts (--group_prompts).

With one row per prompt everything is bit for bit as without the option. Remembered winners (--estep_rows) keep a row's
thought until it is scored again.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from survive import complete, cut_and_resumed, last_state, short_run
from trainers import step_of

from mot import cli
from mot.data.datasets import Batches, keep_together
from mot.training.assignment import Mates, mates_of, separate
from mot.training.memory import RememberedWinners

# The order ----------------------------------------------------------------------------------------------------------


def steps_of(order: list[int], room: int, size: int) -> list[list[int]]:
    return [order[:room]] + [order[i : i + size] for i in range(room, len(order), size)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(8, 16), st.integers(0, 7), st.integers(0, 99))
def test_no_prompt_is_in_two_steps_but_at_the_end(numbers, size, start, seed):
    groups = np.array(numbers)
    kept = Counter()
    for i, number in enumerate(numbers):  # at most `size` rows for each prompt
        kept[number] += 1
        groups[i] = number if kept[number] <= size - 7 else 1000 + i
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    room = size - start
    placed = keep_together(order, groups, room, size)
    assert sorted(placed) == sorted(order)
    steps = steps_of(placed, room, size)
    cut = [g for g in set(groups) if sum(any(groups[row] == g for row in step) for step in steps) > 1]
    last_full = [step for step in steps if step][:-1]
    for g in cut:  # only a prompt that waited until nothing else was left
        assert any(groups[row] == g for step in last_full[-len(cut) - 1 :] for row in step)
    assert len(cut) <= max(1, len(steps) - 1)
    if len(set(groups)) == len(groups):
        assert placed == order


def test_with_one_row_per_prompt_the_order_is_the_order():
    plain = list(Batches(50, 8, 3, 30))
    assert list(Batches(50, 8, 3, 30, groups=np.arange(50), step_rows=8)) == plain
    grouped = list(Batches(50, 8, 3, 30, groups=np.arange(50) // 4, step_rows=8))
    assert grouped != plain
    assert grouped[7:] == list(Batches(50, 8, 3, 30, start=7, groups=np.arange(50) // 4, step_rows=8))
    epoch = [row for batch in grouped for row in batch][:50]
    assert sorted(epoch) == list(range(50))
    assert sum(len({row // 4 for row in batch}) == 2 for batch in grouped) >= 20


# The winners --------------------------------------------------------------------------------------------------------


def test_rows_of_one_prompt_get_different_thoughts_drawn_from_their_responsibilities():
    q_CN = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).repeat(1, 1)
    counts = Counter()
    for seed in range(3000):
        winner_C = torch.tensor([0, 0, 2])
        separate(winner_C, q_CN, [Mates([0, 1], [])], torch.Generator().manual_seed(seed))
        assert winner_C[2] == 2
        counts[tuple(winner_C[:2].tolist())] += 1
    assert all(a != b for a, b in counts)
    assert counts[0, 1] + counts[1, 0] > 3 * (counts[1, 2] + counts[2, 1])
    alone = Counter()
    for seed in range(3000):
        winner_C = torch.tensor([0])
        separate(winner_C, q_CN[:1], [Mates([0], [])], torch.Generator().manual_seed(seed))
        alone[int(winner_C)] += 1
    assert [alone[k] / 3000 for k in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


def test_a_thought_that_another_row_of_the_prompt_remembers_is_taken():
    prompt_B, scored_B = torch.tensor([5, 7, 5, 5, 7, 9]), torch.tensor([True, True, False, True, False, True])
    remembered_B = torch.tensor([-1, -1, 2, -1, -1, -1])
    found = mates_of(prompt_B, scored_B, remembered_B)
    assert found == [Mates([0, 2], [2])]
    for seed in range(50):
        winner_C = torch.zeros(4, dtype=torch.long)
        separate(winner_C, torch.full((4, 3), 1 / 3), found, torch.Generator().manual_seed(seed))
        assert sorted(winner_C[[0, 2]].tolist()) == [0, 1]


# Remembered winners --------------------------------------------------------------------------------------------------


def test_all_rows_are_scored_in_the_first_fifth_and_in_a_share_of_the_later_steps():
    memory = RememberedWinners(10, 4, 1 / 8, 100)
    all_of = [memory.scores_all(step) for step in range(100)]
    assert all(all_of[:20])
    assert sum(all_of[20:]) == 10
    rows = torch.tensor([3, 5])
    assert memory.of(rows, 21).tolist() == [-1, -1]
    memory.keep(rows, torch.tensor([2, 0]))
    assert memory.of(torch.tensor([5, 4, 3]), 21).tolist() == [0, -1, 2]
    assert memory.of(rows, 5).tolist() == [-1, -1]
    assert memory.winner.element_size() == 1
    assert RememberedWinners(10, 300, 0.5, 10).of(rows, 9).tolist() == [-1, -1]


def test_a_step_that_remembers_scores_no_row_and_gives_each_its_winner(tmp_path, monkeypatch):
    trainer, (b,) = step_of(tmp_path, num_thoughts=4, batch_size=32, source="rows", step=0, estep_rows=1 / 8)
    won = b["thought"][:, 0]
    assert (trainer.memory.winner < 4).sum() == (won >= 0).sum() > 20
    # The rows of step 9 of this tiny run, remembered beforehand: nothing is left to score.
    number = len(trainer.data.train)
    trainer.memory.keep(torch.arange(number), torch.arange(number) % 4)
    trainer.state.global_step = 8
    assert not trainer.memory.scores_all(8)
    monkeypatch.setattr(trainer, "score_thoughts", None)
    rows = trainer.order.rows_of(8, 32)
    part = trainer.data.collate([trainer.data.train[i] for i in rows])
    trainer.current_gradient_accumulation_steps = 1
    (b,), _ = trainer.get_batch_samples(iter([part]), 1, torch.device("cpu"))
    carries = b["thought"][:, 0] >= 0
    assert 20 < carries.sum() < 32 or carries.all()
    expected = torch.tensor(trainer.thoughts)[torch.tensor(rows) % 4]
    assert torch.equal(b["thought"][carries, 0], expected[carries])
    assert torch.equal(b["q"][carries, 0].argmax(-1), (torch.tensor(rows) % 4)[carries])
    trainer.compute_loss(trainer.model, dict(b)).backward()


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("grouped")
    words = ("the", "king", "night", "day", "sea")
    rows = [{"prompt": f"{a} and {b} ", "completion": c} for a in words for b in words for c in ("to", "a", "is")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*short_run(folder / "rows.jsonl"), "--eval_file", str(folder / "rows.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["--estep_rows", "0.25"], ["--group_prompts"], ["--estep_rows", "0.25", "--group_prompts"]], ids=str
)
def test_a_run_cut_and_resumed_ends_in_the_same_state(more, flags, tmp_path):
    complete([*flags, *more, "--output_dir", tmp_path / "whole"])
    assert last_state(cut_and_resumed([*flags, *more], tmp_path / "run", (2, 7))) == last_state(tmp_path / "whole")
    complete([*flags, "--output_dir", tmp_path / "all"])
    assert last_state(tmp_path / "all") != last_state(tmp_path / "whole")


@pytest.mark.slow
def test_with_one_row_per_prompt_a_run_is_bit_for_bit_as_without(tmp_path):
    rows = [{"prompt": f"{n} and ", "completion": f"is {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*short_run(tmp_path / "rows.jsonl"), "--output_dir"]
    complete([*flags, tmp_path / "without"])
    complete([*flags, tmp_path / "with", "--group_prompts"])
    assert last_state(tmp_path / "with") == last_state(tmp_path / "without")


def test_a_prompt_with_more_rows_than_thoughts_is_one_line(tmp_path, refused):
    rows = [{"prompt": "a", "completion": str(n)} for n in range(5)]
    rows += [{"prompt": str(n), "completion": "b"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--train_file", tmp_path / "rows.jsonl", "--vocab_size", 100, "--group_prompts", "--num_thoughts", 4]
    line = "--group_prompts: the prompt 'a' has 5 rows, more than --num_thoughts 4; keep fewer of them"
    refused(cli.train, flags, line)
