"""What has changed in the datasets of a fit since its checkpoint, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.streaming.shards import SplitShards


def described(datasets: Sequence[SplitShards], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What a reader's state holds of each dataset, so that a later run can say which one has changed."""
    return [
        {
            "name": dataset.name,
            "folder": dataset.root,
            "identity": dataset.identity,
            "weight": weight,
            "num_samples": dataset.num_samples,
        }
        for dataset, weight in zip(datasets, weights, strict=True)
    ]


def dataset_changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """A text for each dataset that differs. Raises KeyError for descriptions that are not those of :func:`described`."""
    changes = []
    gone, new = list(before), []
    for dataset in now:
        same = next((one for one in gone if one["identity"] == dataset["identity"]), None)
        if same is None:
            new.append(dataset)
            continue
        gone.remove(same)
        if same["weight"] != dataset["weight"]:
            changes.append(f"{_named(dataset)} had the weight {same['weight']:g}, and has {dataset['weight']:g}")
    for dataset in new:
        former = next((one for one in gone if one["name"] == dataset["name"]), None)
        if former is None:
            changes.append(f"{_named(dataset)} was not among them")
            continue
        gone.remove(former)
        was, is_ = former["num_samples"], dataset["num_samples"]
        sizes = f"it had {was:,} clips and has {is_:,}" if was != is_ else f"its {is_:,} clips are not the same ones"
        changes.append(f"{_named(dataset)} has changed: {sizes}")
    changes += [f"{_named(dataset)} is not there any more" for dataset in gone]
    return changes or ["they were read in another order of their folders"]


def _named(dataset: Mapping[str, Any]) -> str:
    return f"the dataset {dataset['name']} ({dataset['folder']})"
