"""Several models in one service: what the setting may say, and who answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import settings
from service.errors import ConfigurationError
from service.host.usage import memory_bytes
from service.options.several import MAX_MODELS, models_of
from service.supervisor.pool.room import check_budget
from tests.drills.crowd import PHOTOS, options
from tests.drills.hostile import CLASSES
from tests.end_to_end.test_switching import engines, health, load, order, until
from tests.server import HTTP, Server

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def wanted(path: Path, document: Any, **given: Any) -> list[tuple[str | None, str, str]]:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    found = models_of(settings.load(models=str(path), **given))
    return [(name, own.model, own.weights) for name, own in found]


def test_variants_are_listed_and_the_first_is_the_default() -> None:
    found = models_of(settings.load(models="vgg16, densenet121", weights="random:3"))
    assert [(name, own.model, own.weights) for name, own in found] == [
        (None, "vgg16", "random:3"),
        (None, "densenet121", "random:3"),
    ]
    ((name, own),) = models_of(settings.load(model="vgg11"))
    assert (name, own.model) == (None, "vgg11")


def test_a_file_gives_names_and_settings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    document = {"cats": {"weights": "random:1"}, "vgg": {"model": "vgg16", "max_batch_size": 4}}
    assert wanted(path, document, weights="random:9") == [
        ("cats", "densenet121", "random:1"),
        ("vgg", "vgg16", "random:9"),
    ]
    assert models_of(settings.load(models=str(path)))[1].settings.max_batch_size == 4


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "no JSON"),
        ("[]", "JSON object"),
        ("{}", "JSON object"),
        ({"a b": {}}, "no name"),
        ({"": {}}, "no name"),
        ({"a": []}, "object of settings"),
        ({"a": {"port": 1}}, "no setting of one model"),
        ({"a": {"wieghts": "x"}}, "did you mean 'weights'"),
        ({"a": {"model": "vgg99"}}, "did you mean 'vgg19'"),
        ({"a": {"max_batch_size": 0}}, "max_batch_size"),
        ('{"a": {}, "a": {}}', "is there twice"),
        ({f"m{number}": {} for number in range(MAX_MODELS + 1)}, "are allowed"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_words(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        wanted(tmp_path / "models.json", document)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"models": "densenet121,vgg99"}, "did you mean 'vgg19'"),
        ({"models": "densenet121,densenet121"}, "twice"),
        ({"models": "/nowhere.json"}, "no file that can be read"),
        ({"models": "densenet"}, "did you mean"),
        ({"models": "vgg16,vgg11", "weights": "mine.pth"}, "JSON file"),
    ],
)
def test_a_list_that_will_not_do_is_refused_in_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        models_of(settings.load(**given))


@given(
    st.dictionaries(
        names, st.fixed_dictionaries({"weights": st.just("random:1")}), min_size=1, max_size=MAX_MODELS
    )
)
def test_every_file_of_names_is_as_many_models_in_order(document: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert [name for name, *_ in wanted(Path(folder) / "models.json", document)] == list(document)


def test_a_budget_that_cannot_hold_the_parameters_is_refused_before_anything_is_loaded() -> None:
    check_budget(["vgg16", "densenet121"], None)
    check_budget(["vgg16", "densenet121"], 2000)
    check_budget(["vgg16"], 1)  # whether one fits is seen when it is there
    with pytest.raises(ConfigurationError, match="vgg16 528 MiB, densenet121 30 MiB"):
        check_budget(["vgg16", "densenet121"], 100)


@pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")
def test_each_model_answers_by_its_name_and_is_switched_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"first": {"weights": "random:1"}, "second": {"weights": "random:2"}}))
    photo, right = PHOTOS[0]

    def ask(query: str, route: str = "/predict") -> Any:
        return HTTP.post(server.url + route + query, files={"file": photo})

    with Server(**options(models=path, frontends=2, model_control="open")) as server:
        for query, name, further in (
            ("", "first", 1),
            ("?model=first", "first", 1),
            ("?model=second", "second", 2),
            ("?top_k=1&model=second", "second", 2),
        ):
            told = ask(query).json()
            assert (told["model"], told["weights"]) == (name, f"random:{further}")
            assert told["predictions"][0]["class_id"] == (right + further) % CLASSES
        for route in ("/predict", "/features", "/explain"):
            refused = ask("?model=third", route)
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
            assert "first or second" in refused.json()["detail"]
        assert HTTP.get(server.url + "/models/loaded/second").json()["weights"] == "random:2"
        assert len(HTTP.get(server.url + "/models/loaded/second/labels").json()) == CLASSES
        assert HTTP.get(server.url + "/models/loaded/third").status_code == 404
        loaded = HTTP.get(server.url + "/models/loaded").json()
        assert [model["name"] for model in loaded] == ["first", "second"]
        for name in ("first", "second"):
            assert HTTP.get(f"{server.url}/v2/models/{name}").json()["name"] == name
            assert HTTP.get(f"{server.url}/v2/models/{name}/ready").status_code == 200
        assert HTTP.get(server.url + "/v2/models/third").status_code == 404
        answer = load(server, 7, name="second")
        assert answer.status_code == 200, answer.text
        assert ask("?model=second").json()["weights"] == "random:7"
        assert ask("").json()["weights"] == "random:1"
        assert load(server, 7, name="third").status_code == 404
        assert order(server, "/models/rollback", name="first").status_code == 409
        assert order(server, "/models/rollback", name="second").status_code == 200
        assert {engine["model"] for engine in health(server)["engines"]} == {"first", "second"}
        until(lambda: 'name="second"' in HTTP.get(server.url + "/metrics").text)


@pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")
def test_a_start_past_its_memory_budget_says_what_takes_it() -> None:
    with Server(**options(memory_budget_mib=1, frontends=1), wait=False) as server:
        assert server.wait() == 1
        until(lambda: any("memory_budget_mib=1" in line for line in server.lines))


@pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")
def test_a_load_past_the_memory_budget_is_refused_first() -> None:
    settings = options(frontends=1, model_control="open", weights="random:1")
    with Server(**settings) as server:
        (engine,) = engines(server)
        taken = memory_bytes(engine)
    budget = 1.5 * taken / 2**20  # for one of them, and not for two
    with Server(**settings, memory_budget_mib=round(budget)) as server:
        answer = load(server, 2)
        assert (answer.status_code, answer.json()["code"]) == (507, "not_enough_memory"), answer.text
        assert "memory_budget_mib" in answer.json()["detail"]
        assert len(health(server)["engines"]) == 1
