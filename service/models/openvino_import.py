"""Import OpenVINO without the messages that it would send home.

``import openvino`` makes a client id in ``~/intel`` and reports the import, and every conversion, to Google
Analytics unless the package ``openvino_telemetry`` is missing; then its own stand-in, which does nothing, takes
the place (``openvino/tools/ovc/telemetry_stub.py``; NNCF has the same). A server does not phone, and a
container's home may not even be writable. So that package counts as missing in this process.

Every module that wants OpenVINO gets it from here: ``from service.models.openvino_import import openvino``. Raises
`ImportError` where it is not installed.
"""

import logging
import sys

#: None is what makes an import fail. A program that has the package already decided for itself.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

#: On log_level=debug its frontend would log each layer of the graph.
logging.getLogger("openvino").setLevel(logging.WARNING)

__all__ = ["openvino"]
