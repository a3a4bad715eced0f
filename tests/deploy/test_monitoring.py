"""That rules, dashboard and service mean the same by a probe."""

from __future__ import annotations

import json
import re
from pathlib import Path

from service.api.app import create_app
from service.api.open_inference import router as open_inference
from service.observability.metrics import PROBES

PLACE = Path(__file__).parent.parent.parent / "k8s" / "overlays" / "monitoring"


def test_the_rules_leave_out_the_probes_that_the_service_does() -> None:
    rules = (PLACE / "rules.yml").read_text()
    left_out = re.findall(r'route!~"([^"]*)"', rules)
    assert len(left_out) > 10
    assert set(left_out) == {PROBES.pattern}


def test_what_is_a_probe() -> None:
    routes = {getattr(route, "path", "") for route in open_inference.routes}
    probes = {route for route in routes if PROBES.fullmatch(route)}
    assert probes == {route for route in routes if route.endswith(("/ready", "/live"))}
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert PROBES.fullmatch(path)
    for path in ("/predict", "/", "/v2", "/v2/models/x/infer", "/readyz/x", "/model"):
        assert not PROBES.fullmatch(path)
    assert callable(create_app)


def test_the_dashboard_leaves_them_out_too() -> None:
    dashboard = json.loads((PLACE / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for pattern in re.findall(r'route!~"([^"]*)"', "\n".join(queries)):
        assert pattern == PROBES.pattern
