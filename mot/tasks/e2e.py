"""e2e: describe a restaurant; state every attribute of the prompt and contradict none.

    prompt   "name[Cotto], eatType[coffee shop], priceRange[cheap], near[The Portland Arms]"
    answer   "Near The Portland Arms is Cotto, an inexpensive coffee shop."

Prompts and training rows come from a file (cleaned E2E, Dusek et al. 2019, arXiv 1911.03905), and the number of answers
is unknown. The verifier reads a text with the patterns and words below. How often it is right on human descriptions:

    python -m mot.tasks.e2e ../shared/data/e2e/train.jsonl

A plan is the order in which a text mentions the slots. This command writes it into every row as its key, so that
thoughts divide plans (docs/tasks.md):

    python -m mot.tasks.e2e keys ../shared/data/e2e/train.jsonl data/e2e/train.jsonl
"""

import json
import random
import re
import sys
import unicodedata
from collections import defaultdict
from functools import cache
from itertools import pairwise

from mot.runtime.flags import fail

Slots = dict[str, set[str]]
ATTRIBUTE = re.compile(r"([^\[\], ][^\[\],]*)\[([^\]]*)\]")

# People write "cheap" for "less than £20" and "three stars" for "average", so two names of one level are one value.
LEVELS = {
    "priceRange": {"low": ("cheap", "less than £20"), "mid": ("moderate", "£20-25"), "high": ("high", "more than £30")},
    "customer rating": {"low": ("low", "1 out of 5"), "mid": ("average", "3 out of 5"), "high": ("high", "5 out of 5")},
}
PATTERNS = {
    "eatType": {
        "coffee shop": r"coffee ?(?:shop|house|bar|place)s?|cafes?",
        "restaurant": r"restaurants?|bistros?",
        "pub": r"pubs?|(?<!coffee )bars?|tavern|inn",
    },
    "food": {
        "Chinese": r"chinese",
        "English": r"english|british",
        "Fast food": r"fast foods?|burgers?",
        "French": r"french",
        "Indian": r"indian|curry|curries",
        "Italian": r"italian|pasta|pizzas?",
        "Japanese": r"japanese|sushi",
    },
    "area": {
        "riverside": r"river ?(?:side|bank|front)?s?|waterfront",
        "city centre": r"(?:city|town)s? ?cent\w+|(?:centre|center|heart|middle) (?:\. )?of (?:the )?(?:city|town)"
        r"|cent(?:re|er) of cambridge|central(?:ly)?|downtown|(?:in|at|near) the city(?! of)",
    },
}
VALUES = {
    **{slot: {name: level for level, names in levels.items() for name in names} for slot, levels in LEVELS.items()},
    **{slot: {value: value for value in patterns} for slot, patterns in PATTERNS.items()},
    "familyFriendly": {"yes": "yes", "no": "no"},
}
SLOTS = ("name", *VALUES, "near")
ONE_ONLY = (*LEVELS, "familyFriendly")  # slots whose values exclude each other

# The benchmark's venues, to tell "near Raja Indian Cuisine" from Indian food. Names that are also words (Clowns, Ranch,
# Strada, Giraffe, Avalon) are recognised only if the prompt has them.
VENUES = """Alimentum|Aromi|Bibimbap House|Blue Spice|Browns Cambridge|Cocum|Cotto|Fitzbillies|Green Man|Loch Fyne|\
Midsummer House|Taste of Cambridge|The Cambridge Blue|The Cricketers|The Dumpling Tree|The Eagle|The Golden Curry|\
The Golden Palace|The Mill|The Olive Grove|The Phoenix|The Plough|The Punter|The Rice Boat|The Twenty Two|The Vaults|\
The Waterman|The Wrestlers|Travellers Rest Beefeater|Wildwood|Zizzi|All Bar One|Burger King|Café Adriatic|\
Café Brazil|Café Rouge|Café Sicilia|Clare Hall|Crowne Plaza Hotel|Express by Holiday Inn|Rainbow Vegetarian Café|\
Raja Indian Cuisine|The Bakers|The Portland Arms|The Six Bells|The Sorrento|Yippee Noodle Bar"""


def _by_word(**levels: str) -> dict[str, str]:
    return {word: level for level, words in levels.items() for word in words.split()}


PRICE = set("price prices priced pricing pricerange cost costs costing range ranges".split())
RATING = set(
    "rating ratings rated rate rates rank ranked ranking review reviews reviewed customer customers star stars "
    "score scores scored satisfaction recommended regarded feedback".split()
)
EITHER_WORDS = _by_word(  # price or rating: the noun beside them decides
    low="low lower lowest lowly",
    mid="average averagely moderate moderately mid medium middle reasonable reasonably decent fair fairly",
    high="high highly higher highest",
)
PRICE_WORDS = _by_word(
    low="cheap cheaply cheaper inexpensive inexpensively affordable affordably budget economical",
    high="expensive pricey pricy pricier costly upscale upmarket",
)
RATING_WORDS = _by_word(
    low="poor poorly bad badly terrible negative",
    mid="mediocre ok okay",
    good="good well",  # people write it for 3 out of 5 as often as for 5, so it fits both
    high="great excellent best top outstanding fantastic superb wonderful amazing perfect",
)
GRADED = {**EITHER_WORDS, **PRICE_WORDS, **RATING_WORDS}
POUNDS = {
    "low": r"(?:less|lower|cheaper) than £20|(?:under|below|within|up to) £20|£20 (?:or|and) (?:less|under|below)",
    "mid": r"£20 (?:to |and )?£25",
    "high": r"(?:more|greater|higher) than £30|(?:over|above|exceeding|at least|upwards of|excess of) £30"
    r"|£30 (?:plus|(?:or|and) (?:more|up|over|above))",
}
NUMBERS = {"1": "low", "one": "low", "3": "mid", "three": "mid", "5": "high", "five": "high"}
NUMBERS |= {number: number for number in "2 two 4 four".split()}  # ratings that no prompt has
_number = f"({'|'.join(NUMBERS)})"
STARS = re.compile(
    rf"\b{_number} (?:stars? )?(?:ratings? )?(?:out of|of|out) (?:a possible )?(?:5|five)\b|\b{_number} stars?\b"
    rf"|\b(?:rate[sd]?|ratings?|scores?|ranked)(?: (?!out|number)[a-z]+){{0,3}} {_number}\b"
    r"(?! (?:out|of|stars?|to|and)\b)"
)
DENIED = re.compile(
    r"\b(?:not|no|never|isnt|arent|doesnt|dont|far from)"
    r"(?: (?:a|an|any|the|in|near|by|at|on|close|to|located|serve|sell|offer|have))* $"
)
BESIDE = (
    r"(?:nears?|nearby|close|by|next|besides?|adjacent|along|alongside|around|round|opposite|across|vicinity"
    r"|neighbou?r\w*|behind|outside|beyond|proximity|down the road|(?:north|south|east|west) of)"
)
KID = r"(?:famil(?:y|ies)|kids?|child(?:ren)?s?)"
NOT = set(
    "not no non none never nor neither without isnt arent doesnt dont cannot cant wont wasnt didnt avoid unfriendly "
    "unsuitable inappropriate unwelcome prohibited banned barred".split()
)
_graded_word = rf"(?:{'|'.join(GRADED)})\b"
LIST = re.compile(rf"\b{_graded_word}(?:(?: ,)?(?: and| or)? {_graded_word}){{2,}}|\b{_graded_word} or {_graded_word}")
BREAK = set(". , and but with while".split())  # separates a word from its noun
VERB = set("is are has have it its or yet though although".split())  # separates a word from a noun that follows


def _folded(text: str) -> str:
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return re.sub("['`\\u2019]", "", "".join(c for c in letters if not unicodedata.combining(c)))


def plain(text: str) -> str:
    """The text in its one spelling: lower case, no accents, no punctuation but £, single spaces between words."""
    return _spaced(_folded(text), "£")


def _spaced(text: str, kept: str) -> str:
    return " ".join("".join(c if c.isalnum() or c in kept else " " for c in re.sub(r"\s*£\s*", " £", text)).split())


def attributes(prompt: str) -> Slots:
    """What the prompt asks for, by slot: values, or levels of price and rating. Some rows have a slot twice.

    Raises ValueError if there is no slot, or if the benchmark does not have a slot or value.
    """
    found: Slots = defaultdict(set)
    for slot, value in ATTRIBUTE.findall(prompt):
        known = VALUES.get(slot, {value: value} if plain(value) else {})
        if slot not in SLOTS or value not in known:
            raise ValueError(f"e2e: {slot}[{value}] is not an attribute of the benchmark; slots are {', '.join(SLOTS)}")
        found[slot].add(known[value])
    if not found:
        raise ValueError(f"e2e: the prompt has no attribute such as food[Chinese]: {prompt!r}")
    return dict(found)


def stated(prompt: str, text: str) -> Slots:
    """What the text states, by slot, in the form of `attributes`; "another": a venue that the prompt does not have."""
    given = attributes(prompt)
    return _found(given, _marked(given, text))


def _venues(given: Slots) -> dict[str, list[str]]:
    """The prompt's venues, by the mark that takes their place in a text."""
    return {mark: sorted(given.get(slot, ())) for mark, slot in (("NEAR", "near"), ("NAME", "name"))}


def _marked(given: Slots, text: str) -> str:
    """The text in lower case, its commas and full stops as words, and marks in the place of venues."""
    text = re.sub(r"(?<=\d)[.,](?=\d)", " ", _folded(text).replace("+", " plus ").replace("/", " out of "))
    text = re.sub(r"[.!?;]+", " . ", re.sub(r"[,()]", " , ", text))
    text = re.sub(r"\bnot (?:too |very |so |that )?far\b", "near", _spaced(text, "£.,"))
    # Venues come first, because they contain words of other slots. Their marks are in capitals, which no pattern
    # matches.
    for mark, names in _venues(given).items():
        for i, name in enumerate(names):
            text = _venue(name).sub(f"{mark}{i}", text)
    return _others().sub("OTHER", text)


def _found(given: Slots, text: str) -> Slots:
    """`stated` of a marked text."""
    venues = _venues(given)
    found: Slots = {slot: set() for slot in SLOTS}
    for i, name in enumerate(venues["NAME"]):
        if re.search(rf"(?<!near )(?<!near to )(?<!close to )(?<!next to )(?<!beside )\bNAME{i}\b", text):
            found["name"].add(name)
    for i, name in enumerate(venues["NEAR"]):
        beside = rf"\b{BESIDE}\b(?: [^ .]+){{0,5}} NEAR{i}\b|\bNEAR{i}\b(?: [^ .]+){{0,2}} {BESIDE}\b"
        if _affirmed(beside, text) and _affirmed(rf"NEAR{i}\b", text):
            found["near"].add(name)
    for other in re.finditer(rf"(\b{BESIDE}(?: to)? )?OTHER", text):
        found["near" if other[1] else "name"].add("another")
    for slot, patterns in PATTERNS.items():
        found[slot] = {value for value, pattern in patterns.items() if _affirmed(rf"\b(?:{pattern})\b", text)}
    text = re.sub(r"\b(?:no|not) (?:more|higher) than\b", "under", text)
    text = re.sub(r"\bnot (?:only|just)\b|\bas well(?: as)?\b", "", text)
    text = re.sub(rf"\b(?:(?:{KID}|adults?) (?:and|or|with) (?:the )?)*{KID}\b", "KID", text)
    found["familyFriendly"] = _family(text)
    return found | _graded(text)


def _affirmed(pattern: str, text: str) -> bool:
    return any(not DENIED.search(text[: found.start()]) for found in re.finditer(pattern, text))


@cache
def _venue(name: str) -> re.Pattern[str]:
    words = plain(name).removeprefix("the ").removesuffix("s")
    return re.compile(rf"\b(?:the )?{words.replace(' ', ' ?')}s?\b")


@cache
def _others() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(plain(name) for name in VENUES.split('|'))})s?\b")


def _family(text: str) -> set[str]:
    """What is stated of KIDs. A negation counts up to 6 words before and 4 words after, within the clause."""
    found = {"no"} if re.search(r"\badults?\b", text) else set()
    for clause in re.split(r" ?[.,] ?| (?:but|and|although|though|however|while|yet) ", text):
        for kid in re.finditer(r"\bKID\b", clause):
            before, after = clause[: kid.start()].split()[-6:], clause[kid.end() :].split()[:4]
            for i, word in enumerate(after):
                if word in {"with", "that", "which", "near", "located", "in", "has", "KID"}:
                    after = after[:i]
                    break
            found.add("no" if NOT & {*before, *after} or after[:1] == ["free"] else "yes")
    return found


def _graded(text: str) -> Slots:
    """Levels of price and rating."""
    text = re.sub(r"\btwenty\b", "20", text).replace("£", "")
    text = re.sub(r"\b(20|25|30)(?: ?(?:pounds?|euros?|gbp)\b)?", r"£\1", text)
    text = re.sub(r"\b(?:above|(?:higher|better|more) than) (?:the )?average\b", "high", text)
    text = re.sub(r"\b(?:below|(?:lower|less) than) (?:the )?average\b", "low", text)
    text = LIST.sub(lambda listed: re.sub(r",|\band\b|\bor\b", "", listed[0]), text)
    price = {level for level, pattern in POUNDS.items() if re.search(rf"(?:\b|(?=£))(?:{pattern})\b", text)}
    rating = {NUMBERS[next(filter(None, stars.groups()))] for stars in STARS.finditer(text)}
    # Beside a number "average" is the mean, not a level: an average rating of 5 out of 5, an average price of £20-25.
    price_mean, rating_mean = {"mid"} if price else set(), {"mid"} if rating else set()
    words = text.split()
    for i, (word, following) in enumerate(pairwise([*words, ""])):
        adverb = word.endswith("ly") and following in GRADED  # fairly low, moderately expensive
        if word not in GRADED or adverb or _negated(words, i):
            continue
        noun = None if word in PRICE_WORDS else _noun(words, i)
        if word in PRICE_WORDS or (word in EITHER_WORDS and noun in PRICE):
            price |= {GRADED[word]} - price_mean
        elif noun in RATING:
            rating |= {GRADED[word]} - rating_mean
    return {"priceRange": price, "customer rating": rating}


def _negated(words: list[str], i: int) -> bool:
    for word in reversed(words[max(0, i - 3) : i]):
        if word in {"not", "isnt", "arent", "never"}:
            return True
        if word in {".", ",", "and", "but", "KID", "friendly"}:
            return False
    return False


def _noun(words: list[str], i: int) -> str | None:
    """The noun of price or rating to which word i belongs: "prices are high", "high prices", "rated very high"."""
    if i > 1 and words[i - 1] in {"is", "are", "was", "were", "of", "being"} and words[i - 2] in PRICE | RATING:
        return words[i - 2]
    after, before = words[i + 1 : i + 7], words[max(0, i - 7) : i][::-1]
    return _first(after[:4], BREAK | VERB) or _first(before, BREAK) or _first(after, (BREAK | VERB) - {"and", "or"})


def _first(words: list[str], stop: set[str]) -> str | None:
    for word in words:
        if word in stop or word in PRICE | RATING:
            return None if word in stop else word
    return None


def _fitting(slot: str, values: set[str]) -> set[str]:
    return values | {"good"} if slot == "customer rating" and values != {"low"} else values


def missing(prompt: str, text: str) -> list[str]:
    """The prompt's slots that the text does not express.

    If the prompt has a slot twice, the text must state both values, or one if they exclude each other (two prices, two
    ratings, yes and no).
    """
    found = stated(prompt, text)
    return [slot for slot, values in attributes(prompt).items() if not _expressed(slot, values, found)]


def _expressed(slot: str, values: set[str], found: Slots) -> bool:
    return bool(_fitting(slot, values) & found[slot]) if slot in ONE_ONLY else values <= found[slot]


def contradicted(prompt: str, text: str) -> list[str]:
    """The prompt's slots for which the text states another value as well, or instead."""
    found = stated(prompt, text)
    return [slot for slot, values in attributes(prompt).items() if found[slot] - _fitting(slot, values)]


def added(prompt: str, text: str) -> list[str]:
    """The slots that the text states and the prompt does not have. `verify` allows them: see docs/tasks.md."""
    given = attributes(prompt)
    return [slot for slot, values in stated(prompt, text).items() if values and slot not in given]


def verify(prompt: str, text: str) -> str | None:
    """The text in its one spelling if it states every attribute of the prompt and contradicts none; else None."""
    copied = "[" in unicodedata.normalize("NFKC", text) or "eattype" in _folded(text)
    return None if copied or missing(prompt, text) or contradicted(prompt, text) else plain(text)


def mentioned(prompt: str, text: str) -> list[list[str]]:
    """The prompt's slots by sentence, in the order in which the text first states them; every slot at most once.

    A slot counts at the word after which the words so far state its value. Sentences that state no new slot are left
    out. "customer rating" is called "rating".
    """
    given = attributes(prompt)
    words, sentences, left = _marked(given, text).split(), [[]], list(given)
    for i, word in enumerate(words, 1):
        found = _found(given, " ".join(words[:i]))
        new = [slot for slot in left if _expressed(slot, given[slot], found)]
        left = [slot for slot in left if slot not in new]
        sentences[-1] += [slot.split()[-1] for slot in new]
        if word == "." and sentences[-1]:
            sentences.append([])
    return [slots for slots in sentences if slots]


def plan(prompt: str, text: str) -> str | None:
    """The order in which a valid text mentions the prompt's slots, e.g. "name eatType . food area . rating"; else None.

    Two texts of one plan say the same things in the same order and divide them into the same sentences.
    """
    return written(mentioned(prompt, text)) if verify(prompt, text) is not None else None


def written(sentences: list[list[str]]) -> str:
    """Slots by sentence as text."""
    return " . ".join(" ".join(slots) for slots in sentences)


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """Raises ValueError: the rows come from a file."""
    raise ValueError("e2e: its rows come from a file; give --train_file or --prompts")


def answers(prompt: str) -> None:
    """Unknown: a restaurant can be described in any number of ways."""


def main(path: str) -> None:
    """Print the share of a file's completions that are accepted, and rejected after a change that makes them wrong."""
    with open(path, encoding="utf-8") as file:
        rows = [(row["prompt"], row["completion"]) for row in map(json.loads, file)]
    rng, prompts = random.Random("e2e"), sorted({prompt for prompt, _ in rows})
    pool = {
        slot: sorted({value for p in prompts for s, value in ATTRIBUTE.findall(p) if s == slot})
        for slot in ("name", "near")
    }
    namesakes: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        namesakes[prompt.split("]")[0]].append(prompt)
    tally: dict[str, list[bool]] = defaultdict(list)
    for prompt, text in rows:
        asked, words, pairs = attributes(prompt), plain(text), ATTRIBUTE.findall(prompt)
        tally["accepted"].append(verify(prompt, text) is not None)
        tally["state a slot that the prompt does not have"].append(bool(added(prompt, text)))
        for slot, value in pairs:
            meaning = VALUES.get(slot) or {name: name for name in pool[slot]}
            if [s for s, _ in pairs].count(slot) == 1:
                other = rng.choice([v for v in meaning if meaning[v] != meaning[value]])
                changed = prompt.replace(f"{slot}[{value}]", f"{slot}[{other}]")
                tally[f"rejected for another {slot}"].append(verify(changed, text) is None)
            if (cut := re.sub(rf"\b{plain(value)}\b", "", words)) != words and slot != "familyFriendly":
                tally[f"rejected without the words of {slot}"].append(verify(prompt, cut) is None)
        same = namesakes[prompt.split("]")[0]]
        if others := [p for p in same if any(v - asked.get(s, set()) for s, v in attributes(p).items())]:
            tally["rejected for another prompt of the venue"].append(verify(rng.choice(others), text) is None)
    for what, flags in sorted(tally.items()):
        print(f"{sum(flags) / len(flags):7.1%} of {len(flags):5d} {what}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keys", path, out]:
            from mot.tasks.e2e_keys import write

            try:
                print(f"{out}: {write(path, out):,} rows with keys")
            except ValueError as e:
                fail(str(e))
        case [path] if path != "keys":
            main(path)
        case _:
            fail("usage: python -m mot.tasks.e2e FILE.jsonl, or python -m mot.tasks.e2e keys IN.jsonl OUT.jsonl")
