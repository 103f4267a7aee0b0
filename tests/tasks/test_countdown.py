"""countdown: every computation, one spelling each, and no tricks."""

import random
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mot.tasks import countdown


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
