"""Axes, the front, and the expressions of ``--pick``: what is read, what is refused, and which point wins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sweep_samples import sample_point

from livemoments.errors import UsageError
from livemoments.profiles.sweeps.axes import parse_axis
from livemoments.profiles.sweeps.objectives import compared_by, find_objectives, front_of, value_of
from livemoments.profiles.sweeps.pick import Bound, check_wish, parse_wish, pick
from livemoments.types import Size

# Axes


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=6,4, 3,4", "steps", (6, 4, 3)),
        ("reference=frozen,every-2,frozen@1", "reference", ("frozen", "every-2", "frozen@1")),
        ("kv-dtype=native,fp8", "kv-dtype", ("native", "fp8")),
        ("tile=64,128x96", "tile", (Size(64, 64), Size(96, 128))),
        ("flow=engine,dis", "flow", ("engine", "dis")),
        ("residency=phases", "residency", ("phases",)),
        ("vae-tile=64,96x128", "vae-tile", (Size(64, 64), Size(128, 96))),
        ("pcr-grid=1,8", "pcr-grid", (1, 8)),
    ],
)
def test_an_axis_is_read(text: str, name: str, values: tuple[object, ...]) -> None:
    axis = parse_axis(text)
    assert (axis.name, axis.values) == (name, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps", "has no '='"),
        ("speed=1", "'speed' is nothing that a sweep can vary"),
        ("steps=6,,3", "'' is not a whole number"),
        ("steps=6,x", "'x' is not a whole number"),
        ("steps=0", "'0' is not a whole number"),
        ("steps=²", "'²' is not a whole number"),
        ("reference=froze", "'froze' is not a reference policy"),
        ("kv-dtype=int4", "'int4' is not one of native"),
        ("tile=64y64", "'64y64' is not a size"),
        ("vae-tile=whole", "'whole' is not a size"),
        ("pcr-grid=0", "'0' is not a whole number"),
        ("flow=raft", "'raft' is not one of engine, dis"),
    ],
)
def test_an_axis_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axis(text)
    assert said in caught.value.message
    assert text in caught.value.message
    assert caught.value.fix


# The front


def test_the_front_is_what_no_point_beats() -> None:
    rng = np.random.default_rng()
    points = [
        sample_point(
            str(number),
            latency_s=float(rng.integers(1, 6)),
            memory_bytes=int(rng.integers(1, 6)) * 10**8,
            bytes=int(rng.integers(1, 4)) * 10**8,
            drop=float(rng.integers(0, 5)) / 10,
        )
        for number in range(60)
    ]
    objectives = find_objectives(points)
    names = compared_by(objectives)
    assert names == ("latency", "memory", "size", "quality_drop")
    front = front_of(points, [one for one in objectives if one.name in names])
    rows = {point.id: np.array([value_of(point, name) for name in names], np.float64) for point in points}
    for one, row in rows.items():
        is_beaten = any((other <= row).all() and (other < row).any() for other in rows.values())
        assert (one in front) != is_beaten
    assert 0 < len(front) < len(points)


def test_without_truth_quality_is_the_distance_to_fp32() -> None:
    points = [sample_point("equal", drop=None, fidelity_db=math.inf), sample_point("near", drop=None, fidelity_db=50.0)]
    objectives = find_objectives(points)
    assert compared_by(objectives) == ("latency", "memory", "size", "fidelity")
    assert front_of(points, objectives) == {"equal"}


def test_a_failed_point_is_not_on_the_front() -> None:
    points = [sample_point("slow", latency_s=9.0), sample_point("failed", error="it broke")]
    assert front_of(points, find_objectives(points)) == {"slow"}


# Expressions


def test_an_expression_is_read() -> None:
    wish = parse_wish("memory<8GB,  quality_drop <= 0.2 dB, latency<1.5min, ssim_y>0.9, max psnr_y")
    assert wish.bounds == (
        Bound("memory", "<", 8e9, "memory<8GB"),
        Bound("quality_drop", "<=", 0.2, "quality_drop <= 0.2 dB"),
        Bound("latency", "<", 90.0, "latency<1.5min"),
        Bound("ssim_y", ">", 0.9, "ssim_y>0.9"),
    )
    assert wish.best == ("max", "psnr_y")
    assert parse_wish("size<1GiB").bounds[0].limit == 2**30
    assert parse_wish("min memory").bounds == ()


@pytest.mark.parametrize(
    ("text", "token", "at", "said"),
    [
        ("memory<8XB", "XB", 9, "memory is measured in B"),
        ("memory<8", "", 0, "a unit is expected"),
        ("memory<8, size<1GB", ",", 9, "a unit is expected"),
        ("memory~8GB", "~", 7, "is expected"),
        ("memory=8GB", "=", 7, "'<', '<=', '>' or '>=' is expected"),
        ("memory<GB", "GB", 8, "a number is expected"),
        ("memory<-1GB", "-", 8, "a number is expected"),
        ("memroy<8GB", "memroy", 1, "there is no such number; use latency"),
        ("memory<8GB quality_drop<1", "quality_drop", 12, "',' or the end is expected"),
        ("memory<8GB,", "", 0, "a name such as memory is expected"),
        ("", "", 0, "a name such as memory is expected"),
        ("8GB>memory", "8", 1, "a name such as memory is expected"),
        ("min latency, max psnr_y", "max", 14, "one 'min' or 'max' is enough"),
        ("min", "", 0, "a name such as memory is expected"),
        ("ssim_y>0.9dB", "dB", 11, "it has no unit"),
        ("latency<2GB", "GB", 10, "latency is measured in ms, s, min, h"),
        ("lpips<0.1", "lpips", 1, "there is no such number"),  # not measured by default
    ],
)
def test_a_bad_expression_names_its_token(text: str, token: str, at: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_wish(text)
    assert (f"'{token}' at character {at}" if token else "the end") in caught.value.message
    assert said in caught.value.message
    assert "write e.g." in str(caught.value.fix)


def test_other_metrics_can_be_asked_for_where_they_are_measured() -> None:
    assert parse_wish("lpips<0.1, lpips_drop<0.01", ("lpips",)).bounds[1].name == "lpips_drop"


@pytest.mark.parametrize("name", ["quality_drop", "psnr_y", "ssim_y_drop"])
def test_a_number_that_needs_truth_is_refused_where_there_is_none(name: str) -> None:
    wish = parse_wish(f"{name}<1")
    check_wish(wish, has_truth=True)
    with pytest.raises(UsageError, match=name):
        check_wish(wish, has_truth=False)
    check_wish(parse_wish("fidelity>40dB, min memory"), has_truth=False)


def test_the_fastest_that_fits_is_picked_unless_another_best_is_named() -> None:
    points = [
        sample_point("large", latency_s=1.0, memory_bytes=9 * 10**9, drop=0.0),
        sample_point("fast", latency_s=2.0, memory_bytes=3 * 10**9, drop=0.15),
        sample_point("good", latency_s=4.0, memory_bytes=4 * 10**9, drop=0.01),
        sample_point("bad", latency_s=0.5, memory_bytes=10**9, drop=2.0),
        sample_point("failed", error="it broke"),
    ]
    bounds = "memory<8GB, quality_drop<0.2dB"
    assert pick(points, parse_wish(bounds)).point == "fast"
    assert pick(points, parse_wish(f"{bounds}, min quality_drop")).point == "good"
    assert pick(points, parse_wish("max memory")).point == "large"
    assert pick(points, parse_wish("memory<=3GB")).point == "bad"
    for order in itertools.permutations(points):
        assert pick(order, parse_wish("memory<3.5GB, quality_drop<1dB")).point == "fast"


def test_where_nothing_fits_the_nearest_is_named() -> None:
    points = [sample_point("a", memory_bytes=5 * 10**9, drop=0.5), sample_point("b", memory_bytes=10**9, drop=0.5)]
    found = pick(points, parse_wish("memory<2GB, quality_drop<0.2dB"))
    assert found.point is None
    assert found.detail == "no point fits: b comes nearest and misses quality_drop<0.2dB (it has 0.50 dB)"
    assert pick([sample_point("x", error="it broke")], parse_wish("min latency")).detail == "no point could be measured"


def test_equal_pictures_keep_every_bound_on_fidelity() -> None:
    points = [sample_point("equal", fidelity_db=math.inf, latency_s=3.0), sample_point("near", fidelity_db=50.0)]
    assert pick(points, parse_wish("fidelity>80dB")).point == "equal"
