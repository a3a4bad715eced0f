"""What the GPU path does, as far as it can be known without a GPU.

trace.py      a network on a device that is not there: every operation with its tensors
kernels.py    the Triton kernels that those launch, compiled for GPUs that are not here
expected.py   bytes and FLOPs → images a second, with the arithmetic
__main__.py   the tables (``make verify-gpu``)
"""
