"""Who may ask, from where, under which name; and what a browser is told. All of it off unless set."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

import pytest

from service.api import docs
from service.api.keys import Keys
from service.errors import ConfigurationError
from service.observability.logs import TextFormatter
from service.settings import load
from tests.api.site import site
from tests.loops import on_a_loop
from tests.uploads import png

#: Of the files as the npm package swagger-ui-dist has them.
SWAGGER = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


@on_a_loop
async def test_the_documentation_is_all_our_own() -> None:
    async with site() as here:
        page = await here.http.get("/docs")
        assert page.status_code == 200
        assert "script-src 'self';" in page.headers["content-security-policy"]
        references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(references) == 4
        for reference in references:
            answer = await here.http.get(f"/{reference}")
            assert answer.status_code == 200, reference
            assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
        for encoding in ("gzip, br", "identity"):
            for name, digest in SWAGGER.items():
                answer = await here.http.get(f"/docs/{name}", headers={"accept-encoding": encoding})
                assert answer.headers.get("content-encoding") == ("gzip" if encoding != "identity" else None)
                assert hashlib.sha256(answer.content).hexdigest() == digest
        for path in ("/redoc", "/docs/oauth2-redirect", "/docs/README.md", "/docs/..%2f..%2fkeys.py"):
            assert (await here.http.get(path)).status_code == 404
        assert docs._packed("start.js") is None


@on_a_loop
async def test_no_answer_may_become_a_script() -> None:
    async with site() as here:
        for path in (
            "/livez",
            "/model",
            "/labels",
            "/metrics",
            "/openapi.json",
            "/",
            "/page/app.js",
            "/nothing",
        ):
            assert (await here.http.get(path)).headers["x-content-type-options"] == "nosniff"


@on_a_loop
async def test_other_origins_are_told_nothing_unless_they_are_listed() -> None:
    asking = {"origin": "https://app.example"}
    preflight = {
        **asking,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key, traceparent, tracestate, baggage",
    }
    async with site() as here:
        answer = await here.http.get("/model", headers=asking)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        answer = await here.http.options("/predict", headers=preflight)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    async with site(settings={"cors_origins": "https://app.example, https://b.example"}) as here:
        answer = await here.http.post("/predict", files={"file": png(1)}, headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        allowed = await here.http.options("/predict", headers=preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (
            200,
            asking["origin"],
        )
        other = {"origin": "https://evil.example"}
        answer = await here.http.get("/model", headers=other)
        assert "access-control-allow-origin" not in answer.headers
        assert (await here.http.options("/predict", headers={**preflight, **other})).status_code == 400


@on_a_loop
async def test_a_preflight_needs_no_key_and_the_request_does(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key\n")
    asking = {"origin": "https://app.example"}
    async with site(settings={"cors_origins": "*"}, keys=Keys(file)) as here:
        preflight = {**asking, "access-control-request-method": "POST"}
        assert (await here.http.options("/predict", headers=preflight)).status_code == 200
        answer = await here.http.get("/model", headers=asking)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "*", "a page could not read why"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.example", 200),
        ("API.Example:8443", 200),
        ("api.example.", 200),
        ("a.b.wild.example", 200),
        ("wild.example", 421),
        ("evil.example", 421),
        ("evilapi.example", 421),
        ("api.example.evil.example", 421),
        ("api.example@evil.example", 421),
        ("api.example:80:80", 421),
        ("[::1]:8000", 200),
        ("[::2]", 421),
        ("", 421),
    ],
)
@on_a_loop
async def test_only_listed_hosts_are_answered(host: str, status: int) -> None:
    async with site(settings={"allowed_hosts": "api.example,*.wild.example,[::1]"}) as here:
        answer = await here.http.get("/model", headers={"host": host})
        assert answer.status_code == status
        if status != 200:
            assert answer.json()["code"] == "misdirected_request"
        assert (await here.http.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        {"cors_origins": "app.example"},
        {"cors_origins": "https://app.example/path"},
        {"cors_origins": "https://a.example,null"},
        {"allowed_hosts": "https://api.example"},
        {"allowed_hosts": "api.example:8000"},
        {"tls_certificate_file": "a.pem"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        load(**given)


@on_a_loop
async def test_keys_are_never_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("the-secret-key\n")
    keys = Keys(file)
    caplog.set_level(logging.DEBUG)
    async with site(keys=keys) as here:
        for key in ("the-secret-key", "wrong-guess"):
            answer = await here.http.get("/model", headers={"x-api-key": key})
            assert key not in answer.text + str(answer.headers)
    assert "secret" not in caplog.text + repr(keys)
    assert "guess" not in caplog.text


@on_a_loop
async def test_what_a_client_sends_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.access")
    async with site() as here:
        await here.http.get("/a%0a12:00:00%20error%20forged%1b%5b31m%e2%80%a8x")
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    line = TextFormatter("frontend-1").format(record)
    assert "forged" in line
    assert line.isprintable()


@on_a_loop
async def test_a_batch_says_file_names_as_data() -> None:
    name = 'a"\\<script>\x7f.png'
    async with site() as here:
        answer = await here.http.post("/predict/batch", files=[("files", (name, b"no picture"))])
        (result,) = json.loads(answer.content)["results"]
        assert result["status"] == 415
        assert "script" not in json.dumps(result["error"])
