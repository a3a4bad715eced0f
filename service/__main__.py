"""``python -m service`` is ``imagenet-serve``."""

from service.host.collector import resting


def main() -> None:
    """The entry point of the command line."""
    with resting():
        from service.cli.main import main as run
    run()


if __name__ == "__main__":
    main()
