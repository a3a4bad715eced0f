"""Everything beside `/predict`: health, what is loaded, the scrape, keys, ids, and the page."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from service import __version__
from service.api.context import START_PATIENCE
from service.api.keys import Keys
from service.errors import ConfigurationError
from service.models.catalog import VARIANTS
from service.observability.logs import JsonFormatter, TextFormatter
from service.shared.status import Status
from tests.api.site import CARD, CLASSES, site
from tests.api.test_predict import problem
from tests.loops import on_a_loop
from tests.uploads import png


@on_a_loop
async def test_a_ready_service_says_so() -> None:
    async with site() as here:
        assert (await here.http.get("/livez")).json() == {"status": "ok"}
        assert (await here.http.get("/readyz")).json() == {"status": "ready"}
        health = (await here.http.get("/healthz")).json()
        assert health["state"] == "ready"


@pytest.mark.parametrize("state", ["starting", "loading", "warming"])
@on_a_loop
async def test_before_the_model_is_there_nothing_is_promised(state: str) -> None:
    async with site() as here:
        here.client.detach()
        here.become(None)
        here.context.status = Status(state, "weights of x", progress={"done": 3, "total": 10})  # type: ignore[arg-type]
        assert (await here.http.get("/livez")).status_code == 200
        problem(await here.http.get("/readyz"), 503, "not_ready")
        answer = await here.http.post("/predict", files={"file": png(1)})
        problem(answer, 503, "not_ready")
        assert answer.headers["retry-after"] == "1"
        problem(await here.http.get("/model"), 503, "not_ready")
        health = (await here.http.get("/healthz")).json()
        assert (health["state"], health["progress"]) == (state, {"done": 3, "total": 10})
        assert len((await here.http.get("/models")).json()) == 12


@on_a_loop
async def test_a_dead_engine_is_said_before_the_supervisor_says_it() -> None:
    async with site() as here:
        here.client.detach()
        problem(await here.http.get("/readyz"), 503, "engine_failed")
        assert (await here.http.get("/healthz")).json()["state"] == "failed"
        assert (await here.http.get("/livez")).status_code == 200
        assert b"imagenet_engine_up 0.0" in (await here.http.get("/metrics")).content


@on_a_loop
async def test_draining_is_not_ready_and_still_serves() -> None:
    async with site() as here:
        here.context.status = Status("draining")
        problem(await here.http.get("/readyz"), 503, "draining")
        answer = await here.http.post("/predict", files={"file": png(1)})
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"


@on_a_loop
async def test_what_is_loaded() -> None:
    async with site() as here:
        model = (await here.http.get("/model")).json()
        assert (model["name"], model["weights"], model["trained"]) == ("densenet121", "random:0", False)
        assert model["preprocessing"] == CARD.preprocessing.to_json()
        assert model["accuracy"] is None
        models = (await here.http.get("/models")).json()
        assert [entry["name"] for entry in models] == list(VARIANTS)
        assert [entry["name"] for entry in models if entry["loaded"]] == ["densenet121"]
        labels = (await here.http.get("/labels")).json()
        assert labels[3] == {"class_id": 3, "wnid": CLASSES[3].wnid, "label": CLASSES[3].label}
        assert len(labels) == 10


@on_a_loop
async def test_unknown_paths_and_methods_are_problems_too() -> None:
    async with site() as here:
        problem(await here.http.get("/nothing"), 404, "not_found")
        wrong = await here.http.get("/predict")
        problem(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"


@on_a_loop
async def test_request_ids_are_echoed_and_never_forged() -> None:
    async with site() as here:
        given = await here.http.get("/livez", headers={"x-request-id": "abc-123"})
        assert given.headers["x-request-id"] == "abc-123"
        for bad in ("two words", "x" * 200, 'a"b', "é"):
            answer = await here.http.get("/livez", headers={b"x-request-id": bad.encode("latin-1")})
            assert answer.headers["x-request-id"] != bad
            assert len(answer.headers["x-request-id"]) == 32


@on_a_loop
async def test_a_defect_is_answered_without_its_innards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as here:
        monkeypatch.setattr("service.api.predict.reply", lambda document: 1 / 0)
        answer = await here.http.post("/predict", files={"file": png(1)})
        problem(answer, 500, "internal")
        assert "division" not in answer.text
        assert "division by zero" in caplog.text


@on_a_loop
async def test_keys_guard_everything_but_probes_and_scrape(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the app\n\nfirst-key\n")
    async with site(keys=Keys(file)) as here:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await here.http.get(path)).status_code == 200
        for path in ("/", "/page/app.js", "/page/samples.json", "/docs", "/docs/start.js", "/openapi.json"):
            assert (await here.http.get(path)).status_code == 200, "static, and it asks for the key itself"
        for path in ("/healthz", "/model", "/labels", "/nothing", "/page", "/pagemodel"):
            answer = await here.http.get(path)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in (
            {"authorization": "Bearer no"},
            {"authorization": "first-key"},
            {"x-api-key": "first-ke"},
        ):
            problem(await here.http.get("/model", headers=wrong), 401, "unauthorized")
        for right in ({"authorization": "Bearer first-key"}, {"x-api-key": "first-key"}):
            assert (await here.http.get("/model", headers=right)).status_code == 200
        file.write_text("second-key-of-another-length\n")
        problem(await here.http.get("/model", headers={"x-api-key": "first-key"}), 401, "unauthorized")
        file.unlink()  # in the middle of a rotation: the last good keys stay
        headers = {"x-api-key": "second-key-of-another-length"}
        assert (await here.http.get("/model", headers=headers)).status_code == 200


@on_a_loop
async def test_the_schema_tells_of_keys_where_there_are_some(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key\n")
    async with site(keys=Keys(file)) as here:
        schema = (await here.http.get("/openapi.json")).json()
        kinds = {name: one["type"] for name, one in schema["components"]["securitySchemes"].items()}
        assert kinds == {"bearer": "http", "header": "apiKey"}
        assert {name for one in schema["security"] for name in one} == set(kinds)
        assert schema["paths"]["/livez"]["get"]["security"] == []
        assert "security" not in schema["paths"]["/predict"]["post"]
        assert (await here.http.post("/docs")).status_code == 401, "what is static is read, not written"
    async with site() as here:
        assert "security" not in (await here.http.get("/openapi.json")).json()


def test_a_file_without_keys_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(ConfigurationError, match="api_keys_file"):
            Keys(tmp_path / name)


@on_a_loop
async def test_the_scrape_counts_what_was_sent() -> None:
    async with site() as here:
        before = await scrape(here)
        for n in range(5):
            await here.http.post("/predict", files={"file": png(n)})
        await here.http.post("/predict", files={"file": b"no picture"})
        await here.http.get("/a/path/that/nobody/declared")
        after = await scrape(here)

        def grew(name: str) -> float:
            return after.get(name, 0) - before.get(name, 0)

        assert grew('imagenet_requests_total{route="/predict",status="200"}') == 5
        assert grew('imagenet_requests_total{route="/predict",status="415"}') == 1
        assert grew('imagenet_requests_total{route="unmatched",status="404"}') == 1
        assert grew('imagenet_rejected_total{reason="unsupported_media_type"}') == 1
        assert grew('imagenet_request_duration_seconds_count{route="/predict"}') == 6
        for stage in ("decode", "queue", "inference", "respond"):
            assert grew(f'imagenet_stage_duration_seconds_count{{stage="{stage}"}}') == 5
        assert grew('imagenet_stage_duration_seconds_count{stage="receive"}') == 6
        assert after['imagenet_state{state="ready"}'] == 1
        assert sum(value for name, value in after.items() if name.startswith("imagenet_state")) == 1
        assert after["imagenet_engine_up"] == 1
        assert after["imagenet_in_flight_requests"] == 0
        assert any(name.startswith("imagenet_model_info") and 'name="densenet121"' in name for name in after)
        assert after["imagenet_late_work_total"] == 0


async def scrape(here: object) -> dict[str, float]:
    text = (await here.http.get("/metrics")).text  # type: ignore[attr-defined]
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@on_a_loop
async def test_the_page_and_the_schema_are_there() -> None:
    async with site() as here:
        page = await here.http.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert (await here.http.get("/docs")).status_code == 200
        schema = (await here.http.get("/openapi.json")).json()
        upload = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
        assert set(upload) == {"multipart/form-data", "image/*", "application/json"}
        problem(await here.http.get("/page/nothing.js"), 404, "not_found")


def test_a_log_line_is_one_json_object_or_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", ("a\nb\x1b[31m",), None)
    assert json.loads(JsonFormatter("frontend-1").format(record))["message"] == "a\nb\x1b[31m"
    assert "\n" not in JsonFormatter("frontend-1").format(record)
    line = TextFormatter("frontend-1").format(record)
    assert line.isprintable()


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028", "\x9b2K", "\u202e"])
def test_what_a_client_sends_cannot_begin_a_line(end: str) -> None:
    """Neither as a message nor inside a traceback, for any reader's idea of a line."""
    forged = f"x{end}12:00:00 info    frontend-1 all is well"
    try:
        raise ValueError(forged)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "%s", (forged,), sys.exc_info())
    document = JsonFormatter("frontend-1").format(record)
    assert document.isascii()
    assert document.isprintable()
    first, *rest = TextFormatter("frontend-1").format(record).split("\n")
    assert first.isprintable()
    assert rest
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)


@on_a_loop
async def test_a_start_that_gets_on_is_alive_however_long_it_takes_and_one_that_does_not_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    async with site() as here:
        monkeypatch.setattr("service.api.context.time", SimpleNamespace(monotonic=lambda: clock[0]))
        here.context.update_status(Status("loading", "weights"))
        for done in range(50):  # more than eight hours of a slow network
            clock[0] += START_PATIENCE - 1
            assert (await here.http.get("/livez")).status_code == 200
            here.context.update_status(Status("loading", "weights", progress={"done": done, "total": 99}))
        clock[0] += START_PATIENCE + 1
        here.context.update_status(here.context.status)  # the same again is no progress
        for path in ("/livez", "/v2/health/live"):
            assert (await here.http.get(path)).status_code == 503
        here.context.update_status(Status("ready"))
        clock[0] += 10 * START_PATIENCE
        assert (await here.http.get("/livez")).status_code == 200


@on_a_loop
async def test_a_probe_is_never_a_rejection_and_a_user_is() -> None:
    async with site() as here:
        before = await scrape(here)
        for state in ("starting", "loading", "draining", "failed"):
            here.context.status = Status(state)
            for path in ("/readyz", "/v2/health/ready", "/v2/models/densenet121/ready", "/metrics", "/livez"):
                await here.http.get(path)
        for name, value in (await scrape(here)).items():
            if name.startswith("imagenet_rejected_total"):
                assert value == before.get(name, 0.0), name
        here.client.detach()
        here.become(None)
        here.context.status = Status("loading")
        assert (await here.http.post("/predict", files={"file": png(1)})).status_code == 503
        after = await scrape(here)
        name = 'imagenet_rejected_total{reason="not_ready"}'
        assert after[name] == before.get(name, 0.0) + 1


@on_a_loop
async def test_what_is_running_is_said_alike_in_the_route_and_in_the_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUILD_REVISION", "abc123")
    async with site() as here:
        answer = (await here.http.get("/version")).json()
        assert answer["version"] == __version__
        assert answer["revision"] == "abc123"
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(answer.items()))
        scraped = (await here.http.get("/metrics")).text
        (line,) = [line for line in scraped.splitlines() if line.startswith("imagenet_build_info")]
        found = ",".join(sorted(line.partition("{")[2].partition("}")[0].split(",")))
        assert found == labels
