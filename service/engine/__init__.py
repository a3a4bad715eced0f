"""Slots, the batching policy, the loop that runs batches, and the front-end's door to it."""
