"""One offline HTML page of a clip: film strip, key photo, each frame's numbers, and the command that restores it.

Nothing is fetched: pictures are inlined as JPEG, and the page's policy forbids every other source.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.live_photo.scores import FrameScore

MAX_FRAMES = 240
"""On one page; of longer clips every so-many-th is shown."""
THUMBNAIL_PX = 320
_PHOTO_PX = 640
_JPEG_QUALITY = 78


def thumbnail(pixels: npt.NDArray[np.uint8], profile: bytes | None, longest_px: int = THUMBNAIL_PX) -> str:
    """A picture as a ``data:`` address, in sRGB."""
    height, width = pixels.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    shown, _ = match_profile(Photo(small, icc_profile=profile), Photo(small[:1, :1]))
    bgr = cv2.cvtColor(shown.pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def photo_thumbnail(photo: Photo) -> str:
    """The key photo likewise."""
    return thumbnail(to_bit_depth(photo.pixels, 8), photo.icc_profile, _PHOTO_PX)


def shown_frames(count: int) -> Sequence[int]:
    """Which frames a page shows."""
    return range(0, count, -(-count // MAX_FRAMES))


def render(
    *,
    title: str,
    facts: Sequence[str],
    photo: str,
    scores: Sequence[FrameScore],
    thumbnails: Mapping[int, str],
    best: int,
    commands: Mapping[int, str],
) -> str:
    """The page.

    Args:
        title: the photo's name.
        facts: sentences about the Live Photo.
        photo: the key photo as a ``data:`` address.
        scores: every frame's.
        thumbnails: by frame; those of ``shown_frames``.
        best: the frame that ``--best`` takes.
        commands: what restores each frame.
    """
    frames = [_frame(scores[index], picture, best) for index, picture in thumbnails.items()]
    return _PAGE.format(
        title=html.escape(title),
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        photo=photo,
        frames="\n".join(frames),
        commands=json.dumps({str(index): commands[index] for index in thumbnails}).replace("<", "\\u003c"),
        first=best if best in thumbnails else next(iter(thumbnails)),
        shown=len(thumbnails),
        count=len(scores),
    )


def _frame(score: FrameScore, picture: str, best: int) -> str:
    marks = [word for word, holds in (("key photo", score.is_key), ("best", score.index == best)) if holds]
    label = f"frame {score.index} at {score.time_s:.2f} s"
    words = [
        f"{score.time_s:.2f} s",
        f"sharpness {score.sharpness:.2f}",
        f"motion {score.motion_px:.1f} px",
        f"from key {score.distance_px:.1f} px",
    ]
    badge = f"<b>{' · '.join(marks)}</b>" if marks else ""
    bar = f'<i style="width:{100 * score.sharpness:.0f}%"></i>'
    return (
        f'<button type="button" data-frame="{score.index}" aria-label="{label}"><img alt="{label}" src="{picture}">'
        f"<span class=bar>{bar}</span><span>#{score.index} {badge}</span>"
        f"{''.join(f'<span>{html.escape(word)}</span>' for word in words)}</button>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title} – frames</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --mark: #2a7de1 }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }}
header {{ display: grid; grid-template-columns: minmax(14rem, 26rem) 1fr; gap: 1.5rem; align-items: start }}
header img, #large {{ max-width: 100%; border-radius: 6px }}
#strip {{ display: flex; gap: .6rem; overflow-x: auto; padding: 1rem 2px }}
#strip button {{ all: unset; flex: 0 0 11rem; cursor: pointer; border: 2px solid var(--line);
 border-radius: 8px;
 padding: .4rem; display: grid; gap: .15rem; font-size: 13px; font-variant-numeric: tabular-nums }}
#strip button:focus-visible, #strip button[aria-pressed=true] {{ border-color: var(--mark) }}
#strip img {{ width: 100%; border-radius: 4px }}
#strip b {{ color: var(--mark) }}
.bar {{ display: block; height: 4px; background: var(--line); border-radius: 2px }}
.bar i {{ display: block; height: 4px; background: var(--mark); border-radius: 2px }}
pre {{ padding: .8rem; border: 1px solid var(--line); border-radius: 6px; white-space: pre-wrap;
 word-break: break-all }}
@media (max-width: 50rem) {{ header {{ grid-template-columns: 1fr }} }}
</style></head><body>
<header><figure style="margin:0"><img alt="the key photo" src="{photo}"><figcaption>the key photo</figcaption></figure>
<div><h1>{title}</h1><ul>{facts}</ul>
<p>{shown} of {count} frames. Choose one: the command restores it.</p>
<pre id="command"></pre><button type="button" id="copy">Copy the command</button></div></header>
<div id="strip">
{frames}
</div>
<img id="large" alt="the chosen frame">
<script>
const commands = {commands};
const strip = document.getElementById("strip");
function choose(button) {{
  for (const other of strip.children) other.setAttribute("aria-pressed", other === button);
  document.getElementById("command").textContent = commands[button.dataset.frame];
  document.getElementById("large").src = button.querySelector("img").src;
  button.scrollIntoView({{ inline: "center", block: "nearest" }});
}}
strip.addEventListener("click", event => {{
  const button = event.target.closest("button");
  if (button) choose(button);
}});
document.getElementById("copy").addEventListener("click", () =>
  navigator.clipboard?.writeText(document.getElementById("command").textContent));
choose(strip.querySelector('[data-frame="{first}"]'));
</script></body></html>
"""
