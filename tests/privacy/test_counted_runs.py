"""Whether one statement of a run counts all that another counts, and counting each run once."""

import pytest

from diffusers_dp_curriculum import Mechanism
from diffusers_dp_curriculum.privacy.counted_runs import CountedRun, branches, count_once


def run(steps, sessions, name="run"):
    return CountedRun(name, sessions, [Mechanism("dp_sgd", 2.0, 0.1, steps, 1.0)])


@pytest.mark.parametrize(
    ("one", "other", "contains"),
    [
        (run(9, {"a": 9}), run(9, {"a": 9}), True),
        (run(9, {"a": 9}), run(8, {"a": 8}), True),
        (run(9, {"a": 5, "b": 4}), run(5, {"a": 5}), True),
        (run(8, {"a": 8}), run(9, {"a": 9}), False),
        (run(9, {"a": 5, "b": 4}), run(6, {"a": 6}), False),  # the copy was made after 5 releases of the session
        (run(9, {"a": 5, "b": 4}), run(6, {"a": 5, "c": 1}), False),
        (run(9, {"a": 9}), run(9, {"a": 9}, "another run"), False),
        (run(9, {}, None), run(9, {}, None), False),  # runs without names cannot be told apart
        (run(8, {"a": 9}), run(9, {"a": 9}), False),  # one of the two was edited
        (run(9, {"a": 9}), CountedRun("run", {"a": 1}, [Mechanism("dp_sgd", 1.0, 0.1, 1, 1.0)]), False),
    ],
)
def test_a_run_counts_all_of_itself_in_an_earlier_state_and_nothing_else(one, other, contains):
    assert one.counts_all_of(other) is contains


def test_each_run_is_counted_once_at_its_furthest():
    early, late, another = run(3, {"a": 3}), run(9, {"a": 3, "b": 6}), run(5, {"c": 5}, "another run")
    for found in ([early, late, another], [late, early, another], [early, early, late, another]):
        counted, remarks = count_once([(f"{number}.", one) for number, one in enumerate(found)])
        assert sorted(kept.mechanisms[0].steps for _, kept in counted) == [5, 9]
        assert len(remarks) == len(found) - 2
        assert all("is not counted again: " in remark for remark in remarks)


def test_a_statement_that_counts_more_replaces_all_that_it_counts():
    """It replaces two statements of which neither counts the other."""
    found = [run(3, {"a": 3}), run(4, {"a": 2, "b": 2}), run(9, {"a": 3, "b": 6})]
    assert [kept for _, kept in count_once([("", one) for one in found])[0]] == found[2:]


def test_branches_of_a_run_are_counted_in_full_and_said_to_be():
    trunk, one, copy = run(3, {"a": 3}), run(5, {"a": 3, "b": 2}), run(9, {"a": 3, "c": 6})
    counted, remarks = count_once([("trunk", trunk), ("one", one), ("copy", copy)])
    assert [kept for _, kept in counted] == [one, copy]
    assert branches([one, copy])
    assert not branches([one, run(1, {"d": 1}, "another run"), run(1, {}, None), run(1, {}, None)])
    assert remarks[0].startswith("trunk is not counted again: one is the same run")
    assert remarks[1].startswith("one and copy are of one run, and neither counts all that the other does")


def test_runs_of_older_versions_count_as_runs_of_their_own():
    old = run(3, {}, None)
    counted, remarks = count_once([("old", old), ("older", old)])
    assert len(counted) == 2
    assert remarks[0].startswith("old does not say of which run it is")
