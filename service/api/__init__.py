"""HTTP: routes, errors, schemas. Knows the engine's client, never a tensor."""
