"""`imagenet-serve models`: the twelve variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.cli.flags import form_flag
from service.models.catalog import VARIANTS

if TYPE_CHECKING:
    from service.cli import tables


@click.command()
@form_flag
def models(form: tables.Form) -> None:
    """List the twelve variants with their size and published accuracy."""
    from service.cli import tables

    rows = [
        {
            "model": variant.name,
            "parameters": variant.parameters,
            "10^9 multiply-adds": variant.gflops,
            "top-1 %": variant.top1,
            "top-5 %": variant.top5,
            "download MiB": variant.download_mb,
        }
        for variant in VARIANTS.values()
    ]
    tables.show(rows, form)
