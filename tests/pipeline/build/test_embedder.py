"""The embedder's own process: what it gives, when sources share batches, and what it remembers of the class prompts.

The networks have random weights of the right shapes.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from pipeline.agreement.measures import AgreementSettings
from pipeline.build import embedder as embedders
from pipeline.build.embedder import Embedder, read_embeddings
from pipeline.encoders.pair import EncoderPairSettings, load_pair
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.errors import EncoderError, HearscapeError, PreviewError, WorkerError
from pipeline.measure.previews import FrameRoll, PreviewSettings, read_frames
from pipeline.runtime.folder import Folder

MODEL, WIDTH, RATE = "ViT-S-32-alt", 256, 44_100
CLASSES = AgreementSettings(classes=("rain", "fire"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EncoderPairSettings:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "picture.safetensors")
    save_align(
        folder / "sound.safetensors", SoundNetwork(WIDTH, "resnet10t"), AlignConfig(width=WIDTH, backbone="resnet10t")
    )
    return EncoderPairSettings(
        picture_model=MODEL,
        picture_weights=str(folder / "picture.safetensors"),
        sound_kind="align",
        sound_weights=str(folder / "sound.safetensors"),
        frames_per_clip=3,
    )


class InThisProcess:
    """Stands where the pool stands: runs the work at once, and counts it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def run(self, work: Callable[..., Any], _timeout_seconds: float, *args: Any) -> Any:
        self.calls.append(args)
        return work(*args)

    def close(self) -> None: ...


@pytest.fixture
def embedder(settings: EncoderPairSettings, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    opened = Embedder(settings)
    opened.close()
    monkeypatch.setattr(opened, "_workers", InThisProcess())
    return opened


def calls(embedder: Embedder) -> list[tuple[Any, ...]]:
    return embedder._workers.calls


def previews(folder: Path, seed: int, seconds: float = 9.0, *, bad: bool = False) -> tuple[Path, Path]:
    """Frames whose brightness is 20 times their second, and noise."""
    folder.mkdir()
    roll = FrameRoll(PreviewSettings(every_seconds=0.5))
    rng = np.random.default_rng(seed)
    for index in range(round(seconds * 2)):
        view = np.full((64, 96, 3), 10 * index, np.uint8)
        roll.add(index / 2, cv2.add(view, rng.integers(0, 9, view.shape).astype(np.uint8)))
    roll.save(folder / "frames.npz")
    soundfile.write(folder / "sound.flac", rng.standard_normal(round(seconds * RATE)) * 0.1, RATE)
    if bad:
        (folder / "sound.flac").write_bytes(b"no sound at all")
    return folder / "frames.npz", folder / "sound.flac"


def test_the_process_of_its_own_gives_what_the_pair_gives(settings: EncoderPairSettings, tmp_path: Path) -> None:
    frames, sound = previews(tmp_path / "a", 1)
    opened = Embedder(settings)
    try:
        content = opened.embed(frames, sound, [(0.0, 4.0), (4.0, 9.0)])
        prompts = opened.prompts(CLASSES, Folder(tmp_path / "state"))
    finally:
        opened.close()
    of_frames, pictures, sounds = read_embeddings(content)
    pair = load_pair(settings)
    heard, _ = soundfile.read(sound, dtype="float32")
    with frames.open("rb") as file:
        wanted = pair.embed_clips(read_frames(file, [(4.0, 9.0)], 3), [heard[4 * RATE : 9 * RATE]], RATE)
    assert [rows.shape for rows in of_frames] == [(3, WIDTH), (3, WIDTH)]
    assert np.array_equal(pictures[1], wanted.picture[0].astype(np.float16).astype(np.float32))
    assert np.array_equal(sounds[1], wanted.sound[0].astype(np.float16).astype(np.float32))
    assert opened.clips_at_once == torch.get_num_threads()  # there is no GPU here
    assert prompts is not None
    assert prompts.names == ("rain", "fire")
    assert np.abs(prompts.rows - pair.embed_texts(["a photo of rain", "a photo of fire"])).max() < 1e-6


def test_frames_and_sound_are_of_the_whole_span_and_of_nothing_else(tmp_path: Path) -> None:
    """Frames from the first to the last of the span, evenly; the sound's every sample."""
    frames, sound = previews(tmp_path / "a", 1)
    with frames.open("rb") as file:
        (chosen,) = read_frames(file, [(2.0, 7.0)], 5)
    levels = [round((float(frame.mean()) - 4) / 20, 1) for frame in chosen]  # in seconds
    assert levels == [2.0, 3.0, 4.0, 5.5, 6.5]
    heard, _ = soundfile.read(sound, dtype="float32")
    with sound.open("rb") as file:
        (one,) = embedders.read_sounds(file, [(2.0, 7.0)])
    assert np.array_equal(one, heard[2 * RATE : 7 * RATE])


def embed_all(embedder: Embedder, sources: Sequence[tuple[Path, Path]]) -> list[bytes | HearscapeError]:
    """All sources at once, the first of them holding the turn until the others wait."""
    waiting = threading.Barrier(len(sources) + 1)

    def embed(source: tuple[Path, Path]) -> bytes | HearscapeError:
        waiting.wait()
        try:
            return embedder.embed(*source, [(0.0, 3.0), (3.0, 6.0)])
        except HearscapeError as error:
            return error

    with ThreadPoolExecutor(len(sources)) as pool, embedder._embed_lock:
        results = [pool.submit(embed, source) for source in sources]
        waiting.wait()
        while len(embedder._queue) < len(sources):
            pass
        embedder._embed_lock.release()
        found = [result.result() for result in results]
        embedder._embed_lock.acquire()
    return found


def at_once(monkeypatch: pytest.MonkeyPatch, num_clips: int) -> None:
    """Fixes what would be found out with the first source."""
    monkeypatch.setattr(Embedder, "clips_at_once", property(lambda _: num_clips, lambda *_: None), raising=False)


def test_where_batches_pay_sources_that_wait_share_them(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [previews(tmp_path / str(seed), seed) for seed in range(5)]
    at_once(monkeypatch, 1)
    alone = embed_all(embedder, sources)
    assert [len(jobs) for _, jobs in calls(embedder)] == [1] * 5
    calls(embedder).clear()
    at_once(monkeypatch, 6)
    assert embed_all(embedder, sources) == alone
    assert sorted(len(jobs) for _, jobs in calls(embedder)) == [2, 3]  # six clips fill a batch


def test_one_bad_source_of_a_shared_batch_costs_itself_alone(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [previews(tmp_path / str(seed), seed, bad=seed == 1) for seed in range(3)]
    at_once(monkeypatch, 32)
    found = embed_all(embedder, sources)
    assert [isinstance(one, bytes) for one in found] == [True, False, True]
    assert found[0] == embedder.embed(*sources[0], [(0.0, 3.0), (3.0, 6.0)])
    assert str(found[1]).startswith("the sound kept for the encoders cannot be read")


@pytest.mark.parametrize("damage", [slice(0, 200), slice(0, -400), slice(0, 0)])
def test_damaged_frames_are_told(embedder: Embedder, tmp_path: Path, damage: slice) -> None:
    frames, sound = previews(tmp_path / "a", 1)
    frames.write_bytes(frames.read_bytes()[damage])
    with pytest.raises(PreviewError, match=r"the frames kept .* cannot be read"):
        embedder.embed(frames, sound, [(0.0, 3.0)])


def test_prompts_are_embedded_once_and_kept(embedder: Embedder, settings: EncoderPairSettings, tmp_path: Path) -> None:
    state = Folder(tmp_path)
    assert embedder.prompts(AgreementSettings(classes=None), state) is None
    assert calls(embedder) == []
    first = embedder.prompts(CLASSES, state)
    again = Embedder(settings)
    again.close()  # it could load nothing now
    found = again.prompts(CLASSES, state)
    assert first is not None and found is not None
    assert np.array_equal(first.rows, found.rows)
    assert embedder.prompts(CLASSES, state) is first
    assert len(calls(embedder)) == 1
    other = embedder.prompts(AgreementSettings(classes=("rain", "fire"), prompt="the sound of {}"), state)
    assert other is not None
    assert not np.array_equal(other.rows, first.rows)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: bytes(len(whole)),
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:128] + bytes(len(whole) - 128),
    ],
)
def test_damaged_prompts_are_embedded_again(
    embedder: Embedder, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = embedder.prompts(CLASSES, Folder(tmp_path))
    (kept,) = (tmp_path / "prompts").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    embedder._prompts.clear()
    again = embedder.prompts(CLASSES, Folder(tmp_path))
    assert first is not None and again is not None
    assert np.array_equal(first.rows, again.rows)
    assert kept.read_bytes() == whole
    assert f"{kept} is damaged" in caplog.text


def test_a_pair_that_embeds_no_words_costs_the_margin_alone(
    embedder: Embedder,
    settings: EncoderPairSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a model whose tokenizer has to be fetched."""
    config = open_clip.get_model_config(MODEL)
    config["text_cfg"]["hf_tokenizer_name"] = f"{tmp_path}/nowhere"
    path = tmp_path / "tokenizer-elsewhere.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    elsewhere = settings.model_copy(update={"picture_model": path.stem})
    monkeypatch.setattr(embedder, "_settings", elsewhere)
    state = Folder(tmp_path / "state")
    with caplog.at_level(logging.WARNING, "pipeline.build.embedder"):
        assert [embedder.prompts(CLASSES, state) for _ in range(3)] == [None] * 3
    (told,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.build.embedder"]
    assert (
        "margins over other classes are not measured: the tokenizer of tokenizer-elsewhere is not on this machine"
        in told
    )
    assert len(calls(embedder)) == 1
    again = Embedder(settings)
    again.close()
    assert again.prompts(CLASSES, state) is None  # remembered, so that no networks are loaded to hear it again
    assert embedder.embed(*previews(tmp_path / "a", 1), [(0.0, 3.0)])


def test_damaged_weights_are_no_missing_words(settings: EncoderPairSettings, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(Path(settings.picture_weights).read_bytes()[:100_000])
    opened = Embedder(settings.model_copy(update={"picture_weights": str(damaged)}))
    try:
        with pytest.raises(EncoderError, match=r"damaged\.safetensors"):
            opened.prompts(CLASSES, Folder(tmp_path / "state"))
    finally:
        opened.close()


def test_a_clip_shorter_than_any_frame_is_embedded(embedder: Embedder, tmp_path: Path) -> None:
    """Between two kept frames, and with less sound than one window of the spectrogram: the nearest frame, and zeros."""
    source = previews(tmp_path / "a", 1)
    of_frames, pictures, sounds = read_embeddings(embedder.embed(*source, [(2.1, 2.101), (2.0, 2.01)]))
    assert [rows.shape for rows in of_frames] == [(1, WIDTH), (1, WIDTH)]
    assert np.array_equal(pictures[0], pictures[1])
    assert np.linalg.norm(sounds, axis=1) == pytest.approx(1.0, abs=1e-3)


def test_a_long_source_is_embedded_in_parts_to_the_same_bytes(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = previews(tmp_path / "a", 1)
    spans = [(float(start), start + 2.0) for start in range(7)]
    whole = embedder.embed(*source, spans)
    monkeypatch.setattr(embedder, "_clips_per_job", 3)
    calls(embedder).clear()
    assert embedder.embed(*source, spans) == whole
    assert [len(jobs[0].spans) for _, jobs in calls(embedder)] == [3, 3, 1]


class Slow(InThisProcess):
    """As a machine on which a job of more than ``max_clips`` clips takes too long."""

    def __init__(self, max_clips: int) -> None:
        super().__init__()
        self.max_clips = max_clips
        self.timeouts: list[float] = []

    def run(self, work: Callable[..., Any], timeout_seconds: float, *args: Any) -> Any:
        self.timeouts.append(timeout_seconds)
        if len(args[1][0].spans) > self.max_clips:
            raise WorkerError("timed_out", f"took longer than {timeout_seconds:.0f} s and was ended")
        return super().run(work, timeout_seconds, *args)


def test_the_time_out_grows_with_the_clips_and_who_is_late_is_given_fewer(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = previews(tmp_path / "a", 1)
    spans = [(float(start), start + 2.0) for start in range(6)]
    whole = embedder.embed(*source, spans)
    monkeypatch.setattr(embedder, "_workers", Slow(max_clips=1))
    assert embedder.embed(*source, spans) == whole
    assert [len(jobs[0].spans) for _, jobs in calls(embedder)] == [1] * 6
    # 600 s for the networks, 2 s for each of three frames, 1 s for each second of sound
    assert embedder._workers.timeouts == [600 + 6 * 6 + 6 * 2] + [600 + 6 + 2] * 6
    assert "embedding 6 clips exceeded the time limit; from now on 1 at once" in caplog.text
    monkeypatch.setattr(embedder, "_workers", Slow(max_clips=0))
    with pytest.raises(WorkerError, match="took longer than 608 s"):
        embedder.embed(*source, spans)
