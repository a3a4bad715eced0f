"""`service.frontend.protocol` builds on a private class of uvicorn's, which was read as it is in these versions."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import pytest
from uvicorn.protocols.http import flow_control, httptools_impl

#: SHA-256 of the files that `Protocol` overrides parts of, by the first version that has them.
READ = {
    httptools_impl.__name__: {"0.53.0": "1d4e1c579df4168433a61a01f10c628b31c1790e72dd9769d2b8633b22214033"},
    flow_control.__name__: {"0.34.0": "d39d16560df512f3ce907c329c2a0c3f5cd7165fef3b753876eae5739bf2a785"},
}


@pytest.mark.parametrize("module", [httptools_impl, flow_control], ids=lambda module: module.__name__)
def test_this_uvicorn_has_been_read(module: object) -> None:
    file = Path(str(vars(module)["__file__"]))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found in READ[vars(module)["__name__"]].values(), (
        f"uvicorn {version('uvicorn')} has another {file.name} than those that service/frontend/protocol.py was "
        "written for. Read what changed in what Protocol overrides, calls or sets of HttpToolsProtocol and "
        "RequestResponseCycle, run tests/api with it, then add its hash here and move the end of uvicorn's range in "
        "pyproject.toml."
    )
