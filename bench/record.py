"""Store the figures of a bench as a file that bench/tables.py reads. Imported by benches; no command of its own.

record(Path("docs/results/trunk.json"), "does the trunk stay good?", {"seed": "seed", "nll": "NLL"}, rows, seeds=[1, 2])
"""

import datetime
import json
import math
import shlex
import statistics
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

# Two-sided 95 % quantiles of Student's t by the number of seeds (one degree of freedom less).
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def digits(value: float, places: int) -> Decimal:
    """The number with exactly so many decimal places, which a table then shows."""
    return Decimal(f"{value:.{places}f}")


def over_seeds(values: list[float], places: int) -> Decimal | dict[str, Decimal]:
    """{"mean", "half"}: the mean over 2 to 10 seeds and half the width of its 95 % interval; one seed: its value."""
    mean = digits(statistics.fmean(values), places)
    if len(values) < 2:
        return mean
    return {
        "mean": mean,
        "half": digits(STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values)), places),
    }


def record(path: Path, study: str, columns: dict[str, str], rows: list[dict], seeds: list, signed=()) -> None:
    """Write the rows with today's date, the commit, this machine and the command that runs.

    columns: key of a cell: its heading. rows: cells as at the top of bench/tables.py. signed: columns with a + before
    positive numbers.
    """
    from machine import described  # imports torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    about = {
        "study": study,
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": "{device}; torch {torch}, transformers {transformers}".format(**described()),
        "command": [shlex.join(["python", *sys.argv])],
        "seeds": seeds,
        **({"signed": list(signed)} if signed else {}),
        "columns": columns,
    }
    lines = [f"  {_json(key)}: {_json(value)}" for key, value in about.items()]
    lines.append('  "rows": [\n' + ",\n".join("    " + _json(row) for row in rows) + "\n  ]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _json(value) -> str:
    """JSON that keeps the digits of a Decimal, which the standard writer cannot."""
    match value:
        case Decimal():
            return str(value)
        case dict():
            return "{" + ", ".join(f"{_json(k)}: {_json(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
