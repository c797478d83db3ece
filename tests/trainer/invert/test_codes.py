"""The invert stage learns from the codes of its clips' own frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import RecipeError
from tests.trainer.guided import copied, differing, fit, prepared
from tests.trainer.invert.stages import stage_of
from tests.trainer.video.stages import first_batch
from trainer.invert.checks import check_invert
from trainer.invert.inversion_loss import code_loss
from trainer.model.sound_video_file import load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open


def test_the_nearest_inversion_counts_and_the_mean_a_little() -> None:
    inversions = torch.zeros(2, 3, 1, 2)
    inversions[0, 1] = 4.0
    codes = torch.full((2, 1, 2), 4.0)
    loss = code_loss(inversions, codes, torch.tensor(2.0), 0.5)
    # 16 / 2 for each number that is not met: the first sound meets its code once in three draws, the second never
    assert float(loss) == pytest.approx((0 + 8) / 2 + 0.5 * (5 * 8) / 6)


def test_at_first_codes_alone_teach_and_then_pictures_too(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    stage, reader = stage_of(guided, tmp_path, *coded, "invert.num_samples=16")
    batches = list(reader)
    reader.close()
    before = copied(stage.model.inversion.state_dict())
    first, second = (stage.step(batch) for batch in batches[:2])
    assert set(first) == {"code_loss", "loss", "learning_rate"}
    assert set(second) == {"code_loss", "sound_loss", "text_loss", "style_loss", "loss", "learning_rate"}
    settings = stage.settings
    drawn = sum(
        weight * second[name]
        for name, weight in (
            ("sound_loss", settings.sound_weight),
            ("text_loss", settings.text_weight),
            ("style_loss", settings.style_weight),
        )
    )
    assert second["loss"] == pytest.approx(drawn + second["code_loss"], rel=1e-5)
    assert any(name.startswith("heads") for name in differing(stage.model.inversion.state_dict(), before))


def test_inversions_come_near_the_codes_and_differ_by_their_latents(
    guided: Path, tmp_path: Path, coded: tuple[str, ...]
) -> None:
    stage, reader = stage_of(guided, tmp_path, *coded, "invert.num_samples=2000", "invert.learning_rate=3e-3")
    batch = first_batch(reader)
    losses = [stage.step(batch)["code_loss"] for _ in range(40)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    with torch.no_grad():
        mels = stage.model.front_end(batch.sounds_BN)
        one, other = (
            stage.model.invert(mels, stage.model.start(torch.randn(8, stage.model.generator.z_dim))) for _ in "ab"
        )
    assert float((one - other).abs().mean()) > 1e-3


def test_a_step_is_the_same_in_micro_batches(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    after = []
    for size in ("none", "3"):
        stage, reader = stage_of(
            guided, tmp_path / size, *coded, "invert.num_samples=1", f"invert.micro_batch_size={size}"
        )
        stage.samples_seen = 1  # pictures are drawn
        stage.step(first_batch(reader))
        after.append(copied(stage.model.inversion.state_dict()))
    for name, one in after[0].items():
        torch.testing.assert_close(one, after[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_stage_video_goes_on_from_it(guided: Path, tmp_path: Path, coded: tuple[str, ...]) -> None:
    assert fit(guided, tmp_path, "invert,video", *coded) == 0
    model, header = load_model(tmp_path / "video" / "last.safetensors")
    assert (model.config.latent_width, header.generator.styles) == (4, "w_plus")


def test_a_generator_without_an_encoder_is_refused_before_any_work(guided: Path, tmp_path: Path) -> None:
    recipe, _ = prepared(guided, tmp_path, "invert.codes={}")
    with pytest.raises(RecipeError, match=r"generator\.safetensors holds no encoder of frames"):
        check_invert(recipe)
    recipe, _ = prepared(guided, tmp_path, "invert.codes={}", "invert.generator=null", "stages=['prior', 'invert']")
    with pytest.raises(RecipeError, match=r"add the table \[prior\.reconstruction\]"):
        check_invert(recipe)
