"""`make verify-deploy` itself: whatever becomes of a step, the others are run, and the exit code says it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.deploy.scripts import ROOT

sys.path.insert(0, str(ROOT / "deploy"))
from verification import __main__ as verify
from verification import steps


def _hangs() -> str:
    return steps.output([sys.executable, "-c", "import signal; signal.pause()"], timeout=0.01)


def _says_no() -> str:
    return steps.output([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


def _is_wrong() -> str:
    return steps.STEPS["nowhere"]()


def _cannot() -> str:
    return steps.need("no-such-tool", "nowhere")


STEPS: dict[str, tuple[Callable[[], str], str, str]] = {
    "fine": (lambda: "seen", "ok", "seen"),
    "hangs": (_hangs, "FAILED", "did not end within 0.01 s"),
    "fails": (_says_no, "FAILED", "no such thing"),
    "wrong": (_is_wrong, "FAILED", "KeyError"),
    "cannot": (_cannot, "skipped", "no no-such-tool here (nowhere)"),
    "last": (lambda: "seen", "ok", "seen"),
}


@pytest.mark.parametrize("left_out", [(), ("hangs", "fails", "wrong")])
def test_every_step_is_told_and_a_failed_one_fails_the_whole(
    left_out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {name: row for name, row in STEPS.items() if name not in left_out}
    monkeypatch.setattr(verify, "STEPS", {name: run for name, (run, _, _) in chosen.items()})
    assert verify.main([]) == (0 if left_out else 1)
    told = capsys.readouterr().out
    for name, (_, word, text) in chosen.items():
        assert any(line.startswith(word) and f" {name} " in line for line in told.splitlines())
        assert text in told
    assert verify.main(["no-such-step"]) == 2
