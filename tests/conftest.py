"""For every test: torchvision can be imported, whatever build it is, and metrics have their folder."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from PIL import Image

from service.host.leftovers import Claim
from service.models import torchvision_import as torchvision_import  # imports torchvision as it has to be
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


#: A shell starts what runs in the background with Ctrl-C ignored, and `nohup` with SIGHUP; programs inherit that. Here
#: they stay without effect, and a service that a test starts is as one in the foreground.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


#: Pillow's own limit.
_PIXELS = Image.MAX_IMAGE_PIXELS


@pytest.fixture(autouse=True)
def _as_it_was() -> None:
    """Each decode in this process sets Pillow's limit for its own picture; a test that asks Pillow itself gets Pillow's
    own. Beside other workers torch computes in one thread: the networks are small, and more threads would spin while
    they wait for each other. (What loads a model for serving takes all cores.)
    """
    Image.MAX_IMAGE_PIXELS = _PIXELS
    if _WORKER:
        torch.set_num_threads(1)


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
