"""The routes over HTTP, a FastAPI app around a `SearchService`.

The page lies in `page/` beside this file: `index.html` is `/`, its other files are `/static/...`. Pictures are made
by thumbnails.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from . import schema
from .batching import WAITING, WINDOW_S, Batcher, QueueFullError
from .limits import Limited
from .media import content_type
from .metrics import Measured, Metrics
from .security import LOOPBACK, Guarded, Headered, KnownHosts
from .service import SearchService, UnknownVideoError
from .thumbnails import read_thumbnail

PAGE = FilePath(__file__).with_name("page")

RETRY_AFTER_S = 1

log = logging.getLogger(__name__)

VideoId = Annotated[str, Path(max_length=schema.LONGEST_ID)]


@dataclass(frozen=True)
class Settings:
    """How a service is offered.

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
        lambda requests: [_encoded(x) for x in service.answer(requests)],
        window_s=settings.window_s,
        waiting=settings.waiting,
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
        responses={status: {"model": schema.Problem} for status in (413, 422, 503)},
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
        return _json(await batcher.submit(request))

    @app.post("/embed_text", response_model=schema.EmbedResponse)
    async def embed_text(request: schema.EmbedRequest) -> Response:
        """Embeddings and expert weights of sentences."""
        return _json(await batcher.submit(request))

    @app.post("/explain", response_model=schema.ExplainResponse)
    async def explain(request: schema.ExplainRequest) -> Response:
        """What each expert adds to the score of a sentence and a video."""
        return _json(await batcher.submit(request))


def _add_videos(app: FastAPI, service: SearchService, thumbnails: FilePath | None) -> None:
    """The routes of single videos."""

    @app.get("/videos/{video_id:path}", response_model=schema.VideoResponse)
    @app.post("/videos/{video_id:path}", response_model=schema.VideoResponse)
    def video(video_id: VideoId) -> Response:
        """What the index holds of a video."""
        return _json(_encoded(service.video(video_id)))

    @app.api_route("/media/{video_id:path}", methods=["GET", "HEAD"], response_class=FileResponse)
    def media(video_id: VideoId) -> Response:
        """The video's file; takes ranges of bytes."""
        path, _, _ = service.media_of(video_id)
        return FileResponse(path, media_type=content_type(path), headers={"Cache-Control": "private, no-cache"})

    @app.get("/thumbnail/{video_id:path}", response_class=Response)
    def picture(video_id: VideoId) -> Response:
        """A small picture of the clip, as JPEG."""
        media, start_s, end_s = service.media_of(video_id)
        jpeg = None if thumbnails is None else read_thumbnail(media, start_s, end_s, thumbnails)
        if jpeg is None:
            raise UnknownVideoError(f"there is no picture of {video_id!r}")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_state(app: FastAPI, service: SearchService, metrics: Metrics) -> None:
    @app.get("/health", response_model=schema.Health)
    def health() -> Response:
        """Whether the index can be read, and what it holds."""
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
    app.exception_handler(RequestValidationError)(lambda _, error: _problem(422, _reason(error)))
    app.exception_handler(HTTPException)(lambda _, error: _problem(error.status_code, error.detail, error.headers))
    app.exception_handler(UnknownVideoError)(lambda _, error: _problem(404, str(error)))
    app.exception_handler(ValueError)(lambda _, error: _problem(422, str(error)))
    app.exception_handler(TypeError)(lambda _, error: _problem(422, str(error)))
    app.exception_handler(OSError)(lambda _, error: _problem(503, str(error), {"Retry-After": str(RETRY_AFTER_S)}))
    app.exception_handler(QueueFullError)(
        lambda _, error: _problem(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
    )
    app.exception_handler(Exception)(lambda _, error: _problem(500, "an error of the service; its log says more"))


def _problem(status: int, reason: Any, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": str(reason)}, status, headers)


def _reason(error: RequestValidationError) -> str:
    """The first mistakes of a request, each with its place."""
    reasons = []
    for one in error.errors()[:5]:
        place = ".".join(str(x) for x in one["loc"] if x != "body")
        reasons.append(f"{place}: {one['msg']}" if place else one["msg"])
    return "; ".join(reasons)


# --- small things -----------------------------------------------------------------------------------------


def _encoded(content: Any) -> bytes | Exception:
    """JSON, made in the thread that made the content."""
    if isinstance(content, Exception):
        return content
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _json(content: Any) -> Response:
    return Response(content, media_type="application/json")


def _wrap(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """The layers around the routes; the last one is the outermost."""
    app.add_middleware(Limited)
    if settings.token is not None:
        app.add_middleware(Guarded, token=settings.token)
        app.add_middleware(Limited)  # for the form of /login
    else:
        app.add_middleware(KnownHosts, hosts=settings.hosts)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Headered)
    app.add_middleware(Measured, metrics=metrics)
