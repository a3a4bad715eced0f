"""A front-end: one process that serves HTTP."""
