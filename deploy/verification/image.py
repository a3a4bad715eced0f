"""The image, built by buildah and run by podman as a cluster would run it.

Where no registry is reachable the base image is made here: Debian with Python, by debootstrap. A host behind a private
certificate authority or with a local package index lends both to the build's RUN steps; nothing stays in the image.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verification.steps import ROOT, TOOLS, Failure, Skip, need, output, photo, step, succeeds

DEBIAN = "Debian: apt-get install buildah podman runc debootstrap"
IMAGE = "localhost/imagenet-serve:verify"
STAND_IN = "localhost/python-stand-in:debian"
PORT = 18000

#: What podman wants to be told on a host without systemd and with few privileges.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=8192:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

#: The restrictions of k8s/base, in podman's words.
RESTRICTED = ["--read-only", "--tmpfs", "/tmp:size=128m", "--cap-drop", "all", "--security-opt", "no-new-privileges",
              "--memory", "2g", "--pids-limit", "512"]  # fmt: skip


@step
def image() -> str:
    """Dockerfile → image."""
    prepare()
    return build(IMAGE, "cpu", torch_index=cpu_builds())


@step
def container() -> str:
    """Run restricted: uid, writes, health, a prediction, and a request that outlives SIGTERM."""
    prepare()
    need_image(IMAGE)
    # Small batches: the warm-up of large ones takes minutes on a shared core, and nothing here needs them.
    weights = os.environ.get("IMAGENET_WEIGHTS", "random")
    with running(IMAGE, MAX_BATCH_SIZE=8, WEIGHTS=weights, DRAIN_TIMEOUT_MS=30000) as name:
        wait_ready(name)
        facts = inside(name)
        output(["podman", "healthcheck", "run", name])
        prediction = _predict()
        memory = _peak_memory(name)
        answered, code, seconds = _terminate_under_load(name)
    if code or any(status != 200 for status in answered) or not answered:
        raise Failure(f"after SIGTERM: answers {answered}, exit code {code}")
    ended = f"SIGTERM: {len(answered)} in flight answered, exit 0 after {seconds:.1f} s"
    return "; ".join((facts, prediction, memory, ended))


def build(tag: str, target: str, *, torch_index: str = "", **arguments: str) -> str:
    """Builds a target of the Dockerfile's with these build arguments; returns on what, and how large it became."""
    base = _base_image()
    given = {"BASE_IMAGE": base, **({"TORCH_INDEX_URL": torch_index} if torch_index else {}), **arguments}
    command = ["buildah", "build", "--isolation", "chroot", "--network", "host", "--pull-never"]
    command += ["--format", "docker", "--layers", "--target", target, "--tag", tag, *_lent_by_the_host()]
    command += [part for name, value in given.items() for part in ("--build-arg", f"{name}={value}")]
    output(["nice", *command, "."])
    return f"built on {base}, {size(tag):.2f} GB"


def need_image(tag: str) -> None:
    if not exists(tag):
        raise Skip("no image: the step that builds it comes first")


def exists(tag: str) -> bool:
    return succeeds(["podman", "image", "exists", tag])


def size(tag: str) -> float:
    """Gigabytes."""
    return int(json.loads(output(["podman", "image", "inspect", tag]))[0]["Size"]) / 1e9


def prepare() -> None:
    for tool in ("buildah", "podman", "runc"):
        need(tool, DEBIAN)
    if os.geteuid():
        raise Skip("needs root (rootless images need subordinate ids and fuse)")
    TOOLS.mkdir(exist_ok=True)
    (TOOLS / "containers.conf").write_text(CONTAINERS_CONF, encoding="utf-8")
    os.environ["CONTAINERS_CONF"] = str(TOOLS / "containers.conf")


def _base_image() -> str:
    """The Dockerfile's own base image if it is here or can be had, else the stand-in."""
    own = next(
        line.partition("=")[2]
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("ARG BASE_IMAGE=")
    )
    for image in (own, STAND_IN):
        if exists(image):
            return image
    # By its short name: which registry that is in is podman's configuration.
    if succeeds(["podman", "pull", "--quiet", own], timeout=300):
        return own
    return _stand_in()


def _stand_in() -> str:
    need("debootstrap", DEBIAN)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        output(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=python3,python3-venv,python3-pip,ca-certificates",
                "bookworm",
                root,
            ],
        )
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        tar = Path(folder) / "root.tar"
        output(
            [
                "tar",
                "--create",
                "--file",
                tar,
                "--directory",
                root,
                "--exclude=./var/cache/apt/archives/*.deb",
                ".",
            ]
        )
        output(["podman", "import", tar, STAND_IN])
    return STAND_IN


def _pip_setting(name: str) -> list[str]:
    done = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False)
    found = [
        line.partition("=")[2].strip("'\"")
        for line in done.stdout.splitlines()
        if line.split("=")[0].endswith(f".{name}")
    ]
    return list(dict.fromkeys(word for value in found for word in value.replace("\\n", " ").split()))


def cpu_builds() -> str:
    """$TORCH_INDEX_URL, or a folder of wheels that this host's pip already looks into and that has a CPU build."""
    if given := os.environ.get("TORCH_INDEX_URL"):
        return given
    folders = [Path(link.removeprefix("file://")) for link in _pip_setting("find-links")]
    if any(any(folder.glob("torch-*+cpu-*.whl")) for folder in folders):
        return folders[0].as_uri()
    return ""


def _lent_by_the_host() -> list[str]:
    """-v options: this host's CA bundle, and its pip configuration with the folders that it names."""
    links = [Path(p.removeprefix("file://")) for p in _pip_setting("find-links")]
    # An index's pages (…/simple) refer to files beside them.
    links += [
        Path(p.removeprefix("file://")).parent
        for name in ("index-url", "extra-index-url")
        for p in _pip_setting(name)
    ]
    folders = {str(folder) for folder in links if folder.is_absolute() and folder.is_dir()}
    lent = {folder: folder for folder in folders}
    lines = ["[global]"]
    bundle = next(iter(_pip_setting("cert")), "") or os.environ.get("PIP_CERT", "")
    if bundle and Path(bundle).exists():
        lent[bundle] = "/etc/verify-ca.crt"
        lines.append("cert = /etc/verify-ca.crt")
    for name in ("find-links", "index-url", "extra-index-url"):
        if values := _pip_setting(name):
            lines.append(f"{name} = {' '.join(values)}")
    if len(lines) > 1:
        config = TOOLS / "pip.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lent[str(config)] = "/etc/pip.conf"
    return [part for source, target in lent.items() for part in ("-v", f"{source}:{target}:ro")]


@contextmanager
def running(image: str, **settings: object) -> Iterator[str]:
    """A container of the image's, as restricted as a pod, with these settings; its name.

    On the host's network, so that no firewall tool is needed; the health command follows IMAGENET_PORT.
    """
    name = "imagenet-serve-verify"
    given = {"HOST": "127.0.0.1", "PORT": PORT, **settings}
    options = [part for key, value in given.items() for part in ("-e", f"IMAGENET_{key}={value}")]
    command = ["podman", "run", "--detach", "--name", name, "--network", "host", "-v", "/weights"]
    subprocess.run(["podman", "rm", "-f", "-v", name], capture_output=True)
    output([*command, *RESTRICTED, *options, image])
    try:
        yield name
    finally:
        subprocess.run(["podman", "rm", "-f", "-v", name], capture_output=True)


def logs(name: str) -> str:
    done = subprocess.run(["podman", "logs", name], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "service.access" not in line]
    return "\n".join(lines[-20:])


def request(method: str, path: str, body: bytes | None = None, sort: str = "image/png") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=90)
    try:
        connection.request(method, path, body, {"Content-Type": sort} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_ready(name: str) -> None:
    end = time.monotonic() + 300  # as the startup probe
    while time.monotonic() < end:
        try:
            if request("GET", "/readyz")[0] == 200:
                return
        except OSError:
            if output(["podman", "inspect", "--format", "{{.State.Running}}", name]).strip() != "true":
                raise Failure(f"it ended by itself:\n{logs(name)}") from None
        time.sleep(1)
    raise Failure(f"not ready in time:\n{logs(name)}")


def inside(name: str) -> str:
    """Facts from inside, each of which has to hold."""
    script = """
        set -u
        echo "uid $(id -u)"
        (touch /opt/x /usr/x /x) 2>/dev/null && echo WRITABLE-ROOT
        touch /tmp/x || echo NO-TMP
        for tool in gcc cc pip; do [ -e /opt/venv/bin/$tool ] && echo "HAS $tool"; done
        command -v gcc cc
        grep -s CapEff: /proc/1/status
        cat /proc/1/cmdline | tr '\\0' ' '
        true
    """
    said = output(["podman", "exec", name, "sh", "-c", script])
    for wanted in ("uid 10001", "CapEff:\t0000000000000000"):
        if wanted not in said:
            raise Failure(f"inside the container: no {wanted!r} in\n{said}")
    if any(bad in said for bad in ("WRITABLE-ROOT", "NO-TMP", "HAS ", "/gcc", "/cc")):
        raise Failure(f"inside the container:\n{said}")
    if "imagenet-serve" not in said:
        raise Failure(f"PID 1 is not the service: {said}")
    return "uid 10001, read-only, no capabilities, PID 1 is the service, healthy"


def _peak_memory(name: str) -> str:
    """What the container's cgroup has seen at most: the figure behind the manifests' memory limits."""
    script = "cat /sys/fs/cgroup/memory.peak || cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes"
    done = subprocess.run(["podman", "exec", name, "sh", "-c", script], capture_output=True, text=True)
    return (
        f"peak memory {int(done.stdout) / 2**20:.0f} MiB"
        if done.stdout.strip().isdigit()
        else "peak memory unknown"
    )


def _predict() -> str:
    status, body = request("POST", "/predict", photo())
    document = json.loads(body)
    if status != 200 or len(document["predictions"]) != 5:
        raise Failure(f"POST /predict: {status} {body[:500]!r}")
    return f"/predict 200 ({shlex.quote(document['weights'])})"


def _terminate_under_load(name: str) -> tuple[list[int], int, float]:
    """Requests whose bodies are complete before SIGTERM; their answers, the exit code and how long it took."""
    body, answers = photo(), []
    threads = [
        threading.Thread(target=lambda: answers.append(request("POST", "/predict", body)[0]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)  # sixteen forward passes take longer than this on one core, so some are in flight
    started = time.monotonic()
    output(["podman", "kill", "--signal", "TERM", name])
    for thread in threads:
        thread.join()
    code = int(output(["podman", "wait", name], timeout=300))
    return answers, code, time.monotonic() - started
