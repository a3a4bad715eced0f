"""Settings: declared once, the same from flags and environment, and one sentence for what cannot be."""

from __future__ import annotations

import re
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from service import settings
from service.cli.main import cli
from service.errors import ConfigurationError
from service.models.catalog import VARIANTS

#: The contract's table: name and default.
CONTRACT = {
    "model": "densenet121",
    "weights": "pretrained",
    "device": "auto",
    "precision": "auto",
    "runtime": "auto",
    "host": "127.0.0.1",
    "port": 8000,
    "frontends": "auto",
    "max_batch_size": "auto",
    "max_queue_delay_ms": 0,
    "queue_capacity": "auto",
    "request_timeout_ms": 30000,
    "max_upload_bytes": 10485760,
    "max_image_pixels": 50000000,
    "max_images_per_request": 64,
    "top_k": 5,
    "labels": None,
    "decode": "exact",
    "api_keys_file": None,
    "drain_delay_ms": 0,
    "drain_timeout_ms": 25000,
    "log_format": "auto",
    "log_level": "info",
}

#: What came later than the contract: off unless set.
BEYOND = dict.fromkeys(
    (
        "tls_certificate_file",
        "tls_key_file",
        "cors_origins",
        "allowed_hosts",
        "compat",
        "uds",
        "grpc_port",
        "root_path",
        "bulk_routes",
    )
) | {
    "v1_predictions": "probabilities",
    "vertex_health_route": "/health",
    "vertex_predict_route": "/predict",
    "max_connections": "auto",
    "models": None,
    "shadow": None,
    "shadow_share": 0.1,
    "memory_budget_mib": None,
    "model_control": "keys",
    "watch_weights_ms": 0,
    "keep_previous_ms": 300_000,
    "standby": False,
}


def test_the_contract_holds() -> None:
    assert settings.load().model_dump() == CONTRACT | BEYOND


def test_the_environment_and_flags_set_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET_MAX_BATCH_SIZE", "12")
    monkeypatch.setenv("IMAGENET_TOP_K", "3")
    assert settings.load().max_batch_size == 12
    assert settings.load(max_batch_size="7").max_batch_size == 7
    assert settings.load(max_batch_size="7").top_k == 3


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings.load().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_model(name: str) -> None:
    assert settings.load(model=name).model == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "x"),
        ("model", "vgg12"),
        ("device", "gpu"),
        ("precision", "int8"),
        ("frontends", "0"),
        ("max_batch_size", "none"),
        ("queue_capacity", "0"),
        ("max_queue_delay_ms", "-1"),
        ("request_timeout_ms", "0"),
        ("top_k", "0"),
        ("decode", "quick"),
        ("log_level", "loud"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        settings.load(**{name: value})
    assert str(error.value).startswith(f"{name}=")
    assert "\n" not in str(error.value)


#: Nothing of pydantic's, of Python's or of a regular expression's is said to people.
NOT_WORDS = re.compile(
    r"[Ii]nput should|valid integer|literal|pattern|\^|\\d|Error|\{|\}|Traceback|greater than"
)


@given(st.sampled_from(sorted(CONTRACT | BEYOND)), st.text(min_size=1, max_size=20))
@settings_of_hypothesis(max_examples=200, deadline=None)
def test_any_wrong_value_is_told_in_words(name: str, value: str) -> None:
    assume(not NOT_WORDS.search(value) and not value.startswith("tcp://"))
    try:
        settings.load(**{name: value})
    except ConfigurationError as error:
        said = str(error)
        if "go together" in said:
            return
        assert said.startswith(f"{name}={value}: ")
        assert "must be" in said
        assert not NOT_WORDS.search(said)


def test_what_was_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        return " ".join(invoke(*arguments).output.split())

    assert "--top-k=x: must be a whole number from 1" in said("serve", "--top-k=x")
    assert "--device=gpu: must be auto, cpu, cuda or cuda:N; did you mean 'cuda'?" in said(
        "serve", "--device=gpu"
    )
    monkeypatch.setenv("IMAGENET_PORT", "70,000")
    assert "IMAGENET_PORT=70,000: must be a whole number from 0 to 65,535" in said("serve")


def test_a_variable_that_is_no_setting_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "IMAGENET_MAX_BATCHSIZE": "8",
        "IMAGENET_PORT": "1",
        "imagenet_top_k": "1",
        "IMAGENET_API_KEY": "k",
        "IMAGENET_SERVE_SERVICE_HOST": "10.0.0.1",
        "IMAGENET_SERVE_SERVICE_PORT_HTTP": "80",
        "IMAGENET_PORT_8000_TCP_ADDR": "10.0.0.1",
        "IMAGENET_SERVE_PORT": "tcp://10.0.0.1:80",
        "HOME": "/",
    }
    (sentence,) = settings.strangers(environment)
    assert "IMAGENET_MAX_BATCHSIZE" in sentence
    assert "did you mean 'IMAGENET_MAX_BATCH_SIZE'?" in sentence
    monkeypatch.setenv("IMAGENET_WEIGHT", "demo")
    monkeypatch.setenv("IMAGENET_TOP_K", "none")
    assert "did you mean 'IMAGENET_WEIGHTS'?" in invoke("classify", "no-such.jpg").output


def test_an_unknown_setting_of_the_library_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no setting 'prot'; did you mean 'port'"):
        settings.load(prot=1)


@pytest.mark.parametrize("command", ["serve", "classify", "plan", "export", "doctor"])
def test_help_lists_what_a_setting_may_be(command: str) -> None:
    text = " ".join(invoke(command, "--help").output.split())
    assert "Values: auto, cpu, cuda or cuda:N." in text
    assert "densenet201" in text
    if command not in ("serve", "doctor"):
        assert "413" not in text


def test_a_kubernetes_service_link_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(ConfigurationError, match="enableServiceLinks: false"):
        settings.load()


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("command", [(), ("serve",), ("classify",), ("models",)])
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_serve_has_a_flag_for_every_setting() -> None:
    text = invoke("serve", "--help").output
    for name, default in CONTRACT.items():
        assert f"--{name.replace('_', '-')} VALUE" in text
        assert f"[default: {'none' if default is None else default}]" in " ".join(text.split())


def test_wrong_usage_is_exit_code_2() -> None:
    assert invoke("serve", "--no-such-flag").exit_code == 2
    assert invoke("serve", "--port=x").exit_code == 2
    assert invoke("classify").exit_code == 2


def test_models_lists_the_twelve() -> None:
    lines = invoke("models", "--format=csv").output.splitlines()
    assert len(lines) == 13
    assert lines[9].startswith("densenet121,7978856,")
