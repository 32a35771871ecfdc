"""``--baseline``: a report held against an earlier one, regressions told from noise (:mod:`.noise`).

Every number of the earlier run gives one :class:`Difference`: ``fail`` where it became worse by more than noise or is
missing now, ``pass`` where it did not, ``info`` where the two cannot be held against each other (another machine, other
images, another kind of bundle), with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from livemoments.validate.report.baseline_cost import compare_cost, compare_size
from livemoments.validate.report.differences import held, missing, noted
from livemoments.validate.report.noise import NOISE, allowed_loss
from livemoments.validate.report.numbers import first_few, format_value
from livemoments.validate.report_data import Check, Difference, Metric, Rung, ValidationReport

_BEHIND = {"parity": "ladder", "ladder": "ladder", "quality": "metrics", "cost": "cost", "images": "images"}
"""First parts of checks' names, and the field of the report that holds the numbers behind them."""
_OF_THE_ENGINE = ("ladder", "cost")
_SHOWN = 3


def compare_with_baseline(report: ValidationReport, baseline: ValidationReport) -> tuple[Difference, ...]:
    """What became of every number of an earlier run.

    Args:
        report: the new run.
        baseline: the earlier one.

    Returns:
        Never without a verdict: where nothing could be compared, one failure says so.
    """
    kind, images = _other_kind(report, baseline), _other_images(report, baseline)
    differences: list[Difference] = []
    if kind:
        differences.append(noted("bundle", None, None, "1", f"{kind}; parity, cost and size are not compared"))
    if images:
        differences.append(noted("dataset", None, None, "1", f"{images}; quality is not compared"))
    differences += _compare_checks(report, baseline, other_kind=bool(kind))
    if not kind:
        differences += _compare_ladder(report, baseline)
    differences += _compare_metrics(report, baseline, other_images=bool(images))
    if not images:
        differences += _compare_images(report, baseline)
    if not kind:
        differences += compare_cost(report, baseline)
        differences += compare_size(report, baseline)
    if all(difference.status == "info" for difference in differences):
        why = "nothing in the earlier report could be compared with this run"
        differences.append(held("baseline", None, None, 0.0, "1", worse=True, detail=why))
    return tuple(differences)


def _other_kind(report: ValidationReport, baseline: ValidationReport) -> str:
    """Why the bundles are not of one kind; empty if they are."""
    new, old = report.bundle, baseline.bundle
    pairs = (
        ("target", old.target, new.target),
        ("precision", old.precision, new.precision),
        ("recipe", old.recipe, new.recipe),
        ("reference policy", old.policy, new.policy),
    )
    parts = [f"{what} was {before or 'none'}, is {now or 'none'}" for what, before, now in pairs if before != now]
    return f"another kind of bundle: {'; '.join(parts)}" if parts else ""


def _other_images(report: ValidationReport, baseline: ValidationReport) -> str:
    """Why the images are not the same; empty if they are, or where one run had none."""
    new, old = report.dataset, baseline.dataset
    if new is None or old is None or new.sha256 == old.sha256:
        return ""
    was, now = (f"{data.name}, {data.images} images, sha256 {data.sha256[:8]}…" for data in (old, new))
    return f"other images: was {was}; is {now}"


def _compare_checks(report: ValidationReport, baseline: ValidationReport, *, other_kind: bool) -> Iterator[Difference]:
    """Every check must still be there; one that no other part of the report holds must not have become worse."""
    now = {check.name: check for check in report.checks}
    for old in baseline.checks:
        behind = _BEHIND.get(old.name.split(".")[0])
        if other_kind and behind in _OF_THE_ENGINE:
            continue
        new, name = now.get(old.name), f"check {old.name}"
        if new is None:
            yield missing(name, old.value, old.unit)
        elif old.status != "info" and new.status == "info":
            yield held(name, old.value, new.value, 0.0, old.unit, worse=True, detail="had a limit before, has none now")
        elif old.status != "info" and not (behind and getattr(report, behind) and getattr(baseline, behind)):
            yield _compare_check(name, old, new)


def _compare_check(name: str, old: Check, new: Check) -> Difference:
    broke = old.status == "pass" and new.status == "fail"
    if old.value is None or new.value is None:
        detail = "passed before, fails now" if broke else "not a finite number"
        return held(name, old.value, new.value, 0.0, old.unit, worse=broke, detail=detail)
    loss = new.value - old.value if old.better == "lower" else old.value - new.value
    if old.unit == "count":
        allowed = 0.0
    elif old.unit == "dB":
        allowed = NOISE.parity_db
    elif old.unit == "rel_l2":
        allowed = max(old.value * NOISE.parity_factor, NOISE.parity_floor_rel_l2) - old.value
    else:
        allowed = NOISE.other * abs(old.value)
    worse = broke or loss > allowed
    detail = f"worse by {format_value(loss, old.unit)}" if worse else ""
    return held(name, old.value, new.value, allowed, old.unit, worse=worse, detail=detail)


def _compare_ladder(report: ValidationReport, baseline: ValidationReport) -> Iterator[Difference]:
    now = {(rung.level, rung.name, rung.size): rung for rung in report.ladder}
    levels = {rung.level for rung in report.ladder}
    gone = Counter[str](rung.level for rung in baseline.ladder if rung.level not in levels)
    for level, count in gone.items():
        yield missing(f"ladder {level}", float(count), "count", f"the whole level, {count} rungs")
    for old in baseline.ladder:
        if old.level in gone:
            continue
        new, name = now.get((old.level, old.name, old.size)), f"ladder {old.level} {old.name} {old.size}"
        if new is None:
            yield missing(name, old.rel_l2, "rel_l2")
        elif old.limit_of == "psnr_db":
            yield _compare_psnr(name, old, new)
        else:
            yield _compare_rel_l2(name, old, new)


def _compare_psnr(name: str, old: Rung, new: Rung) -> Difference:
    # None in a rung that did not fail: equal pictures.
    before = NOISE.ceiling_db if old.psnr_db is None and old.status != "fail" else old.psnr_db
    now = NOISE.ceiling_db if new.psnr_db is None and new.status != "fail" else new.psnr_db
    if before is None or now is None:
        return _not_finite(name, before, now, "dB")
    loss = min(before, NOISE.ceiling_db) - min(now, NOISE.ceiling_db)
    worse = loss > NOISE.parity_db
    detail = f"{format_value(loss, 'dB')} lower" if worse else ""
    return held(name, old.psnr_db, new.psnr_db, NOISE.parity_db, "dB", worse=worse, detail=detail)


def _compare_rel_l2(name: str, old: Rung, new: Rung) -> Difference:
    if old.rel_l2 is None or new.rel_l2 is None:
        return _not_finite(name, old.rel_l2, new.rel_l2, "rel_l2")
    top = max(old.rel_l2 * NOISE.parity_factor, NOISE.parity_floor_rel_l2)
    worse = new.rel_l2 > top
    detail = f"past {format_value(top, 'rel_l2')}{f' at {new.where}' if new.where else ''}" if worse else ""
    return held(name, old.rel_l2, new.rel_l2, top - old.rel_l2, "rel_l2", worse=worse, detail=detail)


def _not_finite(name: str, before: float | None, now: float | None, unit: str) -> Difference:
    worse = before is not None and now is None
    return held(name, before, now, 0.0, unit, worse=worse, detail=f"not finite {'now' if now is None else 'before'}")


def _compare_metrics(
    report: ValidationReport, baseline: ValidationReport, *, other_images: bool
) -> Iterator[Difference]:
    now = {metric.name: metric for metric in report.metrics}
    for old in baseline.metrics:
        if old.mean is None:
            continue
        new, name = now.get(old.name), f"quality {old.name}"
        if new is None or new.mean is None:
            yield missing(name, old.mean, old.unit, "" if new is None or new.status == "ok" else new.status)
        elif not other_images:
            yield _compare_metric(name, old, (old.mean, new.mean), _pairs(report, baseline, old.name))


def _pairs(report: ValidationReport, baseline: ValidationReport, metric: str) -> list[tuple[float, float]]:
    """(before, now) of every image that has the metric in both runs."""
    before = {image.name: image.metrics.get(metric) for image in baseline.images if image.status == "ok"}
    pairs = []
    for image in report.images:
        old, new = before.get(image.name), image.metrics.get(metric)
        if image.status == "ok" and old is not None and new is not None:
            pairs.append((old, new))
    return pairs


def _compare_metric(
    name: str, old: Metric, means: tuple[float, float], pairs: Sequence[tuple[float, float]]
) -> Difference:
    """The mean over the images that both have; of a metric of the whole set (FID) the two means."""
    before, now = means
    if pairs:
        before = sum(was for was, _ in pairs) / len(pairs)
        now = sum(new for _, new in pairs) / len(pairs)
    sign = 1.0 if old.better == "lower" else -1.0
    losses = [sign * (new - was) for was, new in pairs]
    allowed = allowed_loss(losses, unit=old.unit, mean=before, better=old.better)
    loss = sign * (now - before)
    worse = loss > allowed
    over = f"over {len(pairs)} paired images" if pairs else "of the whole set"
    detail = f"worse by {format_value(loss, old.unit)} {over}" if worse else over
    return held(name, before, now, allowed, old.unit, worse=worse, detail=detail)


def _compare_images(report: ValidationReport, baseline: ValidationReport) -> Iterator[Difference]:
    good = [image.name for image in baseline.images if image.status == "ok"]
    if not good:
        return
    if not report.images:
        yield missing("images", float(len(good)), "count")
        return
    now = {image.name: image.status for image in report.images}
    yield _lost("images failed", [name for name in good if now.get(name) == "failed"], "fine before, failed now")
    yield _lost("images missing", [name for name in good if name not in now], "there before, not now")


def _lost(name: str, lost: Sequence[str], what: str) -> Difference:
    detail = f"{what}: {first_few(lost, _SHOWN)}" if lost else ""
    return held(name, 0.0, float(len(lost)), 0.0, "count", worse=bool(lost), detail=detail)
