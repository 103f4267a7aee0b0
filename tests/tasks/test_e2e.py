"""The restaurant benchmark's verifier accepts what people write, and rejects contradictions and omissions."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot.tasks import e2e, load

SAYS = [  # (attributes besides the name, what is said of Aromi), each accepted
    ("eatType[coffee shop]", "Aromi is a coffee-shop."),
    ("eatType[coffee shop]", "Aromi, a Café, is open."),
    ("eatType[pub]", "There is a pub called Aromi."),
    ("eatType[restaurant]", "Aromi's restaurant"),
    ("eatType[coffee shop], eatType[restaurant]", "Aromi is a coffee shop and restaurant"),
    ("food[English]", "Aromi offers a full British breakfast"),
    ("food[Japanese]", "Aromi serves sushi"),
    ("food[Fast food]", "Aromi sells fast food"),
    ("food[Indian]", "Eat curry at Aromi"),
    ("food[Chinese]", "Aromi: Chinese cuisine!"),
    ("priceRange[cheap]", "Aromi is low-priced"),
    ("priceRange[cheap]", "Aromi is inexpensive"),
    ("priceRange[cheap]", "Aromi costs less than £20"),
    ("priceRange[less than £20]", "Aromi is under 20 pounds"),
    ("priceRange[less than £20]", "Aromi has low prices"),
    ("priceRange[less than £20]", "A meal at Aromi costs no more than £ 20."),
    ("priceRange[less than £20]", "Prices at Aromi average less than twenty pounds."),
    ("priceRange[moderate]", "Aromi is moderately priced"),
    ("priceRange[moderate]", "Prices at Aromi are average"),
    ("priceRange[£20-25]", "Aromi charges £20-£25"),
    ("priceRange[£20-25]", "Aromi is between 20 and 25 pounds"),
    ("priceRange[£20-25]", "The average price range of Aromi is£20-25."),
    ("priceRange[high]", "Aromi is expensive"),
    ("priceRange[high]", "Aromi is in the high price range"),
    ("priceRange[high]", "Aromi's prices are fairly high"),
    ("priceRange[high]", "Aromi is a high-end, pricey place"),
    ("priceRange[more than £30]", "Aromi charges over 30 pounds"),
    ("priceRange[more than £30]", "Aromi is £30+"),
    (
        "priceRange[cheap], priceRange[moderate]",
        "Aromi has a low price range",
    ),  # the data's own contradiction: one is enough
    ("customer rating[low]", "Aromi is poorly rated"),
    ("customer rating[low]", "Customers rate Aromi one star"),
    ("customer rating[1 out of 5]", "Aromi has a 1/5 rating"),
    ("customer rating[1 out of 5]", "Aromi is rated 1 out of 5 by customers"),
    ("customer rating[average]", "Aromi has three stars"),
    ("customer rating[average]", "Aromi has a good rating"),
    ("customer rating[3 out of 5]", "The customer rating of Aromi is average."),
    ("customer rating[3 out of 5]", "Aromi has an average customer rating of 3 out of 5"),
    ("customer rating[high]", "Aromi is highly rated"),
    ("customer rating[high]", "Aromi has a good rating"),
    ("customer rating[5 out of 5]", "Aromi is a 5-star place"),
    ("customer rating[5 out of 5]", "The average rating of Aromi is 5 out of 5"),
    ("customer rating[5 out of 5]", "Aromi has excellent reviews"),
    ("priceRange[high], customer rating[low]", "Aromi has high prices and a low rating"),
    ("priceRange[high], customer rating[low]", "Aromi's prices are high, its customer rating is low"),
    ("priceRange[cheap], customer rating[high]", "Aromi is low priced and highly rated"),
    ("priceRange[moderate], customer rating[high]", "Aromi has a high customer rating and average prices"),
    ("area[riverside]", "Aromi is by the river"),
    ("area[riverside]", "Aromi, on the river side"),
    ("area[riverside]", "Aromi is in the riverside area of the city"),
    ("area[city centre]", "Aromi is in the city center"),
    ("area[city centre]", "Aromi stands in the heart of the city"),
    ("area[city centre]", "Aromi is downtown"),
    ("near[Burger King]", "Aromi is close to Burger King"),
    ("near[Burger King]", "Burger King is right next to Aromi, or Aromi next door to Burger King"),
    ("near[Burger King]", "Aromi is not far from Burger King"),
    ("near[The Bakers]", "Aromi is opposite Bakers"),
    ("near[Café Sicilia]", "Beside the Cafe Sicilia is Aromi"),
    ("eatType[pub], near[Café Rouge]", "Aromi is a pub near Café Rouge"),
    ("food[Chinese], near[Raja Indian Cuisine]", "Aromi is Chinese, near Raja Indian Cuisine"),
    ("familyFriendly[yes]", "Aromi is kid friendly"),
    ("familyFriendly[yes]", "Families are welcome at Aromi"),
    ("familyFriendly[yes]", "Aromi is not cheap but family-friendly"),
    ("familyFriendly[yes]", "Aromi is suitable for adults and children"),
    ("familyFriendly[no]", "Aromi isn't family-friendly"),
    ("familyFriendly[no]", "Aromi isn\u2019t suitable for children"),
    ("familyFriendly[no]", "Aromi is a non family-friendly place"),
    ("familyFriendly[no]", "Aromi does not allow kids"),
    ("familyFriendly[no]", "Aromi: adults only"),
    ("familyFriendly[no]", "Children are not welcome at Aromi"),
    ("familyFriendly[no]", "Aromi is kid-free"),
    ("familyFriendly[no]", "Aromi is not a place to bring your kids and family"),
]
GAINSAYS = [  # (attributes besides the name, text, slots missing, slots contradicted)
    ("eatType[pub]", "Aromi is a restaurant", "eatType", "eatType"),
    ("eatType[coffee shop]", "Aromi serves coffee", "eatType", ""),
    ("eatType[coffee shop], eatType[restaurant]", "Aromi is a coffee shop", "eatType", ""),
    ("eatType[coffee shop], near[Café Rouge]", "Aromi is near Café Rouge", "eatType", ""),
    ("food[Indian], near[Raja Indian Cuisine]", "Aromi is near Raja Indian Cuisine", "food", ""),
    ("food[Indian]", "Aromi is near Raja Indian Cuisine", "food", ""),
    ("food[French]", "Aromi has French and Italian food", "", "food"),
    ("priceRange[more than £30]", "Aromi costs less than £20", "priceRange", "priceRange"),
    ("priceRange[moderate]", "Aromi is cheap, moderate, expensive in price", "", "priceRange"),
    ("priceRange[high]", "Aromi has a low, moderate and high price", "", "priceRange"),
    ("priceRange[high]", "Aromi has a high rating", "priceRange", ""),
    ("priceRange[high]", "Aromi is not expensive", "priceRange", ""),
    (
        "priceRange[high]",
        "Prices at Aromi: cheap, less than £20, moderate, £20-25, high, more than £30",
        "",
        "priceRange",
    ),
    ("customer rating[high]", "Aromi has high prices", "customer rating", ""),
    ("customer rating[high]", "Aromi has a low, average, high customer rating", "", "customer rating"),
    ("customer rating[high]", "Aromi is not highly rated", "customer rating", ""),
    ("customer rating[5 out of 5]", "Aromi is rated 4 out of 5", "customer rating", "customer rating"),
    ("customer rating[5 out of 5]", "Aromi is rated 1 out of 5, 3 out of 5, 5 out of 5", "", "customer rating"),
    ("customer rating[low]", "Aromi has a good rating", "customer rating", "customer rating"),
    ("customer rating[average]", "Aromi is an average place", "customer rating", ""),
    (
        "priceRange[high], customer rating[low]",
        "Aromi has low prices and a high rating",
        "priceRange customer rating",
        "priceRange customer rating",
    ),
    ("area[riverside]", "Aromi is in the city centre", "area", "area"),
    ("area[riverside]", "Aromi is by the river in the city centre", "", "area"),
    ("near[Burger King]", "Aromi sells what Burger King sells", "near", ""),
    ("near[Burger King]", "Aromi is near The Bakers", "near", "near"),
    ("near[Burger King]", "Burger King is near Aromi", "name", ""),
    ("near[Burger King]", "Zizzi is near Burger King", "name", "name"),
    ("near[Burger King]", "Aromi is far from Burger King", "near", ""),
    ("near[Burger King]", "Aromi is not near Burger King", "near", ""),
    ("eatType[pub]", "Aromi is not a pub", "eatType", ""),
    ("food[Chinese]", "Aromi doesn't serve Chinese food", "food", ""),
    ("area[city centre]", "Aromi is not in the city centre", "area", ""),
    ("familyFriendly[yes]", "Aromi is not family-friendly", "familyFriendly", "familyFriendly"),
    ("familyFriendly[yes]", "Aromi is kid friendly. It is not kid friendly.", "", "familyFriendly"),
    ("familyFriendly[no]", "Aromi is child-friendly and not expensive", "familyFriendly", "familyFriendly"),
    ("familyFriendly[no]", "Aromi is friendly", "familyFriendly", ""),
    ("familyFriendly[yes]", "", "name familyFriendly", ""),
]


def slots(names: str) -> list[str]:
    return re.findall(r"customer rating|\w+", names)


@pytest.mark.parametrize(("attributes", "text"), SAYS)
def test_what_people_write_is_accepted(attributes, text):
    prompt = f"name[Aromi], {attributes}"
    assert (e2e.missing(prompt, text), e2e.contradicted(prompt, text)) == ([], [])
    assert e2e.verify(prompt, text) == e2e.plain(text)


@pytest.mark.parametrize(("attributes", "text", "missing", "contradicted"), GAINSAYS)
def test_what_leaves_out_or_contradicts_is_rejected(attributes, text, missing, contradicted):
    prompt = f"name[Aromi], {attributes}"
    assert e2e.missing(prompt, text) == slots(missing)
    assert e2e.contradicted(prompt, text) == slots(contradicted)
    assert e2e.verify(prompt, text) is None


PROMPT = (
    "name[Aromi], eatType[coffee shop], priceRange[cheap], customer rating[5 out of 5], area[riverside], "
    "familyFriendly[yes]"
)
TEXT = "Aromi, a cheap café by the river, is family-friendly and has a rating of 5 out of 5."


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        PROMPT,
        PROMPT + " " + TEXT,
        PROMPT.replace("[", "\uff3b").replace("]", "\uff3d"),
        PROMPT.replace("[", " ").replace("]", " "),
        "Aromi",
        TEXT.replace("cheap", "cheap, moderate, expensive"),
        TEXT.replace("5 out of 5", "1 out of 5, 3 out of 5, 5 out of 5"),
        TEXT.replace("family-friendly", "family-friendly, not family-friendly"),
        TEXT.replace("by the river", "by the river in the city centre"),
        TEXT.replace("café", "coffee shop, restaurant, pub"),
        TEXT.replace("Aromi", "Zizzi"),
    ],
)
def test_tricks_are_no_answer(text):
    assert e2e.verify(PROMPT, text) is None


def test_degenerate_repetition_says_what_it_says_and_is_another_answer():
    assert e2e.verify(PROMPT, TEXT + TEXT) not in (None, e2e.verify(PROMPT, TEXT))


def test_slots_that_the_prompt_has_not_are_named_and_do_no_harm():
    text = TEXT + " It serves Chinese food near Burger King."
    assert e2e.added(PROMPT, text) == ["food", "near"]
    assert e2e.added(PROMPT, TEXT) == []
    assert e2e.verify(PROMPT, text)


@pytest.mark.parametrize(
    "prompt", ["", "Aromi", "food[Thai]", "name[]", "area[riverside], mood[good]", "familyFriendly[maybe]"]
)
def test_a_prompt_that_is_none_is_an_error_that_says_so(prompt):
    with pytest.raises(ValueError, match=r"^e2e: "):
        e2e.verify(prompt, "Aromi")


FULL_PROMPT = (
    "name[Aromi], eatType[coffee shop], food[Chinese], customer rating[5 out of 5], area[riverside], "
    "familyFriendly[yes], near[Raja Indian Cuisine]"
)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        (
            "Aromi is a coffee shop. It serves Chinese food by the river. It is rated 5 out of 5, is family-friendly "
            "and is near Raja Indian Cuisine.",
            "name eatType . food area . rating familyFriendly near",
        ),
        (  # the same things in the same order, in other words
            "Aromi, a cafe! Its Chinese cuisine is by the riverside; its rating is high, kids are welcome, and close "
            "by is Raja Indian Cuisine",
            "name eatType . food area . rating familyFriendly near",
        ),
        (  # a second mention is none, and a sentence without a new slot neither
            "Near Raja Indian Cuisine is Aromi. Aromi is a Chinese coffee shop. Aromi is Chinese. The coffee shop by "
            "the river is a child-friendly place with a customer rating of 5 out of 5.",
            "near name . food eatType . area familyFriendly rating",
        ),
        ("Aromi is a coffee shop.", None),
        ("", None),
    ],
)
def test_a_plan_is_the_order_of_slots_by_sentence(text, plan):
    assert e2e.plan(FULL_PROMPT, text) == plan


@pytest.mark.parametrize(
    ("attributes", "text", "plan"),
    [
        (
            "familyFriendly[no], area[riverside]",
            "Kids are not welcome at Aromi by the river.",
            "familyFriendly name area",
        ),
        (
            "customer rating[high], priceRange[cheap]",
            "Aromi has low prices and a high rating.",
            "name priceRange rating",
        ),
        (
            "customer rating[high], priceRange[cheap]",
            "Aromi has a high rating and low prices.",
            "name rating priceRange",
        ),
        ("priceRange[more than £30]", "For over £30.50 you eat at Aromi.", "priceRange name"),
        (
            "eatType[coffee shop], eatType[restaurant]",
            "A restaurant named Aromi is also a coffee shop.",
            "name eatType",
        ),  # both values of a slot are needed
    ],
)
def test_a_slot_counts_where_its_value_is_stated(attributes, text, plan):
    assert e2e.plan(f"name[Aromi], {attributes}".rstrip(", "), text) == plan


@pytest.mark.parametrize(("attributes", "text"), SAYS)
def test_every_valid_text_has_a_plan_with_every_slot_once(attributes, text):
    prompt = f"name[Aromi], {attributes}"
    found = e2e.plan(prompt, text).replace(" . ", " ").split()
    assert sorted(found) == sorted(slot.split()[-1] for slot in e2e.attributes(prompt))


def test_two_names_of_one_level_are_one_value():
    for slot, levels in e2e.LEVELS.items():
        for level, names in levels.items():
            assert [e2e.attributes(f"{slot}[{name}]") for name in names] == [{slot: {level}}] * 2


spaces = st.text(st.sampled_from(" \t\n\u00a0"), min_size=1, max_size=3)
marks = st.sampled_from(["", "!", "...", "?!", " .", "\u200b."])


@given(
    st.lists(spaces, min_size=30, max_size=30), st.sampled_from([str.upper, str.lower, str.title, str.swapcase]), marks
)
def test_case_space_and_the_last_mark_make_no_other_answer(gaps, cased, mark):
    words = TEXT.removesuffix(".").split()
    spelt = "".join(gap + word for gap, word in zip(gaps, words, strict=False)) + mark
    assert e2e.verify(PROMPT, cased(spelt)) == e2e.verify(PROMPT, TEXT) is not None


def test_accents_hyphens_and_apostrophes_make_no_other_answer():
    prompt = "name[Aromi], eatType[coffee shop], near[Café Rouge]"
    texts = [
        "Aromi's cafe, near Café Rouge",
        "aromis Cafe\u0301 near cafe-rouge",
        "Aromi\u2019s \u201ccafé\u201d near Cafe Rouge.",
    ]
    assert {e2e.verify(prompt, text) for text in texts} == {"aromis cafe near cafe rouge"}


@given(st.text(max_size=80))
def test_garbage_is_no_answer_and_no_error(text):
    assert e2e.verify(PROMPT, text) is None


def test_the_example_in_the_words_of_the_task_is_true():
    (prompt,), (answer,) = (
        re.findall(rf'^    {word} +"(.*?)"$', e2e.__doc__, re.MULTILINE) for word in ("prompt", "answer")
    )
    assert load("e2e").verify(prompt, answer)


# Measured on real rows ----------------------------------------------------------------------------------------------


def shares(table: str) -> dict[str, float]:
    return {what: float(share) for share, what in re.findall(r"^ *([\d.]+)% of +\d+ (.*)$", table, re.MULTILINE)}


@pytest.mark.parametrize("name", ["train", "valid"])
def test_people_are_accepted_and_wrong_prompts_are_not(name, shared_data, tmp_path, capsys):
    rows = (shared_data / "e2e" / f"{name}.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:: 1 if name == "valid" else 9]))
    e2e.main(str(tmp_path / "rows.jsonl"))
    measured = shares(capsys.readouterr().out)
    assert measured["accepted"] >= 95
    rejected = {what: share for what, share in measured.items() if what.startswith("rejected")}
    assert len(rejected) == 16
    assert min(rejected.values()) >= 97
    assert 8 <= measured["state a slot that the prompt does not have"] <= 16


def test_the_command_without_a_file_says_how_to_call_it():
    run = subprocess.run([sys.executable, "-m", "mot.tasks.e2e"], capture_output=True, text=True)
    usage = "python -m mot.tasks.e2e FILE.jsonl, or python -m mot.tasks.e2e keys IN.jsonl OUT.jsonl"
    assert (run.returncode, run.stderr) == (2, f"error: usage: {usage}\n")
