"""Limits of a request, and of what an error tells.

A body is read here, to its end, before anything looks at it.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY, BODY_S = 1_000_000, 30.0
"""Bytes of a body, and seconds in which it has to arrive."""


log = logging.getLogger(__name__)


class Contained:
    """ASGI: what went wrong inside is logged; the caller gets 500, and nothing of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if begun:
                raise  # the server cuts the connection, so that half an answer is not taken for a whole one
            reason = "an error of the service; its log says more"
            await JSONResponse({"detail": reason}, 500)(scope, receive, send)


class Limited:
    """ASGI: 413 for bodies of more than `largest` bytes, 408 for those that take half a minute to come."""

    def __init__(self, app: ASGIApp, largest: int = LARGEST_BODY) -> None:
        self._app, self._largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        body = None if length.isdigit() and int(length) > self._largest else await self._read(receive)
        if isinstance(body, bytes):
            await self._app(scope, _replaying(body, receive), send)
            return
        status, reason = (
            (408, f"expected the body within {BODY_S:.0f} s")
            if body is TimeoutError
            else (413, f"expected a body of at most {self._largest:,} bytes")
        )
        await JSONResponse({"detail": reason}, status, {"Connection": "close"})(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | type[TimeoutError] | None:
        """The body; None where it is too large."""
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(BODY_S):
                while more:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self._largest:
                        return None
        except TimeoutError:
            return TimeoutError
        return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one message, then whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
