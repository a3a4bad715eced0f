"""Shell completion: the scripts, and what they ask the command line for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHELLS = ("bash", "zsh", "fish")


def ask(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "service", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_reads_the_script(shell: str) -> None:
    script = ask("completion", shell)
    assert "_IMAGENET_SERVE_COMPLETE" in script
    if shutil.which(shell) is None:
        return  # what can be said without the shell was said
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("imagenet-serve ser", "ser", "serve"),
        ("imagenet-serve serve --model densenet16", "densenet16", "densenet169"),
    ],
)
def test_what_a_tab_brings(shell: str, words: str, incomplete: str, expected: str) -> None:
    position = incomplete if shell == "fish" else str(len(words.split()) - 1)
    found = ask(_IMAGENET_SERVE_COMPLETE=f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=position)
    assert expected in found.replace(",", "\n").split()


def test_bash_completes_through_its_script(tmp_path: Path) -> None:
    """The whole way in a real bash, but for the key."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    command = tmp_path / "imagenet-serve"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service "$@"\n')
    command.chmod(0o755)
    steps = """
        eval "$(imagenet-serve completion bash)"
        COMP_WORDS=(imagenet-serve eval); COMP_CWORD=1
        _imagenet_serve_completion imagenet-serve
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", steps], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["evaluate"]
