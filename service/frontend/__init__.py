"""A front-end: one process that speaks HTTP."""
