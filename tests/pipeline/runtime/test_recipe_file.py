"""Several recipes, one over the other: tables are joined, and a fault is told with the file that has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.runtime.recipe_file import read_recipe
from pipeline.settings import Settings


class Inner(Settings):
    """A table."""

    first: int = 1
    """A number."""
    second: int = Field(2, ge=0)
    """Another one."""


class Outer(Settings):
    """A recipe."""

    name: str = "none"
    """A text."""
    inner: Inner = Inner()
    """A table."""
    kinds: tuple[str, ...] = ()
    """Several texts."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Numbers by name."""


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_later_recipe_changes_settings_of_those_before_it(tmp_path: Path) -> None:
    first = written(
        tmp_path,
        "a.toml",
        "name = 'a'\nkinds = ['x', 'y']\nweights = {p = 1.0, q = 2.0}\n[inner]\nfirst = 5\nsecond = 6\n",
    )
    second = written(tmp_path, "b.toml", "kinds = ['z']\nweights.q = 3.0\n[inner]\nfirst = 7\n")
    third = written(tmp_path, "c.toml", "name = 'c'\ninner.first = 8\n")
    assert read_recipe(Outer, [first]) == read_recipe(Outer, first) == read_recipe(Outer, Path(first))
    found = read_recipe(Outer, [first, second])
    assert found.inner == Inner(first=7, second=6)
    assert found.weights == {"p": 1.0, "q": 3.0}
    assert found.kinds == ("z",)  # what is no table is taken whole
    assert found.name == "a"
    assert read_recipe(Outer, [first, second, third]).inner == Inner(first=8, second=6)
    assert read_recipe(Outer, [third, second, first]).inner == Inner(first=5, second=6)
    assert read_recipe(Outer, [first, third], ["inner.first=9"]).inner == Inner(first=9, second=6)
    assert read_recipe(Outer, []) == read_recipe(Outer, None) == Outer()


def test_a_fault_is_told_with_the_file_that_has_it(tmp_path: Path) -> None:
    good = written(tmp_path, "good.toml", "name = 'a'\n")
    bad = written(tmp_path, "bad.toml", "name = \n")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=f"recipe {bad}: not TOML"):
        read_recipe(Outer, [good, bad])
    with pytest.raises(RecipeError, match=f"recipe {binary}: not TOML"):
        read_recipe(Outer, [str(binary), good])
    nowhere = tmp_path / "nowhere.toml"
    with pytest.raises(RecipeError, match=f"recipe {nowhere}: No such file"):
        read_recipe(Outer, [good, str(nowhere)])
    with pytest.raises(RecipeError, match=f"recipe {tmp_path}: Is a directory"):
        read_recipe(Outer, [good, str(tmp_path)])


def test_problems_of_all_of_them_are_told_at_once(tmp_path: Path) -> None:
    first = written(tmp_path, "a.toml", "size = 3\n[inner]\nsecond = -1\n")
    second = written(tmp_path, "b.toml", "[inner]\nthird = 4\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(Outer, [first, second])
    said = str(caught.value)
    assert said.startswith(f"recipe {first}, {second}:")
    assert "size: there is no such setting" in said
    assert "inner.third: there is no such setting" in said
    assert "inner.second: Input should be greater than or equal to 0 (got -1)" in said


def test_a_later_recipe_can_put_right_what_an_earlier_one_has_wrong(tmp_path: Path) -> None:
    first = written(tmp_path, "a.toml", "[inner]\nsecond = -1\n")
    second = written(tmp_path, "b.toml", "inner.second = 4\n")
    assert read_recipe(Outer, [first, second]).inner.second == 4


def test_a_table_can_take_the_place_of_a_value_and_the_other_way_round(tmp_path: Path) -> None:
    value = written(tmp_path, "a.toml", "inner = 3\n")
    table = written(tmp_path, "b.toml", "[inner]\nfirst = 4\n")
    assert read_recipe(Outer, [value, table]).inner.first == 4
    with pytest.raises(RecipeError, match="inner: "):
        read_recipe(Outer, [table, value])
