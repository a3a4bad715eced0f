#!/bin/sh
# The page in headless Chromium, against a real server: `make test-page`, or
#     tests/page/run.sh [pytest's arguments]
# IMAGENET_PAGE_URL    a server that runs already (default: one is started here)
# IMAGENET_PYTHON      the Python that has the service (default: .venv/bin/python, else python3)
# IMAGENET_PAGE_SHOTS  a folder: pictures of the page's states are written there as well
# CHROMIUM             the browser (default: the one on the path)
# What the tests need themselves goes into build/test-page, so that the service's own environment stays as it is.
set -eu
cd "$(dirname "$0")/../.."

CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$CHROMIUM" ]; then
    echo "test-page: SKIPPED, there is no Chromium here (Debian: apt-get install chromium; or set CHROMIUM)." >&2
    exit 0
fi
export CHROMIUM

venv=build/test-page
if ! "$venv/bin/python" -c 'import axe_playwright_python, playwright, pytest' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement tests/page/requirements.txt
fi

# Nothing of the project's pytest configuration: its plugins and conftest belong to the other environment.
exec "$venv/bin/python" -m pytest -c /dev/null --rootdir tests/page --confcutdir tests/page -p no:cacheprovider tests/page "$@"
