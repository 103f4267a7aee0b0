"""The report of an evaluation, from results written by hand: everything is drawn and texts stay text."""

import base64
import copy
import html
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from mot.evaluation import figures, report
from mot.evaluation.rows import direction
from mot.evaluation.table import table
from mot.inference.samplers import SAMPLERS

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "diversity_json.md"
NASTY = "</script><script>document.title='ran'</script> \"x\" {{ 7 * 7 }} [bold]$\\frac$"
LONG = "a very long text without an end " * 300 + "x" * 5000
OTHERS = "👩‍👩‍👧 🎉 emoji, עברית מימין לשמאל, 思, \ud800 \x00"

VALIDITY = {
    "name": "validity",
    "description": "share of right answers",
    "unit": "0 to 1",
    "better": "higher",
    "tolerance": 0.01,
}
DISTINCT = VALIDITY | {
    "name": "distinct_valid",
    "description": "different right answers among K texts",
    "unit": "answers",
}
SELF_BLEU = {
    "name": "self_bleu",
    "description": "BLEU of a text against the others",
    "unit": "0 to 100",
    "better": "lower",
}


def interval(mean: float, half: float | None) -> dict:
    known = half is not None
    return {"mean": mean, "low": mean - half if known else None, "high": mean + half if known else None}


def curve(sampler: str, i: int) -> tuple[float, float]:
    """(validity, distinct) as the prototype's on forks, of a sampler's i-th setting."""
    most = {"one_thought": 2.2, "seed_prefix": 3.1, "beam": 7.9, "diverse_beam": 6.9}.get(sampler, 4.5)
    if sampler == "thoughts":
        return 0.998 - 0.0008 * i**2, 6.55 - 0.01 * i**2
    if sampler in ("beam", "diverse_beam"):
        return 0.93 - 0.03 * i, most - 0.3 * (5 - i)
    loss = {"temperature": 0.4, "seed_prefix": 0.6, "top_p": 0.08, "min_p": 0.03}.get(sampler, 0.06)
    return 1 - loss * (i / 5) ** 3, 1 + (most - 1) * (1 - math.exp(-(0.3 + 5 * loss) * (i + 1))) - (
        0.8 if loss > 0.3 else 0.1
    ) * (i / 5) ** 2


def forks() -> dict:
    """A mixture on task forks against every sampler: 78 settings, most of them between 0.94 and 1."""
    settings = []
    for name, sampler in SAMPLERS.items():
        for i, setting in enumerate(sampler.settings):
            quality, diversity = curve(name, i)
            settings.append(
                {
                    "name": setting.name,
                    "sampler": name,
                    "kind": sampler.kind,
                    "source": "plain" if sampler.kind == "rival" else "mixture",
                    "parameters": dict(setting.parameters),
                    "seeds": 5 if setting.random else 1,
                    "validation": {"quality": quality - 0.002, "diversity": diversity + 0.01},
                    "test": {"quality": interval(quality, 0.004), "diversity": interval(diversity, 0.06)},
                    "measures": {
                        "distinct_valid": interval(diversity, 0.06),
                        "vendi_score": interval(diversity * 0.9, 0.05),
                        "pairwise_bleu": interval(60 - 5 * diversity, 1.2),
                        "compression_ratio": interval(1.4, 0.01),
                        "pass_at_k": interval(1 - 0.001 * i, None),
                    },
                }
            )
    for s in settings[1::2]:
        s["measures"] = {}  # as of settings that no comparison selected
    comparisons = [
        {
            "mixture": mixture,
            "matched_on": matched_on,
            "sampler": sampler,
            "setting": name,
            "qualified": qualified,
            "sentence": f"{mixture} minus {name}: validity +0.002 [-0.001, +0.005], distinct_valid {d:+.3f}",
            "quality": interval(0.002, 0.003),
            "diversity": interval(d, 0.08),
        }
        for matched_on in ("quality", "diversity")
        for mixture, qualified, sampler, name, d in (
            ("thoughts temperature 0", True, "any", "top_p 0.95", 2.1),
            ("thoughts temperature 0", True, "temperature", "temperature 0.7", 2.1),
            ("thoughts temperature 0", True, "top_p", "top_p 0.95", 2.15),
            ("thoughts temperature 0", False, "diverse_beam", "diverse_beam penalty 5", -0.3),
            ("thoughts temperature 0.5", True, "any", "top_p 0.95", 2.05),
        )
    ]
    missing = {"sampler": "beam", "setting": None, "qualified": False, "quality": None, "diversity": None}
    comparisons.append(comparisons[0] | missing | {"sentence": "beam search was too wide to run"})
    ablations = [
        comparisons[i] | {"sampler": "one_thought", "setting": "one_thought temperature 1", "matched_on": matched_on}
        for i, matched_on in ((0, "quality"), (4, "diversity"))
    ]
    answers = ["17 4 4 31 9", "2 60 11 5 5", "33 8 1 0 12", "41 4 19 22 7", "5 5 50 61 3", "9 12 30 44 2", "60 1 1 7 7"]
    thoughts = [{"label": f"thought {k}", "text": a, "valid": True, "answer": a} for k, a in enumerate(answers)]
    thoughts.append({"label": "thought 7", "text": "17 4 4 31 9 ", "valid": True, "answer": answers[0]})
    samples = [
        {"label": f"sample {i}", "text": answers[a], "valid": a < 6, "answer": answers[a] if a < 6 else None}
        for i, a in enumerate((1, 3, 1, 6, 3, 0, 2, 1))
    ]
    N = 8
    similarity = [[1.0 if i == j else round(0.08 + 0.07 * math.sin(i * j), 3) for j in range(N)] for i in range(N)]
    similarity[0][7] = similarity[7][0] = 0.94
    return {
        "schema": "mot-diversity",
        "version": 3,
        "made": "2026-02-03T04:05:06+00:00",
        "seconds": 754.2,
        "command": "python evaluate_diversity.py --model outputs/forks --plain outputs/forks_plain --task forks",
        "versions": {"mot": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "model": "outputs/forks",
        "num_thoughts": N,
        "thought_length": 1,
        "plain": "outputs/forks_plain",
        "judge": None,
        "task": "forks",
        "prompts": None,
        "k": 8,
        "seeds": [0, 1, 2, 3, 4],
        "max_new_tokens": 8,
        "quick": None,
        "num_validation": 64,
        "num_test": 256,
        "units": "prompts",
        "quality": dict(VALIDITY),
        "diversity": dict(DISTINCT),
        "ceiling": {"independent": 5.251, "answers": 8.0},
        "settings": settings,
        "measures": {
            "distinct_valid": {"description": "as above", "unit": "answers", "better": "higher"},
            "vendi_score": {"description": "effective number of different texts", "unit": "1 to K", "better": "higher"},
            "pairwise_bleu": {
                "description": "mean BLEU of one text against another",
                "unit": "0 to 100",
                "better": "lower",
            },
            "compression_ratio": {
                "description": "bytes before over bytes after gzip",
                "unit": "ratio",
                "better": "lower",
            },
            "pass_at_k": {"description": "probability that one of K is right", "unit": "0 to 1", "better": "higher"},
        },
        "selected": "thoughts temperature 0",
        "comparisons": comparisons,
        "from_rival": comparisons[0]
        | {"matched_on": "diversity", "sampler": "top_p", "mixture": "thoughts temperature 0.7"},
        "ablations": ablations,
        "verdict": {
            "answer": "yes",
            "sentence": "At matched validity 8 thoughts find 6.55 different right answers, 2.10 [2.02, 2.19] more than "
            "top_p 0.95, the best of 48 other settings.",
            "frontier": [
                "At equal diversity: no rival setting is as diverse.",
                "From the rival's side: the mixture's best setting that is as diverse is thoughts temperature 0.7.",
            ],
        },
        "thoughts": {
            "similarity": similarity,
            "similarity_description": "mean over the prompts of the cosine of their texts' word counts",
            "persistence": [0.66, 0.64, 0.61, 0.58, 0.41],
            "usage": [0.14, 0.12, 0.13, 0.125, 0.11, 0.135, 0.12, 0.12],
        },
        "samples": [
            {
                "prompt": "17 2 33 41 5 9 60 12 :",
                "columns": [
                    {"name": "thoughts temperature 0", "texts": thoughts},
                    {"name": "top_p 0.95, plain model", "texts": samples},
                ],
            }
        ],
    }


def plain() -> dict:
    """A model without thoughts, on prompts without answers, and no judge: everything that can be null is null."""
    result = forks()
    for name in ("plain", "judge", "task", "prompts", "quality", "ceiling", "selected", "thoughts", "from_rival"):
        result[name] = None
    settings = [s for s in result["settings"] if s["source"] != "mixture"]
    for s in settings:
        s["source"] = "model"
        s["measures"] = {}
        s["validation"]["quality"] = s["test"]["quality"] = None
        s["test"]["diversity"] |= {"low": None, "high": None}
    verdict = {"answer": "none", "sentence": "The model has no thoughts: its samplers, for comparison.", "frontier": []}
    result |= {
        "num_thoughts": 1,
        "model": "sshleifer/tiny-gpt2",
        "seeds": [0],
        "samples": [],
        "diversity": dict(SELF_BLEU),
    }
    return result | {"settings": settings, "measures": {}, "comparisons": [], "ablations": [], "verdict": verdict}


def test_both_kinds_of_result_are_json_without_nan():
    for result in (forks(), plain()):
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def written(result: dict, tmp_path) -> str:
    before = copy.deepcopy(result)
    path = report.write(result, str(tmp_path / "out"))
    assert path == tmp_path / "out" / "report.html"
    assert result == before
    return path.read_text(encoding="utf-8")


def pictures(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "out").glob("*.png")}


def without_images(text: str) -> str:
    """The page without its images, whose base64 may contain any word."""
    return re.sub(r"data:image/png;base64,[^\"]+", "", text)


def cells(text: str, heading: str) -> str:
    return text[text.index(f"<h2>{heading}") :].split("</table>")[0]


def test_everything_that_was_measured_is_on_the_page(tmp_path):
    result = forks()
    text = written(result, tmp_path)
    assert "✓ Yes" in text
    assert html.escape(result["verdict"]["sentence"]) in text
    for sentence in result["verdict"]["frontier"]:
        assert f"<p>{sentence}</p>" in html.unescape(text)
    assert "Preliminary" not in text
    assert result["command"] in text
    everything = cells(text, "All settings")
    for s in result["settings"]:
        assert f"<th>{s['name']}{' (selected)' if s['name'] == result['selected'] else ''}</th>" in everything
    assert everything.count("<tr") == len(result["settings"]) + 1
    compared = cells(text, "At matched quality") + cells(text, "At matched diversity")
    added = text[text.index("<h2>What do different thoughts add?") : text.index("<h2>The thoughts")]
    assert added.count("one thought, sampled") == len(result["ablations"]) == 2
    assert "one thought, sampled" not in compared
    assert compared.count("<tr") == len(result["comparisons"]) + 2
    for row in result["comparisons"]:
        assert (row["setting"] or row["sentence"]) in compared
    assert compared.count("this is the nearest") == 2
    assert result["measures"].pop("distinct_valid")["description"] not in text  # it is the diversity already
    for name, measure in result["measures"].items():
        assert name.replace("_", " ") in text
        assert measure["description"] in text
    for sample in result["samples"]:
        for column in sample["columns"]:
            for t in column["texts"]:
                assert f"<b>{t['label']}</b>" in text
                assert t["text"] in text


def test_a_quick_evaluation_is_called_preliminary(tmp_path):
    result = forks() | {"quick": "--quick: 64 test prompts. The verdict is preliminary."}
    assert f"<strong>Preliminary.</strong> {result['quick']}" in written(result, tmp_path)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(result))
    *_, verdict, at_diversity, from_rival, quick = console.export_text().splitlines()
    assert verdict.startswith("Yes. Preliminary. At matched validity")
    assert [at_diversity, from_rival] == result["verdict"]["frontier"]
    assert quick == result["quick"]


def test_all_settings_are_points_of_the_picture():
    from matplotlib.figure import Figure

    figure = Figure()
    result = forks()
    figures.draw_frontier(figure, result)
    expected = {(s["test"]["quality"]["mean"], s["test"]["diversity"]["mean"]) for s in result["settings"]}
    for axes in figure.axes:
        drawn = {
            xy
            for line in axes.lines
            if line.get_marker() not in ("None", "")
            for xy in zip(*line.get_data(), strict=True)
        }
        assert expected <= drawn
    assert len(figure.axes) == 2  # they crowd near 1: the crowd is enlarged
    figure = Figure()
    result["quality"]["better"] = result["diversity"]["better"] = "lower"
    figures.draw_frontier(figure, result)
    assert all(axes.xaxis_inverted() and axes.yaxis_inverted() for axes in figure.axes)


def test_no_sampler_has_the_colour_of_the_paper_or_of_another():
    """matplotlib's cycle has eight colours: C7 is the background, and C9 would be C1 again."""
    drawn = [(sampler.color, sampler.marker) for sampler in SAMPLERS.values()]
    assert {color for color, _ in drawn} <= {f"C{i}" for i in range(7)}
    assert len(set(drawn)) == len(drawn)
    assert "C1" not in {sampler.color for sampler in SAMPLERS.values() if sampler.kind == "rival"}


def test_a_result_of_nothing_but_nulls_is_drawn_and_old_pictures_go(tmp_path):
    written(forks(), tmp_path)
    assert pictures(tmp_path) == {"frontier.png", "similarity.png", "persistence.png", "usage.png"}
    result = plain()
    text = written(result, tmp_path)
    assert pictures(tmp_path) == {"frontier.png"}
    assert "? No verdict" in text
    for heading in ("The thoughts", "Texts", "At matched", "thoughts, N"):
        assert heading not in without_images(text)
    assert cells(text, "All settings").count("<tr") == len(result["settings"]) + 1
    assert "None" not in without_images(text)
    written(result | {"settings": []}, tmp_path)
    assert pictures(tmp_path) == set()


def test_a_difference_is_better_or_worse_by_the_direction_of_its_measure():
    up, down, flat = interval(0.3, 0.1), interval(-0.3, 0.1), interval(0.05, 0.1)
    assert [direction(i, "higher") for i in (up, down, flat)] == ["better", "worse", "same"]
    assert [direction(i, "lower") for i in (up, down, flat)] == ["worse", "better", "same"]
    assert [direction(i, "lower") for i in (interval(1, None), None)] == ["", ""]


def test_repeats_and_invalid_texts_are_marked_in_words(tmp_path):
    text = written(forks(), tmp_path)
    assert "↻ repeats thought 0" in text  # the same answer, a space behind it
    assert "7 different and valid of 8" in text
    assert text.count("✗ not valid") == 1
    result = forks()
    for column in result["samples"][0]["columns"]:
        column["texts"] = [t | {"valid": None, "answer": None} for t in column["texts"]]
    text = written(result, tmp_path)
    assert "not valid</span>" not in text
    assert "7 different of 8" in text
    assert "↻ repeats thought 0" in text


def hostile() -> dict:
    result = forks()
    result |= {"model": "outputs/" + NASTY.replace("/", ""), "task": NASTY, "command": "python " + "z" * 500}
    result["verdict"] = {"answer": "no", "sentence": NASTY + "w" * 300, "frontier": [NASTY, "v" * 300]}
    result["quick"] = NASTY + "q" * 300
    result["settings"][0]["name"] = result["selected"] = result["comparisons"][0]["mixture"] = NASTY
    result["comparisons"][0] |= {"setting": result["settings"][9]["name"], "sentence": NASTY}
    result["measures"]["vendi_score"]["description"] = result["quality"]["name"] = NASTY
    texts = [{"label": NASTY, "text": text, "valid": False, "answer": None} for text in (NASTY, LONG, OTHERS, OTHERS)]
    result["samples"].append({"prompt": OTHERS, "columns": [{"name": NASTY + "n" * 300, "texts": texts}]})
    return result


def test_the_page_needs_nothing_but_itself_and_text_stays_text(tmp_path):
    for result in (forks(), hostile()):
        text = written(result, tmp_path)
        assert not re.findall(r"<script|<link|<iframe|@import|url\(|onerror=", without_images(text))
        assert set(re.findall(r"\b(?:src|srcset|href)=\"([^,\"]*)", text)) == {"data:image/png;base64"}
        assert "Content-Security-Policy" in text
        embedded = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]
        assert len(embedded) == 2 * 4
        assert all((tmp_path / "out" / name).read_bytes() in embedded for name in pictures(tmp_path))
    assert "&lt;/script&gt;&lt;script&gt;document.title=&#39;ran&#39;" in text
    assert "{{ 7 * 7 }}" in text
    assert "עברית" in text
    assert 'dir="auto"' in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal(width):
    for result in (forks(), plain(), hostile()):
        console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
        console.print(table(result))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert {"yes": "Yes.", "no": "No.", "none": "No verdict."}[result["verdict"]["answer"]] in text
    assert "[bold]$" in text  # no markup, no formula


def test_the_table_holds_the_selected_setting_and_every_sampler_at_its_best():
    console = Console(width=200, record=True, file=io.StringIO())
    result = forks()
    console.print(table(result))
    rows = console.export_text().splitlines()
    for name, role in (
        ("thoughts temperature 0 ", "selected"),
        ("top_p 0.95 ", "best rival"),
        ("temperature 0.7 ", "as good"),
        ("diverse_beam penalty 5 ", "nearest"),
        ("beam width 8 length_penalty 1 ", "most diverse"),
        ("one_thought temperature 1 ", "ablation"),
        ("thoughts temperature 0.7 ", "as diverse"),
    ):
        (row,) = [row for row in rows if row.startswith(name)]
        assert role in row
    assert "pairwise" in "".join(rows)
    assert "lower is better: pairwise bleu, compression ratio" in rows


@pytest.mark.parametrize("name", ["recall", "plans"])
def test_recall_and_plans_stand_beside_the_distinct_answers(name, tmp_path):
    result = forks()
    info = {"description": f"what {name} is", "unit": "0 to 1", "better": "higher"}
    result["measures"] = {"distinct_valid": result["measures"].pop("distinct_valid"), name: info} | result["measures"]
    for s in result["settings"]:
        s["measures"][name] = interval(0.819, 0.01)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(result))
    heading = next(line for line in console.export_text().splitlines() if "validity" in line)
    assert heading.split()[-1] == name
    headings = re.findall(r'<th class="number">([a-z ]+)<small>', cells(written(result, tmp_path), "All settings"))
    assert headings[headings.index("distinct valid") + 1] == name


@pytest.mark.parametrize("N", [2, 3, 17, 64])
def test_any_number_of_thoughts_is_drawn(N, tmp_path):
    result = forks()
    result["thoughts"] |= {"similarity": [[1.0] * N] * N, "usage": [1.0] + [0.0] * (N - 1), "persistence": [0.1]}
    written(result, tmp_path)
    assert {"similarity.png", "persistence.png", "usage.png"} <= pictures(tmp_path)


def test_a_setting_without_quality_a_single_seed_and_two_models_are_drawn(tmp_path):
    result = forks()
    result["settings"][7]["test"]["quality"] = result["settings"][7]["validation"]["quality"] = None
    again = [
        copy.deepcopy(s) | {"source": "trunk", "name": "trunk " + s["name"]}
        for s in result["settings"]
        if s["source"] == "plain"
    ]
    result["settings"] += again
    for s in result["settings"]:
        s["test"]["diversity"] |= {"low": None, "high": None}
    text = written(result, tmp_path)
    assert cells(text, "All settings").count("mixture, no thought") == len(again)
    assert "NaN" not in without_images(text)


def test_the_page_of_the_schema_names_every_field():
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", SCHEMA.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}

    def fields(value, prefix=""):
        match value:
            case dict() if prefix not in ("versions", "measures", "settings[].measures", "settings[].parameters"):
                for name, inner in value.items():
                    yield (path := f"{prefix}.{name}".strip("."))
                    if not (isinstance(inner, dict) and set(inner) == {"mean", "low", "high"}):
                        yield from fields(inner, path)
            case [dict(), *_]:
                for inner in value:
                    yield from fields(inner, prefix + "[]")

    assert set(fields(forks())) == documented - {"mean", "low", "high"}


def test_a_browser_shows_it_all_and_nothing_sticks_out_on_a_phone(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium on PATH: apt-get install chromium")
    text = written(hostile(), tmp_path)
    # Without its policy, in a frame as wide as a phone, with a script of ours that measures.
    inner = re.sub(r"<meta http-equiv.*", "", text)
    (tmp_path / "page.html").write_text(inner, encoding="utf-8", errors="replace")
    frame = (
        '<iframe src="page.html" width="390" height="800"></iframe>'
        "<script>onload = () => { const d = frames[0].document;"
        "document.body.dataset.seen = [d.documentElement.scrollWidth, d.images.length, ...[...d.images].map(i => "
        "i.naturalWidth), d.title === 'ran'].join() }</script>"
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}</body>")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=3000"
    call = [
        chromium,
        *flags.split(),
        f"--user-data-dir={tmp_path}/profile",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]
    seen = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout
    width, count, *sizes, title = re.search(r'data-seen="([^"]*)"', seen)[1].split(",")
    assert int(width) <= 390
    assert (count, set(sizes)) == ("4", {"1040"})
    assert title == "false"
