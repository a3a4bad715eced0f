"""What a drill leaves behind: each promise, what was seen of it, and whether it was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Report:
    """One drill. ``tried`` says what was done, in a sentence with its numbers."""

    name: str
    tried: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def promise(self, text: str, kept: bool, seen: Any) -> None:
        """``seen`` is the figure that decided."""
        self.rows.append({"drill": self.name, "promise": text, "seen": seen, "kept": "yes" if kept else "NO"})

    def figure(self, text: str, seen: Any) -> None:
        """Something worth knowing that nobody promised."""
        self.rows.append({"drill": self.name, "promise": f"({text})", "seen": seen, "kept": ""})

    @property
    def kept(self) -> bool:
        return all(row["kept"] != "NO" for row in self.rows)


def spread(values: Sequence[float], scale: float = 1000, digits: int = 1) -> str:
    """Median, 99th percentile and largest of ``values``, in milliseconds unless said."""
    if not len(values):
        return "none"
    p50, p99, largest = (np.percentile(values, point) * scale for point in (50, 99, 100))
    return f"p50 {p50:.{digits}f}, p99 {p99:.{digits}f}, max {largest:.{digits}f} (of {len(values)})"
