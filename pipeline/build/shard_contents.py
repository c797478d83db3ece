"""The members of a shard's samples: the cut files of each kept clip, its JSON record, its embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.build.embedder import embedded_name, read_embeddings
from pipeline.build.source_cuts import cut_folder
from pipeline.dataset.shards import SampleContent, ShardPlan
from pipeline.dataset.source_records import ClipRecord, SourceRecord
from pipeline.errors import DamagedStateError
from pipeline.media.cut import SOUND_NAME
from pipeline.runtime.damage import UNREADABLE, described
from pipeline.runtime.folder import Folder
from pipeline.runtime.masking import mask_secrets
from pipeline.schema import flat

Vector = npt.NDArray[np.float32]


def sample_json(record: SourceRecord, clip: ClipRecord, split: str) -> dict[str, Any]:
    """Content of ``<key>.json`` of a kept clip. It is the same in every rendition."""
    source, cut = record.source, clip.cut
    assert cut is not None and clip.sound is not None and record.facts is not None, (
        "only clips that were cut are packed"
    )
    return {
        "source_id": source.source_id,
        "url": mask_secrets(source.url),
        "start_ms": clip.span.start_ms,
        "end_ms": clip.span.end_ms,
        "scene_index": clip.scene_index,
        "split": split,
        "labels": list(source.labels),
        "caption": source.caption,
        "licence": source.licence,
        "provenance": dict(record.provenance),
        "video_sha256": record.content_sha256,
        "source_video": record.facts.to_json(),
        "picture": flat(clip.picture),
        "sound": flat(clip.sound),
        "in_time": flat(clip.in_time) if clip.in_time else None,
        "agreement": flat(clip.agreement) if clip.agreement else None,
        "cut": {"num_samples": cut.num_samples, "sample_rate_hz": cut.sample_rate_hz, "num_channels": cut.num_channels},
        "renditions": {
            r.name: {"width": r.width, "height": r.height, "num_frames": r.num_frames} for r in cut.renditions
        },
    }


def embeddings_of(record: SourceRecord, state: Folder) -> Iterator[tuple[str, Vector, Vector]]:
    """Key, picture embedding (D,) and sound embedding (D,) of each clip of a source. Empty if the source has no embeddings.

    Raises DamagedStateError if their file is damaged.
    """
    if record.embedded_key is not None:
        name = embedded_name(record.embedded_key)
        try:
            _, pictures, sounds = read_embeddings(state.read_bytes(name), len(record.clips), name)
        except UNREADABLE as error:
            raise DamagedStateError(
                [record.source.source_id], {name: f"cannot be read ({described(error)})"}
            ) from error
        for clip, picture, sound in zip(record.clips, pictures, sounds, strict=True):
            yield record.key_of(clip), picture, sound


class ShardContents:
    """The members of one shard's samples. The records of its sources are read once, at the first call of :meth:`load`."""

    def __init__(self, plan: ShardPlan, rendition: str, records: Iterable[SourceRecord], state: Folder) -> None:
        self._plan, self._rendition, self._state = plan, rendition, state
        self._records = records
        self._clips: dict[str, tuple[SourceRecord, ClipRecord]] = {}
        self._embeddings: dict[str, tuple[Vector, Vector]] = {}

    def load(self, key: str) -> SampleContent:
        """The members of a sample. Raises DamagedStateError if a file is not the one that was cut."""
        if not self._clips:
            self._read()
        record, clip = self._clips[key]
        picture, sound = self._embeddings.get(key, (None, None))
        return SampleContent(
            mp4=self._cut_file(record, clip, f"{self._rendition}.mp4"),
            flac=self._cut_file(record, clip, SOUND_NAME),
            record=sample_json(record, clip, self._plan.split),
            picture=picture,
            sound=sound,
        )

    def damage(self) -> list[DamagedStateError]:
        """The damage of the files of all samples."""
        errors = []
        for record, clip in self._clips.values():
            for name in (f"{self._rendition}.mp4", SOUND_NAME):
                try:
                    self._cut_file(record, clip, name)
                except DamagedStateError as error:
                    errors.append(error)
        return errors

    def _cut_file(self, record: SourceRecord, clip: ClipRecord, name: str) -> bytes:
        assert clip.cut_key is not None and clip.cut is not None
        folder = cut_folder(clip.cut_key)
        try:
            content = self._state.read_bytes(f"{folder}/{name}")
        except FileNotFoundError as error:
            raise DamagedStateError([record.source.source_id], {folder: f"has no {name}"}) from error
        num_bytes, sha256 = clip.cut.files[name]
        if len(content) != num_bytes or hashlib.sha256(content).hexdigest() != sha256:
            problem = f"has a {name} of {len(content)} bytes that is not the one that was cut"
            raise DamagedStateError([record.source.source_id], {folder: problem})
        return content

    def _read(self) -> None:
        wanted = {sample.key for sample in self._plan.samples}
        for record in self._records:
            self._clips.update({key: (record, clip) for clip in record.clips if (key := record.key_of(clip)) in wanted})
            for key, picture, sound in embeddings_of(record, self._state):
                if key in wanted:
                    self._embeddings[key] = (picture, sound)
