"""Counts and times that /metrics gives to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TIMES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        prefix = "collaborative_experts"
        self._requests = Counter(f"{prefix}_requests", "Requests", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            f"{prefix}_request_seconds", "Time until the end of a response", ["route"], buckets=TIMES_S,
            registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            f"{prefix}_batch_requests", "Requests answered together", buckets=SIZES, registry=self.registry
        )
        self._waiting = Gauge(f"{prefix}_waiting_requests", "Requests in the queue", registry=self.registry)
        self._videos = Gauge(f"{prefix}_videos", "Videos in the index", registry=self.registry)

    def observe_batch(self, size: int) -> None:
        self._batches.observe(size)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Ask this for the length of the queue, whenever the metrics are read."""
        self._waiting.set_function(waiting)

    def text(self, videos: int) -> bytes:
        """All of it in Prometheus' form."""
        self._videos.set(videos)
        return generate_latest(self.registry)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Measured:
    """ASGI: counts requests by route and status. A path that is no route counts as `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe_request(route, status, time.perf_counter() - start)
