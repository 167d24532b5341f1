"""Requests that arrive together are worked on together, and each gets its own answer."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest

pytest.importorskip("fastapi")

from collaborative_experts import VideoIndex
from collaborative_experts.apps.server.batching import Batcher, QueueFullError
from collaborative_experts.apps.server.schema import EmbedRequest, ExplainRequest, SearchRequest
from collaborative_experts.apps.server.service import SearchService


def run(batcher, scenario):
    async def whole():
        async with batcher:
            return await scenario()

    return asyncio.run(whole())


def test_those_that_arrive_together_are_one_batch():
    sizes = []
    batcher = Batcher(lambda xs: [x * 2 for x in xs], window_s=0.05, most=8, observe=sizes.append)

    async def scenario():
        return await asyncio.gather(*(batcher.submit(x) for x in range(20)))

    assert run(batcher, scenario) == [2 * x for x in range(20)]
    assert sizes == [8, 8, 4]


def test_large_requests_make_small_batches():
    sizes = []
    batcher = Batcher(lambda xs: xs, window_s=0.05, most=8, size=lambda x: x, observe=sizes.append)

    async def scenario():
        return await asyncio.gather(*(batcher.submit(x) for x in (6, 6, 6, 1, 1, 30, 2)))

    assert run(batcher, scenario) == [6, 6, 6, 1, 1, 30, 2]
    assert sizes == [2, 3, 1, 1]


def test_one_mistake_is_one_callers():
    batcher = Batcher(lambda xs: [ValueError("odd") if x % 2 else x for x in xs])

    async def scenario():
        return await asyncio.gather(*(batcher.submit(x) for x in range(4)), return_exceptions=True)

    answers = run(batcher, scenario)
    assert answers[::2] == [0, 2]
    assert all(isinstance(x, ValueError) for x in answers[1::2])


def test_it_goes_on_after_a_failure_and_a_caller_that_left():
    def work(xs):
        if "bad" in xs:
            raise MemoryError("too much")
        return xs

    batcher = Batcher(work, window_s=0.0)

    async def scenario():
        with pytest.raises(MemoryError):
            await batcher.submit("bad")
        left = asyncio.create_task(batcher.submit("left"))
        await asyncio.sleep(0)
        left.cancel()
        return await batcher.submit("good")

    assert run(batcher, scenario) == "good"


def test_a_panic_of_a_library_in_rust_is_one_batchs():
    class PanicException(BaseException):
        pass

    def work(xs):
        if "bad" in xs:
            raise PanicException("index out of bounds")
        return xs

    batcher = Batcher(work, window_s=0.0)

    async def scenario():
        await batcher.__aenter__()  # to leave would take for ever where the worker has ended
        with pytest.raises(RuntimeError, match="panic: index out of bounds"):
            await asyncio.wait_for(batcher.submit("bad"), 20)
        return await asyncio.wait_for(batcher.submit("good"), 20)

    assert asyncio.run(scenario()) == "good"


def test_what_waits_at_the_end_is_answered_and_more_is_refused():
    batcher = Batcher(lambda xs: time.sleep(0.05) or xs, window_s=0.0, most=1, waiting=3)
    tasks = []

    async def scenario():
        tasks.append(asyncio.create_task(batcher.submit(0)))
        await asyncio.sleep(0.02)
        tasks.extend(asyncio.create_task(batcher.submit(x)) for x in range(1, 4))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="3 requests wait"):
            await batcher.submit(9)

    run(batcher, scenario)
    assert [task.result() for task in tasks] == [0, 1, 2, 3]


def test_64_callers_are_a_few_batches(service, operator, open_client):
    client = open_client(service, window_s=0.05)
    together = threading.Barrier(64)

    def ask(caller):
        together.wait(30)
        return client.post("/search", json={"sentences": [f"sentence {caller}"], "k": 3}).json()

    operator.calls.clear()
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert sum(operator.calls) == 64
    assert len(operator.calls) <= 32  # alone they would be 64
    for caller in (0, 17, 63):
        alone = client.post("/search", json={"sentences": [f"sentence {caller}"], "k": 3}).json()
        assert [x["id"] for x in alone["results"][0]] == [x["id"] for x in answers[caller]["results"][0]]


def test_wrong_requests_cost_the_others_nothing(service, operator):
    """They are set aside before the search: the others are embedded, read and searched together as without them."""
    right = [SearchRequest(sentences=[f"sentence {i}"], k=3) for i in range(40)]
    right += [SearchRequest(like=[f"clip/{i:02}"], k=3) for i in range(20)]
    wrong = [
        SearchRequest(sentences=["a"], k=3, expert_weights={"face": 2}),
        SearchRequest(sentences=["a"], k=3, expert_weights={"motion": 0, "audio": 0, "ocr": 0}),
        SearchRequest(like=["none"], k=3),
        ExplainRequest(sentence="a", id="none"),
    ]
    operator.calls.clear()
    with (
        patch.object(VideoIndex, "search", autospec=True, side_effect=VideoIndex.search) as search,
        patch.object(VideoIndex, "search_like", autospec=True, side_effect=VideoIndex.search_like) as search_like,
    ):
        answers = service.answer([*right[:30], *wrong, *right[30:]])
    assert [row for row, x in enumerate(answers) if isinstance(x, Exception)] == [30, 31, 32, 33]
    assert (operator.calls, search.call_count, search_like.call_count) == ([41], 1, 1)


def test_a_sentence_that_cannot_be_embedded_is_found_by_halves(index, operator):
    class Choosy:
        calls = 0

        def encode_sentences(self, sentences):
            self.calls += 1
            if "bad" in sentences:
                raise ValueError("cannot embed it")
            return operator.encode_sentences(sentences)

    choosy = Choosy()
    requests = [SearchRequest(sentences=["bad" if i == 37 else f"sentence {i}"], k=3) for i in range(64)]
    answers = SearchService(index, choosy).answer(requests)
    assert [row for row, x in enumerate(answers) if isinstance(x, Exception)] == [37]
    assert str(answers[37]) == "cannot embed it"
    assert choosy.calls <= 13  # of one sentence each they would be 65


def test_one_pass_answers_requests_of_all_kinds(service, operator):
    requests = [
        SearchRequest(sentences=["a", "b"], k=3),
        SearchRequest(like=["clip/01"], k=2),
        SearchRequest(sentences=["c"], k=3, expert_weights={"motion": 2}),
        SearchRequest(sentences=["a"], k=3, where="nonsense ="),
        EmbedRequest(sentences=["b"]),
        ExplainRequest(sentence="a", id="clip/02"),
        ExplainRequest(sentence="a", id="none"),
        SearchRequest(like=["none"], k=2),
        SearchRequest(sentences=["a"], k=3, expert_weights={"face": 2}),
        SearchRequest(sentences=["d"], k=1, offset=1),
        SearchRequest(like=["clip/01"], where="start_s < 3"),  # the condition meets this one
        SearchRequest(like=["clip/09", "clip/01"], where="start_s < 3"),
    ]
    operator.calls.clear()
    together = service.answer(requests)
    assert operator.calls == [4]  # a, b, c, d
    alone = [service.answer([request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, Exception):
            assert (type(one), str(one)) == (type(other), str(other))
        else:
            assert one == other
    failed = [row for row, x in enumerate(together) if isinstance(x, Exception)]
    assert failed == [3, 6, 7, 8]
    assert [len(x) for x in together[-1]["results"]] == [3, 2]
