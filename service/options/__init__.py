"""Settings taken apart: devices, several models, and words for what a value may be."""
