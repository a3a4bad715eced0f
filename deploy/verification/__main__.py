"""Run the steps in order, or those that were named."""

import sys
import time
import traceback

from verification import chart, cluster, files, image, image_baked, manifests, monitoring, scrape  # noqa: F401  # its steps
from verification.steps import STEPS, Failure, Skip

#: Seconds together, with nothing but Python, kubectl and promtool; what is not there is skipped.
QUICK = ("agreement", "helm", "alerts", "dashboard", "declared", "locks")


def run(name: str) -> bool:
    started = time.monotonic()
    try:
        word, text = "ok", STEPS[name]()
    except Skip as reason:
        word, text = "skipped", str(reason)
    except Failure as reason:
        word, text = "FAILED", str(reason)
    except Exception:  # a fault of the step's own: the others have still something to say
        word, text = "FAILED", traceback.format_exc()
    print(f"{word:8} {name:16} {time.monotonic() - started:5.1f} s  {text}", flush=True)
    return word != "FAILED"


def main(names: list[str]) -> int:
    if names == ["--list"]:
        print("\n".join(f"{name}  (quick)" if name in QUICK else name for name in STEPS))
        return 0
    if names == ["--quick"]:
        names = list(QUICK)
    if unknown := [name for name in names if name not in STEPS]:
        print(f"verify: no step {', '.join(unknown)}; there are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    passed = [run(name) for name in names or STEPS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
