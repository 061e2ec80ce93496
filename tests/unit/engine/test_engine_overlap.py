"""Work beside the caller's: in order, no further ahead than allowed, errors in their place."""

from __future__ import annotations

import threading

import pytest

from segtune.engine.overlap import ahead


def test_results_come_in_order_from_another_thread():
    threads = set()

    def square(number):
        threads.add(threading.get_ident())
        return number * number

    assert list(ahead(square, range(7), 2)) == [number * number for number in range(7)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert list(ahead(square, [], 2)) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_waits_than_allowed(depth):
    taken, held = [], []

    def items():
        for number in range(9):
            taken.append(number)
            yield number

    for result in ahead(lambda number: number, items(), depth):
        held.append(result)
        assert len(taken) - len(held) <= depth


def test_an_error_is_raised_in_the_place_of_its_result():
    def half(number):
        if number == 2:
            raise ValueError("two")
        return number / 2

    results = ahead(half, range(5), 4)
    assert [next(results), next(results)] == [0, 0.5]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_what_was_begun_is_done_where_the_caller_ends_early():
    done = []
    results = ahead(done.append, range(9), 3)
    next(results)
    results.close()
    assert done == [0, 1, 2, 3]


def test_what_was_begun_is_done_where_an_item_fails():
    done = []

    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    with pytest.raises(ValueError, match="no third"):
        list(ahead(done.append, items(), 3))
    assert done == [1, 2]
