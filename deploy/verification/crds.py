"""Custom resources against their CRDs' schemas, from the npm packages @kubernetes-models/*.

The packages' validators check what is there and ignore what they do not know; their TypeScript interfaces know every
field. So each resource goes through both: the validator, and the compiler as an object literal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verification.steps import TOOLS, Skip, need, output

PACKAGES = {
    "monitoring.coreos.com/v1": "prometheus-operator",
    "keda.sh/v1alpha1": "keda",
    "gateway.networking.k8s.io/v1": "gateway-api",
}
VERSIONS = {"prometheus-operator": "6.0.0", "keda": "2.0.0", "gateway-api": "2.0.0"}
PLACE = TOOLS / "npm"


def known(resource: dict[str, Any]) -> bool:
    return resource["apiVersion"] in PACKAGES


def validate(resources: list[dict[str, Any]]) -> None:
    """Raises `Failure` with the validator's or the compiler's words, `Skip` without npm or node."""
    _install()
    lines, calls = [], []
    for number, resource in enumerate(resources):
        api, kind = resource["apiVersion"], resource["kind"]
        module = f"@kubernetes-models/{PACKAGES[api]}/{api}"
        lines.append(f'import {{{kind} as K{number}, type I{kind} as I{number}}} from "{module}";')
        calls.append(
            f"const r{number}: I{number} = {json.dumps(resource)};\nnew K{number}(r{number}).validate();"
        )
    source = PLACE / "check.mts"
    source.write_text("\n".join([*lines, *calls]), encoding="utf-8")
    output(
        [
            PLACE / "node_modules/.bin/tsc",
            "--strict",
            "--module",
            "nodenext",
            "--target",
            "es2022",
            "--skipLibCheck",
            "--outDir",
            PLACE,
            source,
        ]
    )
    output([need("node", "Debian: nodejs"), PLACE / "check.mjs"])


def _install() -> None:
    if (PLACE / "node_modules" / ".bin" / "tsc").exists():
        return
    npm = need("npm", "Debian: npm")
    PLACE.mkdir(parents=True, exist_ok=True)
    Path(PLACE / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
    wanted = [f"@kubernetes-models/{name}@{version}" for name, version in VERSIONS.items()]
    try:
        output(
            [
                npm,
                "install",
                "--prefix",
                PLACE,
                "--no-fund",
                "--no-audit",
                "--silent",
                "typescript@5",
                *wanted,
            ]
        )
    except Exception as error:
        raise Skip(f"npm could not install the CRDs' schemas: {error}") from error
