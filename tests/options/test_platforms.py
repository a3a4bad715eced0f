"""What a hosting platform's environment variables imply, and what wins over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import settings
from service.errors import ConfigurationError
from service.options.platforms import implied_settings


def test_nothing_outside_of_a_platform() -> None:
    assert implied_settings({"PATH": "/bin", "AIP_STORAGE_URI": "gs://b"}) == {}


def test_sagemaker(tmp_path: Path) -> None:
    assert implied_settings({"IMAGENET_COMPAT": "sagemaker"}, tmp_path) == {
        "compat": "sagemaker",
        "host": "0.0.0.0",
        "port": "8080",
    }
    (tmp_path / "model.pth").touch()
    bound = implied_settings({"SAGEMAKER_BIND_TO_PORT": "9001"}, tmp_path)
    assert (bound["port"], bound["weights"]) == ("9001", str(tmp_path / "model.pth"))
    (tmp_path / "config.json").touch()
    assert implied_settings({"SAGEMAKER_BIND_TO_PORT": "1"}, tmp_path)["weights"] == str(tmp_path)


def test_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "8081")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1/deployedModels/2")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
    monkeypatch.setenv("AIP_STORAGE_URI", "/mnt/weights")
    loaded = settings.load()
    assert (loaded.port, loaded.host, loaded.compat) == (8081, "0.0.0.0", "vertex")
    assert loaded.vertex_predict_route == "/v1/endpoints/1/deployedModels/2:predict"
    assert loaded.weights == "/mnt/weights"
    monkeypatch.setenv("IMAGENET_WEIGHTS", "demo")
    monkeypatch.setenv("AIP_STORAGE_URI", "gs://bucket/model")
    assert settings.load(port=7000).port == 7000
    assert settings.load().weights == "demo"


def test_weights_that_only_the_platform_could_fetch_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"AIP_STORAGE_URI.*is not fetched.*IMAGENET_WEIGHTS"):
        implied_settings({"AIP_HTTP_PORT": "8080", "AIP_STORAGE_URI": "gs://bucket/model"})


@pytest.mark.parametrize("value", ["resnet", "torchserve,", "tfserving,kserve-v1", "torchserve;vertex"])
def test_a_contract_that_is_none_is_named(value: str) -> None:
    if value == "torchserve,":
        assert settings.load(compat=value).listed_compat == ["torchserve"]
    else:
        with pytest.raises(ConfigurationError, match="compat"):
            settings.load(compat=value)
