"""The first process: it starts the others, watches them, and ends them in order."""
