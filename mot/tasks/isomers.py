"""isomers: a molecular formula in the prompt; the answer is a molecule that has it, as a SMILES string.

    prompt   "C5H8O2>"            a formula in Hill order
    answer   "C1(C)OC(=O)CC1"     any one of its molecules, its atoms in random order
    key      "CC1CCC(=O)O1"       the canonical SMILES of the same molecule: what should differ between thoughts

    python -m mot.tasks.isomers qm9_smiles.csv FOLDER     writes FOLDER/train.jsonl and FOLDER/valid.jsonl

A text is valid if rdkit parses it and its formula is the prompt's. Two texts are one answer if their canonical SMILES
are equal. Whole formulas are held out: half of those that have 4 to 64 known molecules, so that a prompt of valid.jsonl
was never trained on. The molecules come from a file with a column `smiles`, such as QM9; rdkit comes with the extra
`isomers`.
"""

import csv
import json
import random
import sys
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

FEWEST, MOST = 4, 64  # known molecules of a formula that may be held out
SPELLINGS = 2  # random atom orders of every molecule in train.jsonl
PER_FORMULA = 400  # most molecules of one formula to train on: the commonest formulas have thousands
HELD_OUT_SEED = 0


def rows(n: int, seed: int) -> list[tuple[str, str, str]]:
    """Raises ValueError: the molecules come from a file."""
    raise ValueError(
        "isomers: its rows come from a file; write it with `python -m mot.tasks.isomers QM9.csv FOLDER`, "
        "then give --train_file FOLDER/train.jsonl or --prompts FOLDER/valid.jsonl"
    )


def verify(prompt: str, text: str) -> str | None:
    """The canonical SMILES of the molecule that the text spells, if its formula is the prompt's; else None."""
    formula, canonical = _molecule(text) or (None, None)
    return canonical if formula == prompt.strip().removesuffix(">") else None


def answers(prompt: str) -> int | None:
    """None: the number of all molecules of a formula is unknown."""
    return None


@lru_cache(100_000)
def _molecule(text: str) -> tuple[str, str] | None:
    """(formula, canonical SMILES) of a SMILES string, None if it is not one."""
    Chem, formula_of = _rdkit()
    if not text.isascii() or " " in text or not 0 < len(text) <= 200:
        return None
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms() or "." in text:
        return None
    return formula_of(molecule), Chem.MolToSmiles(molecule)


@lru_cache(1)
def _rdkit():
    """(rdkit.Chem, the function that gives a molecule's formula). Raises ValueError if rdkit is not installed."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.rdMolDescriptors import CalcMolFormula
    except ImportError:
        raise ValueError('--task isomers: needs rdkit; pip install -e ".[isomers]"') from None
    RDLogger.DisableLog("rdApp.*")  # a text that is no molecule is a result, not an error
    return Chem, CalcMolFormula


def read(path: str) -> dict[str, list[str]]:
    """{formula: canonical SMILES of its molecules} of a table with a column `smiles`. Raises ValueError naming the
    line.
    """
    Chem, formula_of = _rdkit()
    found = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if "smiles" not in (table.fieldnames or ()):
            raise ValueError(f"{path}: has no column `smiles`")
        for row in table:
            molecule = Chem.MolFromSmiles(row["smiles"])
            if molecule is None:
                raise ValueError(f"{path}: line {table.line_num}: {row['smiles']!r} is not a molecule")
            found[formula_of(molecule)][Chem.MolToSmiles(molecule)] = None
    return {formula: list(molecules) for formula, molecules in sorted(found.items())}


def split(molecules: dict[str, list[str]], seed: int = HELD_OUT_SEED) -> tuple[list[str], list[str]]:
    """(formulas to train on, formulas held out): half of the formulas with 4 to 64 known molecules are held out."""
    fitting = [formula for formula, known in molecules.items() if FEWEST <= len(known) <= MOST]
    held_out = set(random.Random(f"isomers {seed}").sample(fitting, len(fitting) // 2))
    return [f for f in molecules if f not in held_out], sorted(held_out)


def spellings(canonical: str, n: int, seed: int) -> list[str]:
    """n SMILES of a molecule, each from another random order of its atoms."""
    Chem, _ = _rdkit()
    return list(Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(canonical), n, seed))


def write(molecules: dict[str, list[str]], folder: str, seed: int = 0) -> tuple[int, int]:
    """Write train.jsonl and valid.jsonl, rows of one formula together; returns their numbers of rows."""
    train, held_out = split(molecules)
    draw, counts = random.Random(f"isomers rows {seed}"), []
    for name, formulas, copies in (("train", train, SPELLINGS), ("valid", held_out, 1)):
        count = 0
        with open(Path(folder) / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for formula in formulas:
                for canonical in draw.sample(molecules[formula], min(PER_FORMULA, len(molecules[formula]))):
                    for text in spellings(canonical, copies, draw.randrange(2**31)):
                        row = {"prompt": f"{formula}>", "completion": text, "key": canonical}
                        file.write(json.dumps(row) + "\n")
                        count += 1
        counts.append(count)
    return counts[0], counts[1]


def main(path: str, folder: str) -> None:
    molecules = read(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    trained, held_out = write(molecules, folder)
    print(f"{folder}: train.jsonl {trained:,} rows, valid.jsonl {held_out:,} rows of formulas that are not in it")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mot.tasks.isomers QM9.csv FOLDER")
    main(*sys.argv[1:])
