"""The networks again, with fewer passes over memory: for accelerators, where memory is the limit.

ops.py        three operations and the door to them: torch's own anywhere, faster ones where they prove equal
kernels.py    the faster ones in Triton
fastest.py    the choice among several of one kind, timed for each size
norm.py       a batch norm as they take it
networks.py   a loaded model → a module of the same answers: folded norms, block buffers, the operations above

torchvision's DenseNet concatenates all earlier features at every layer, and writes them once more for the norm, the
ReLU and each bias. Here a block has one buffer, a layer writes its new features into it, and reads of it what it
needs while it multiplies.
"""

from service.models.fused.networks import Fused, fuse
from service.models.fused.ops import TORCH, Ops, best

__all__ = ["TORCH", "Fused", "Ops", "best", "fuse"]
