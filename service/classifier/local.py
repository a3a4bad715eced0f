"""A classifier with a model in this process: threads decode images while batches run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from service.classifier import Classification, Identity, Image, in_order, read, unreadable
from service.errors import ConfigurationError, NotANumber, RequestError
from service.preprocess import prepare
from service.settings import Settings, available_cores
from service.shared.outputs import OutputKind
from service.shared.ranking import Ranking, finite

Pixels = NDArray[np.uint8]

#: Batches that are decoded ahead: the next one, and one more to keep the decoders busy.
_AHEAD = 2


class LocalClassifier:
    """Classifies with the settings' model. Raises `StartError` if the model cannot be loaded.

    The model runs in the calling thread, which must always be the same one; other threads decode.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        warm: bool = False,
        keep_logits: bool = False,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        """``tell`` is called with each step of the start, in words.

        With ``warm`` the model is warmed up, which measures the best batch size if the setting is auto; that pays in a
        long run. With ``keep_logits`` each result carries a copy of its logits.
        """
        from service.models import serving

        loaded = serving.load(settings, lambda state, detail: tell(detail or state))
        self._card = loaded.card()
        if not self._card.classes:
            raise ConfigurationError(f"{self._card.weights} is a network without classes; it cannot classify")
        if warm or loaded.runner.in_flight > 1:  # a runner that overlaps batches runs only after a warm-up
            loaded.runner.warm_up()
        self._settings = settings
        self._keep_logits = keep_logits
        self._runner = loaded.runner
        self._ranking = Ranking.of(self._card.classes, None, settings.top_k, "softmax")
        self._pixels = np.empty((self._runner.max_batch_size, *self._card.image), np.uint8)
        self._results = np.empty((self._runner.max_batch_size, self._runner.results), np.float32)

    @property
    def identity(self) -> Identity:
        card = self._card
        return Identity(card.name, card.weights, card.classes, card.top1, card.top5)

    def classify(self, images: Iterable[Image]) -> Iterator[Classification]:
        """One result for each image, in their order."""
        size = self._runner.max_batch_size
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
            prepared = in_order(pool, self._prepare, images, ahead=_AHEAD * size)
            while batch := list(islice(prepared, size)):
                yield from self._classify(batch)

    def _prepare(self, image: Image) -> Pixels | Classification:
        """The image's preprocessed pixels, or the result that says what is wrong with it."""
        pixels = np.empty(self._card.image, np.uint8)
        limit, fast = self._settings.max_image_pixels, self._settings.decode == "fast"
        try:
            prepare(read(image), self._card.preprocessing, pixels, max_pixels=limit, fast=fast)
        except OSError as error:
            return unreadable(error)
        except RequestError as error:
            return Classification(error=str(error))
        return pixels

    def _classify(self, batch: list[Pixels | Classification]) -> Iterator[Classification]:
        good = [item for item in batch if not isinstance(item, Classification)]
        for row, pixels in enumerate(good):
            self._pixels[row] = pixels
        if good:
            wanted = [OutputKind.CLASSIFY] * len(good)
            self._runner.run(self._pixels, list(range(len(good))), wanted, self._results)
        rows = iter(self._results[:, : len(self._card.classes)])
        for item in batch:
            yield item if isinstance(item, Classification) else self._answer(next(rows))

    def _answer(self, logits: NDArray[np.float32]) -> Classification:
        try:
            predictions = self._ranking.predictions(finite(logits), self._card.classes, self._card.activation)
        except NotANumber as error:
            return Classification(error=str(error))
        return Classification(tuple(predictions), logits=logits.copy() if self._keep_logits else None)
