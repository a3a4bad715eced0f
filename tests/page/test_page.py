"""The page in a browser. What the real server says is taken from it; states that it is not in are put in its mouth."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from stage import ANSWER, PHONE, choose, expect, labels, problem, says

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route
    from stage import OpenPage

pytestmark = pytest.mark.browser


# ---- the real server -------------------------------------------------------------------------------------------------


def test_a_picture_gets_an_answer(open_page: OpenPage, base_url: str, picture: Path) -> None:
    page = open_page()
    with page.expect_response("**/predict?top_k=5") as received:
        choose(page, picture)
    answer = received.value.json()

    expect(page.locator("#predictions li")).to_have_count(5)
    best = answer["predictions"][0]
    first = page.locator("#predictions li").first
    expect(first).to_contain_text(best["label"])
    expect(first).to_contain_text(best["wnid"])
    expect(first.locator(".chance")).to_have_text(re.compile(r"^<?\d+\.\d\d%$"))
    expect(page.locator("#parts")).to_contain_text("Decode")
    expect(page.locator("#parts")).to_contain_text("Inference")
    expect(page.locator("#total")).to_contain_text("as seen from this browser")
    expect(page.locator("#origin")).to_contain_text(answer["request_id"])
    expect(page.locator("#spoken")).to_contain_text(best["label"])
    expect(page.locator("#caption")).to_have_text(re.compile("light square.png · .* · 320 × 200"))
    page.wait_for_load_state("networkidle")  # no answer is left unread, nothing is polled any more


REMEMBER_WHAT_IS_SENT = """
  const { fetch } = window;
  window.fetch = (url, options) => {
    window.sent = options?.body?.get("file") ?? window.sent;
    return fetch(url, options);
  };
"""


def test_the_original_bytes_travel(open_page: OpenPage, picture: Path) -> None:
    """DevTools does not hand out a form's files, so the page's own call is watched."""
    page = open_page(lambda page: page.add_init_script(REMEMBER_WHAT_IS_SENT))
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(5)
    assert page.evaluate("window.sent.name") == "light square.png"
    sent = page.evaluate("async () => Array.from(new Uint8Array(await window.sent.arrayBuffer()))")
    assert bytes(sent) == picture.read_bytes()


def test_more_classes_are_asked_for(open_page: OpenPage, picture: Path) -> None:
    page = open_page()
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(5)
    page.select_option("#top-k", "10")
    expect(page.locator("#predictions li")).to_have_count(10)
    expect(page.locator("#curl")).to_contain_text("top_k=10")


def test_what_is_no_image_is_refused_in_the_api_s_words(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "poem.jpg").write_text("no image at all\n" * 10)
    with page.expect_response("**/predict?*") as received:
        choose(page, tmp_path / "poem.jpg")
    said = received.value.json()
    box = page.get_by_role("alert")
    for word in ("Not a picture that can be read", said["detail"], said["code"], said["request_id"], "415"):
        expect(box).to_contain_text(word)
    expect(page.locator("#retry")).to_be_hidden()
    expect(page.locator("#no-preview")).to_be_visible()


def test_the_model_is_introduced(open_page: OpenPage, base_url: str) -> None:
    page = open_page()
    model = page.request.get(f"{base_url}/model").json()
    card = page.locator("#model")
    for name in ("Name", "Family", "Parameters", "Weights", "Input", "Precision", "Device", "Runtime"):
        expect(card.locator("dt", has_text=re.compile(f"^{name}$"))).to_be_visible()
    expect(card).to_contain_text(model["name"])
    if "random" in json.dumps(model["weights"]):
        expect(page.locator("#banner")).to_have_text("Untrained weights: answers are noise.")


def test_the_map_of_the_real_server(open_page: OpenPage, base_url: str, picture: Path) -> None:
    page = open_page()
    if "/explain" not in page.request.get(f"{base_url}/openapi.json").json()["paths"]:
        pytest.skip("this server does not explain")
    choose(page, picture)
    page.check("#map-on")
    expect(page.locator("#map-text")).to_have_text(re.compile("spoke for"))


def test_the_policy_is_strict(open_page: OpenPage, base_url: str) -> None:
    policy = open_page().request.get(f"{base_url}/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


# ---- ways to bring a picture -----------------------------------------------------------------------------------------

HAND_OVER = """([kind, bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector("#drop").dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_pasted_and_dropped(open_page: OpenPage, picture: Path, way: str) -> None:
    page = open_page()
    page.evaluate(HAND_OVER, [way, list(picture.read_bytes()), "image.png"])
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#curl")).to_contain_text("file=@image.png")


def test_a_drop_without_a_file_says_so(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate("""() => document.querySelector("#drop").dispatchEvent(
        new DragEvent("drop", { dataTransfer: new DataTransfer(), bubbles: true, cancelable: true }))""")
    expect(page.get_by_role("alert")).to_contain_text("holds no file")


def test_by_keyboard_alone(open_page: OpenPage, picture: Path) -> None:
    """The listener comes first: playwright catches choosers only from a moment after it was added."""
    page = open_page(lambda page: page.on("filechooser", lambda chooser: chooser.set_files(picture)))
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.focus("#file")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    outline = page.locator("label:has(#file)").evaluate("label => getComputedStyle(label).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#predictions li")).to_have_count(5)


def test_the_camera_is_offered_where_there_is_a_finger(open_page: OpenPage) -> None:
    expect(open_page().get_by_text("Take a photo", exact=True)).to_be_hidden()
    phone = open_page(**PHONE)
    expect(phone.get_by_text("Take a photo", exact=True)).to_be_visible()
    expect(phone.locator("#camera")).to_have_attribute("capture", "environment")


def test_samples_where_the_service_brings_some(open_page: OpenPage, picture: Path) -> None:
    def bring(page: Page) -> None:
        page.route(
            "**/page/samples.json", says([{"name": "A square", "url": "/page/samples/a%20square.png"}])
        )
        page.route(
            "**/page/samples/a%20square.png",
            lambda route: route.fulfill(path=picture, content_type="image/png"),
        )

    page = open_page(bring)
    page.get_by_role("button", name="A square").click()
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#curl")).to_contain_text("file=@a square.png")


def test_the_services_own_samples(open_page: OpenPage, base_url: str) -> None:
    page = open_page()
    listed = page.request.get(f"{base_url}/page/samples.json").json()
    expect(page.locator("#sample-list button")).to_have_text([entry["name"] for entry in listed])
    page.get_by_role("button", name=listed[0]["name"]).click()
    expect(page.locator("#predictions li")).to_have_count(5)


def test_no_samples_no_heading(open_page: OpenPage) -> None:
    page = open_page(
        lambda page: page.route("**/page/samples.json", says(problem(404, "not_found", "Not found"), 404))
    )
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    expect(page.locator("#samples")).to_be_hidden()


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_bars_and_percentages(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: page.route("**/predict?*", says(ANSWER)))
    choose(page, picture)
    expect(page.locator("#predictions .chance")).to_have_text(["83.12%", "<0.01%"])
    assert page.locator("#predictions .bar div").first.evaluate("bar => bar.style.width") == "83.12%"
    expect(page.locator("#parts dd")).to_have_text(
        ["2.0 ms", "1.0 ms", "5.0 ms", "2.0 ms"]
    )  # the last is the rest
    expect(page.locator("#parts dt")).to_have_text(["Decode", "Queue", "Inference", "Other"])


def test_a_new_picture_aborts_the_request_before_it(open_page: OpenPage, picture: Path) -> None:
    asked: list[Route] = []

    def hold_the_first(route: Route) -> None:
        asked.append(route)
        if len(asked) > 1:
            says(ANSWER)(route)

    page = open_page(lambda page: page.route("**/predict?*", hold_the_first))
    choose(page, picture)
    expect(page.locator("#busy-text")).to_have_text("Classifying light square.png")
    with page.expect_event("requestfailed", lambda request: "/predict" in request.url):
        choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(2)
    assert labels(page)[0] == "Egyptian cat"


def test_no_object_url_is_left_behind(open_page: OpenPage, picture: Path) -> None:
    count = """
      window.alive = new Set();
      const { createObjectURL, revokeObjectURL } = URL;
      URL.createObjectURL = (file) => { const url = createObjectURL(file); window.alive.add(url); return url; };
      URL.revokeObjectURL = (url) => { window.alive.delete(url); revokeObjectURL(url); };
    """
    page = open_page(lambda page: page.add_init_script(count))
    for _ in range(3):
        choose(page, picture)
        expect(page.locator("#predictions li")).to_have_count(5)
    assert page.evaluate("window.alive.size") == 1


# ---- the service's states --------------------------------------------------------------------------------------------


def test_a_service_that_loads_is_waited_for(open_page: OpenPage, picture: Path) -> None:
    ready = False
    download = {"done": 8_000_000, "total": 32_000_000}

    def readyz(route: Route) -> None:
        route.continue_() if ready else says(problem(503, "not_ready", "Not ready"), 503)(route)

    def load(page: Page) -> None:
        page.route("**/readyz", readyz)
        page.route("**/healthz", says({"state": "loading", "detail": "weights", "progress": download}))

    page = open_page(load)
    expect(page.locator("#state")).to_have_text("Loading")
    expect(page.locator("#waiting")).to_contain_text("7.6 MiB of 30.5 MiB (25%)")
    assert page.locator("#download").evaluate("bar => bar.value") == 0.25
    page.set_input_files("#file", picture)
    expect(page.locator("#busy-text")).to_contain_text("will be sent when the service is ready")
    ready = True
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#waiting")).to_be_hidden()


@pytest.mark.parametrize("word", ["starting", "warming", "draining", "failed"])
def test_other_states_have_their_words(open_page: OpenPage, word: str) -> None:
    def be(page: Page) -> None:
        page.route("**/readyz", says(problem(503, "not_ready", "Not ready"), 503))
        page.route("**/healthz", says({"state": word}, 503))

    page = open_page(be)
    expect(page.locator("#state")).to_have_attribute("data-state", word)
    expect(page.locator("#waiting")).to_be_visible()


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("random:0", "Untrained weights: answers are noise."),
        ("demo", "Small demo model: knows 200 classes."),
    ],
)
def test_what_is_no_full_model_says_so(open_page: OpenPage, weights: object, text: str) -> None:
    model = {"name": "densenet121", "weights": weights, "classes": 200}
    page = open_page(lambda page: page.route("**/model", says(model)))
    expect(page.locator("#banner")).to_have_text(text)


def test_a_trained_model_has_no_banner(open_page: OpenPage) -> None:
    model = {"name": "vgg16", "weights": "IMAGENET1K_V1", "classes": 1000}
    page = open_page(lambda page: page.route("**/model", says(model)))
    expect(page.locator("#model")).to_contain_text("vgg16")
    expect(page.locator("#banner")).to_be_hidden()


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_can_be_tried_again(open_page: OpenPage, picture: Path) -> None:
    refused = says(problem(429, "overloaded", "Too many requests"), 429, **{"Retry-After": "2"})
    page = open_page(lambda page: page.route("**/predict?*", refused, times=1))
    choose(page, picture)
    box = page.get_by_role("alert")
    for word in ("Too many requests", "detail of overloaded", "429", "of-the-error", "2 s"):
        expect(box).to_contain_text(word)
    box.get_by_role("button", name="Try again").click()
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(box).to_be_hidden()


def test_a_proxy_s_own_page_is_named_by_its_status(open_page: OpenPage, picture: Path) -> None:
    def fulfil(route: Route) -> None:
        route.fulfill(status=502, body="<h1>Bad Gateway</h1>", content_type="text/html")

    page = open_page(lambda page: page.route("**/predict?*", fulfil))
    choose(page, picture)
    expect(page.get_by_role("alert")).to_contain_text("502 Bad Gateway")


def test_a_broken_connection_has_words(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: page.route("**/predict?*", lambda route: route.abort("connectionreset")))
    choose(page, picture)
    expect(page.get_by_role("alert")).to_contain_text("No answer from the service")


def test_a_service_that_is_not_ready_after_all_is_asked_again(open_page: OpenPage, picture: Path) -> None:
    early = says(problem(503, "not_ready", "Not ready"), 503)
    page = open_page(lambda page: page.route("**/predict?*", early, times=1))
    choose(page, picture)
    expect(page.get_by_role("alert")).to_contain_text("not_ready")
    expect(page.locator("#predictions li")).to_have_count(5)


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: OpenPage, picture: Path) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer s3cret":
            route.continue_()
        else:
            says(problem(401, "unauthorized", "Unauthorized"), 401)(route)

    page = open_page(lambda page: page.route(re.compile("/(predict|model|openapi.json)"), guard))
    expect(page.locator("#key-form")).to_be_visible()
    page.get_by_label("API key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This key was not accepted")).to_be_visible()
    page.get_by_label("API key", exact=True).fill("s3cret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#model-card")).to_be_visible()
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#curl")).to_contain_text("Bearer $IMAGENET_API_KEY")
    assert "s3cret" not in page.content()
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    page.reload()
    expect(page.locator("#model-card")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()


# ---- the command -----------------------------------------------------------------------------------------------------

PRINT_ARGUMENTS = 'curl() { printf "%s\\n" "$@"; }\n'


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cat.jpg", "file=@cat.jpg"),
        ("my cat.jpg", "file=@my cat.jpg"),
        ("it's; rm -rf $HOME, `id`.jpg", """file=@"it's; rm -rf $HOME, `id`.jpg\""""),
        ('a"b\\c.jpg', r'file=@"a\"b\\c.jpg"'),
        ("猫.jpg", "file=@猫.jpg"),
    ],
)
def test_a_shell_reads_the_command_as_it_is_meant(
    open_page: OpenPage, base_url: str, name: str, part: str
) -> None:
    command = open_page().evaluate("async (name) => (await import('/page/api.js')).curl(name, 5)", name)
    done = subprocess.run(["sh", "-c", PRINT_ARGUMENTS + command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-F", part, f"{base_url}/predict?top_k=5"]


def test_the_command_can_be_copied(open_page: OpenPage, picture: Path) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    choose(page, picture)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert "file=@light square.png" in page.evaluate("navigator.clipboard.readText()")
