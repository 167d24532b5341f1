import threading

import pytest
import torch

from collaborative_experts.base.threads import in_order

pytestmark = pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)


def test_results_come_in_order(threads):
    assert list(in_order(lambda x: x * x, iter(range(50)))) == [x * x for x in range(50)]
    assert list(in_order(str, [])) == []


def test_items_are_computed_at_once(threads):
    together = threading.Barrier(threads, timeout=10)
    assert len(list(in_order(lambda _: together.wait(), range(3 * threads)))) == 3 * threads


def test_one_thread_within_and_as_many_as_before_outside(threads):
    inside = list(in_order(lambda _: (torch.get_num_threads(), list(in_order(abs, [-1, -2]))), range(4)))
    assert inside == [(1, [1, 2])] * 4
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *found] == [threads, threads]


def test_few_items_are_asked_for_ahead(threads):
    asked = []
    results = in_order(abs, (asked.append(x) or x for x in range(100)))
    next(results)
    assert len(asked) <= 2 * threads + 1


def test_an_error_reaches_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda x: 1 // x, [1, 0, 1]))
    assert list(in_order(abs, [-1])) == [1]
