"""Where the model looked: what each position of the last block's output says for one class.

    map[i, j] = Σ_k weight[k] · features[k, i, j]

Pooling and one dense layer (a DenseNet's own head): the weights are the class's row of that layer. This is the class
activation map of Zhou et al., "Learning Deep Features for Discriminative Localization" (arXiv:1512.04150), and it
is exact: with average pooling, the map's mean plus the class's bias is its logit.

Any other head (a VGG's, or one with more layers): the weights are the logit's gradient, summed over the
positions. This is Grad-CAM, Selvaraju et al. (arXiv:1610.02391), with the sum where they have the mean: so both maps
are in units of the logit, and the second is the first wherever the first exists (their section 3.1). Their last
step, dropping what is negative, is left to whoever draws: what speaks against a class is an answer too.

Only the head is differentiated, on the features that the runtime has computed anyway; so it works with every
runtime, and costs a DenseNet nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.models.head import Layer, Linear, Pool
from service.models.network import Network

#: Bytes of weights that are worth looking for.
_LARGE = 1 << 20


class Explainer:
    """The head of a network that has one, which it shares with the network but keeps without the rest."""

    def __init__(self, network: Network) -> None:
        self._exact = is_exact(network.layers)
        self.head: nn.Module = network.head()

    def borrow(self, arrays: Iterable[NDArray[np.float32]]) -> None:
        """Lets large weights be those of ``arrays`` that hold the same numbers.

        A VGG's head is half a gigabyte. A converted model has it too, mapped from its file: borrowed from there
        it costs no memory until somebody asks for a map, and then pages that can be given back.
        """
        found = [array for array in arrays if array.nbytes >= _LARGE]
        for parameter in self.head.parameters():
            for array in found:
                if array.size == parameter.numel() and array.dtype == np.float32:
                    same = _as_tensor(array).view(parameter.shape)
                    if torch.equal(same, parameter):
                        parameter.data = same
                        break

    def maps(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """Float ``[N, C, h, w]`` and an index of the logits for each → float32 ``[N, h, w]`` on the CPU."""
        beside = next(self.head.parameters())
        features = features.to(beside.device, beside.dtype)
        weights = self._rows(classes) if self._exact else self._gradients(features, classes)
        return torch.einsum("nc,nchw->nhw", weights.float(), features.float()).cpu()

    def _rows(self, classes: Sequence[int]) -> Tensor:
        """The dense layer's own weights, ``[N, C]``."""
        layer = next(module for module in self.head.modules() if isinstance(module, nn.Linear))
        return layer.weight[list(classes)]

    def _gradients(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """Of each image's logit by its features, summed over the positions, ``[N, C]``."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = features.detach().clone().requires_grad_()
            logits = self.head(leaf)
            # One backward pass for all: an image's logit does not depend on another's features.
            (gradients,) = torch.autograd.grad(logits[range(len(classes)), list(classes)].sum(), leaf)
        return gradients.sum((2, 3))


def is_exact(layers: Sequence[Layer]) -> bool:
    """Whether a head is pooling, by mean or by largest value, and one dense layer."""
    match layers:
        case [Pool(by="avg" | "max"), Linear()]:
            return True
    return False


def _as_tensor(array: NDArray[np.float32]) -> Tensor:
    with warnings.catch_warnings():
        # That nobody may write there. Nobody does.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
