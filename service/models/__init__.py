"""Models: networks, checkpoints and runtimes. This package imports no torch; each of its modules imports what it
needs."""
