"""The token, the Host header, and the headers that tell a browser what it may do with the answers.

With a token every route demands it: as `Authorization: Bearer TOKEN`, or as the cookie that the page of `/login` gives
to a browser, which cannot add a header to its requests for films. The cookie holds no token: it is a time of expiry
signed with it. It is HttpOnly, so no script reads it, and SameSite=Strict, so no other site's page uses it.

Without a token the service answers on this machine only. The Host header must be a name of this machine then, or the
page of an attacker, whose name has been pointed here, would read the answers in the browser of whoever visits it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limited

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE, COOKIE_S = "collaborative_experts", 12 * 3600
"""Name of the cookie, and seconds until it expires."""

SHORTEST_TOKEN, LONGEST_TOKEN = 16, 1_000
"""Characters."""

LARGEST_FORM = 10_000
"""Bytes of what is sent to `/login`, the one body of a stranger that is read."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "media-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_LOGIN = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Token</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"></head>
<body><main><h1>Search videos</h1>{problem}<form method="post" action="/login">
<p><label for="token">Token</label> <input id="token" name="token" type="password" autocomplete="current-password"
required autofocus> <button>Sign in</button></p></form></main></body></html>
"""


def read_token(path: str | Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        FileNotFoundError, ValueError: there is no file, or no token of 16 visible characters in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--token-file: there is no file {path}")
    token = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    if not re.fullmatch(rf"[!-~]{{{SHORTEST_TOKEN},{LONGEST_TOKEN}}}", token):
        raise ValueError(
            f"{path}: expected a token of {SHORTEST_TOKEN} to {LONGEST_TOKEN:,} visible ASCII characters, in one line"
        )
    return token


def is_loopback(host: str) -> bool:
    """True for the names and addresses by which only this machine reaches itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Headered:
    """ASGI: the security headers on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class KnownHosts:
    """ASGI: requests whose Host header names another machine are refused with 421."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app, self._hosts = app, {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower().strip("[]")
            if host not in self._hosts:
                await JSONResponse({"detail": f"no service for the host {host[:100]!r}"}, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Guarded:
    """ASGI: every route demands the token, and `/login` gives a browser the cookie."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()
        self._login_form = Limited(self._login, LARGEST_FORM)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if scope["path"] == "/login":
            await self._login_form(scope, receive, send)
        elif self._is_allowed(request):
            await self._app(scope, receive, send)
        else:
            await _refusal(request)(scope, receive, send)

    def _is_allowed(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(token.strip())
        return self._is_cookie(request.cookies.get(COOKIE, ""))

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)

    def _is_cookie(self, value: str) -> bool:
        expiry, _, _ = value.partition(".")
        if not re.fullmatch(r"[0-9]{1,12}", expiry) or int(expiry) < time.time():
            return False
        return hmac.compare_digest(value.encode("utf-8", "replace"), self._cookie(int(expiry)).encode())

    def _cookie(self, expiry: int) -> str:
        return f"{expiry}.{hmac.new(self._token, f'cookie {expiry}'.encode(), sha256).hexdigest()}"

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._sign_in(Request(scope, receive)))(scope, receive, send)

    async def _sign_in(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(_LOGIN.format(problem=""))
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        if not self._is_token(fields.get("token", [""])[0].strip()):
            return HTMLResponse(_LOGIN.format(problem='<p role="alert">This is not the token.</p>'), 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            self._cookie(int(time.time()) + COOKIE_S),
            max_age=COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _refusal(request: Request) -> Response:
    """401; a person who opened a page is led to the form."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/login", 303)
    reason = "expected the header Authorization: Bearer TOKEN"
    return JSONResponse({"detail": reason}, 401, {"WWW-Authenticate": "Bearer"})
