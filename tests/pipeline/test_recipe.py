"""Recipes: every one in the folder loads, and changes on the command line are taken as TOML."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import BuildRecipe, load_recipe
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "manifests" / "recipes").glob("*.toml"), *(ROOT / "benchmarks").glob("*.toml")])
MINIMAL = 'name = "small"\noutput = "out"\nsources = ["a.csv"]\n'


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).sources


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(MINIMAL)
    return path


def test_changes_are_toml_or_text(minimal: Path) -> None:
    recipe = load_recipe(
        minimal,
        [
            "clips.length_seconds=4.5",
            "clips.min_seconds=2",
            "cut.codec=svt_av1",
            "judge.max_speech_share=none",
            'sources=["b.csv", "c.tsv"]',
        ],
    )
    assert recipe.clips.length_seconds == 4.5
    assert recipe.cut.codec == "svt_av1"
    assert recipe.judge.max_speech_share is None
    assert recipe.sources == ("b.csv", "c.tsv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clips", "write it like clips.length_seconds=4"),
        ("name.inner=3", "name is a value"),
        ("clips.stride_seconds=0", "clips.stride_seconds: .*greater than 0"),
        ("scenes.detector=magic", "scenes.detector"),
        ("split.train=0.5", "must add up to 1"),
        ("cut.renditions=[]", "renditions need names that differ"),
    ],
)
def test_a_change_that_cannot_be_is_refused_by_name(minimal: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(minimal, [change])


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "nowhere.toml")
    (tmp_path / "a.toml").write_text("name = = 3")
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe(tmp_path / "a.toml")


def test_only_what_decides_over_a_source_is_in_its_hash(minimal: Path) -> None:
    plain = load_recipe(minimal).per_source_hash()
    assert (
        load_recipe(minimal, ["execution.workers=7", "split.seed=3", "shards.max_samples=2"]).per_source_hash() == plain
    )
    assert load_recipe(minimal, ["judge.max_speech_share=0.2"]).per_source_hash() != plain


def test_every_setting_says_what_it_means() -> None:
    def undocumented(kind: type[Settings], path: str) -> list[str]:
        missing = []
        for name, field in kind.model_fields.items():
            if not field.description:
                missing.append(f"{path}{name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                missing += undocumented(field.annotation, f"{path}{name}.")
        return missing

    assert undocumented(BuildRecipe, "") == []
