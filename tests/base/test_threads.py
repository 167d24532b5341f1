import subprocess
import sys
import threading

import pytest
import torch

from collaborative_experts.base.threads import in_background, in_order

on_some_threads = pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)


@on_some_threads
def test_results_come_in_order(threads):
    assert list(in_order(lambda x: x * x, iter(range(50)))) == [x * x for x in range(50)]
    assert list(in_order(str, [])) == []


@on_some_threads
def test_items_are_computed_at_once(threads):
    together = threading.Barrier(threads, timeout=10)
    assert len(list(in_order(lambda _: together.wait(), range(3 * threads)))) == 3 * threads


@on_some_threads
def test_one_thread_within_and_as_many_as_before_outside(threads):
    inside = list(in_order(lambda _: (torch.get_num_threads(), list(in_order(abs, [-1, -2]))), range(4)))
    assert inside == [(1, [1, 2])] * 4
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *found] == [threads, threads]


@on_some_threads
def test_few_items_are_asked_for_ahead(threads):
    asked = []
    results = in_order(abs, (asked.append(x) or x for x in range(100)))
    next(results)
    assert len(asked) <= 2 * threads + 1


@on_some_threads
def test_an_error_reaches_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda x: 1 // x, [1, 0, 1]))
    assert list(in_order(abs, [-1])) == [1]


@on_some_threads
def test_what_runs_in_the_background_runs_one_after_the_other(threads):
    ran, done = [], threading.Event()
    in_background(lambda: ran.append("first"))
    in_background(lambda: 1 // 0)  # not seen
    in_background(lambda: ran.append("after an error"))
    in_background(done.set)
    assert done.wait(10)
    assert ran == ["first", "after an error"]


@on_some_threads
def test_what_is_handed_over_from_within_leaves_later_threads_their_number(threads):
    done, found = threading.Event(), []
    list(in_order(lambda _: in_background(done.set), [0]))
    assert done.wait(10)
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads]


END = """
import threading, time
from collaborative_experts.base.threads import in_background
begun = threading.Event()
in_background(lambda: (begun.set(), time.sleep(0.3), print("finished")))
in_background(lambda: print("not dropped"))
begun.wait(10)
import atexit
atexit.register(in_background, lambda: print("not dropped either"))
"""


def test_a_program_that_ends_waits_for_one(root):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", END], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "finished\n"
