"""The HTTP interface: routes, errors, schemas. It uses the engine's client and never imports torch."""
