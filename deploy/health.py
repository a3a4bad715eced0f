"""The container's health command: exit 0 when the service answers 200 on a path, else 1.

    python health.py /livez      the default, and the image's HEALTHCHECK: would a restart help?
    python health.py /readyz     docker-compose.yml: does it classify?

The image holds no curl. `http.client` and not `urllib`: the latter follows `http_proxy`, and the
question never leaves this host. With IMAGENET_TLS_CERTIFICATE_FILE it is asked over TLS, and the certificate is not
checked: it is for the name that clients use.
"""

import http.client
import os
import ssl
import sys

TIMEOUT_S = 2.0  # below HEALTHCHECK's 3 s, so that this script says why and is not killed


def status(path: str) -> int:
    host, port = os.environ.get("IMAGENET_HOST", ""), int(os.environ.get("IMAGENET_PORT", "8000"))
    if host in ("", "0.0.0.0", "::"):  # every address, so this one, too
        host = "127.0.0.1"
    connection = connect(host, port)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def connect(host: str, port: int) -> http.client.HTTPConnection:
    if not os.environ.get("IMAGENET_TLS_CERTIFICATE_FILE"):
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def main(arguments: list[str]) -> int:
    path = arguments[0] if arguments else "/livez"
    try:
        answer = status(path)
    except (OSError, http.client.HTTPException) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {answer}", file=sys.stderr)
    return 0 if answer == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
