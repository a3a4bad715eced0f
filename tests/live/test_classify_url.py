"""`classify --url`: a running server in place of a model in this process, with the same answers, as bulk work."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.live.conftest import SAMPLES
from tests.server import Server


def classify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "classify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def printed(*arguments: str) -> list[dict[str, Any]]:
    done = classify(str(SAMPLES), "--format", "json", *arguments)
    assert done.returncode == 0, done.stderr
    documents: list[dict[str, Any]] = json.loads(done.stdout)
    return documents


@pytest.mark.slow
def test_a_server_answers_as_the_model_does_and_shards_make_a_whole(server: Server) -> None:
    here = printed("--weights", "demo", "--top-k", "2")
    there = printed("--url", server.url, "--top-k", "2")
    shards = [printed("--url", server.url, "--top-k", "2", "--shard", f"{index}/2") for index in range(2)]
    for ours, theirs in zip(here, there, strict=True):
        assert ours["file"] == theirs["file"]
        for mine, its in zip(ours["predictions"], theirs["predictions"], strict=True):
            assert mine["class_id"] == its["class_id"]
            assert mine["probability"] == pytest.approx(its["probability"], abs=1e-5)
    assert [document["file"] for document in shards[0]] == [document["file"] for document in there[::2]]
    assert [document["file"] for document in shards[1]] == [document["file"] for document in there[1::2]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9", "--weights", "demo"], "--weights is for a model in this process"),
        (["--shard", "2/2"], "must be less than the count"),
        (["--shard", "²/4"], "must be like 0/4"),
        (["--shard", "1"], "must be like 0/4"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], words: str) -> None:
    done = classify(str(SAMPLES), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
