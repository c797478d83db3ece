"""Retrieval, zero-shot classes and the area under the ROC, on cases worked by hand."""

from __future__ import annotations

import pytest
import torch

from trainer.align.retrieval import mismatched, recalls, retrieval_measures, zero_shot_accuracy


def test_recall_counts_how_many_are_nearer_than_the_own_one() -> None:
    candidates = torch.eye(4)
    queries = torch.tensor([[2.0, 1, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0], [3, 2, 1, 0]])
    assert recalls(queries, candidates, (1, 2, 3, 10)) == {1: 0.25, 2: 0.5, 3: 0.75, 10: 1.0}


def test_embeddings_that_are_all_the_same_find_nothing() -> None:
    same = torch.ones(10, 4)
    assert recalls(same, same, (1, 5, 10)) == {1: 0.0, 5: 0.0, 10: 1.0}


def test_equal_embeddings_tie_whatever_the_last_digits_of_their_products() -> None:
    row = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))
    for num_rows in (7, 33):
        rows = row.expand(num_rows, -1).contiguous()
        assert recalls(rows, rows, (1, 5)) == {1: 0.0, 5: 0.0}


def test_zero_shot_takes_any_of_a_samples_labels_and_passes_over_those_without() -> None:
    prompts = torch.eye(3)
    sounds = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    labels = [("fire",), ("rain",), ("sea", "fire"), ()]
    assert zero_shot_accuracy(sounds, prompts, ["fire", "sea", "rain"], labels) == pytest.approx(2 / 3)
    assert zero_shot_accuracy(sounds, prompts, ["fire", "sea", "rain"], [()] * 4) is None


def test_pairs_of_one_source_or_one_class_are_not_mismatched() -> None:
    apart = mismatched(["a", "a", "b", "c"], [("x",), ("y",), ("x", "z"), ()])
    assert apart.astype(int).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]


def test_all_measures_together() -> None:
    sounds = torch.eye(4)
    labels = [("fire",), ("sea",), ("fire",), ("sea",)]
    prompts = {"fire": torch.tensor([1.0, 0, 1, 0]), "sea": torch.tensor([0.0, 1, 0, 1])}
    found = retrieval_measures(sounds, sounds, prompts, ["a", "b", "c", "d"], labels)
    assert found == {
        "num_samples": 4.0,
        **{f"{side}_recall_at_{k}": 1.0 for side in ("picture", "sound") for k in (1, 5, 10)},
        "zero_shot_accuracy": 1.0,
        "num_classes": 2.0,
        "auc": 1.0,
    }
    one_class = retrieval_measures(sounds, sounds, {}, ["a", "b", "c", "d"], [("fire",)] * 4)
    assert "auc" not in one_class and "zero_shot_accuracy" not in one_class
    assert retrieval_measures(torch.zeros(0, 4), torch.zeros(0, 4), prompts, [], []) == {"num_samples": 0.0}
