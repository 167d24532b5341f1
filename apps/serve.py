"""`serve`: an index over HTTP, with a page."""

from __future__ import annotations

import argparse
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..base.dependencies import extra
from .search import TRUST_HELP, open_index, sentence_operator

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
    cors: Sequence[str] = (),
    queue: int = QUEUE,
    device: str | None = None,
    trusted: bool = False,
) -> None:
    """Answer requests over HTTP until SIGTERM or SIGINT, then finish the running ones.

    Args:
        store: the index, as `VideoIndex` takes it.
        weights: the weights that the index was made with; None takes those that the index names, or none for an index
            of `embed --zero-shot`.
        host: the address to listen on. Others than this machine's own need a token.
        media: the folder whose films may be played; None for none.
        token_file: holds the token that every request must bring.
        cors: origins whose pages may ask, such as "https://example.org".
        queue: requests that wait at most; one more gets 503.
        trusted: as for `sentence_operator`.

    Raises:
        FileNotFoundError, TypeError, ValueError: a wrong argument; another host without a token; no index, or an
            empty one; weights that it was not made with.
        ImportError: without the extra [serve].
        OSError: the port is taken, or the store cannot be read.
    """
    uvicorn = extra("uvicorn", "serve")
    for module in ("fastapi", "prometheus_client"):
        extra(module, "serve")
    from .server.routes import Settings, make_app
    from .server.security import LOOPBACK, read_token
    from .server.service import SearchService

    token = None if token_file is None else read_token(token_file)
    _check(host, port, media, token, cors, queue)
    with open_index(store) as index, _bound_socket(host, port) as listening:
        service = SearchService(index, sentence_operator(index, weights, device, trusted), media)
        service.warm()
        pictures = Path(f"{str(store).removesuffix('.lance')}.thumbnails") if "://" not in str(store) else None
        settings = Settings(token, (*LOOPBACK, host), tuple(cors), queue, thumbnails=pictures)
        config = uvicorn.Config(
            make_app(service, settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"{len(index):,} videos at http://{shown}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        with _outliving_sigterm():
            uvicorn.Server(config).run(sockets=[listening])


def _check(host: str, port: int, media: str | Path | None, token: str | None, cors: Sequence[str], queue: int) -> None:
    from .server.security import is_loopback

    if token is None and not is_loopback(host):
        raise ValueError(f"--host {host}: other machines could ask; expected --token-file FILE beside it")
    if not 0 <= port < 2**16:
        raise ValueError(f"--port: expected 0 to 65535, got {port}")
    if media is not None and not Path(media).is_dir():
        raise FileNotFoundError(f"--media: there is no folder {media}")
    if queue < 1:
        raise ValueError(f"--queue: expected at least 1, got {queue}")
    for origin in cors:
        if not re.fullmatch(r"https?://[^/*\s]+", origin):
            raise ValueError(f"--cors: expected an origin such as https://example.org, got {origin!r}")


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the address; connections come to it once the service listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}") from None
    return bound


@contextmanager
def _outliving_sigterm() -> Iterator[None]:
    """uvicorn finishes what runs when SIGTERM comes, then raises the signal again, which would end the process before
    the index is closed and the exit status is set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("store", metavar="VIDEOS.lance", help="what embed wrote")
    parser.add_argument("--weights", type=Path, help="default: the file that the index names")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    parser.add_argument("--host", default=HOST, help=f"default: {HOST}; others need --token-file")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--media", type=Path, metavar="FOLDER", help="films below it that the index names are played")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds a token that every request must bring")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="pages of it may ask; repeatable")
    parser.add_argument("--queue", type=int, default=QUEUE, help=f"requests that wait at most; default: {QUEUE}")
    parser.add_argument("--device", help="where the model runs; default: a GPU where there is one")
    parser.epilog = "example: %(prog)s videos.lance --media films"


def run_command(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    serve(
        options.store,
        options.weights,
        host=options.host,
        port=options.port,
        media=options.media,
        token_file=options.token_file,
        cors=options.cors,
        queue=options.queue,
        device=options.device,
        trusted=options.trust,
    )
    return 0
