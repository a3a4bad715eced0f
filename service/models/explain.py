"""Where the model looked: what each position of the last block's output says for one class.

    map[i, j] = Σ_k weight[k] · features[k, i, j]

Pooling and one dense layer (a DenseNet's own head): the weights are the class's row of that layer. This is the class
activation map of Zhou et al., "Learning Deep Features for Discriminative Localization" (arXiv:1512.04150), and it
is exact: with average pooling, the map's mean plus the class's bias is its logit.

Any other head (a VGG's, or one with more layers): the weights are the logit's gradient, summed over the positions,
which `service.models.gradients` computes. This is Grad-CAM, Selvaraju et al. (arXiv:1610.02391), with the sum where
they have the mean: so both maps are in units of the logit, and the second is the first wherever the first exists (their
section 3.1). Their last step, dropping what is negative, is left to whoever draws: what speaks against a class is an
answer too.

Only the head is differentiated, on the features that the runtime has computed anyway; so it works with every
runtime, without torch, and costs a DenseNet nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.models.gradients import Floats, Head
from service.models.head import Layer, Linear, Pool, key


class Explainer:
    """Maps by a network's ``head``."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._exact = is_exact(head.layers)

    def maps(self, features: Floats, classes: Sequence[int]) -> Floats:
        """Float ``[N, C, h, w]`` and an index of the logits for each → float32 ``[N, h, w]``."""
        weights = self._rows(classes) if self._exact else self.head.gradients(features, classes).sum((2, 3))
        maps: Floats = np.einsum("nc,nchw->nhw", weights, features)
        return maps

    def _rows(self, classes: Sequence[int]) -> Floats:
        """The dense layer's own weights, ``[N, C]``."""
        dense = self.head.layers[-1]
        assert isinstance(dense, Linear)
        return self.head.arrays[key(dense) + "weight"][list(classes)]


def is_exact(layers: Sequence[Layer]) -> bool:
    """Whether a head is pooling, by mean or by largest value, and one dense layer."""
    match layers:
        case [Pool(by="avg" | "max"), Linear()]:
            return True
    return False
