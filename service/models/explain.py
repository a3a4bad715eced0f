"""Class activation maps: how much each position of the last block's output adds to one class.

    map[i, j] = Σ_k weight[k] · features[k, i, j]

For pooling and one dense layer (a DenseNet's own head), the weights are the class's row of that layer. This is the
class activation map of Zhou et al., "Learning Deep Features for Discriminative Localization" (arXiv:1512.04150), and
it is exact: with average pooling, the map's mean plus the class's bias is the logit.

For any other head (a VGG's, or one with more layers), the weights are the logit's gradient, summed over the positions
(`service.models.gradients`). This is Grad-CAM, Selvaraju et al. (arXiv:1610.02391), with a sum instead of their mean.
So both maps are in units of the logit, and both are equal wherever the first exists (their section 3.1). Their last
step, which drops negative values, is left to the drawing: evidence against a class is information too.

Only the head is differentiated, on features that the runtime has computed anyway. So maps work with every runtime and
without torch, and cost a DenseNet nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.models.gradients import Floats, Head
from service.models.head import Layer, Linear, Pool, key


class Explainer:
    """Computes maps for a network with this ``head``."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._exact = is_exact(head.layers)

    def maps(self, features: Floats, classes: Sequence[int]) -> Floats:
        """Returns maps, float32 ``[N, h, w]``, of features ``[N, C, h, w]`` for one index of the logits each."""
        weights = self._rows(classes) if self._exact else self.head.gradients(features, classes).sum((2, 3))
        maps: Floats = np.einsum("nc,nchw->nhw", weights, features)
        return maps

    def _rows(self, classes: Sequence[int]) -> Floats:
        """Rows of the dense layer's weights, ``[N, C]``."""
        dense = self.head.layers[-1]
        assert isinstance(dense, Linear)
        return self.head.arrays[key(dense) + "weight"][list(classes)]


def is_exact(layers: Sequence[Layer]) -> bool:
    """Returns True if a head is average or max pooling and one dense layer."""
    match layers:
        case [Pool(by="avg" | "max"), Linear()]:
            return True
    return False
