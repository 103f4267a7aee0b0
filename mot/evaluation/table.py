"""The result of an evaluation for the terminal.

    console.print(table(result))

It shows the selected setting of the mixture, every sampler at its best and at its most diverse, and the verdict. It is
made for 100 columns and holds as many further measures as fit. At 80 columns long names are broken, and recall and
plans stay beside the number of distinct answers, if need be in the place of the intervals.
"""

from dataclasses import dataclass

from mot.evaluation.rows import ANSWERS, columns, decisive, further_measures, groups, order

KEPT = ("distinct_valid", "recall", "plans")  # shown even if names are broken or intervals left out for them


def table(result: dict):
    """A renderable of rich; `result` is diversity.json."""
    return _Table(result)


@dataclass
class _Table:
    result: dict

    def __rich_console__(self, console, options):
        from rich.measure import Measurement
        from rich.text import Text

        extra, brackets = list(further_measures(self.result)), True
        while extra:
            width = Measurement.get(console, options.update(width=999), self._table(extra, brackets))
            kept = extra[-1] in KEPT
            if (width.minimum if kept else width.maximum) <= options.max_width:
                break
            if kept and brackets:
                brackets = False
            else:
                extra.pop()
        yield self._table(extra, brackets or not extra)
        shown = [c for c in columns(self.result, []) if c["name"] in ("quality", "diversity", *extra)]
        lower = [c["label"] for c in shown if c["better"] == "lower"]
        if lower:
            yield Text(f"lower is better: {', '.join(lower)}", "dim")
        if self.result["comparisons"]:
            yield Text(
                "as good: the most diverse of a sampler's settings that are as good as the selected one; "
                "nearest: no setting is as good, and this one is nearest; "
                "as diverse: the best setting that is as diverse as the selected one, or as its best rival",
                "dim",
            )
        if self.result["ablations"]:
            yield Text("ablation: the mixture without a part of it; the verdict does not depend on it", "dim")
        answer = self.result["verdict"]["answer"]
        color = {"yes": "bold green", "no": "bold red", "none": "bold"}[answer]
        sentence = ("Preliminary. " if self.result["quick"] else "") + self.result["verdict"]["sentence"]
        yield Text.assemble((f"{ANSWERS[answer][1]}. ", color), sentence)
        for sentence in filter(None, [*self.result["verdict"]["frontier"], self.result["quick"]]):
            yield Text(sentence)

    def _table(self, extra: list[str], brackets: bool):
        from rich import box
        from rich.table import Table
        from rich.text import Text

        rows = _rows(self.result)
        shown = columns(self.result, [setting for setting, _ in rows])
        shown = [c for c in shown if c["name"] in ("quality", "diversity", *extra)]
        rich_table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        rich_table.add_column("setting", overflow="fold", min_width=11)
        rich_table.add_column("", overflow="fold", min_width=8)
        headings = [column["label"].split(" ") for column in shown]
        for heading in headings:
            above = [""] * (max(map(len, headings)) - len(heading))
            rich_table.add_column(Text("\n".join(above + heading)), justify="right", no_wrap=True)
        for i, (setting, role) in enumerate(rows):
            cells = [c["cells"][i].mean + c["cells"][i].brackets * (brackets and c["name"] not in extra) for c in shown]
            style = "bold" if role == "selected" else ""
            rich_table.add_row(*(Text(content, style) for content in (setting["name"], role, *cells)))
        return rich_table


def _rows(result: dict) -> list[tuple[dict, str]]:
    """(setting, its role): of a baseline at most two, and the setting of equal diversity.

    The validation split decides which setting is the most diverse. The test split would name the luckiest one.
    """
    roles = {name: role for name, _, role in decisive(result)}
    for c in result["comparisons"]:
        if (c["matched_on"], c["mixture"]) == ("quality", result["selected"]) and c["setting"]:
            roles.setdefault(c["setting"], "as good" if c["qualified"] else "nearest")
    for c in (*result["comparisons"], *filter(None, [result["from_rival"]])):
        all_rivals = (c["mixture"], c["matched_on"], c["sampler"]) == (result["selected"], "diversity", "any")
        if c["qualified"] and (all_rivals or c == result["from_rival"]):
            roles.setdefault(c["setting"] if all_rivals else c["mixture"], "as diverse")
    for c in result["ablations"]:
        if c["matched_on"] == "quality" and c["setting"]:
            roles.setdefault(c["setting"], "ablation")
    sign = -1 if result["diversity"]["better"] == "lower" else 1
    for group in groups([s for s in result["settings"] if s["kind"] != "ablation"]).values():
        roles.setdefault(max(group, key=lambda s: sign * s["validation"]["diversity"])["name"], "most diverse")
    return [(s, roles[s["name"]]) for s in sorted(result["settings"], key=order) if s["name"] in roles]
