"""``python -m service`` is ``imagenet-serve``."""

from service.host.collector import resting


def main() -> None:
    """Runs the command line; the entry point ``imagenet-serve`` of the package."""
    with resting():
        from service.cli.main import main as run
    run()


if __name__ == "__main__":
    main()
