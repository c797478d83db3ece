"""A build that loses power at any moment is finished by the same command; one that has ended has lost nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.kill import write_videos
from tests.faults.power import RecordedBuild, record

OTHER_CLIPS = ("shards.max_samples=2", "judge.max_black_share=0.9")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RecordedBuild:
    """A build from nothing."""
    folder = tmp_path_factory.mktemp("first")
    return record(folder, sources=write_videos(folder / "videos"))


@pytest.fixture(scope="module")
def again(first: RecordedBuild, tmp_path_factory: pytest.TempPathFactory) -> RecordedBuild:
    """A build with another recipe on what the first one left: it replaces every shard."""
    folder = tmp_path_factory.mktemp("again")
    return record(folder, OTHER_CLIPS, before=first.recording.root, sources=first.sources)


@pytest.mark.parametrize("number", range(4))
def test_the_same_command_ends_with_the_same_bytes(number: int, first: RecordedBuild, tmp_path: Path) -> None:
    assert first.lose_power(number, tmp_path) == []


@pytest.mark.parametrize("number", range(4))
def test_a_dataset_that_was_being_replaced_is_replaced(number: int, again: RecordedBuild, tmp_path: Path) -> None:
    assert again.lose_power(number, tmp_path) == []


def test_what_has_ended_is_on_the_disk(first: RecordedBuild, again: RecordedBuild) -> None:
    for recorded in (first, again):
        for number in range(20):
            remainders = recorded.recording.after_power_loss(len(recorded.recording.steps), random.Random(number))
            written = {str(path): remainder.content for path, remainder in remainders.items()}
            lost = [name for name, content in recorded.expected.items() if written.get(name) != content]
            assert lost == []
            assert any(name.startswith("state/done/") and name.endswith(".jsonl") for name in written)
