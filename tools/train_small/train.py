"""Train the small checkpoint.

    python tools/train_small/train.py vae      RUN [--photos DIR ...] [--steps N]
    python tools/train_small/train.py networks RUN [--photos DIR ...] [--steps N]
    python tools/train_small/train.py write    RUN -o DIR

RUN holds the state, log and sample sheets of a run; the same command goes on where it was interrupted, and --steps may
be changed then. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from diffusers import AutoencoderKL
from model import LiveMomentsModel
from networks import NetworkTraining, train_networks
from photographs import Photograph, WindowSampler, load_photographs
from sheets import Sheet
from state import load_state
from vae import VaeTraining, train_vae
from write import write_checkpoint

from livemoments.cli.progress import reporter
from livemoments.errors import CheckpointError, LiveMomentsError
from livemoments.progress import Progress
from livemoments.reference.checkpoint_sizes import SMALL

VALIDATION = "sklearn.datasets/images/china.jpg"
"""The networks are not trained on this photograph: the sample sheets show it."""
_NETWORKS = NetworkTraining()


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for a mistake of the caller's."""
    options = _parser().parse_args(arguments)
    try:
        options.job(options, reporter(quiet=options.quiet))
    except LiveMomentsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last saved step", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True, metavar="JOB")
    for name, job, steps, text in (
        ("vae", _vae, VaeTraining().steps, "the VAE"),
        ("networks", _train_networks, _NETWORKS.steps, "both networks and the motion encoder; needs the VAE"),
    ):
        sub = jobs.add_parser(name, help=f"train {text}")
        sub.set_defaults(job=job)
        sub.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
        sub.add_argument("--photos", metavar="DIR", type=Path, action="append", default=[], help="more photographs")
        sub.add_argument("--steps", type=_positive, default=steps, metavar="N", help=f"optimizer steps ({steps})")
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="of everything (0)")
        sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = jobs.add_parser("write", help="write the checkpoint")
    sub.set_defaults(job=_write, quiet=True)
    sub.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the checkpoint's folder")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _photographs(options: argparse.Namespace) -> tuple[list[Photograph], list[Photograph]]:
    """Those to train on, and those of the sample sheets."""
    found = load_photographs(options.photos, least_px=_NETWORKS.scene_px)
    held_out = [photograph for photograph in found if photograph.name == VALIDATION]
    return [photograph for photograph in found if photograph.name != VALIDATION], held_out


def _vae(options: argparse.Namespace, progress: Progress) -> None:
    training = VaeTraining(steps=options.steps, seed=options.seed)
    sampler = WindowSampler(_photographs(options)[0])
    train_vae(SMALL, training, sampler, options.run / "vae", progress).save_pretrained(_vae_result(options.run))


def _train_networks(options: argparse.Namespace, progress: Progress) -> None:
    training = replace(_NETWORKS, steps=options.steps, seed=options.seed)
    vae = _trained_vae(options.run)
    photographs, held_out = _photographs(options)
    sheet = Sheet(vae, held_out, tile_px=training.tile_px, scene_px=training.scene_px)
    sampler = WindowSampler(photographs)
    train_networks(SMALL, training, vae, sampler, sheet, options.run / "networks", progress)


def _write(options: argparse.Namespace, _: Progress) -> None:
    vae = _trained_vae(options.run)
    state = load_state(options.run / "networks")
    if state is None:
        raise CheckpointError(options.run / "networks", "nothing was trained there", fix="run `train.py networks`")
    model = LiveMomentsModel(SMALL)
    model.load_state_dict(state["average"]["weights"]["model"])
    written = write_checkpoint(options.output, SMALL, vae, model)
    print(f"{options.output}: {written / 1e6:.2f} MB of weights, after {state['done']} steps")


def _vae_result(run: Path) -> Path:
    return run / "vae" / "result"


def _trained_vae(run: Path) -> AutoencoderKL:
    folder = _vae_result(run)
    if not (folder / "config.json").is_file():
        raise CheckpointError(folder, "holds no trained VAE", fix="run `train.py vae` first, to its end")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
