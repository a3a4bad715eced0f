"""The first process of the service. It starts the others, watches them, and ends them in order."""
