"""siblings: the family tree, and two different children of the parent named."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mot.tasks import siblings


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
