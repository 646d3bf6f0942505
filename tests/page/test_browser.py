"""The page in a real browser, within a real Airflow: as people see it, and where its links lead.

Each run leaves pictures in a temporary folder, and with ``--pictures`` in docs/pictures.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from busy import DAG, document, fill
from waiting import PATIENCE_S, wait_until
from world import World

from bqdispatch_provider.commands.pools import expected_pools
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.testing.standin import StandIn, StandInControl
from demo.live import LiveAirflow

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here")
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"wide": (1360, 900), "narrow": (400, 860)}
IN_DOCS = {f"{name}-{theme}" for name in ("airflow", "waits", "charts") for theme in ("light", "dark")}
SLOW_MS = 60_000
REDRAW = """async () => {
  const { redraw } = await import(document.querySelector("script").src);
  for (const part of document.querySelectorAll("[id^=part-]")) redraw(part.id.slice("part-".length));
}"""
"""Make all parts of the page again, as when something new has been read."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """An Airflow in which the DAG dispatches, and in which much waits."""
    home = tmp_path_factory.mktemp("page")
    (home / "dags").mkdir()
    shutil.copy(ROOT / "dags" / "bqdispatch.py", home / "dags")
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
    with StandIn() as cloud, StandInControl(cloud.url) as control:
        fill(World(cloud.url, control))
        environment = {
            "STORAGE_EMULATOR_HOST": cloud.url,
            "BIGQUERY_EMULATOR_HOST": cloud.url,
            "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps({"conn_type": "bqdispatch", "extra": {"config": document()}}),
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(google),
            "BQDISPATCH_SCHEDULE": "@continuous",
        }
        pools = expected_pools(DispatchConfig.from_dict(document()))
        pools["bqdispatch_sql"] = {**pools["bqdispatch_sql"], "slots": 3}
        with LiveAirflow(home / "airflow", home / "dags", pools, environment) as live:
            live.switch_on("bqdispatch")
            yield live


@pytest.fixture(scope="module")
def dispatched(airflow):
    """The Airflow, once a run has told how things stand."""
    import requests

    def has_told():
        airflow.check()
        answer = requests.get(
            f"{airflow.url}/bqdispatch/api/state",
            params={"setup": "bqdispatch_default"},
            headers={"Authorization": f"Bearer {airflow.token}"},
            timeout=PATIENCE_S,
        )
        answer.raise_for_status()
        view = answer.json()["overview"]
        return len(view["reasons"]) >= 5 and view["quarantine"]

    wait_until(has_told, "a run has told how things stand")
    return airflow


@pytest.fixture(scope="module")
def chromium():
    """The browser."""
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--force-color-profile=srgb"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, dispatched):
    """Opens an address of Airflow as somebody who has logged in; nothing may come from elsewhere, or go wrong."""
    contexts, wrong = [], []

    def open_it(path, theme="light", size="wide"):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, timezone_id="UTC", reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(SLOW_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=dispatched.url)
        context.add_cookies([{"name": "_token", "value": dispatched.token, "url": dispatched.url}])
        context.add_init_script(f"localStorage.setItem('theme', {theme!r})")
        page = context.new_page()
        page.on("request", lambda request: wrong.append(request.url) if is_outside(request.url) else None)
        page.on("console", lambda message: wrong.append(message.text) if is_ours(message) else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{dispatched.url}{path}")
        return page

    def is_outside(url):
        return not url.startswith((dispatched.url, "data:", "blob:"))

    def is_ours(message):
        return message.type == "error" and "/bqdispatch/" in (message.location or {}).get("url", "")

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []


def frame_of(page):
    """The page in its frame, once it is filled."""
    frame = page.frame_locator("iframe")
    frame.locator(".health .sentence").wait_for()
    return frame


@pytest.fixture
def picture(request, tmp_path_factory):
    """Takes a picture of a page, or of a part of it: an element, or all that lies between some."""

    def take(page, name, *between):
        more = {} if hasattr(page, "bounding_box") else {"full_page": True}
        if between:
            page.evaluate("scrollTo(0, 0)")  # a picture of the whole page begins there
            boxes = [page.locator(each).bounding_box() for each in between]
            left, top = (min(box[key] for box in boxes) - 8 for key in ("x", "y"))
            right, bottom = (
                max(box[at] + box[size] for box in boxes) + 8 for at, size in (("x", "width"), ("y", "height"))
            )
            more["clip"] = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        folders = [Path(os.environ.get("BQDISPATCH_PICTURES", tmp_path_factory.getbasetemp() / "pictures"))]
        if request.config.getoption("--pictures") and name in IN_DOCS:
            folders.append(ROOT / "docs" / "pictures")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{name}.png", animations="disabled", **more)

    return take


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_light_and_dark_narrow_and_wide(open_page, picture, theme, size):
    page = open_page("/bqdispatch/", theme, size)
    page.locator(".chart svg").first.wait_for()
    page.wait_for_timeout(500)
    picture(page, f"page-{theme}-{size}")
    if size == "wide":
        picture(page.locator("#part-reasons"), f"waits-{theme}")
        page.get_by_role("button", name="Day", exact=True).click()
        page.get_by_text("each half hour").first.wait_for()
        picture(page, f"charts-{theme}", "#part-dispatched", "#part-lag", "#part-lanes", "#part-limits")
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), "it is wider than the window"
    cut = page.evaluate(
        "[...document.querySelectorAll('h2, th, td, .tile > div, .scroll')]"
        ".filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth)"
        ".map((e) => e.textContent)"
    )
    assert cut == []
    page.evaluate("document.querySelectorAll('tbody th').forEach((each) => each.prepend('x'.repeat(200)))")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), "a long name makes it wider"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_in_the_menu_and_takes_airflows_theme(open_page, picture, theme):
    page = open_page("/", theme)
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="BqTail dispatch").click()
    frame = frame_of(page)
    assert frame.locator("html").get_attribute("data-theme") == theme
    page.wait_for_timeout(500)
    picture(page, f"airflow-{theme}")


def test_it_is_a_tab_of_the_dag(open_page, picture):
    page = open_page(f"/dags/{DAG}")
    page.get_by_role("link", name="BqTail dispatch").click()
    frame_of(page)
    page.wait_for_timeout(500)
    picture(page, "tab")


def test_a_click_leads_to_a_task_in_airflow(open_page):
    page = open_page("/plugin/bqdispatch")
    frame_of(page).get_by_role("link", name=re.compile("^Task detect")).first.click()
    page.wait_for_url(re.compile(rf"/dags/{DAG}/runs/[^/]+/tasks/detect"))
    page.get_by_text("detect").first.wait_for()


@pytest.mark.parametrize(
    ("event", "task"), [("_load--dispatch", "dispatch_jobs"), ("_query--dispatch", "dispatch_sql")]
)
def test_a_click_leads_from_an_event_to_the_task_of_its_lane(open_page, event, task):
    page = open_page("/plugin/bqdispatch")
    frame = frame_of(page)
    row = frame.locator("details.reason tr", has_text=event).first
    row.wait_for(state="attached")
    row.get_by_role("link", name=re.compile(f"^Task {task} of {DAG}"), include_hidden=True).evaluate("it => it.click()")
    page.wait_for_url(re.compile(rf"/dags/{DAG}/runs/[^/]+/tasks/{task}"))


def test_a_click_leads_to_the_dag(open_page):
    page = open_page("/plugin/bqdispatch")
    frame_of(page).get_by_role("link", name=DAG, exact=True).first.click()
    page.wait_for_url(re.compile(rf"/dags/{DAG}$"))


def test_the_keyboard_leads_to_why_an_event_waits(open_page):
    page = open_page("/bqdispatch/")
    group = page.locator("details.reason", has_text="job running").first
    group.wait_for()
    if group.get_attribute("open") is not None:
        group.locator("summary").first.click()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key") == "reason job running":
            break
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    page.keyboard.press("Enter")
    step = "Nothing to do: it is dispatched within seconds of the job's end."
    assert group.locator(".step").get_by_text(step).is_visible()
    assert group.get_by_text("acme-shop.sales.orders").first.is_visible()


def test_the_keyboard_opens_the_explanation_of_an_event(open_page, picture):
    page = open_page("/plugin/bqdispatch")
    frame = frame_of(page)
    group = frame.locator("details.reason", has_text="limit reached").first
    group.locator("summary").first.focus()
    if group.get_attribute("open") is None:
        page.keyboard.press("Enter")
    event = group.get_by_label(re.compile("^Explain proj:acme-shop:US/acme-shop.sales.returns")).first
    key = event.get_attribute("data-key")
    focused = "() => document.activeElement.dataset.key"
    for _ in range(40):
        page.keyboard.press("Tab")
        if frame.locator("html").evaluate(focused) == key:
            break
    page.keyboard.press("Enter")
    limit = "MaxConcurrentJobs of project acme-shop is 4. Its slots are held by the job of proj:acme-shop"
    said = group.locator("details.explanation[open]").get_by_text(limit)
    said.wait_for()
    frame.locator("html").evaluate(REDRAW)
    assert said.is_visible()
    assert frame.locator("html").evaluate(focused) == key
    picture(group, "explanation")


def test_the_command_that_puts_an_object_back_is_copied(open_page):
    page = open_page("/plugin/bqdispatch")
    frame = frame_of(page)
    section = frame.locator("section", has=frame.get_by_role("heading", name=re.compile("^Quarantine")))
    section.scroll_into_view_if_needed()
    command = section.locator("code").first.inner_text()
    assert command.startswith("bqdispatch replay ")
    section.get_by_role("button", name="Copy the command").first.click()
    section.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_markup_in_a_name_is_text(open_page):
    page = open_page("/bqdispatch/")
    page.locator("details.reason").first.wait_for()
    assert "<script>document.title=1<_script>" in page.locator("#part-reasons").evaluate("(e) => e.textContent")
    page.evaluate("document.querySelectorAll('.explanation').forEach((each) => (each.open = true))")
    assert page.locator("#part-reasons script").count() == 0
    isolated = "[...document.querySelectorAll('.name, code')].map((each) => getComputedStyle(each).unicodeBidi)"
    assert {*page.evaluate(isolated)} == {"isolate"}  # an override in a name turns nothing around that stands beside it
    assert page.title() == "BqTail dispatch"


def test_a_name_with_backticks_cannot_break_a_command(chromium):
    page = chromium.new_page()
    source = (ROOT / "bqdispatch_provider" / "page" / "static" / "parts.js").read_text()
    command = f"gcloud storage rm {shlex.quote('gs://b/`bq x` it' + chr(39) + 's `')}"
    said = f"Look in `ds`.t`. Run `{command}`; otherwise `bq show --job p:j`. See `only`, or nothing `"
    parts = page.evaluate(
        "async ([source, said]) => (await import('data:text/javascript,' + encodeURIComponent(source)))"
        ".withCode(said).map((each) => each.textContent ? [each.textContent] : each)",
        [source, said],
    )
    page.close()
    assert parts == [
        *("Look in `ds`.t`. Run ", [command], "; otherwise ", ["bq show --job p:j"]),
        *(". See ", ["only"], ", or nothing `"),
    ]


def test_a_range_and_a_project_can_be_chosen(open_page, picture):
    page = open_page("/bqdispatch/")
    page.locator(".chart svg").first.wait_for()
    for span in ("Day", "Week"):
        page.get_by_role("button", name=span, exact=True).click()
        page.get_by_text(f"in the last {span.lower()}").first.wait_for()
        page.wait_for_timeout(300)
        picture(page, f"range-{span.lower()}")
    page.get_by_label("Project").select_option("acme-media")
    page.get_by_text("all projects").first.wait_for()
    picture(page, "project")


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata"])
def test_a_day_of_the_week_begins_where_it_begins_for_the_reader(open_page, zone):
    page = open_page("/bqdispatch/")
    page.evaluate("(zone) => localStorage.setItem('timezone', JSON.stringify(zone))", zone)
    page.reload()
    page.get_by_role("button", name="Week", exact=True).click()
    page.get_by_text("each 3 hours").first.wait_for()
    stamps = page.locator("#part-lag tbody th").all_text_contents()[::-1]
    labels = page.locator("#part-lag svg > text").evaluate_all(
        "(all) => all.map((each) => [each.textContent, each.getAttribute('x'), each.ownerSVGElement.viewBox.baseVal])"
        ".map(([text, x, box]) => [text, Math.round((x - 36) / ((box.width - 40) / 56) - 0.5)])"
    )
    days = [(text, stamps[index]) for text, index in labels if not text[0].isdigit()]
    assert len(days) >= 6
    for text, stamp in days:
        assert stamp.startswith(text) and int(stamp.split()[-1][:2]) < 3, (text, stamp)


def answer_otherwise(page, change):
    """Change what the server tells of how things stand, and let the page read it."""

    def answer(route):
        told = route.fetch()
        data = told.json()
        change(data)
        route.fulfill(response=told, json=data)

    page.route(re.compile("/api/state"), answer)
    page.reload()
    page.locator(".health .sentence").wait_for()


def test_what_is_not_known_is_no_zero(open_page):
    def change(data):
        data["quarantined"], data["overview"]["is_current"] = None, False
        data["figures"] |= {"lags": 0, "lag_median": None, "dispatched": {"sql": 0, "jobs": 0, "windows": 7}}

    page = open_page("/bqdispatch/")
    answer_otherwise(page, change)
    tiles = dict(zip(*(page.locator(f".tile .{each}").all_inner_texts() for each in ("label", "value")), strict=True))
    assert tiles["Dispatched"] == "7"
    for name in ("Running", "Pending", "Throttled", "Waiting", "Lag, median", "Quarantine"):
        assert tiles[name] == "–", name
    for said in ("no job's end known", "It is not known what is in quarantine.", "It is not known what waits."):
        assert page.get_by_text(said).is_visible(), said


def test_another_set_up_is_shown_with_all_its_projects(open_page):
    page = open_page("/bqdispatch/")
    page.locator(".health .sentence").wait_for()
    page.evaluate("sessionStorage.setItem('bqdispatch', JSON.stringify({ setup: 'bqdispatch_gone', project: 'gone' }))")
    page.reload()
    page.locator(".chart svg").first.wait_for()
    assert page.get_by_label("Project").input_value() == ""


def test_it_loads_with_few_requests_and_few_bytes(open_page):
    page = open_page("/bqdispatch/")
    page.add_init_script(
        "const later = setTimeout; window.setTimeout = (call, ms, ...more) => ms < 2000 ? later(call, ms, ...more) : 0"
    )
    page.reload()
    page.locator(".chart svg").first.wait_for()
    loaded = page.evaluate(
        "['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind))"
        ".map((each) => [new URL(each.name).pathname.split('/').pop(), each.decodedBodySize])"
    )
    scripts = ("cards.js", "charts.js", "page.js", "parts.js")
    assert sorted(name for name, _ in loaded) == sorted(["", "page.css", *scripts, "setups", "state"])
    assert sum(size for _, size in loaded) < 400_000, loaded


def test_it_asks_again_only_while_it_is_seen(open_page):
    page = open_page("/bqdispatch/")
    page.locator(".health").wait_for()
    with page.expect_request(re.compile("/api/state"), timeout=1000 * PATIENCE_S):
        pass
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.wait_for_timeout(1000)
    asked.clear()
    page.wait_for_timeout(13_000)
    assert asked == []
    with page.expect_request(re.compile("/api/state")):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")


def test_what_is_open_stays_open_and_focused_when_it_is_read_again(open_page):
    page = open_page("/bqdispatch/")
    summary = page.locator("#part-lag details > summary")
    summary.wait_for()
    summary.focus()
    page.keyboard.press("Enter")
    page.evaluate(REDRAW)
    assert page.locator("#part-lag details").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.dataset.key") == "table lag"
