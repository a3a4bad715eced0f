"""A model on a device that copies, computes and answers at the same time.

device.py         what is wanted of such a device: streams, events, graphs, memory. tests/models/cuda has a hostile fake
torch_device.py   the same by torch.cuda
program.py        a network as a function on the device
buffers.py        the memory of one batch in flight
prepare.py        a program → one captured and proved step for each bucket
in_flight.py      one batch in flight
measure.py        how long batches take
pipeline.py       `CudaRunner`: buckets, two batches in flight, out of memory, the canary
"""
