"""Recipes: every one in the folder loads, and changes on the command line are taken as TOML."""

import json
from pathlib import Path

import pytest

from pipeline.build.finish import manifest_recipe
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.errors import RecipeError
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.settings import Settings

ROOT = Path(__file__).parents[3]
FILES = [*(ROOT / "manifests" / "recipes").glob("*.toml"), *(ROOT / "benchmarks").glob("*.toml")]
RECIPES = sorted(path for path in FILES if not path.name.startswith("fit-"))  # those are the trainer's
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
            "cut.preset=8",
            "judge.max_speech_share=none",
            'sources=["b.csv", "c.tsv"]',
        ],
    )
    assert recipe.clips.length_seconds == 4.5
    assert (recipe.cut.codec, recipe.cut.preset) == ("svt_av1", "8")
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
        ("cut.codec=svt_av1", "cut: preset = 'fast': svt_av1 takes a number from 0 to 13"),
        ("cut.preset=p4", "cut: preset = 'p4': x264 takes one of ultrafast, superfast"),
        ("cut.quality=60", "cut: quality = 60: x264 takes at most 51"),
        (
            "download.proxy=proxy.example",
            r"download.proxy: 'proxy.example' is not the URL of a proxy: write it like http://HOST",
        ),
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


def test_settings_that_contradict_each_other_are_both_named(minimal: Path) -> None:
    pair = "encoders={}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(minimal, [pair, "judge.min_agreement=0.2", "agreement.false_accept_rate=0.05"])
    assert str(caught.value).splitlines()[1:] == [
        "  recipe: judge.min_agreement = 0.2 and agreement.false_accept_rate = 0.05 both set the threshold of agreement: keep one of them"
    ]


def test_a_threshold_is_in_the_hash_by_its_number_wherever_it_comes_from(minimal: Path) -> None:
    pair = "encoders={}"
    plain = load_recipe(minimal, [pair])
    asked = load_recipe(minimal, [pair, "agreement.false_accept_rate=0.05", "agreement.calibration=here"])
    assert asked.per_source_hash(AgreementRule(), "e") == plain.per_source_hash(AgreementRule(), "e")
    rule = AgreementRule(min_agreement=0.2, false_accept_rate=0.05, origin="calibration", calibration_id="a")
    other = rule.model_copy(update={"origin": "packaged", "calibration_id": "b"})
    names = {recipe.per_source_hash(each, "e") for recipe in (asked, plain) for each in (rule, other)}
    assert len(names) == 1
    changed = [
        asked.per_source_hash(rule.model_copy(update={"min_agreement": 0.21}), "e"),
        asked.per_source_hash(rule.model_copy(update={"per_class": {"sea": 0.3}}), "e"),
        asked.per_source_hash(rule, "other weights"),
        asked.per_source_hash(AgreementRule(), "e"),
        load_recipe(minimal, [pair, "agreement.prompt=the sound of {}"]).per_source_hash(rule, "e"),
    ]
    assert len({*names, *changed}) == 6


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


def test_what_is_written_of_a_recipe_holds_no_signature(minimal: Path) -> None:
    sides = ", ".join(f'{side}_weights = "https://a.example/w.pt?token=HUSH"' for side in ("picture", "sound"))
    sums = ", ".join(f'{side}_sha256 = "{"0" * 64}"' for side in ("picture", "sound"))
    changes = [f"encoders={{{sides}, {sums}}}", 'sources=["https://a.example/list.csv?sig=HUSH"]']
    written = manifest_recipe(load_recipe(minimal, changes))
    assert written["encoders"]["picture_weights"] == "https://a.example/w.pt?token=***"
    assert written["sources"] == ["https://a.example/list.csv?sig=***"]
    assert "HUSH" not in json.dumps(written)
