"""The engine: slots, the batching policy, the loop that runs batches, and the front-end's client of it."""
