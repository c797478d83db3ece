"""Batches out of a folder of pictures: order, ranks, resume, sizes and bad files."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from trainer.prior.pictures import PictureFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures, 40 x 32, whose blue is their number times 10; half of them in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(22):
        picture = np.zeros((32, 40, 3), np.uint8)
        picture[:, :, 0] = number * 10  # OpenCV writes blue first
        picture[:, :, 2] = np.arange(40)
        cv2.imwrite(str(folder / ("more" if number % 2 else "") / f"{number:02d}.png"), picture)
    (folder / "notes.txt").write_text("no picture")
    return folder


def reader(folder: Path, **changes: object) -> PictureFolder:
    settings = {"side_px": 32, "batch_size": 8, "seed": 3, **changes}
    return PictureFolder(folder, **settings)  # type: ignore[arg-type]


def numbers(source: PictureFolder, batches: int | None = None) -> list[list[int]]:
    return [[int(one[0, 2, 0, 0]) // 10 for one in batch.frames_BTCHW] for batch in islice(source, batches)]


def test_an_epoch_shows_each_picture_at_most_once_and_the_next_another_order(folder: Path) -> None:
    source = reader(folder)
    assert len(source) == 2
    first, second = numbers(source), numbers(source)
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [8, 8]
        assert len(set(chain.from_iterable(epoch))) == 16
    assert first != second
    assert numbers(reader(folder)) == first
    assert numbers(reader(folder, seed=4)) != first


def test_without_shuffling_all_are_shown_in_the_order_of_their_names(folder: Path) -> None:
    shown = list(chain.from_iterable(numbers(reader(folder, shuffle=False))))
    assert shown == [*range(0, 22, 2), *range(1, 22, 2)]


def test_ranks_share_a_batch(folder: Path) -> None:
    whole = numbers(reader(folder))
    parts = [numbers(reader(folder, rank=rank, num_ranks=2)) for rank in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    with pytest.raises(DataError, match="shared equally by 3 ranks"):
        reader(folder, num_ranks=3)


def test_it_goes_on_in_mid_epoch(folder: Path) -> None:
    whole = reader(folder)
    wanted = numbers(whole) + numbers(whole)
    source = reader(folder)
    begun = numbers(source, 1)
    state = source.state_dict()
    other = reader(folder)
    other.load_state_dict(state)
    assert begun + numbers(other) + numbers(other) == wanted
    with pytest.raises(DataError, match="has other seed"):
        reader(folder, seed=9).load_state_dict(state)


def test_a_square_is_cut_out_anywhere_or_in_the_middle(folder: Path) -> None:
    middle = next(iter(reader(folder, shuffle=False))).frames_BTCHW
    assert middle.shape == (8, 1, 3, 32, 32)
    assert middle.dtype == torch.uint8
    assert middle[0, 0, 0, 0].tolist() == list(range(4, 36))  # red is the column: 4 of 40 are cut off on either side
    starts = {int(one[0, 0, 0, 0]) for one in next(iter(reader(folder))).frames_BTCHW}
    assert len(starts) > 2
    assert starts <= set(range(9))


def test_pictures_are_scaled_by_area(folder: Path) -> None:
    small = next(iter(reader(folder, shuffle=False, side_px=16))).frames_BTCHW
    assert small.shape[-2:] == (16, 16)
    assert small[1, 0, 2].unique().tolist() == [20]
    assert small[1, 0, 0, 0].tolist() == pytest.approx([4.5 + 2 * x for x in range(16)], abs=0.5)


def test_bad_pictures_are_left_out_by_name(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        source = folder / ("more" if number % 2 else "") / f"{number % 20 - (number % 20) % 2 + number % 2:02d}.png"
        (tmp_path / f"{number:02d}.png").write_bytes(source.read_bytes())
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "04.png").write_bytes(b"<html>404</html>")
    cv2.imwrite(str(tmp_path / "05.png"), np.zeros((20, 90, 3), np.uint8))
    source = reader(tmp_path, shuffle=False)
    assert [len(batch) for batch in source] == [5, 8, 8, 6]
    reasons = {bad.key: bad.reason for bad, _ in source.bad}
    assert set(reasons) == {"03.png", "04.png", "05.png"}
    assert reasons["03.png"] == "it is damaged or not a picture"
    assert reasons["05.png"].startswith("it is 90x20, smaller than 32 px")
    assert len([record for record in caplog.records if "left out" in record.message]) == 3
    assert sum(len(batch) for batch in reader(tmp_path, shuffle=False, upscale=True)) == 28


def test_too_many_bad_pictures_stop_it(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"8 of 20 pictures below .* could not be used, more than 10%"):
        next(iter(reader(tmp_path)))


def test_too_few_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 22 pictures .* not one batch of 24"):
        reader(folder, batch_size=24)
    with pytest.raises(DataError, match="has 0 pictures"):
        reader(tmp_path)
