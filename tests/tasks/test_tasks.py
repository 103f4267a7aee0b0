"""Tasks with known answers: generators repeat themselves, verifiers are strict, ceilings are real, lines are exact."""

import math
import random
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import pairwise, permutations, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mot import tasks
from mot.data.load import load_data
from mot.evaluation.answers import Found, find_answers
from mot.inference.think import MixtureOfThoughts, Thought
from mot.tasks import OWN_ROWS, TASKS, chains, circle, countdown, forks, siblings
from mot.training.settings import TrainSettings

prompts = st.permutations(forks.ITEMS).map(lambda items: "".join(items[:8]) + ">")


# Generator and verifier ---------------------------------------------------------------------------------------------


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
}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_the_first_row_is_the_one_that_published_figures_were_made_with(name):
    assert tasks.load(name).rows(1, 0)[0] == FIRST_ROWS[name]


@pytest.mark.parametrize("name", OWN_ROWS)
def test_every_completion_is_an_answer_and_there_are_no_more_than_answers_says(name):
    task, said = tasks.load(name), {}
    for prompt, completion in task.rows(2000, 3):
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
    rows = task.rows(20, 5)

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


def test_every_row_is_well_formed_and_its_answer_is_valid():
    for prompt, answer in forks.rows(500, 3):
        assert re.fullmatch(r"[A-Za-z0-9+-]{8}>", prompt)
        assert len(set(prompt)) == 9
        assert len(answer) == forks.CHAIN == 5
        assert forks.verify(prompt, answer) in prompt[:8]


def test_answers_are_spread_evenly_over_the_places():
    places = [prompt.index(forks.verify(prompt, answer)) for prompt, answer in forks.rows(8000, 4)]
    assert all(900 < places.count(place) < 1100 for place in range(8))


@given(prompts)
def test_exactly_the_eight_chains_of_the_prompt_are_answers(prompt):
    accepted = {item for item in forks.ITEMS if forks.verify(prompt, forks.chain(item)) == item}
    assert accepted == set(prompt[:-1])
    assert len({forks.chain(item) for item in prompt[:-1]}) == forks.ANSWERS == 8


@given(prompts, st.data())
def test_the_verifier_is_strict(prompt, data):
    chain = forks.chain(data.draw(st.sampled_from(prompt[:-1])))
    absent = data.draw(st.sampled_from([item for item in forks.ITEMS if item not in prompt]))
    extra = data.draw(st.sampled_from(forks.ITEMS + " >\n"))
    wrong = ["", chain[:-1], chain[1:], chain + extra, extra + chain, chain[::-1], chain * 2, forks.chain(absent)]
    wrong += [chain.swapcase(), chain.upper(), chain.lower(), prompt, absent, ">"]
    right = {forks.chain(item) for item in prompt[:-1]}
    for answer in wrong:
        assert answer in right or forks.verify(prompt, answer) is None, answer


# circle -------------------------------------------------------------------------------------------------------------


def plan_by_trying(text: str, nodes: str, edges: int) -> str | None:
    """The plan by definition: the edges from the first on, each of which begins where the one before ended."""
    pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
    if len(text) != 2 * edges or not all(c in nodes for c in text) or len({p[0] for p in pairs}) != edges:
        return None
    for order in permutations(range(1, edges)):
        ring = [0, *order, 0]
        if all(pairs[i][1] == pairs[j][0] for i, j in pairwise(ring)):
            return "".join(map(str, ring[:-1]))
    return None


@pytest.mark.parametrize("edges", [2, 3])
def test_small_circles_are_exactly_those_found_by_trying(monkeypatch, edges):
    monkeypatch.setattr(circle, "EDGES", edges)
    monkeypatch.setattr(circle, "NODES", "ABCD")
    found = 0
    for text in map("".join, product("ABCD", repeat=2 * edges)):
        assert circle.verify("", text) == plan_by_trying(text, "ABCD", edges), text
        found += circle.verify("", text) is not None
    assert found == math.comb(4, edges) * math.factorial(edges - 1) * math.factorial(edges)  # nodes, cycles, orders


@given(st.integers(0, 10**6), st.permutations(circle.NODES), st.integers(1, 8), st.randoms())
def test_a_plan_is_what_renaming_keeps(seed, names, i, draw):
    ((_, text),) = circle.rows(1, seed)
    assert sorted(circle.verify("", text)) == list("012345678")
    renamed = text.translate(str.maketrans(circle.NODES, "".join(names)))
    assert circle.verify("", renamed) == circle.verify("", text)
    edges = [text[j : j + 2] for j in range(0, 18, 2)]
    edges[0], edges[i] = edges[i], edges[0]
    swapped = "".join(edges)
    assert circle.verify("", swapped) not in (None, circle.verify("", text))
    assert circle.verify("", text[::-1])  # every edge turned round, last first: a cycle again
    assert circle.verify("", text[1] + text[0] + text[2:]) is None  # one edge turned round


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("good", "ABBCCDDEEFFGGHHIIA"),
        ("2-edge circle", "ABBA"),
        ("2-edge circle and a 7-edge one", "ABBACDDEEFFGGHHIIC"),
        ("three circles", "ABBCCADEEFFDGHHIIG"),
        ("self-loop", "AABCCDDEEFFGGHHIIB"),
        ("nine self-loops", "AABBCCDDEEFFGGHHII"),
        ("repeated node", "ABBCCDDEEFFGGHHBBA"),
        ("repeated edge", "ABABBCCDDEEFFGGHHA"),
        ("8 edges", "ABBCCDDEEFFGGHHA"),
        ("10 edges", "ABBCCDDEEFFGGHHIIJJA"),
        ("a path", "ABBCCDDEEFFGGHHIIJ"),
        ("wrong direction once", "BABCCDDEEFFGGHHIIA"),
        ("a sixteenth node", "ABBCCDDEEFFGGHHPPA"),
        ("small letters", "abbccddeeffgghhiia"),
        ("spaces", "AB BC CD DE EF FG GH HI IA"),
        ("half an edge more", "ABBCCDDEEFFGGHHIIAA"),
        ("Cyrillic A", "\u0410BBCCDDEEFFGGHHII\u0410"),
    ],
)
def test_circle_takes_nothing_but_one_directed_cycle_of_nine(what, text):
    assert (circle.verify("", text) == "012345678") is (what == "good")
    assert (circle.verify("", text) is None) is (what != "good")


def test_plans_are_equally_likely():
    seen = Counter(circle.verify("", text)[1] for _, text in circle.rows(8000, 1))
    assert len(seen) == 8
    assert all(900 < n < 1100 for n in seen.values())


# siblings -----------------------------------------------------------------------------------------------------------


def test_the_family_tree_is_five_times_five_hundred_children():
    children = [child for family in siblings.FAMILIES.values() for child in family]
    assert list(siblings.FAMILIES) == list("01234")
    assert {len(family) for family in siblings.FAMILIES.values()} == {500}
    assert len(set(children)) == 2500
    assert {len(child) for child in children} == {2}
    assert siblings.answers("") == sum(math.comb(len(family), 2) for family in siblings.FAMILIES.values()) == 623_750
    assert all(
        len({f for f, family in siblings.FAMILIES.items() if any(c[0] == a for c in family)}) == 5 for a in "aqX"
    )


@given(st.data())
def test_siblings_are_two_different_children_of_the_parent_named(data):
    name = st.sampled_from([child for family in siblings.FAMILIES.values() for child in family])
    family = st.sampled_from(list(siblings.FAMILIES.values()))
    first = data.draw(name | family.flatmap(st.sampled_from))
    near = next(f for f in siblings.FAMILIES.values() if first in f)
    second, parent = data.draw(name | st.sampled_from(near)), data.draw(st.sampled_from("012345"))
    right = first != second and all(c in siblings.FAMILIES.get(parent, []) for c in (first, second))
    answer = siblings.verify("", first + second + parent)
    assert (answer is not None) is right
    assert answer == siblings.verify("", second + first + parent)
    for wrong in (first + second, parent + first + second, first + second + parent * 2, first + first + parent, parent):
        assert siblings.verify("", wrong) is None


# chains -------------------------------------------------------------------------------------------------------------


def test_the_matrices_are_four_different_doubly_stochastic_ones():
    for matrix in chains.MATRICES:
        for line in [*matrix, *zip(*matrix, strict=True)]:
            assert sum(line) == pytest.approx(1)
            assert sorted(p for p in line if p) == sorted(chains.WEIGHTS)
    for a, b in permutations(chains.MATRICES, 2):
        assert all(max(abs(p - q) for p, q in zip(x, y, strict=True)) >= 0.3 for x, y in zip(a, b, strict=True))


def test_drawn_sequences_follow_the_matrices():
    seen = [[], [], [], []]
    for prompt, text in chains.rows(20_000, 1):
        seen[int(chains.verify(prompt, text))].append(text)  # right but for a few in a thousand
    found = [chains.transition_matrix(texts) for texts in seen]
    order = [2, 0, 3, 1]
    for c, (thought, error) in enumerate(chains.recovered([found[c] for c in order])):
        assert order[thought] == c
        assert error < 0.02


def test_the_error_of_the_average_and_the_best_assignment():
    assert chains.recovered(chains.MATRICES) == [(c, 0.0) for c in range(4)]
    average = [[sum(m[s][t] for m in chains.MATRICES) / 4 for t in range(8)] for s in range(8)]
    assert all(error > 0.3 for _, error in chains.recovered([average] * 4))
    worse = [
        [[p + 0.01 * k * (-1) ** t for t, p in enumerate(line)] for line in m] for k, m in enumerate(chains.MATRICES)
    ]
    found = chains.recovered([*worse[::-1], average, chains.MATRICES[3]])  # six thoughts: two are left over
    assert [thought for thought, _ in found] == [3, 2, 1, 5]
    assert [error for _, error in found] == pytest.approx([0, 0.01, 0.02, 0])
    with pytest.raises(ValueError, match="found: needs 4"):
        chains.recovered(chains.MATRICES[:3])
    with pytest.raises(ValueError, match="8 x 8"):
        chains.recovered([*chains.MATRICES[:3], [[0.5, 0.5]]])


def test_transitions_are_counted_from_the_start_to_the_first_symbol_that_is_no_state():
    found = chains.transition_matrix(["BAB", "CAx>B", ""])
    assert found[0] == [0, 2 / 3, 1 / 3, 0, 0, 0, 0, 0]  # A: to B, B, C
    assert found[1] == found[2] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert found[3:] == [[0] * 8] * 5
    everything = chains.transition_matrix([text for _, text in chains.rows(20_000, 1)])  # a model without thoughts
    average = [[sum(m[s][t] for m in chains.MATRICES) / 4 for t in range(8)] for s in range(8)]
    assert (
        max(abs(a - b) for x, y in zip(everything, average, strict=True) for a, b in zip(x, y, strict=True)) < 0.05
    )  # states are not left equally often
    assert all(error > 0.35 for _, error in chains.recovered([everything] * 4))


def test_nll_and_entropy_against_every_sequence(monkeypatch):
    monkeypatch.setattr(chains, "LENGTH", 4)
    p = [math.exp(-chains.nll("A", "".join(text))) for text in product(chains.STATES, repeat=4)]
    assert sum(p) == pytest.approx(1)
    exact = -sum(q * math.log(q) for q in p if q) / 5
    assert chains.entropy(20_000) == pytest.approx(exact, abs=2e-3)


def test_the_entropy_is_the_mean_nll_of_held_out_rows_and_near_the_rate():
    held_out = [chains.nll(*row) for row in tasks.held_out("chains")]
    assert sum(held_out) / 512 / 16 == pytest.approx(chains.entropy(2000), abs=0.03)
    assert f"{chains.entropy(2000):.3f}" == "1.127"
    assert chains.entropy(2000) == chains.entropy(2000)
    assert f"{chains.ENTROPY_RATE:.3f}" == "1.110"


def test_chains_takes_only_sequences_that_a_chain_can_make():
    ((prompt, text),) = chains.rows(1, 9)
    c = int(chains.verify(prompt, text))
    for wrong in (text[:-1], text + "A", text.lower(), prompt + text, "I" + text[1:]):
        assert chains.verify(prompt, wrong) is None
    row = [matrix[chains.STATES.index(prompt)] for matrix in chains.MATRICES]
    for t, state in enumerate(chains.STATES):
        if row[c][t] == 0:
            other = chains.verify(prompt, state + text[1:])
            assert other is None or other != str(c)
    assert [chains.verify("A", greedy(c, "A")) for c in range(4)] == list("0123")


def greedy(c: int, path: str) -> str:
    """The likeliest path of a chain from a state, that state left out."""
    while len(path) < 16:
        row = chains.MATRICES[c][chains.STATES.index(path[-1])]
        path += chains.STATES[row.index(max(row))]
    return path[1:]


# countdown ----------------------------------------------------------------------------------------------------------


@cache
def spellings(operands: tuple[str, ...]) -> list[str]:
    """Every way to bracket the operands, in this order, with every operation, each bracket written."""
    if len(operands) == 1:
        return list(operands)
    halves = ((spellings(operands[:i]), spellings(operands[i:])) for i in range(1, len(operands)))
    return [f"({a}{o}{b})" for left, right in halves for a in left for b in right for o in "+-*/"]


def value(text: str, names: dict[str, Fraction] | None = None) -> Fraction | None:
    """The text's value by Python's own arithmetic."""
    assert re.fullmatch(r"[0-9+\-*/()]+", text)
    number = (lambda m: f"names['{m[0]}']") if names else (lambda m: f"Fraction({m[0]})")
    try:
        return eval(re.sub(r"[0-9]+", number, text), {"Fraction": Fraction, "names": names})
    except ZeroDivisionError:
        return None


def orders(numbers: list[str], least: int = 1) -> set[tuple[str, ...]]:
    return {order for k in range(least, len(numbers) + 1) for order in permutations(numbers, k)}


@pytest.mark.parametrize(("n", "inequivalent"), [(1, 1), (2, 6), (3, 68), (4, 1170)])  # OEIS A140606
def test_computations_of_n_numbers_are_as_many_as_the_encyclopedia_says(n, inequivalent):
    numbers = ["31", "61", "89", "97"][:n]
    seen = set()
    for order in orders(numbers, least=n):
        for text in spellings(order):
            sign, node, _ = countdown.parse(text)
            assert sign * node.value == value(text)
            seen.add((sign, node.text))
    assert len(seen) == inequivalent


@pytest.mark.parametrize(
    "prompt", ["3,4,7,12=31>", "2,5,9,13=24>", "6,7,8,11=2>", "5,5,7,7=12>", "2,2,2,2=3>", "11,12,13,13=99>"]
)
def test_solutions_are_those_of_every_spelling(prompt):
    numbers, target = prompt[:-1].split("=")
    numbers = numbers.split(",")
    found, functions = set(), set()
    anything = {n: Fraction(random.Random(n).getrandbits(60)) for n in numbers}
    for order in orders(numbers):
        for text in spellings(order):
            answer = countdown.verify(prompt, text)
            assert (answer is not None) is (value(text) == int(target)), text
            if answer:
                found.add(answer)
                functions.add(value(text, anything))
    assert countdown.solutions(prompt) == sorted(found)
    assert countdown.answers(prompt) == len(found)
    if len(set(numbers)) == 4:  # else 2/2 and 2-2 forget which number they are made of
        assert len(found) == len(functions)
    for answer in found:
        assert countdown.verify(prompt, answer) == answer


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("3+4*7", "7*4+3"),
        ("3+4*7", "((3))+(4*7)"),
        ("(12-4)*3+7", "7-3*(4-12)"),
        ("(12-4)*3+7", "7-(4-12)*3"),
        ("12+3*4+7", "(12+(7+4*3))"),
    ],
)
def test_spellings_of_one_computation_are_one_answer(text, same):
    assert countdown.verify("3,4,7,12=31>", same) == countdown.verify("3,4,7,12=31>", text) == text


def test_signs_and_zeros_do_not_make_an_answer_new():
    for prompt, spelt in (
        ("2,4,9,13=23>", ["13-2*(4-9)", "13+2*(9-4)", "2*(9-4)+13", "13-(4-9)*2"]),
        ("3,5,7,7=15>", ["3*5+(7-7)", "3*5-(7-7)", "3*5+7-7", "7+3*5-7", "3*5-7+7"]),
        ("2,3,4,12=8>", ["12/3*4/2", "12*4/3/2", "12*4/(2*3)", "4/2*(12/3)", "12/(3/4*2)"]),
    ):
        found = {countdown.verify(prompt, text) for text in spelt}
        assert len(found) == 1, found
        assert None not in found
    assert countdown.verify("2,3,4,6=8>", "2+6") != countdown.verify("2,3,4,6=8>", "6/3*4")


REFUSED = {
    "a number twice": "3+4*7+12-12 3+3*7+7",
    "a number that is not there": "3+4*7+0 31 31*1 3+4*7*1 3+2*2*7",
    "another target": "3+4 3*4*7 12 12-3+4",
    "leading zeros": "03+4*7 3+4*07 3+4*007 00003+4*7",
    "signs": "+3+4*7 -3+34 3+-4*-7 3--28 -(3-34) 3+4*7+ *3+4*7 3-(-4)*7 (-3)+34",
    "glued": "34-3 3+47 3(4)7 (3)(4) 7(4)+3 3+4(7) 4*73 12-47+3",
    "numbers of another form": "3.0+4*7 3e0+4*7 3+4*7e0 3_+4*7 3+2_8 0x3+4*7 3+4*7j 3+0b100*7 3L+4*7 1_2+3*4+7",
    "operators of another form": "3**3+4 7*4//1+3 3+4*7=31 3+4*7> 3+4^7 3+4%7 3|4*7 7<<2+3 3+4*7, 3+4*7; 3+4*7#",
    "brackets": "(3+4*7 3+4*7) ()3+4*7 3+()4*7 [3+4*7] )3+4*7( (3+)4*7 () 3+(4*)7 " + "(" * 60 + "3+4*7" + ")" * 60,
    "division by zero": "3+4*7/(3-3) 3/(4-4) 12/(7-4-3) 7/(12-3*4) 7/((12-3*4)*7)",
    "words": "True+4*7 __import__ x 3+4*x None",
    "other alphabets": "3+4*\u0667 \uff13+4*7 \u00b3+4*7 3+4\u00d77 3+4\u22177 3\uff0b4*7 3\u22124 3+4*\u2466 "
    "\u09e9+4*7",
}


@pytest.mark.parametrize("why", REFUSED)
def test_countdown_takes_no_tricks(why):
    for text in REFUSED[why].split():
        assert countdown.verify("3,4,7,12=31>", text) is None, text


@pytest.mark.parametrize("space", [" ", "\n", "\r", "\t", "\0", "\x0b", "\xa0", "\u200b", "\ufeff", "\u2028"])
def test_countdown_takes_no_white_space(space):
    for i in range(6):
        assert countdown.verify("3,4,7,12=31>", "3+4*7"[:i] + space + "3+4*7"[i:]) is None


@given(
    st.text("0123456789+-*/()", max_size=16)
    | st.lists(st.sampled_from("3 4 7 12 + - * / ( )".split()), max_size=9).map("".join)
)
@example("12-3+4")
def test_what_countdown_accepts_is_right(text):
    for target in (7, 13, 31):
        answer = countdown.verify(f"3,4,7,12={target}>", text)
        if answer:
            assert value(text) == value(answer) == target
            for spelt in (text, answer):
                assert Counter(re.findall("[0-9]+", spelt)) <= Counter(["3", "4", "7", "12"])


def test_countdown_prompts_are_as_described():
    for prompt, answer in countdown.rows(1000, 1):
        numbers, target = countdown._problem(prompt)
        assert prompt == f"{','.join(map(str, sorted(numbers)))}={target}>"
        assert len(numbers) == 4
        assert all(2 <= n <= 13 for n in numbers)
        assert 1 <= target <= 100
        assert target not in numbers
        assert countdown.verify(prompt, answer) == answer
        assert len(answer) <= 15


# What a task says of itself -----------------------------------------------------------------------------------------


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


# Held-out prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN_ROWS)
def test_held_out_rows_are_always_the_same_and_never_trained_on(name, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN_ROWS", 5000)
    held_out = tasks.held_out(name)
    assert held_out == tasks.held_out(name)
    assert len(held_out) == 512
    training = tasks.training(name, 42)
    assert not set(held_out) & set(training)
    if not TASKS[name].recurring:
        assert not {prompt for prompt, _ in held_out} & {prompt for prompt, _ in training}
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


# The ceiling --------------------------------------------------------------------------------------------------------


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


# Finding answers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(tiny_run) -> MixtureOfThoughts:
    return MixtureOfThoughts.from_pretrained(str(tiny_run))


@pytest.mark.parametrize("k", [None, 2])
def test_find_answers_counts_what_the_verifier_accepts(mixture, k):
    found = find_answers(mixture, "forks", k=k, prompts=70)
    assert found.k == (k or 4)
    assert found.prompts == len(found.samples) == 70
    assert [prompt for prompt, _, _ in found.samples] == [prompt for prompt, _ in tasks.held_out("forks")[:70]]
    for prompt, thoughts, answers in found.samples:
        assert len({t.index for t in thoughts}) == found.k
        assert answers == [forks.verify(prompt, t.text) for t in thoughts]
    accepted = [[a for a in answers if a] for _, _, answers in found.samples]
    assert found.validity == sum(map(len, accepted)) / (70 * found.k)
    assert found.distinct == sum(len(set(a)) for a in accepted) / 70
    assert 0 <= found.validity <= 1
    assert 0 <= found.distinct <= found.k
    assert (found.answers, found.ceiling) == (8, tasks.independence_ceiling(8, found.k))


class FiveOfEight(MixtureOfThoughts):
    """Eight thoughts without a network: five give different answers, one repeats the first, two talk nonsense."""

    num_thoughts = 8

    def __init__(self):
        pass

    def think_batch(self, prompts, params):
        assert (params.num_thoughts, params.temperature) == (8, 0)
        assert params.max_new_tokens > forks.CHAIN  # room for the end, and for one symbol too many
        said = [[*map(forks.chain, prompt[:5]), forks.chain(prompt[0]), "nonsense", ""] for prompt in prompts]
        return [[Thought(k, 1 / 8, 0.0, text, ()) for k, text in enumerate(texts)] for texts in said]


def test_repeated_answers_count_as_valid_but_not_as_distinct():
    found = find_answers(FiveOfEight(), "forks")
    assert (found.prompts, found.distinct, found.validity) == (512, 5.0, 6 / 8)
    assert found.line("forks").startswith(
        "forks: 8 thoughts found 5.00 of 8 answers on unseen prompts (validity 0.750)"
    )


def test_find_answers_says_its_line(mixture, forks_line):
    line = find_answers(mixture, "forks", prompts=8).line("forks")
    assert re.fullmatch(forks_line, line), line
    assert line.startswith("forks: 4 thoughts found ")
    assert line.endswith(" at most 3.31")


def test_the_line_has_exactly_this_form(forks_line):
    found = Found(8, 512, 0.991, 7.62, 8, tasks.independence_ceiling(8, 8), [])
    assert found.line("forks") == (
        "forks: 8 thoughts found 7.62 of 8 answers on unseen prompts (validity 0.991); "
        "the best independent sampler finds at most 5.25"
    )
    assert re.fullmatch(forks_line, found.line("forks"))


@pytest.mark.parametrize("k", [20, 3])
def test_find_answers_samples_a_creative_task(mixture, k):
    found = find_answers(mixture, "circle", k=k)
    texts = [t.text for _, thoughts, _ in found.samples for t in thoughts]
    assert (found.k, found.prompts, found.answers) == (k, 1, 40_320)
    assert len(texts) == k
    assert all(len({t.index for t in thoughts}) == len(thoughts) for _, thoughts, _ in found.samples)
    assert [len(thoughts) for _, thoughts, _ in found.samples] == [4] * (k // 4) + [k % 4] * (k % 4 > 0)
    assert found.creativity == tasks.creativity("circle", texts, tasks.training("circle", 0))
    assert find_answers(mixture, "circle", k=k) == found


class Inventive(MixtureOfThoughts):
    """Four thoughts, each of which draws cycles, one of them the same cycle over and over."""

    num_thoughts = 4

    def __init__(self):
        pass

    def think_batch(self, prompts, params):
        assert (prompts, params.num_thoughts, params.temperature) == ([""], 1000, 1.0)
        assert params.max_new_tokens > 18
        texts = [text for _, text in circle.rows(750, 77)] + [circle.rows(1, 78)[0][1]] * 250
        return [[Thought(i // 250, 1 / 4, 0.0, text, ()) for i, text in enumerate(texts)]]


def test_the_line_of_a_creative_task():
    found = find_answers(Inventive(), "circle")
    assert found.validity == 1
    assert 0.55 < found.creativity < 0.61  # three quarters of what a perfect sampler has
    assert len(found.samples) == 250
    assert found.line("circle") == (
        f"circle: creativity {found.creativity:.3f} in 1000 samples (validity 1.000); "
        "a perfect sampler of the training law has 0.771"
    )


class Recovered(Inventive):
    """Every thought follows a chain's likeliest transitions."""

    def think_batch(self, prompts, params):
        return [[Thought(k, 1 / 4, 0.0, greedy(k, prompt), ()) for k in range(4)] for prompt in prompts]


def test_the_line_of_a_task_whose_prompts_recur():
    found = find_answers(Recovered(), "chains")
    assert (found.prompts, found.distinct, found.validity) == (1, 4, 1)
    assert found.line("chains") == (
        "chains: 4 thoughts found 4.00 of 4 answers (validity 1.000); the best independent sampler finds at most 2.73"
    )


def test_answers_and_ceiling_are_means_over_prompts():
    class Solver(Recovered):
        def think_batch(self, prompts, params):
            solved = [(countdown.solutions(prompt) * 4)[:4] for prompt in prompts]
            return [[Thought(k, 1 / 4, 0.0, text, ()) for k, text in enumerate(texts)] for texts in solved]

    found = find_answers(Solver(), "countdown", prompts=20)
    there_are = [countdown.answers(prompt) for prompt, _, _ in found.samples]
    assert found.validity == 1
    assert found.distinct == sum(min(4, n) for n in there_are) / 20
    assert found.answers == sum(there_are) / 20
    assert found.ceiling == pytest.approx(sum(n * (1 - (1 - 1 / n) ** 4) for n in there_are) / 20)
    assert f" of {found.answers:.1f} answers on unseen prompts " in found.line("countdown")
