"""countdown_free: every spelling is the computation that it came from."""

from mot.tasks import TASKS, countdown, countdown_free


def test_every_row_is_valid_and_is_its_key():
    rows = countdown_free.rows(3000, 2)
    assert all(countdown_free.verify(prompt, completion) == key for prompt, completion, key in rows)
    assert max(len(completion) for _, completion, _ in rows) < TASKS["countdown_free"].answer_tokens


def test_prompts_and_answers_are_those_of_countdown():
    free = countdown_free.rows(200, 7)
    assert [(prompt, key) for prompt, _, key in free] == countdown.rows(200, 7)
    assert countdown_free.answers(free[0][0]) == countdown.answers(free[0][0])


def test_spellings_differ_in_order_and_in_parentheses():
    rows = countdown_free.rows(3000, 2)
    spelled = [completion for _, completion, key in rows if completion != key]
    assert len(spelled) > 1000
    assert any(sorted(completion) == sorted(key) for _, completion, key in rows if completion != key)  # order
    assert any(completion.count("(") > key.count("(") for _, completion, key in rows)  # needless parentheses
