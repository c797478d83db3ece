"""The align stage: a sound network learns the space of a frozen picture and text encoder.

Shape suffixes: B samples of this rank, N samples of all ranks, V = 2 views of a sound (as it is, augmented), M mel bands,
T mel frames, D width of the space.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.encoders.mel import LogMel, MelConfig
from pipeline.encoders.sound import AlignConfig, SoundNetwork, save_align
from pipeline.errors import FitError, RecipeError
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from trainer.align.augment import augmented_mels
from trainer.align.contrastive import clamp_log_scale, initial_log_scale
from trainer.align.frozen_encoders import Partner, check_partner, load_partner
from trainer.align.gradient_cache import backward_through
from trainer.align.loss import Targets, align_loss
from trainer.align.prompts import TextEmbeddings, sample_text
from trainer.align.retrieval import retrieval_measures
from trainer.align.settings import AlignSettings
from trainer.engine.learner import BEST, LAST, Learner, damaged, rank_reader, run_stage
from trainer.engine.loop import Ended
from trainer.engine.optimizing import adamw, gradients_of, learning_rate_share
from trainer.engine.ranks import add_over_ranks, average_over_ranks, gather_items, gather_rows
from trainer.engine.run import Run
from trainer.engine.stats import Display
from trainer.engine.undo import Undo
from trainer.streaming.reader import Batch, Reader, ReaderSettings

if TYPE_CHECKING:
    from trainer.align.settings import AlignRecipe

logger = logging.getLogger(__name__)

NAME = "align"


class Align(Learner):
    """The stage: sound network, temperature, optimizer, step and validation. The constructor loads the frozen encoder."""

    name = NAME

    def __init__(self, settings: AlignSettings, reader: ReaderSettings, run: Run) -> None:
        super().__init__(run)
        self.settings, self.reader_settings = settings, reader
        self.partner: Partner = load_partner(settings.partner, self.device, run.settings.precision, "align.partner")
        mel = MelConfig()
        num_samples = round(reader.window_seconds * mel.sample_rate_hz)
        self.made = AlignConfig(
            picture_id=self.partner.encoder_id,
            width=self.partner.width,
            backbone=settings.backbone,
            norm=settings.norm,
            num_frames=mel.num_frames(num_samples),
            mel=mel,
        )
        torch.manual_seed(run.settings.seed)
        self.network = SoundNetwork(self.made.width, settings.backbone, settings.norm).to(self.device)
        self.compile(self.network, self.partner.network)
        self.log_scale = nn.Parameter(torch.tensor(initial_log_scale(), device=self.device))
        self.optimizer = adamw(
            [*self.network.parameters(), self.log_scale], settings.learning_rate, settings.weight_decay
        )
        self.front_end = LogMel(mel).to(self.device)
        self.texts = TextEmbeddings(self.partner, self.device)
        self.prompts = self._class_prompts()
        self._validation: Reader | None = None
        self._from_start: Mapping[str, Any] = {}

    def close(self) -> None:
        """Ends the processes that read the validation split."""
        if self._validation is not None:
            self._validation.close()

    def _class_prompts(self) -> Mapping[str, Tensor]:
        rows = self.texts.classes(self.run.classes, self.settings.prompts)
        return {label: row.cpu() for label, row in rows.items()}

    def samples_per_step(self) -> int:
        return self.reader_settings.batch_size

    # one step

    def step(self, batch: Batch) -> dict[str, float]:
        """Learns from one batch of all ranks. Returns its measures; empty if no rank has a sample.

        Raises FitError for a loss or gradient that is not finite, or a full device; the stage is then unchanged.
        """
        with self.undone_on_failure() as undo:
            return self._learn_from(batch, undo)

    def _learn_from(self, batch: Batch, undo: Undo) -> dict[str, float]:
        settings, before = self.settings, self.samples_seen
        # all that is random in a step follows from this seed, so that a checkpoint needs no random state
        torch.manual_seed(
            int(stable_hash("step", self.run.settings.seed, before, self.run.fabric.global_rank, length=15), 16)
        )
        views_BVMT = self._views(batch)
        targets = self._targets(batch)
        if not targets.labels:
            return {}
        self.network.train()
        self.optimizer.zero_grad()
        terms: dict[str, float] = {}

        def loss_of(sounds_NVD: Tensor) -> Tensor:
            loss, parts = align_loss(
                sounds_NVD,
                targets,
                self.log_scale.exp(),
                picture_weight=settings.picture_weight,
                text_weight=settings.text_weight,
                augmented_weight=settings.augmented_weight,
                pictures_by_class=settings.picture_positives == "class",
            )
            terms.update(parts)
            return loss

        micro_batches = torch.split(views_BVMT, self._micro_batch_size(views_BVMT)) if len(views_BVMT) else ()
        no_rows = torch.zeros(0, 2, self.made.width, device=self.device)
        loss = backward_through(self.network, self._embed, micro_batches, loss_of, no_rows)
        length = self._gradient_length()
        if not math.isfinite(float(loss)) or not math.isfinite(length):
            raise FitError(_not_finite(before, terms, length, batch))
        rate = settings.learning_rate * learning_rate_share(before, settings.num_samples, settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        undo.step(self.optimizer, is_last=True)
        clamp_log_scale(self.log_scale)
        self.samples_seen += len(targets.labels)
        self.num_steps += 1
        scale = float(self.log_scale.detach().exp())
        return {"loss": float(loss), **terms, "scale": scale, "gradient_norm": length, "learning_rate": rate}

    def _views(self, batch: Batch) -> Tensor:
        """(B, 2, M, T): the mel of each sound, and of its augmented view. Depends on the seed and the samples only."""
        if not len(batch):
            return torch.zeros(0, 2, self.made.mel.num_mels, self.made.num_frames, device=self.device)
        identity = (self.run.settings.seed, self.samples_seen)
        changed_BMT = augmented_mels(batch, self.front_end, self.settings.augment, self.device, *identity)
        return torch.stack([self._mels(batch), changed_BMT], dim=1)

    def _mels(self, batch: Batch) -> Tensor:
        """(B, M, T) on the device: from the reader, or computed here if the reader gives none."""
        if not len(batch.sounds_BN):
            return torch.zeros(0, self.made.mel.num_mels, self.made.num_frames, device=self.device)
        if batch.mels_BMT is not None:
            return batch.mels_BMT.to(self.device)
        mels_BMT: Tensor = self.front_end(batch.sounds_BN.to(self.device))
        return mels_BMT

    def _micro_batch_size(self, rows: Tensor) -> int:
        return self.settings.micro_batch_size or max(1, len(rows))

    def _embed(self, views_bVMT: Tensor) -> Tensor:
        with self.run.fabric.autocast():
            rows: Tensor = self.network(views_bVMT.flatten(0, 1).unsqueeze(1))
        return rows.float().view(-1, 2, self.made.width)

    def _targets(self, batch: Batch) -> Targets:
        """The pictures, texts and labels of all ranks that the sounds are compared with."""
        settings, identity = self.settings, (self.run.settings.seed, self.samples_seen)
        samples = zip(batch.labels, batch.captions, batch.datasets, batch.keys, strict=True)
        texts = [
            sample_text(labels, caption, settings.prompts, settings.use_captions, *identity, dataset, key)
            for labels, caption, dataset, key in samples
        ]
        pictures_ND, _ = gather_rows(self.partner.embed_frames(batch.frames_BTCHW))
        texts_ND, _ = gather_rows(self.texts.rows(texts if settings.text_weight else [None] * len(texts)))
        labels_and_texts = gather_items(list(zip(batch.labels, texts, strict=True)))
        all_labels, all_texts = [labels for labels, _ in labels_and_texts], [text for _, text in labels_and_texts]
        return Targets(pictures_ND, texts_ND, all_labels, all_texts)

    def _gradient_length(self) -> float:
        """Sums the gradients over ranks, clips them to ``max_gradient_norm``, and returns their norm before the clipping."""
        add_over_ranks(gradients_of(self.network.parameters()))
        average_over_ranks(gradients_of([self.log_scale]))  # every rank has computed the whole gradient
        average_over_ranks([buffer for buffer in self.network.buffers() if buffer.is_floating_point()])
        parameters = [*self.network.parameters(), self.log_scale]
        most = self.settings.max_gradient_norm
        return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if most is None else most))

    # validation

    def validate(self) -> dict[str, float]:
        """Retrieval, zero-shot accuracy and AUC on the validation split. Empty if the datasets have no such split."""
        if self._validation is None:
            mixes = self.run.mixes("validation")
            if not mixes:
                return {}
            self._validation = rank_reader(mixes, self.reader_settings, self.run, "validation")
            self._from_start = self._validation.state_dict()
        self._validation.load_state_dict(self._from_start)
        measures = self.measure(self._validation)
        value = measures.get(self.settings.best_by)
        if value is None:
            logger.warning(
                "the validation split gives no %s: the last network is kept as the best", self.settings.best_by
            )
        if value is not None and (self.best is None or value > self.best):
            self.best = value
            if self.run.fabric.is_global_zero:
                save_align(self.folder / BEST, self.network, self.made)
        return measures

    def measure(self, reader: Reader) -> dict[str, float]:
        """The measures over one epoch of a reader, or over its first ``validation_samples``."""
        self.network.eval()
        most = self.settings.validation_samples
        sounds, pictures = [torch.zeros(0, self.made.width)], [torch.zeros(0, self.made.width)]
        sources_and_labels: list[tuple[str, tuple[str, ...]]] = []
        for batch in reader:
            sounds.append(gather_rows(self.embed(batch))[0].cpu())
            pictures.append(gather_rows(self.partner.embed_frames(batch.frames_BTCHW))[0].cpu())
            sources = [f"{name}/{source}" for name, source in zip(batch.datasets, batch.source_ids, strict=True)]
            sources_and_labels += gather_items(list(zip(sources, batch.labels, strict=True)))
            if len(sources_and_labels) >= most:
                break
        return retrieval_measures(
            torch.cat(sounds)[:most],
            torch.cat(pictures)[:most],
            self.prompts,
            [source for source, _ in sources_and_labels[:most]],
            [labels for _, labels in sources_and_labels[:most]],
        )

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings (B, D) of the sounds of a batch, not normalised, without gradient, computed in micro-batches.

        The caller sets the network to train or eval.
        """
        mels_BMT = self._mels(batch)
        if not len(mels_BMT):
            return torch.zeros(0, self.made.width, device=self.device)
        with torch.no_grad(), self.run.fabric.autocast():
            parts = torch.split(mels_BMT, self._micro_batch_size(mels_BMT))
            return torch.cat([self.network(part.unsqueeze(1)).float() for part in parts])

    # checkpoints

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def config(self) -> Settings:
        return self.made

    def export(self) -> None:
        save_align(self.folder / LAST, self.network, self.made)
        if self.best is None:
            save_align(self.folder / BEST, self.network, self.made)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "log_scale": self.log_scale}

    def put(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], path: Path) -> None:
        super().put(tensors, numbers, path)
        if "log_scale" not in tensors:
            raise damaged(path, "it has no log_scale")
        with torch.no_grad():
            self.log_scale.copy_(tensors["log_scale"])


def fit_align(recipe: AlignRecipe, run: Run, display: Display) -> Ended:
    """Runs the stage, from its checkpoint if there is one. Writes ``best.safetensors`` and ``last.safetensors``."""
    source = rank_reader(run.mixes("train"), recipe.reader, run, "train")
    return run_stage(lambda: Align(recipe.align, recipe.reader, run), source, recipe.align, run, display)


def _not_finite(samples_seen: int, terms: Mapping[str, float], gradient: float, batch: Batch) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    keys = ", ".join(batch.keys[:3]) or "other ranks"
    return f"the loss is not finite after {samples_seen} samples ({values}, gradient {gradient:.4g}) in the batch of {keys}"


def check_align(recipe: AlignRecipe) -> None:
    """Raises UserError for settings that can be refused before any weights are loaded."""
    settings = recipe.align
    check_partner(settings.partner, "align.partner")
    if settings.partner.is_packaged and settings.use_captions and settings.text_weight:
        raise RecipeError(
            f"align.use_captions: {settings.partner.picture_model} knows classes, not captions; set it to false, so that every "
            f"text is one of align.prompts"
        )
    SoundNetwork(width=8, backbone=settings.backbone)
