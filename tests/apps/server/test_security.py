"""Who may ask: the token, the cookie, the Host header, other origins, and what browsers are told."""

import asyncio
import time

import pytest

pytest.importorskip("fastapi")

from collaborative_experts.apps.serve import serve
from collaborative_experts.apps.server import security
from collaborative_experts.apps.server.routes import Settings, make_app
from collaborative_experts.apps.server.security import COOKIE, is_loopback, read_token

TOKEN = "0123456789abcdef-token"
ROUTES = [
    ("POST", "/search"), ("POST", "/embed_text"), ("POST", "/explain"), ("GET", "/videos/clip/01"),
    ("POST", "/videos/clip/01"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/media/clip/01"),
    ("HEAD", "/media/clip/01"), ("GET", "/thumbnail/clip/01"), ("GET", "/openapi.json"), ("GET", "/"),
    ("GET", "/static/page.js"), ("GET", "/nothing"), ("OPTIONS", "/search"), ("DELETE", "/search"),
]  # fmt: skip


@pytest.fixture
def guarded(service, open_client):
    return open_client(service, token=TOKEN)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_demands_the_token(guarded, method, path):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer \xe9".encode("latin-1")},
        {"Cookie": f"{COOKIE}={TOKEN}"},
        {"Cookie": f"{COOKIE}={int(time.time()) + 99}.{'0' * 64}"},
        {"Cookie": f"{COOKIE}=9"},
        {"Cookie": '="'},
    ):
        response = guarded.request(method, path, headers=headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
    allowed = guarded.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert allowed.status_code not in (401, 500)


def test_the_token_is_compared_in_constant_time(guarded, monkeypatch):
    compared = []
    real = security.hmac.compare_digest
    monkeypatch.setattr(security.hmac, "compare_digest", lambda *pair: compared.append(pair) or real(*pair))
    guarded.get("/health", headers={"Authorization": f"Bearer {TOKEN}"})
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


def test_a_browser_signs_in(guarded, monkeypatch):
    opened = guarded.get("/", headers={"Accept": "text/html,*/*"}, follow_redirects=False)
    assert (opened.status_code, opened.headers["location"]) == (303, "/login")
    form = guarded.get("/login")
    assert '<form method="post" action="/login">' in form.text
    assert "<script" not in form.text
    wrong = guarded.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    right = guarded.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert guarded.get("/health").status_code == 200  # the client keeps the cookie
    assert guarded.post("/search", json={"sentences": ["a"]}).status_code == 200
    later = time.time() + security.COOKIE_S + 1
    monkeypatch.setattr(security.time, "time", lambda: later)
    assert guarded.get("/health").status_code == 401


def test_the_form_takes_no_large_body(guarded):
    assert guarded.post("/login", content=b"x" * 10_001).status_code == 413
    assert guarded.post("/login", content=(b"x" * 1000 for _ in range(11))).status_code == 413
    assert guarded.post("/login", data={"token": "é" * 1000}).status_code == 401


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (TOKEN, {"host": "localhost"}, 401),
        (TOKEN, {"host": "localhost", "authorization": f"Bearer {TOKEN}x"}, 401),
        (None, {"host": "evil.example"}, 421),
        (TOKEN, {"host": "localhost", "authorization": f"Bearer {TOKEN}"}, 413),  # this one's is looked at
    ],
)
def test_no_body_of_a_stranger_is_read(service, token, headers, status):
    read, sent = [], []

    async def receive():
        read.append(True)
        return {"type": "http.request", "body": b" " * 100_000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": [
        (name.encode(), value.encode()) for name, value in headers.items()
    ]}  # fmt: skip
    asyncio.run(make_app(service, Settings(token))(scope, receive, send))
    assert sent[0]["status"] == status
    assert bool(read) == (status == 413)


def test_cookies_of_other_services_are_no_hindrance(guarded):
    guarded.post("/login", data={"token": TOKEN})
    cookies = f'other={{"a": [1, 2]}}; {COOKIE}={guarded.cookies[COOKIE]}; @=;'
    guarded.cookies.clear()
    assert guarded.get("/health", headers={"Cookie": cookies}).status_code == 200
    assert guarded.get("/health", headers={"Cookie": cookies.encode() + b"\xe9"}).status_code == 200
    assert guarded.get("/health", headers={"Cookie": f"{COOKIE}=é".encode()}).status_code == 401


def test_a_cookie_of_another_token_is_refused(service, open_client):
    first, second = open_client(service, token=TOKEN), open_client(service, token=TOKEN + "2")
    first.post("/login", data={"token": TOKEN})
    value = first.cookies[COOKIE]
    assert first.get("/health").status_code == 200
    assert second.get("/health", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_without_a_token_this_machine_is_answered(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "::"])
def test_without_a_token_no_other_name_is(client, host):
    """The page of an attacker, whose name has been pointed to this machine, reads nothing."""
    response = client.get("/health", headers={"Host": host})
    assert response.status_code == 421
    assert "videos" not in response.json()


def test_the_host_that_was_named_is_answered(service, open_client):
    client = open_client(service, hosts=("127.0.0.1", "localhost", "::1", "127.0.0.7"))
    assert client.get("/health", headers={"Host": "127.0.0.7:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "127.0.0.8"}).status_code == 421


@pytest.mark.parametrize("path", ["/health", "/nothing", "/openapi.json", "/media/none", "/metrics"])
def test_headers_of_every_response(client, guarded, path):
    for response in (client.get(path), guarded.get(path), guarded.get("/login")):
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["media-src"] == "'self'"
        assert policy["img-src"] == "'self' data:"
        assert "unsafe" not in str(policy)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in response.headers


def test_other_origins_ask_only_when_named(service, open_client):
    client = open_client(service, token=TOKEN, cors=("https://example.org",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    allowed = client.options("/search", headers=asked | {"Origin": "https://example.org"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = client.options("/search", headers=asked | {"Origin": "https://evil.example"})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    answer = client.get("/health", headers={"Origin": "https://example.org", "Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert client.get("/health", headers={"Origin": "https://example.org"}).status_code == 401


def test_another_host_without_a_token_is_refused_at_start(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""):
        with pytest.raises(ValueError, match="expected --token-file"):
            serve(tmp_path / "videos.lance", host=host)
    assert [is_loopback(x) for x in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0")] == [True] * 4 + [False]


def test_what_is_no_token(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_token(path)
    words, lines = b"two words of more than 16", b"a" * 20 + b"\n" + b"b" * 20
    for content in (b"", b"short", words, "é".encode() * 20, lines, b"a" * 1001, b"\xff" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="16 to 1,000 visible ASCII characters"):
            read_token(path)
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(f"{TOKEN}\n", encoding=encoding)
        assert read_token(path) == TOKEN
