"""``livemoments make-prompt``: the empty prompt's embeddings."""

from __future__ import annotations

from pathlib import Path

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, overwrite_option, result_options
from livemoments.cli.output import printable, stdout_is_ours, write_json
from livemoments.progress import Progress


@click.command("make-prompt", short_help="Encode the empty prompt by Stable Diffusion 3's text encoders.")
@click.argument("sd3", metavar="SD3", type=PATH)
@click.option("-o", "--output", metavar="DIR", type=PATH, required=True, help="Folder for the embeddings.")
@click.option(
    "--tokens",
    "t5_tokens",
    type=click.Choice(["77", "256"]),
    default="256",
    show_default=True,
    help="Tokens of the T5 part; T is 77 more (154 or 333).",
)
@click.option("--without-t5", is_flag=True, help="Zeros in place of T5's embeddings, as diffusers does without it.")
@overwrite_option
@result_options
def command(
    sd3: Path, output: Path, t5_tokens: str, without_t5: bool, overwrite: bool, progress: Progress, as_json: bool
) -> None:
    """Encode the empty prompt by the text encoders in SD3, Stable Diffusion 3's folder.

    LiveMoments' networks take the empty prompt's embeddings, which were never published. One encoder is loaded at a
    time, its weights mapped from their files: docs/weights.md says how much memory that takes. How many T5 tokens the
    networks were trained with is not known.

    DIR gets prompt_embeds.pt (T, 4096), pooled_prompt_embeds.pt (2048,), which upstream's code reads too, and
    prompt.json, which says how they were made.

    Needs the extra 'prompt'. With --json: prompt.json and the folder, {"folder", "prompt", "tokens", …}.

    \b
    Examples:
      livemoments make-prompt checkpoint/sd3 -o checkpoint/prompt
      livemoments make-prompt checkpoint/sd3 -o checkpoint/prompt --tokens 77 --overwrite
    """
    with stdout_is_ours(), needs_extra("encoding the prompt", "prompt"):
        from livemoments.weights.prompt import make_prompt

        record = make_prompt(
            sd3,
            output,
            t5_tokens=int(t5_tokens),
            with_t5=not without_t5,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        write_json({"folder": output, **record})
    else:
        t5 = "zeros in place of T5" if without_t5 else f"{t5_tokens} of them by T5"
        click.echo(printable(f"wrote {output}: the empty prompt, T = {record['tokens']}, {t5}"))
