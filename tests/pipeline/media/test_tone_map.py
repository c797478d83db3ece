"""HDR on a screen: the cut against the curve of ITU-R BT.2390, and previews and measures against the cut."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding, Picture
from pipeline.media.ffmpeg import probe
from pipeline.media.tone_map import PQ, light_of
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.footage import FPS, noise

SETTINGS = CutSettings(renditions=(RenditionSettings(name="full", short_side_px=96),), preset="veryfast", quality=4)
CD_M2 = np.array([1.0, 5.0, 26.0, 50.0, 100.0, 203.0, 400.0, 1000.0])
PATCH_PX = 40
TAGS = {
    "pq": "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc",
    "hlg": "transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc",
}


def pq(cd_m2: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """SMPTE ST 2084, inverse EOTF."""
    power = (cd_m2 / 10_000) ** (2610 / 16384)
    return np.asarray(((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))


def hlg(cd_m2: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ITU-R BT.2100, OETF of greys that a display of 1000 cd/m2 shows so bright."""
    scene = (cd_m2 / 1000) ** (1 / 1.2)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


def eetf(cd_m2: npt.NDArray[np.float64], source: float = 1000.0, screen: float = 203.0) -> npt.NDArray[np.float64]:
    """ITU-R BT.2390, section 5.4.1: what the screen shows, as codes of 0..255 at a gamma of 2.4."""
    top = pq(np.array(source))
    signal, highest = pq(cd_m2) / top, pq(np.array(screen)) / top
    knee = 1.5 * highest - 0.5
    t = (signal - knee) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * highest
    light = light_of(np.where(signal < knee, signal, bent) * top, PQ) * 203 / screen
    return np.asarray(255 * light.clip(0, 1) ** (1 / 2.4))


def write_patches(path: Path, signals: npt.NDArray[np.float64], kind: str) -> None:
    """Patches side by side, each of one signal (P, 3) of 0..1 in red, green and blue of BT.2020. The film's first conversion is BT.601's:
    colours are given as the luma and chroma that BT.2020 has for them."""
    red, green, blue = signals.T
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    cb, cr = (blue - luma) / 1.8814, (red - luma) / 1.4746
    rgb = np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=1)
    patches = np.repeat((rgb * 255).round().clip(0, 255).astype(np.uint8), PATCH_PX, axis=0)
    frame = np.ascontiguousarray(np.broadcast_to(patches, (96, *patches.shape)))
    tags = ["-x264-params", TAGS[kind]]
    write_video(path, [frame] * 50, noise(2), fps=FPS, pix_fmt="yuv420p10le", crf=1, extra=tags)


def shown(path: Path, num_patches: int) -> npt.NDArray[np.float64]:
    """(P, 3) what previews show of each patch."""
    picture = next(p for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture))
    rgb = picture.rgb(96)
    return np.stack([rgb[48, PATCH_PX // 2 + PATCH_PX * number] for number in range(num_patches)]).astype(np.float64)


def luma_shown(path: Path, num_patches: int) -> npt.NDArray[np.float64]:
    picture = next(p for p in Decoding(path, sample_rate_hz=44_100) if isinstance(p, Picture))
    luma = picture.small_luma((PATCH_PX * num_patches, 96))
    return luma[48, PATCH_PX // 2 :: PATCH_PX].astype(np.float64)


@pytest.mark.parametrize(("kind", "signal"), [("pq", pq), ("hlg", hlg)])
def test_greys_come_out_as_the_standard_has_them(tmp_path: Path, kind: str, signal: object) -> None:
    """Reference white (203 cd/m2) becomes 231 of 255, mid grey (26 cd/m2) 108: with 8 bits of signal, to within 5."""
    signals = np.repeat(np.asarray(signal(CD_M2))[:, None], 3, axis=1)  # type: ignore[operator]
    write_patches(tmp_path / "a.mp4", signals, kind)
    facts = probe(tmp_path / "a.mp4")
    assert facts.video is not None and facts.video.is_hdr
    cut_clip(tmp_path / "a.mp4", facts, Span(0, 2000), Bars(), SETTINGS, tmp_path)
    wanted = eetf(CD_M2)
    assert wanted[[2, 5]] == pytest.approx([108, 231], abs=1)
    of_cut = luma_shown(tmp_path / "full.mp4", len(CD_M2))
    assert of_cut == pytest.approx(wanted, abs=5)
    assert luma_shown(tmp_path / "a.mp4", len(CD_M2)) == pytest.approx(of_cut, abs=4)
    assert shown(tmp_path / "a.mp4", len(CD_M2)).mean(axis=1) == pytest.approx(of_cut, abs=4)


@pytest.mark.parametrize("kind", ["pq", "hlg"])
def test_previews_have_the_colours_of_the_cut(tmp_path: Path, kind: str) -> None:
    signals = np.array([[0.55, 0.45, 0.4], [0.4, 0.5, 0.45], [0.35, 0.4, 0.55], [0.6, 0.58, 0.5], [0.3, 0.3, 0.35]])
    write_patches(tmp_path / "a.mp4", signals, kind)
    cut_clip(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), Span(0, 2000), Bars(), SETTINGS, tmp_path)
    before, after = shown(tmp_path / "a.mp4", len(signals)), shown(tmp_path / "full.mp4", len(signals))
    assert np.abs(before - after).max() < 4
