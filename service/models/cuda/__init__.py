"""A model on a device that copies, computes and returns results at the same time.

device.py         such a device as protocols: streams, events, graphs, memory. tests/models/cuda has a hostile fake
torch_device.py   the device by torch.cuda
program.py        a network as a function on the device
buffers.py        the memory of one batch in flight
prepare.py        a program → one captured and checked step for each bucket
in_flight.py      one batch in flight
measure.py        times of batches
pipeline.py       `CudaRunner`: buckets, two batches in flight, out of memory, the canary
jpegs.py          `decode=gpu`: files → pixels, resized by resize.py, and in one launch by resize_kernel.py
"""
