"""Bytes to pixels. `service.preprocess` is the door."""
