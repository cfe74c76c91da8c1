"""The pool of pages: who holds what, what can be found again, and what is lost first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.inference.pages import Pages, pages_for

ROOT = -1
ONE, TWO, THREE = (tuple(range(start, start + 16)) for start in (0, 100, 200))


def test_pages_for_counts_half_filled_ones() -> None:
    assert [pages_for(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_more_pages_than_are_free_are_refused_before_any_is_taken() -> None:
    pages = Pages(3)
    pages.take(2)
    with pytest.raises(ValueError, match="2 pages wanted, 1 are free"):
        pages.take(2)
    assert pages.free == 1


def test_a_page_is_found_by_its_tokens_and_all_before_them() -> None:
    pages = Pages(4)
    first, second = pages.take(2)
    name = pages.know(ROOT, ONE, first)
    after = pages.know(name, TWO, second)
    assert pages.find(ROOT, ONE) == (first, name)
    assert pages.find(name, TWO) == (second, after)
    assert pages.find(ROOT, TWO) is None and pages.find(-2, ONE) is None


def test_of_two_pages_with_the_same_tokens_the_first_is_found_and_names_what_follows() -> None:
    pages = Pages(4)
    first, second = pages.take(2)
    name = pages.know(ROOT, ONE, first)
    assert pages.know(ROOT, ONE, second) == name
    assert pages.find(ROOT, ONE) == (first, name)


def test_a_shared_page_stays_until_its_last_holder_gives_it_back() -> None:
    pages = Pages(2)
    (page,) = pages.take(1)
    pages.share([page])
    pages.give_back([page])
    assert pages.free == 1
    pages.give_back([page])
    assert pages.free == 2


def test_what_nobody_holds_is_still_found_until_its_room_is_needed() -> None:
    pages = Pages(2)
    (page,) = pages.take(1)
    pages.know(ROOT, ONE, page)
    pages.give_back([page])
    assert pages.free == 2 and pages.find(ROOT, ONE)
    blank = pages.take(1)
    assert pages.find(ROOT, ONE) and page not in blank
    assert pages.take(1) == [page] and pages.find(ROOT, ONE) is None


def test_the_page_given_back_first_is_lost_first_and_of_one_text_the_last() -> None:
    pages = Pages(3)
    taken = pages.take(3)
    name = ROOT
    for page, tokens in zip(taken, (ONE, TWO, THREE), strict=True):
        name = pages.know(name, tokens, page)
    pages.give_back(taken[1:])
    pages.give_back(taken[:1])
    assert pages.take(3) == [taken[2], taken[1], taken[0]]


def test_a_name_is_never_given_twice() -> None:
    """Else a page behind a lost one would be found behind another text."""
    pages = Pages(2)
    first, second = pages.take(2)
    name = pages.know(ROOT, ONE, first)
    pages.know(name, TWO, second)
    pages.give_back([first])
    assert pages.take(1) == [first]
    assert pages.know(ROOT, THREE, first) != name
    assert pages.find(pages.know(ROOT, THREE, first), TWO) is None


@given(st.lists(st.integers(0, 2**16), max_size=60))
def test_whatever_is_taken_shared_and_given_back_the_count_of_free_pages_is_right(moves: list[int]) -> None:
    pages, held = Pages(6), []
    for move in moves:
        kind, choice = move % 4, move // 4
        if kind == 0 and pages.free:
            held.append(pages.take(1))
            if choice % 2:
                pages.know(ROOT, (choice % 5,) * 16, held[-1][0])
        elif kind == 1 and held:
            held.append(list(held[choice % len(held)]))
            pages.share(held[-1])
        elif kind == 2 and held:
            pages.give_back(held.pop(choice % len(held)))
        elif hit := pages.find(ROOT, (choice % 5,) * 16):
            pages.share(hit[:1])
            held.append([hit[0]])
        assert pages.free == 6 - len({page for each in held for page in each})
