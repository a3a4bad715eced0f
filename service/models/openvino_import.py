"""Imports OpenVINO without its telemetry.

``import openvino`` makes a client id in ``~/intel`` and reports the import, and every conversion, to Google
Analytics. If the package ``openvino_telemetry`` is missing, OpenVINO uses a stand-in that does nothing
(``openvino/tools/ovc/telemetry_stub.py``; NNCF does the same). A server must not phone home, and a container's home
may not be writable. So this process marks that package as missing.

Every module imports OpenVINO from here: ``from service.models.openvino_import import openvino``. Raises `ImportError`
where it is not installed.
"""

import logging
import sys

#: None makes an import fail. A program that has imported the package already keeps it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

#: With log_level=debug, its frontend would log each layer of the graph.
logging.getLogger("openvino").setLevel(logging.WARNING)

__all__ = ["openvino"]
