"""``python -m service`` is ``imagenet-serve``."""

from service.cli import main

if __name__ == "__main__":
    main()
