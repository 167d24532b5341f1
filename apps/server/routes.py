"""The routes over HTTP, a FastAPI app around a `SearchService`.

The page lies in `page/` beside this file: `index.html` is `/`, its other files are `/static/...`. Pictures are made
by thumbnails.py.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from . import schema
from .batching import WAITING, WINDOW_S, Batcher, QueueFullError
from .limits import Contained, Limited
from .media import content_type
from .metrics import Measured, Metrics
from .security import LOOPBACK, Guarded, Headered, KnownHosts
from .service import OtherModelError, SearchService, UnknownVideoError
from .thumbnails import read_thumbnail

PAGE = FilePath(__file__).with_name("page")

RETRY_AFTER_S, LONGEST_REASON = 1, 500
"""Seconds after which a caller may try again, and characters of a reason."""

MOST_PICTURES = 8
"""Threads that make or wait for pictures; the others stay free for the other routes."""

log = logging.getLogger(__name__)

VideoId = Annotated[schema.Id, Path()]


@dataclass(frozen=True)
class Settings:
    """The way in which a service is offered.

    Attributes:
        token: demanded on every route; None for none.
        hosts: names in the Host header that are answered; only looked at without a token.
        cors: origins whose pages may ask.
        waiting: requests that wait at most; one more gets 503.
        window_s: seconds that a request waits for others.
        thumbnails: the folder where pictures are kept; None for no pictures.
    """

    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    cors: tuple[str, ...] = ()
    waiting: int = WAITING
    window_s: float = WINDOW_S
    thumbnails: FilePath | None = None


def make_app(service: SearchService, settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI app."""
    settings = settings or Settings()
    metrics = Metrics()
    batcher = Batcher(
        lambda arrived: _answer(service, arrived),
        window_s=settings.window_s,
        waiting=settings.waiting,
        size=lambda arrived: len(arrived[0].texts) or 1,
        observe=metrics.observe_batch,
    )
    metrics.watch(lambda: len(batcher))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="Collaborative Experts",
        description="Videos that sentences describe.",
        lifespan=lifespan,
        docs_url=None,  # these two pages load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": schema.Problem} for status in (401, 404, 408, 413, 422, 503)},
    )
    _add_questions(app, batcher)
    _add_videos(app, service, settings.thumbnails)
    _add_state(app, service, metrics)
    _add_page(app)
    _add_handlers(app)
    _wrap(app, settings, metrics)
    return app


def _add_questions(app: FastAPI, batcher: Batcher) -> None:
    """The routes whose requests are answered together."""

    @app.post("/search", response_model=schema.SearchResponse)
    async def search(request: schema.SearchRequest) -> Response:
        """The k best videos for each sentence, or the k most like each video."""
        return _json(await batcher.submit((request, time.perf_counter())))

    @app.post("/embed_text", response_model=schema.EmbedResponse)
    async def embed_text(request: schema.EmbedRequest) -> Response:
        """Embeddings and expert weights of sentences."""
        return _json(await batcher.submit((request, time.perf_counter())))

    @app.post("/explain", response_model=schema.ExplainResponse)
    async def explain(request: schema.ExplainRequest) -> Response:
        """The share of each expert in the score of a sentence and a video."""
        return _json(await batcher.submit((request, time.perf_counter())))


def _add_videos(app: FastAPI, service: SearchService, thumbnails: FilePath | None) -> None:
    """The routes of single videos."""
    limiter = CapacityLimiter(MOST_PICTURES)

    @app.get("/videos/{video_id:path}", response_model=schema.VideoResponse)
    @app.post("/videos/{video_id:path}", response_model=schema.VideoResponse)
    def video(video_id: VideoId) -> Response:
        """All that the index holds of a video."""
        return _json(_encoded(service.video(video_id)))

    @app.head("/media/{video_id:path}", include_in_schema=False)
    @app.get("/media/{video_id:path}", response_class=FileResponse)
    def media(video_id: VideoId) -> Response:
        """The video's file; takes ranges of bytes."""
        path, _, _ = service.media_of(video_id)
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
        except OSError:  # it has just gone, or may not be read
            raise UnknownVideoError(f"the media file of {video_id!r} cannot be read") from None
        headers = {"Cache-Control": "private, no-cache"}
        return FileResponse(path, media_type=content_type(path), headers=headers, stat_result=found)

    @app.get("/thumbnail/{video_id:path}", response_class=Response)
    async def picture(video_id: VideoId) -> Response:
        """A small picture of the clip, as JPEG."""
        return await to_thread.run_sync(draw, video_id, limiter=limiter)

    def draw(video_id: str) -> Response:
        media, start_s, end_s = service.media_of(video_id)
        jpeg = None if thumbnails is None else read_thumbnail(media, start_s, end_s, thumbnails)
        if jpeg is None:
            raise UnknownVideoError(f"there is no picture of {video_id!r}")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_state(app: FastAPI, service: SearchService, metrics: Metrics) -> None:
    @app.get("/health", response_model=schema.Health)
    def health() -> Response:
        """A sign of life, and the size of the index."""
        return _json(_encoded(service.health()))

    @app.get("/metrics")
    def read_metrics() -> Response:
        """Counts and times in Prometheus' form."""
        return Response(metrics.text(len(service.index)), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    if not PAGE.is_dir():
        return

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=PAGE))


# --- problems ---------------------------------------------------------------------------------------------


def _add_handlers(app: FastAPI) -> None:
    """Every problem is {"detail": the reason in a line}."""
    later = {"Retry-After": str(RETRY_AFTER_S)}
    for kind, answer in {
        RequestValidationError: _answering(422, _reason),
        UnknownVideoError: _answering(404),
        ValueError: _answering(422),
        TypeError: _answering(422),
        OSError: _answering(503, _unreadable, headers=later),
        QueueFullError: _answering(503, headers=later),
    }.items():
        app.add_exception_handler(kind, answer)

    @app.exception_handler(HTTPException)
    async def answer_http(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def _answering(
    status: int, reason: Callable[[Any], str] = str, headers: Mapping[str, str] | None = None
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": _shortened(reason(error))}, status, headers)

    return answer


def _unreadable(error: OSError) -> str:
    """Errors of the files name paths of this machine, which are for its log alone."""
    log.error("%s", error)
    return str(error) if isinstance(error, OtherModelError) else "the index cannot be read; the service's log says more"


def _shortened(reason: str) -> str:
    """The beginning and the end of a long reason, which may quote all that was asked."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 150]} ... {reason[-150:]}"


def _reason(error: RequestValidationError) -> str:
    """The first mistakes of a request, each with its place."""
    reasons = []
    for one in error.errors()[:5]:
        place = ".".join(str(x) for x in one["loc"] if x != "body")
        reasons.append(f"{place}: {one['msg']}" if place else one["msg"])
    return "; ".join(reasons)


# --- small things -----------------------------------------------------------------------------------------


def _answer(service: SearchService, arrived: Sequence[tuple[schema.Request, float]]) -> list[bytes | Exception]:
    """The bodies of the responses to requests and the times of their arrival."""
    bodies: list[bytes | Exception] = []
    for content, (request, start) in zip(service.answer([x for x, _ in arrived]), arrived, strict=True):
        if isinstance(content, Exception):
            bodies.append(content)
            continue
        if isinstance(request, schema.SearchRequest):
            content["took_ms"] = round((time.perf_counter() - start) * 1000, 3)
        bodies.append(_encoded(content))
    return bodies


def _encoded(content: Any) -> bytes:
    """JSON, made in the thread that made the content."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _json(content: Any) -> Response:
    return Response(content, media_type="application/json")


def _wrap(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """The layers around the routes; the last one is the outermost."""
    app.add_middleware(Limited)
    if settings.token is not None:  # outside of Limited, so that no body of a stranger is read
        app.add_middleware(Guarded, token=settings.token)
    else:
        app.add_middleware(KnownHosts, hosts=settings.hosts)
    app.add_middleware(Contained)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Headered)
    app.add_middleware(Measured, metrics=metrics)
