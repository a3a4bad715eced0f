"""`imagenet-serve completion`: the script that lets a shell complete the command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  eval "$(imagenet-serve completion bash)"       in ~/.bashrc
    zsh:   eval "$(imagenet-serve completion zsh)"        in ~/.zshrc, after compinit
    fish:  imagenet-serve completion fish | source        in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    group = click.get_current_context().find_root().command
    click.echo(kind(group, {}, "imagenet-serve", "_IMAGENET_SERVE_COMPLETE").source())
