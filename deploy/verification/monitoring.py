"""Rules and dashboard, without a server: promtool, and that each alert has its runbook and its tests."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from verification.steps import QUICKLY, ROOT, Failure, need, output, step

PLACE = ROOT / "k8s" / "overlays" / "monitoring"
PROMTOOL = "Debian: prometheus"

#: Grafana's variables, as they are where everything is selected.
VARIABLES = {
    "$__rate_interval": "1m",
    "$namespace": ".*",
    "$service": ".*",
    "$route": "/predict",
    "$stage": "inference",
}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((PLACE / "rules.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel's title, PromQL) with Grafana's variables filled in."""
    dashboard = json.loads((PLACE / "dashboard.json").read_text(encoding="utf-8"))
    found = [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p.get("targets", [])]
    found += [("annotation", a["expr"]) for a in dashboard["annotations"]["list"]]
    return [(title, _filled(expression)) for title, expression in found]


def _filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@step
def alerts() -> str:
    """promtool's checks and tests, and what ties an alert to its section and its cases."""
    promtool = need("promtool", PROMTOOL)
    output([ROOT / "deploy" / "generate", "--check"])
    output([promtool, "check", "rules", PLACE / "rules.yml"])
    tests = sorted(PLACE.glob("*_test.yml"))
    output([promtool, "test", "rules", *(tests if not QUICKLY else [PLACE / "rules_test.yml"])])
    cases = "".join(path.read_text(encoding="utf-8") for path in tests)
    runbook = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in rules() if "alert" in rule]
    wrong = [f"{n} has no section in docs/OPERATIONS.md" for n in names if f"### {n}\n" not in runbook]
    wrong += [
        f"{n} has no case in which it fires"
        for n in names
        if not re.search(rf"alertname: {n}\n\s+eval_time: \S+\n\s+exp_alerts:\n", cases)
    ]
    wrong += [
        f"docs/OPERATIONS.md has {n}, which is no alert"
        for n in re.findall(r"^### (Imagenet\w+)", runbook, re.M)
        if n not in names
    ]
    if wrong:
        raise Failure("; ".join(wrong))
    return f"promtool: {len(rules())} rules, {len(names)} alerts tested and with a runbook"


@step
def dashboard() -> str:
    """Every query parses and asks for metrics that exist. (Step `scrape` runs them.)"""
    promtool = need("promtool", PROMTOOL)
    queries = dashboard_queries()
    unknown = {
        m
        for _, q in [*queries, *((r.get("alert", r.get("record")), r["expr"]) for r in rules())]
        for m in _metrics(q)
    } - _documented()
    if unknown:
        raise Failure(f"not a metric of docs/OPERATIONS.md: imagenet_{', imagenet_'.join(sorted(unknown))}")
    records = [{"record": f"query:{n}", "expr": query} for n, (_, query) in enumerate(queries)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queries.yml"
        path.write_text(
            yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}), encoding="utf-8"
        )
        output([promtool, "check", "rules", path])
    return f"{len(queries)} queries"


def _documented() -> set[str]:
    """The metrics of the table that a test holds against the code."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `imagenet_(\w+)", text, re.MULTILINE))


def _metrics(query: str) -> set[str]:
    names = re.findall(
        r"(?<![\w:])imagenet_([a-z_]+)", query
    )  # a recorded series has a colon before or after
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
