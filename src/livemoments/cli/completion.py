"""``livemoments completion``: the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from livemoments.errors import UsageError

# Where each shell looks for the script, and what else it needs.
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/livemoments (needs bash 4.4 and the package bash-completion)",
    "zsh": "~/.zfunc/_livemoments, with 'fpath+=~/.zfunc' before compinit in ~/.zshrc",
    "fish": "~/.config/fish/completions/livemoments.fish",
}


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(list(_PLACES)))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    Commands, options, their choices and file names are completed with the Tab key. Save the script where the shell
    looks for it, then open a new shell.

    \b
    bash 4.4 or newer, with the package bash-completion:
      livemoments completion bash > ~/.local/share/bash-completion/completions/livemoments
    \b
    zsh, with 'fpath+=~/.zfunc' before compinit in ~/.zshrc:
      livemoments completion zsh > ~/.zfunc/_livemoments
    \b
    fish:
      livemoments completion fish > ~/.config/fish/completions/livemoments.fish
    """
    completion = get_completion_class(shell)
    root = click.get_current_context().find_root()
    if completion is None or not isinstance(root.command, click.Group):
        raise UsageError(f"this release of click has no completion for {shell}", fix="pip install --upgrade click")
    script = completion(root.command, {}, "livemoments", "_LIVEMOMENTS_COMPLETE").source()
    # Last, not first: zsh reads the first line.
    click.echo(f"{script.rstrip()}\n\n# Save this as {_PLACES[shell]}.")
