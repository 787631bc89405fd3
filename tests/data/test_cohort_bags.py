"""Slides as bags: each by itself, or those of a patient together, and only where they have one outcome."""

from dataclasses import replace

import pytest

from wsi2d.data.cohort import CohortSlide
from wsi2d.data.cohort_bags import CohortBag, bags_of
from wsi2d.errors import CohortError

A1, A2, B1, C1 = (CohortSlide(f"{case}-{n}", case, "high") for case, n in (("a", 1), ("a", 2), ("b", 1), ("c", 1)))


def test_each_slide_is_a_bag_by_itself() -> None:
    bags = bags_of([B1, A1, A2], "slide")
    assert [(bag.name, bag.slide_ids, bag.joined) for bag in bags] == [
        ("b-1", ("b-1",), False),
        ("a-1", ("a-1",), False),
        ("a-2", ("a-2",), False),
    ]


def test_a_patients_slides_are_one_bag_in_the_order_of_the_first() -> None:
    bags = bags_of([A1, B1, A2, C1], "case")
    assert [(bag.name, bag.slide_ids) for bag in bags] == [("a", ("a-1", "a-2")), ("b", ("b-1",)), ("c", ("c-1",))]
    assert all(bag.joined for bag in bags), "also where a patient has one slide"
    assert bags_of([], "case") == ()


def test_what_is_known_of_a_bag_is_what_is_known_of_its_slides() -> None:
    dead = [CohortSlide(f"s{i}", "p", None, 12.5, True) for i in range(2)]
    (bag,) = bags_of(dead, "case")
    assert (bag.case_id, bag.label, bag.time, bag.event) == ("p", None, 12.5, True)
    (bag,) = bags_of([A1], "case")
    assert (bag.case_id, bag.label, bag.time, bag.event) == ("a", "high", None, None)


@pytest.mark.parametrize(("column", "other"), [("label", "low"), ("time", 3.0), ("event", False)])
def test_slides_with_two_outcomes_are_no_bag(column: str, other: object) -> None:
    first = CohortSlide("s1", "p", "high", 2.0, True)
    with pytest.raises(CohortError) as caught:
        CohortBag("p", (first, replace(first, slide_id="s2"), replace(first, slide_id="s3", **{column: other})), True)
    assert str(caught.value) == (
        f"patient 'p': {column} is {getattr(first, column)} of slide 's1' and {other} of 's3', so that they cannot be "
        "one bag; leave some out, or set data.bag: slide"
    )
    slides = [first, replace(first, slide_id="s3", **{column: other})]
    assert len(bags_of(slides, "slide")) == 2, "by themselves they are two"


def test_an_id_that_cannot_stand_in_a_list_is_refused_only_where_there_are_lists() -> None:
    odd = CohortSlide("s;1", "p", "high")
    assert bags_of([odd], "slide")[0].name == "s;1"
    with pytest.raises(CohortError, match="slide 's;1': its id holds ';'"):
        bags_of([odd], "case")
