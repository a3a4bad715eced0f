"""Judges tensors beside a network that are no part of a VGG or a DenseNet.

Losses and metrics are left out with a warning. Anything else may change what the network computes (an attention, a
learned pooling, a temperature), so it is refused: an answer without it would be another model's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from service.errors import CheckpointError
from service.models.checkpoints.tensors.search import Flat

_log = logging.getLogger(__name__)

#: Words in the names of tensors that do not affect answers: losses, metrics, counters, training state.
_HARMLESS = re.compile(
    r"(?:^|[._])(?:criteri(?:on|a)\w*|\w*loss(?:es)?\w*|\w*metrics?\w*|\w*acc(?:uracy)?\w*|\w*(?:auroc|auc|f1|iou|dice|kappa"
    r"|recall|precision|confmat|confusion)\w*|(?:class|cls|pos|sample)_?weights?|optim\w*|(?:lr_)?sched\w*|scaler|ema_decay"
    r"|decay|steps?|global_step|epochs?|best\w*|initted|n_averaged|num_updates|queue\w*|_?extra_state|lpips\w*|fid\w*"
    r"|mixup|cutmix|augment\w*|(?:img|image|pixel)?_?(?:mean|std))(?:[._]|$)",
    re.I,
)


def refuse(flat: Flat, others: Iterable[str], within: str, name: str) -> None:
    """Raises `CheckpointError` for a tensor that may change the answers.

    ``others`` are the keys in ``flat`` that no network or head has; those in the module ``within`` are judged by
    name.
    """
    left = [key for key in others if key.startswith(within) and flat[key].is_floating_point()]
    for key in left:
        if not _HARMLESS.search(key.removeprefix(within)):
            raise CheckpointError(
                f"'{name}' holds '{key}' {list(flat[key].shape)} beside the layers of its network, and its "
                "effect is unknown; if answers without it are right, add ?head= and the name of the head"
            )
    layers = list(dict.fromkeys(key.rpartition(".")[0] or key for key in left))
    if layers:
        some = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
        _log.warning("%s: left out are %s, which are no part of the network", name, some)
