"""The GPU path on paper: all that can be known of it without a GPU.

trace.py      a network on a fake device: every operation with its tensors
kernels.py    its Triton kernels, compiled for GPUs that are not present
expected.py   bytes and FLOPs → images a second, with the arithmetic
__main__.py   the tables (``make verify-gpu``)
"""
