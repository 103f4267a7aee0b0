"""isomers: a molecule is valid if it has the formula, whatever its spelling; whole formulas are held out."""

import json
import sys

import pytest

from mot.tasks import isomers

pytest.importorskip("rdkit", reason='needs rdkit: pip install -e ".[isomers]"')


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        ("C2H6O>", "CCO", "CCO"),
        ("C2H6O>", "OCC", "CCO"),
        ("C2H6O>", "C(O)C", "CCO"),
        ("C2H6O>", "COC", "COC"),
        ("C2H6O>", "CC=O", None),  # another formula
        ("C2H6O>", "CCO.C", None),  # two molecules
        ("C2H6O>", "C(((", None),
        ("C2H6O>", "", None),
        ("C2H6O>", "C" * 10_000, None),
    ],
)
def test_the_answer_is_the_canonical_molecule(prompt, text, answer):
    assert isomers.verify(prompt, text) == answer


def test_all_random_spellings_of_a_molecule_are_one_answer():
    texts = isomers.spellings("CC1CCC(=O)O1", 40, seed=1)
    assert len(set(texts)) > 10
    assert {isomers.verify("C5H8O2>", text) for text in texts} == {isomers.verify("C5H8O2>", "CC1CCC(=O)O1")}


def table(tmp_path, *smiles):
    path = tmp_path / "molecules.csv"
    path.write_text("idx,smiles\n" + "".join(f"{i},{text}\n" for i, text in enumerate(smiles)))
    return str(path)


def test_a_line_that_is_no_molecule_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"molecules.csv: line 3: 'C\(' is not a molecule"):
        isomers.read(table(tmp_path, "CCO", "C("))


def test_a_table_without_the_column_is_named(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column `smiles`"):
        isomers.read(str(path))


def test_rdkit_missing_is_one_line(monkeypatch):
    isomers._rdkit.cache_clear()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ValueError, match=r'needs rdkit; pip install -e "\.\[isomers\]"'):
        isomers.verify("C2H6O>", "CCOC")
    monkeypatch.undo()
    isomers._rdkit.cache_clear()


def test_rows_come_from_a_file():
    with pytest.raises(ValueError, match="its rows come from a file"):
        isomers.rows(1, 0)


def test_whole_formulas_of_qm9_are_held_out(shared_data, tmp_path):
    molecules = isomers.read(str(shared_data / "isomers" / "qm9_smiles.csv"))
    trained, held_out = isomers.split(molecules)
    assert not set(trained) & set(held_out)
    assert all(4 <= len(molecules[formula]) <= 64 for formula in held_out)
    few = {formula: molecules[formula][:20] for formula in [*trained[:30], *held_out[:10]]}
    isomers.write(few, str(tmp_path))
    rows = [json.loads(line) for name in ("train", "valid") for line in (tmp_path / f"{name}.jsonl").open()]
    assert all(isomers.verify(row["prompt"], row["completion"]) == row["key"] for row in rows)
