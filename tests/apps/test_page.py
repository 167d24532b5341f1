"""The page, as a person uses it: a headless browser types, looks, plays, goes back, and meets what goes wrong."""

import re
import time
from functools import cache
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("lance")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("av")

from collaborative_experts import explain
from collaborative_experts.apps.server.routes import PAGE, Settings, make_app
from collaborative_experts.apps.server.service import SearchService, reweighted
from pages import COUNT, EXPERTS, HOSTILE, Letters, browsing, make_clips, make_store, serving

QUERY = "a train leaves the station"
TOKEN = "a-token-of-many-letters"
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    make_clips(folder)
    return folder


@pytest.fixture(scope="module")
def index(folder):
    with make_store(folder, Letters()) as index:
        yield index


def app_of(index, folder, token=None):
    return make_app(SearchService(index, index.operator, folder), Settings(token, thumbnails=folder / "pictures"))


@pytest.fixture(scope="module")
def address(index, folder):
    with serving(app_of(index, folder)) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def windows(browser):
    """make(width, scheme) -> a page, and what it has asked and said. Tests share it: a new one takes half a second."""

    @cache
    def make(width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(WAIT_MS)
        page, errors, hosts = context.new_page(), [], set()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Security" in message.text else None)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        return page, errors, hosts

    return make


@pytest.fixture
def make_page(windows):
    """make_page(width, scheme) -> a blank page; at the end it has asked no other machine and has run no error."""
    used = []

    def make(width=1280, scheme="light"):
        used.append(windows(width, scheme))
        return used[-1][0]

    yield make
    for page, errors, hosts in used:
        page.goto("about:blank")
        page.unroute_all()
        page.context.clear_cookies()
        page.mouse.move(0, 0)
        found = errors[:], hosts - {"127.0.0.1"}
        errors.clear()
        hosts.clear()
        assert found == ([], set())


@pytest.fixture
def page(make_page, address):
    page = make_page()
    page.goto(address)
    return page


def until(page, expression, arg=None):
    """Wait until JavaScript gives true. Playwright's own way evaluates text in the page, which its policy forbids."""
    end = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, expression
        time.sleep(0.05)


def ask(page, sentence=QUERY):
    page.get_by_label("Describe what you are looking for").fill(sentence)
    page.get_by_role("button", name="Search", exact=True).click()
    until(page, "q => document.querySelector('h1').textContent.includes(q)", sentence)


def ids_of(page):
    return page.locator(".card h2").evaluate_all("nodes => nodes.map(node => node.title)")


def wait_for_ids(page, expected):
    until(
        page,
        "ids => JSON.stringify([...document.querySelectorAll('.card h2')].map(x => x.title)) == JSON.stringify(ids)",
        list(expected),
    )


def open_clip(page, rank):
    page.locator(".open").nth(rank).click()
    page.locator(".shares").wait_for()


class TestSearch:
    def test_answers_are_those_of_the_index(self, page, index):
        ask(page)
        found = index.search([QUERY], 24)[0]
        assert ids_of(page) == found.ids.tolist()
        scores = page.locator(".score").evaluate_all("nodes => nodes.map(x => x.lastChild.textContent)")
        assert scores == [f"{score:.3f}".replace("-", "−") for score in found.scores]
        assert page.get_by_role("status").text_content().startswith(f"Clips 1–24 of {COUNT}, best first")
        shares = page.locator(".card .bar").first.get_attribute("aria-label")
        for name, share in zip(EXPERTS, found.shares[0], strict=True):
            assert (share == 0) or f"{name} {share:.3f}".replace("-", "−") in shares
        start, end = found.spans[0]
        assert page.locator(".tag.span").first.text_content() == f"0:{int(start):02}–0:{int(end):02}"

    def test_bars_are_as_long_as_the_shares_and_coloured_alike(self, page, index):
        ask(page)
        found = index.search([QUERY], 24)[0]
        rows = page.locator(".card .bar").evaluate_all(
            "bars => bars.map(bar => [...bar.querySelectorAll('.part')].map(x => "
            "[x.title.split(' ')[0], x.getBoundingClientRect().width, getComputedStyle(x).backgroundColor]))"
        )
        colours = {}
        lengths, shares = [], []
        for rank, parts in enumerate(rows):
            for name, width, colour in parts:
                assert colours.setdefault(name, colour) == colour
                lengths.append(width)
                shares.append(abs(found.shares[rank, EXPERTS.index(name)]))
        assert len(set(colours.values())) == len(EXPERTS)
        scale = sum(lengths) / sum(shares)
        assert max(abs(a - scale * b) for a, b in zip(lengths, shares, strict=True)) < 2.5

    def test_the_address_holds_the_query_and_back_works(self, page):
        ask(page)
        assert parse_qs(urlsplit(page.url).query) == {"q": [QUERY]}
        first = ids_of(page)
        ask(page, "something else entirely")
        assert ids_of(page) != first
        page.go_back()
        wait_for_ids(page, first)
        assert page.locator("#query").input_value() == QUERY
        page.reload()
        wait_for_ids(page, first)
        page.go_back()
        until(page, "document.querySelectorAll('.card').length == 0")
        assert page.get_by_text("Type a sentence").is_visible()

    def test_keys(self, page):
        ask(page)
        page.locator(".open").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".open").nth(1).evaluate("x => x == document.activeElement")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("[...document.querySelectorAll('.open')].indexOf(document.activeElement)") > 2
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "query"
        page.keyboard.press("/")  # now it is a letter: what was there is selected, and replaced
        assert page.locator("#query").input_value() == "/"
        page.locator("#query").fill("")
        page.keyboard.press("/")  # an empty field takes it for the key that leads here
        assert page.locator("#query").input_value() == ""
        page.keyboard.press("ArrowDown")
        assert page.locator(".open").first.evaluate("x => x == document.activeElement")

    def test_in_a_single_row_arrows_up_and_down_go_nowhere(self, page):
        ask(page)
        page.evaluate("document.querySelectorAll('.card').forEach((card, i) => i > 1 && card.remove())")
        page.locator(".open").nth(1).focus()
        for key in ("ArrowDown", "ArrowUp"):
            page.keyboard.press(key)
            assert page.locator(".open").nth(1).evaluate("x => x == document.activeElement")

    def test_pages(self, page, index):
        ask(page)
        page.get_by_role("button", name="Next", exact=True).click()
        found = index.search([QUERY], COUNT)[0].ids
        wait_for_ids(page, found[24:])
        assert page.get_by_role("button", name="Next", exact=True).is_disabled()
        assert page.locator(".tag.rank").first.text_content() == "25"
        page.get_by_role("button", name="Previous", exact=True).click()
        wait_for_ids(page, found[:24])
        page.goto(f"{page.url}&page=4000")  # beyond the thousand clips that the service gives
        page.get_by_text("No more clips").wait_for()
        assert page.get_by_text("Page 41").is_visible()
        page.get_by_role("button", name="First page").click()
        wait_for_ids(page, found[:24])

    def test_filters(self, page, index):
        ask(page)
        page.locator(".chip", has_text="words").click()
        expected = index.search([QUERY], 24, where="pattern LIKE '__1'")[0].ids
        wait_for_ids(page, expected)
        page.get_by_label("to", exact=False).first.fill("1.5")
        page.get_by_label("Id contains").fill("it's")
        page.get_by_label("Id contains").press("Tab")
        page.get_by_text("No clip matches these filters").wait_for()  # that one is 2 s long
        page.locator("#longest").fill("")
        page.locator("#longest").press("Tab")
        wait_for_ids(page, [HOSTILE])
        assert page.get_by_text("2 active").is_visible()
        page.get_by_role("button", name="Clear all").click()
        wait_for_ids(page, index.search([QUERY], 24)[0].ids)

    def test_weights_of_experts(self, page, index):
        ask(page)
        page.get_by_text("How much each expert counts").click()
        page.locator(".slider input").first.focus()
        page.keyboard.press("Home")  # motion: off
        text = reweighted(index.operator.encode_sentences([QUERY]), {"motion": 0})
        wait_for_ids(page, index.search(text, 24)[0].ids)
        assert "w=motion%3A0" in page.url
        assert f"of {COUNT}, best first" in page.get_by_role("status").text_content()  # weights leave nothing out
        open_clip(page, 0)
        assert page.locator(".shares tbody tr").first.locator("td").first.text_content() == "0.00"


class TestClip:
    def test_it_plays_with_sound_from_its_first_second(self, page, index):
        ask(page)
        open_clip(page, 0)
        start, end = index.search([QUERY], 1)[0].spans[0]
        until(page, "document.querySelector('.clip video').readyState >= 2")
        until(page, "start => document.querySelector('.clip video').currentTime >= start", start)
        video = page.locator(".clip video")
        assert start <= video.evaluate("x => x.currentTime") <= end + 0.3
        assert video.evaluate("x => [x.muted, x.error]") == [False, None]

    def test_the_reasons_are_those_of_explain(self, page, index):
        ask(page)
        open_clip(page, 1)
        name = index.search([QUERY], 2)[0].ids[1]
        why = explain(index.operator.encode_sentences([QUERY]), index.read([name]).embeddings)
        for m, row in enumerate(page.locator(".shares tbody tr").all()):
            cells = row.locator("td").all_text_contents()
            expected = [f"{x:.{n}f}" for x, n in ((why.weights[m], 2), (why.cosines[m], 2), (why.shares[m], 3))]
            expected = expected if why.available[m] else [expected[0], "not in this clip"]
            assert cells[: len(expected)] == [x.replace("-", "−") for x in expected]
        assert page.locator("mark", has_text="train").first.is_visible()

    def test_escape_and_back_lead_to_the_answers(self, page):
        ask(page)
        for leave in (lambda: page.keyboard.press("Escape"), page.go_back):
            open_clip(page, 2)
            assert "clip=" in page.url
            leave()
            page.locator("#clip").wait_for(state="hidden")
            until(page, "!location.search.includes('clip=')")
            until(page, "document.activeElement == document.querySelectorAll('.open')[2]")
        assert page.locator(".card").count() == 24

    def test_from_clip_to_clip(self, page):
        ask(page)
        open_clip(page, 0)
        assert page.get_by_role("button", name="Previous clip").is_disabled()
        page.get_by_role("button", name="Next clip").click()
        second = ids_of(page)[1]
        until(page, "id => new URLSearchParams(location.search).get('clip') == id", second)
        page.reload()
        page.locator(".shares").wait_for()
        page.keyboard.press("Escape")
        page.locator("#clip").wait_for(state="hidden")

    def test_more_like_this(self, page, index):
        ask(page)
        name = ids_of(page)[0]
        open_clip(page, 0)
        page.locator("#clip").get_by_role("button", name="More like this").click()
        found = index.search_like([name], 24)[0]
        wait_for_ids(page, found.ids)
        open_clip(page, 0)
        assert page.get_by_text("mean cosine").is_visible()
        page.go_back()
        page.go_back()
        page.go_back()
        page.locator("#clip").wait_for(state="hidden")
        assert page.locator("#query").input_value() == QUERY

    def test_hovering_plays_without_sound(self, page):
        ask(page)
        page.locator(".open").nth(1).hover()
        preview = page.locator(".card .picture video")
        preview.wait_for(state="attached")
        until(page, "document.querySelector('.card video').currentTime > 0")
        assert preview.evaluate("x => x.muted")
        page.locator("h1").hover()
        preview.wait_for(state="detached")

    def test_without_media_the_words_are_shown(self, page):
        page.goto(f"{page.url}?q=train&id=clip03")
        page.locator(".excerpt", has_text="STATION 3").wait_for()
        open_clip(page, 0)
        assert page.locator(".stage video").count() == 0
        assert page.locator(".words", has_text="STATION 3").is_visible()

    def test_a_broken_file_is_words_too(self, page):
        page.goto(f"{page.url}?q=train&id=clip05")
        page.locator(".card .excerpt", has_text="STATION 5").wait_for()
        open_clip(page, 0)
        page.locator(".words", has_text="This browser cannot play the file").wait_for()
        assert page.locator(".words", has_text="STATION 5").is_visible()

    def test_a_share_is_explained_where_experts_are_missing(self, page):
        ask(page)
        note = "leaves its weight to the others"
        for name, missing in (("clip01", False), ("clip02", True)):
            page.goto(f"{page.url.partition('?')[0]}?q=train&clip={name}")
            page.locator(".shares").wait_for()
            assert (page.locator(".shares .missing").count() > 0) == missing
            assert (note in page.locator(".why").text_content()) == missing

    def test_metadata_of_users_may_have_any_form(self, page):
        page.goto(f"{page.url}?q=train&id=clip11")
        open_clip(page, 0)
        assert page.locator(".content h3").all_text_contents() == ["Text"]
        assert page.locator(".content .text").text_content() == "a text of the user's own"


class TestTrouble:
    def test_a_slow_search_that_is_left(self, page):
        page.route("**/search", lambda route: None)
        page.get_by_label("Describe what you are looking for").fill(QUERY)
        page.get_by_role("button", name="Search", exact=True).click()
        until(page, "document.getElementById('grid').ariaBusy == 'true'")
        page.go_back()
        until(page, "document.getElementById('grid').ariaBusy == null")

    def test_texts_of_files_are_never_html(self, page):
        page.goto(f"{page.url}?q=train&id=window.hacked")
        wait_for_ids(page, [HOSTILE])
        open_clip(page, 0)
        page.get_by_text("Details").click()
        assert page.locator(".content").text_content().count(HOSTILE) >= 5
        assert page.locator(".content dd").first.text_content() == HOSTILE  # beside the user's own "Id"
        assert page.locator("main script, dialog script").count() == 0
        assert page.evaluate("window.hacked") is None
        until(page, "document.querySelector('.clip video').readyState >= 2")  # its address is right, too
        page.locator("#clip").get_by_role("button", name="More like this").click()
        until(page, "document.querySelectorAll('.card').length > 5")
        assert HOSTILE in page.locator("h1").text_content()
        assert page.evaluate("window.hacked") is None

    def test_a_service_that_is_gone(self, make_page, index, folder):
        page = make_page()
        with serving(app_of(index, folder)) as (server, address):
            port = urlsplit(address).port
            page.goto(address)
            ask(page)
        page.locator(".open").first.click()
        page.get_by_role("heading", name="The service does not answer").wait_for()
        assert page.locator(".why").text_content() == ""
        assert page.locator("#clip").get_by_role("button", name="Try again").is_visible()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Next", exact=True).click()
        page.get_by_role("alert").get_by_text("The service does not answer").wait_for()
        assert server.should_exit
        with serving(app_of(index, folder), port):
            page.get_by_role("button", name="Try again").click()
            wait_for_ids(page, index.search([QUERY], COUNT)[0].ids[24:])
            page.route("**/explain", lambda route: route.abort())
            page.locator(".open").first.click()
            page.get_by_role("heading", name="The service does not answer").wait_for()
            page.unroute("**/explain")
            page.locator("#clip").get_by_role("button", name="Try again").click()
            page.locator(".shares").wait_for()

    def test_a_busy_service_is_asked_again(self, page):
        answers = iter([503])

        def busy_once(route):
            status = next(answers, None)
            headers = {"Retry-After": "1"}
            route.fulfill(status=status, headers=headers, json={"detail": "full"}) if status else route.continue_()

        page.route("**/search", busy_once)
        ask(page)
        page.get_by_text("full. It is asked again by itself in a moment.").wait_for()
        page.locator(".card").first.wait_for()

    def test_a_refusal_says_why(self, page):
        page.goto(f"{page.url}?q=train&has=smell")
        page.get_by_text("expected some of motion, sound, words, got 'smell'").wait_for()

    def test_what_is_typed_before_the_service_answers_stays(self, page):
        held = []
        page.route("**/health", lambda route: held.append(route))
        page.reload()
        until(page, "document.querySelector('#filters').open")  # the scripts are there and wait
        page.locator("#query").fill("a dog")
        held[0].continue_()
        until(page, "document.querySelectorAll('.chip').length == 3")
        assert page.locator("#query").input_value() == "a dog"

    def test_the_token_is_asked_for(self, make_page, index, folder):
        page = make_page()
        with serving(app_of(index, folder, TOKEN)) as (_, address):
            page.goto(address)
            page.get_by_label("Token", exact=True).fill(TOKEN)
            page.get_by_label("Token", exact=True).press("Enter")
            ask(page)
            page.context.clear_cookies()  # as after half a day
            page.get_by_role("button", name="Next", exact=True).click()
            page.get_by_label("Token", exact=True).fill("another-token-of-letters")
            page.get_by_role("button", name="Continue").click()
            page.get_by_text("This is not the token").wait_for()
            page.get_by_label("Token", exact=True).fill(TOKEN)
            page.get_by_role("button", name="Continue").click()
            wait_for_ids(page, index.search([QUERY], COUNT)[0].ids[24:])
            until(page, "document.querySelector('.card img').naturalWidth > 0")


class TestForEveryone:
    @pytest.mark.parametrize("width", [360, 1280])
    def test_nothing_is_wider_than_the_screen(self, make_page, address, width):
        page = make_page(width)
        for query in ("", f"?q={QUERY}", "?q=train&id=window.hacked"):
            page.goto(address + query)
            until(page, "document.querySelectorAll('.chip').length == 3")
            page.locator("#filters > summary").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(f"{address}?q={QUERY}")
        open_clip(page, 0)
        box = page.locator("#clip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.locator("#clip").evaluate("x => x.scrollWidth <= x.clientWidth")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(self, make_page, address, scheme):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        page = make_page(scheme=scheme)

        def check():
            found = axe.run(page).response["violations"]
            assert [(x["id"], [node["html"] for node in x["nodes"]]) for x in found] == []

        page.goto(address)
        page.get_by_text("How much each expert counts").click()
        page.get_by_text("Type a sentence").wait_for()
        check()
        ask(page)
        check()
        open_clip(page, 0)
        check()
        page.goto(f"{address}?q=train&id=nothing")
        page.get_by_text("No clip matches").wait_for()
        check()
        page.goto(f"{address}?q=train&has=smell")
        page.get_by_role("alert").get_by_role("button").wait_for()
        check()


def test_the_page_is_plain():
    """No script or style within HTML, which the security policy forbids, and no text read as HTML."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", page)
    for script in PAGE.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", text)
