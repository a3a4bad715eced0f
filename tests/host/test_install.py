"""How the service gets into an environment: torch's build, the extras, children that find this package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version

from service.host import extras
from service.host.interpreter import module_command, module_environment
from tests.deploy.scripts import load

ROOT = Path(__file__).resolve().parents[2]


install = load("install")
WANTED = Requirement("torch>=2.11,<2.14")

releases = st.tuples(st.integers(1, 3), st.integers(0, 20), st.integers(0, 2))
builds = st.builds(
    lambda release, local: Version(".".join(map(str, release)) + local),
    releases,
    st.sampled_from(["", "+cpu", "+cu130", "+rocm7.0"]),
)


@given(st.lists(builds))
def test_the_newest_cpu_build_in_the_range_is_taken(offered: list[Version]) -> None:
    fitting = {v for v in offered if v.local == "cpu" and Version("2.11") <= v < Version("2.14")}
    assert install.newest_cpu_build(WANTED, offered) == max(fitting, default=None)


def choose(
    monkeypatch: pytest.MonkeyPatch, *, driver: bool, torch: str, torchvision: str = "", linux: bool = True
) -> tuple[list[str], str]:
    """What is asked of pip, and what was said about it."""
    said: list[str] = []
    versions = {"torch": torch.split(), "torchvision": torchvision.split()}
    monkeypatch.setattr(install, "offered", lambda name, _: [Version(word) for word in versions[name]])
    monkeypatch.setattr(install, "DRIVERS", ["/proc/self/stat"] if driver else [])
    monkeypatch.setattr(install, "with_cuda_by_default", lambda: linux)
    monkeypatch.setattr(install, "say", said.append)
    return install.choose_builds(WANTED, install.offered("torch", []), []), "\n".join(said)


def test_without_a_driver_a_cpu_build_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, said = choose(
        monkeypatch,
        driver=False,
        torch="2.14.0+cpu 2.13.1 2.13.0+cpu 2.12.0+cpu",
        torchvision="0.28.0 0.28.0+cpu 0.27.0+cpu",
    )
    assert chosen == ["torch==2.13.0+cpu", "torchvision==0.28.0+cpu"]
    assert "0.3 GiB" in said


def test_without_a_driver_and_a_cpu_build_it_says_what_comes_and_how_to_avoid_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, said = choose(monkeypatch, driver=False, torch="2.13.0 2.13.0+cu130")
    assert chosen == []
    assert "2.7 GiB" in said
    assert 'make run PIP_ARGS="--extra-index-url' in said


def test_with_a_driver_cuda_is_wanted_and_its_size_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, said = choose(monkeypatch, driver=True, torch="2.13.0+cpu")
    assert chosen == []
    assert "2.7 GiB" in said


def test_where_every_build_is_for_the_cpu_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, driver=False, torch="2.13.0", linux=False) == ([], "")


def test_for_a_gpu_no_cpu_build_is_taken_though_pip_would() -> None:
    offers = [Version(text) for text in ("2.14.0", "2.13.0+cpu", "2.13.0", "2.12.0")]
    assert install.newest_cuda_build(WANTED, offers) == ["torch===2.13.0"]
    assert install.newest_cuda_build(WANTED, []) == []


@pytest.mark.parametrize(
    ("given_words", "expected"),
    [
        (["cpu"], (["cpu"], [])),
        (["cpu", "--"], (["cpu"], [])),
        (["cpu", "hub", "--", "--pre", "x"], (["cpu", "hub"], ["--pre", "x"])),
    ],
)
def test_arguments_for_pip_follow_two_dashes(
    given_words: list[str], expected: tuple[list[str], list[str]]
) -> None:
    assert install.split(given_words) == expected


# ---- extras ----------------------------------------------------------------------------------------------------------


def test_from_a_clone_an_extra_is_installed_with_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = extras.install_command("hub")
    assert command.endswith("-m pip install --editable '.[hub]'")
    monkeypatch.chdir("/")
    assert f"{ROOT}[hub]".lstrip("/") in extras.install_command("hub")


def test_elsewhere_an_extra_is_named_by_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    lines = ["torch>=2", "openvino>=2026 ; extra == 'cpu'", 'nncf>=3; extra == "quantize"']
    lines += ["imagenet-serve[cpu]; extra == 'quantize'", "uvloop; sys_platform != 'win32'"]
    monkeypatch.setattr(extras.metadata, "requires", lambda name: lines)  # type: ignore[attr-defined]
    assert extras.install_command("cpu").endswith("pip install 'openvino>=2026'")
    assert extras.install_command("quantize").endswith("pip install 'openvino>=2026' 'nncf>=3'")


# ---- children --------------------------------------------------------------------------------------------------------


def test_a_child_finds_this_package_beside_another_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("raise SystemExit('the wrong one')\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        module_command("service", "--version"),
        cwd=tmp_path,
        env=module_environment(clean),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "imagenet-serve" in done.stdout
