"""`serve`: an index over HTTP, with a page."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from ..base.dependencies import extra
from ..hub.operator import CollaborativeExperts
from ..retrieval.index import SentenceOperator, VideoIndex

HOST, PORT, QUEUE = "127.0.0.1", 8000, 256
STOP_S = 30
"""Seconds that running answers have after SIGTERM."""


def serve(
    store: str | Path,
    weights: str | Path | None = None,
    *,
    host: str = HOST,
    port: int = PORT,
    media: str | Path | None = None,
    token_file: str | Path | None = None,
    cors: tuple[str, ...] = (),
    queue: int = QUEUE,
    device: str | None = None,
) -> None:
    """Answer requests over HTTP until SIGTERM or SIGINT, then finish the running ones.

    Args:
        store: the index, as `VideoIndex` takes it.
        weights: the weights that the index was made with; None answers `like` only.
        host: the address to listen on. Others than this machine's own need a token.
        media: the folder whose films may be played; None for none.
        token_file: holds the token that every request must bring.
        cors: origins whose pages may ask, such as "https://example.org".
        queue: requests that wait at most; one more gets 503.

    Raises:
        FileNotFoundError, TypeError, ValueError: a wrong argument; another host without a token; weights that the
            index was not made with.
        ImportError: without the extra [serve].
        OSError: the port is taken, or the store cannot be read.
    """
    uvicorn = extra("uvicorn", "serve")
    extra("fastapi", "serve"), extra("prometheus_client", "serve")
    from .server.routes import Settings, make_app
    from .server.security import LOOPBACK, is_loopback, read_token
    from .server.service import SearchService

    token = None if token_file is None else read_token(token_file)
    if token is None and not is_loopback(host):
        raise ValueError(f"--host {host}: others than this machine could ask; expected --token-file FILE beside it")
    if media is not None and not Path(media).is_dir():
        raise FileNotFoundError(f"--media: there is no folder {media}")
    with VideoIndex(store) as index:
        service = SearchService(index, sentence_operator(weights, device), media)
        service.warm()
        settings = Settings(
            token, tuple({*LOOPBACK, host}), cors, queue, thumbnails=Path(str(store)).with_suffix(".thumbnails")
        )
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, settings),
                host=host,
                port=port,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        print(f"{len(index):,} videos at http://{host}:{port}", file=sys.stderr)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn's own handler takes its place, and then gives it back
        server.run()


def sentence_operator(weights: str | Path | None, device: str | None) -> SentenceOperator | None:
    """Embeds sentences by the encoder that the weights were trained with."""
    if weights is None:
        return None
    return CollaborativeExperts(weights_path=weights, device=device, modality="text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="VIDEOS.lance", help="what embed wrote")
    parser.add_argument("--weights", type=Path, help="the weights that the index was made with; sentences need them")
    parser.add_argument("--host", default=HOST, help=f"default: {HOST}; others need --token-file")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument(
        "--media", type=Path, metavar="FOLDER", help="films below it, which the index names, are played"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds a token that every request must bring")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="pages of it may ask; repeatable")
    parser.add_argument("--queue", type=int, default=QUEUE, help=f"requests that wait at most; default: {QUEUE}")
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")


def run_command(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    serve(
        options.store,
        options.weights,
        host=options.host,
        port=options.port,
        media=options.media,
        token_file=options.token_file,
        cors=tuple(options.cors),
        queue=options.queue,
        device=options.device,
    )
    return 0
