"""For every test: torchvision can be imported, whatever build it is, and metrics have their folder."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from PIL import Image

from service.host.leftovers import Claim
from service.observability import metrics

# The same examples in every run: a failure is about the change at hand. `make test EXPLORE=1` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("EXPLORE") else "same")

#: Before prometheus_client is imported: that is when it decides to keep its values in files.
_METRICS = metrics.prepare()
#: So that no service that starts meanwhile takes the folder for a dead one's.
_CLAIM = Claim(_METRICS)


#: Whether pytest-xdist has started this process for another one.
_WORKER = "PYTEST_XDIST_WORKER" in os.environ
#: What is converted here, and in the services that are started here, is cached here, once for all tests: xdist's
#: workers find the folder of the process that started them.
if not _WORKER:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="imagenet-serve-test-cache-")


#: Pillow's own limit.
_PIXELS = Image.MAX_IMAGE_PIXELS


@pytest.fixture(autouse=True)
def _pillow_s_limit() -> None:
    """Each decode in this process sets it for its own picture; a test that asks Pillow itself gets Pillow's own."""
    Image.MAX_IMAGE_PIXELS = _PIXELS


@pytest.fixture(scope="session", autouse=True)
def _metrics_folder() -> Iterator[None]:
    yield
    for item in gc.get_objects():  # prometheus_client never closes its files
        if type(item).__name__ == "MmapedDict":
            item.close()
    metrics.clean_up(_METRICS)


def pytest_unconfigure() -> None:
    """After the last test of all workers."""
    if not _WORKER:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
