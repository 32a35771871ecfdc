"""Damaged and hostile Live Photos: written here, opened here, also as a process of its own with its memory measured."""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from pathlib import Path

from live_photo_files import (
    Size,
    apple_movie,
    box,
    exif_block,
    google_photo,
    item,
    motion_xmp,
    movie_bytes,
    mpv2,
    photo_and_frames,
    sef_trailer,
    still_bytes,
)

from livemoments.errors import LiveMomentsError

NUMBERS = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What lengths, counts and offsets are overwritten with."""
KINDS = (b"moov", b"trak", b"stsz", b"stco", b"stsc", b"stts", b"elst", b"mdhd", b"tkhd", b"stsd", b"keys", b"ilst")
KINDS += (b"meta", b"iloc", b"ipco", b"ispe", b"hvcC", b"avcC", b"mpvd", b"SEFH", b"SEFT", b"iinf", b"Item", b"ftyp")


def originals(seed: int) -> list[tuple[bytes, bytes | None]]:
    """One of each kind: the photo's file, and the video's where it has one of its own."""
    photo, frames = photo_and_frames(seed, 5, photo_size=Size(144, 192), video_size=Size(96, 128))
    movie, apple = movie_bytes(frames), apple_movie(frames, key_frame=2)
    identified = exif_block(identifier="E905E6C6-C747-4805-942F-9904A0281F02")
    xmp = motion_xmp(item("Primary", "image/heic", 0, 8), item("MotionPhoto", "video/mp4", 104), time_us=66_667)
    still = still_bytes(photo, kind="HEIF", xmp=xmp)
    trailer = sef_trailer((b"MotionPhoto_Data", mpv2(len(still) + 8, len(movie))))
    return [
        (still_bytes(photo, exif=identified), apple),
        (still_bytes(photo, kind="HEIF", exif=identified), apple),
        (google_photo(photo, movie, exif=exif_block()), None),
        (google_photo(photo, movie, kind="HEIC"), None),
        (still + box(b"mpvd", movie) + box(b"sefd", trailer), None),
        (still_bytes(photo) + sef_trailer((b"MotionPhoto_Data", movie)), None),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four injuries."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if len(changed) < 32:
            break
        at = rng.randrange(len(changed) - 8)
        way = rng.randrange(7)
        if way == 0:
            del changed[at:]
        elif way == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            changed[at : at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        elif way == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 4096)]
        else:  # a number in or ahead of a structure that readers follow
            places = [place for kind in KINDS if (place := changed.find(kind, rng.randrange(len(changed)))) >= 4]
            place = rng.choice(places) if places else at
            where = place + rng.choice((-4, 4, 8, 12, 16, 20))
            if 0 <= where <= len(changed) - 4:
                struct.pack_into(">I", changed, where, rng.choice(NUMBERS))
    return bytes(changed)


def read_all(folder: Path, still: bytes, video: bytes | None) -> str:
    """Open a Live Photo, read its frames, lay them over the photo, prepare to write it back; what came of it.

    Raises:
        Exception: anything but an error that is meant for users.
    """
    from livemoments.runtime.live_photo.clip import LiveClip
    from livemoments.runtime.live_photo.moments import moments
    from livemoments.runtime.live_photo.opened import PLAIN, open_live_photo
    from livemoments.runtime.live_photo.placement import place
    from livemoments.runtime.live_photo.scores import score_frames
    from livemoments.runtime.live_photo.writing import prepare_output

    path = folder / "a.bin"
    path.write_bytes(still)
    movie = path.with_suffix(".mov")
    movie.unlink(missing_ok=True)
    if video is not None:
        movie.write_bytes(video)
    try:
        live = open_live_photo(path, force=True)
        clip = LiveClip(live)
        placement = place(clip, force=True)
        score_frames(clip, placement.key_index)
        moment = next(moments(clip, placement, [0]))
        prepare_output(moment, live, placement.view, folder / "o.jpg", write_live=live.kind != PLAIN)
    except LiveMomentsError as error:
        if error.exit_code != 2 or not error.message:
            raise AssertionError(f"{error!r} says nothing") from error
        return type(error).__name__
    return "ok"


def main(seed: int, count: int) -> None:
    """Read mutated files and print what came of them, and the most memory that was held."""
    import time

    rng = random.Random(seed)
    files = originals(seed)
    outcomes: dict[str, int] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            still, video = files[number % len(files)]
            if video is not None and rng.random() < 0.7:
                video = mutate(video, rng)
            else:
                still = mutate(still, rng)
            started = time.process_time()
            outcome = read_all(Path(name), still, video)
            slowest = max(slowest, time.process_time() - started)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    from livemoments.heap import peak_resident_bytes

    most = peak_resident_bytes()
    print(json.dumps({"outcomes": outcomes, "slowest_s": slowest, "most_bytes": most}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
