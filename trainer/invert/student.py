"""The student: a small network that learns the embeddings of a picture encoder without gradients.

The packaged picture encoder takes one picture at a time and has no gradients, but a guide needs gradients in every step. Therefore a
small network first learns to compute the same embeddings (distillation, Hinton et al., arXiv:1503.02531, with the cosine as its
measure), on frames of the datasets and on generated pictures.

Shape suffixes: N pictures, C = 3 colours, H W rows and columns, D width of the space.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

import timm
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.weights import load_into
from pipeline.errors import CheckpointError, EncoderError
from pipeline.settings import Settings
from trainer.engine.phases import Terms
from trainer.model.pictures import to_uint8

METADATA_KEY = "hearscape_student"


class StudentConfig(Settings):
    """The settings of a student, stored in the header of its file."""

    teacher_id: str
    """``encoder_id`` of the picture encoder that it learned from."""
    width: int = Field(ge=1)
    """Width of an embedding."""
    backbone: str = "resnet10t"
    """Name of the timm network."""
    side_px: int = Field(64, ge=16, le=1024)
    """Side of the network's input, in pixels; pictures are scaled to it."""


class Student(nn.Module):
    """(N, 3, H, W) square pictures, about -1..1 -> (N, D), rows of length 1."""

    def __init__(self, config: StudentConfig) -> None:
        """Raises EncoderError for a network that timm does not know."""
        super().__init__()
        if not timm.is_model(config.backbone):
            raise EncoderError(f"timm has no network named {config.backbone!r}; 'resnet10t' is a small one")
        self.config = config
        self.network = timm.create_model(config.backbone, pretrained=False, num_classes=config.width)

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        side = (self.config.side_px, self.config.side_px)
        pictures = pictures_NCHW.float()
        if pictures.shape[2:] != side:
            pictures = functional.interpolate(pictures, side, mode="bilinear", antialias=True)
        return functional.normalize(self.network(pictures), dim=1)


class Teacher(Protocol):
    """A picture encoder without gradients."""

    def embed_frames(self, frames_BTCHW: Tensor) -> Tensor:
        """RGB frames, uint8, square -> (B, D), unit vectors."""


def teacher_embeddings(teacher: Teacher, pictures_NCHW: Tensor) -> Tensor:
    """(N, D): the teacher's embeddings of pictures, -1..1."""
    as_bytes = to_uint8(pictures_NCHW).permute(0, 3, 1, 2).cpu()
    return teacher.embed_frames(as_bytes[:, None]).to(pictures_NCHW.device)


class LearningStudent:
    """A student that guides, and keeps learning from generated pictures, so that the generator cannot learn to deceive it."""

    def __init__(self, student: Student, teacher: Teacher, learning_rate: float, device: torch.device) -> None:
        self.student, self.teacher = student.eval().requires_grad_(False).to(device), teacher
        self.width = student.config.width
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate)

    def look(self, pictures_NCHW: Tensor) -> Tensor:
        """Square pictures, about -1..1 -> (N, D), rows of length 1, with a gradient back to the pixels."""
        self.student.eval()
        rows_ND: Tensor = self.student(pictures_NCHW)
        return rows_ND

    def lesson(self, pictures_NCHW: Tensor) -> Terms:
        """Loss: 1 - the mean cosine of student and teacher. Its measure ``student_cosine`` is that cosine."""
        targets_ND = teacher_embeddings(self.teacher, pictures_NCHW)
        self.student.train()
        cosine = (self.student(pictures_NCHW) * targets_ND).sum(1).mean()
        return Terms(1 - cosine, {"student_cosine": float(cosine.detach())})


def save_student(path: Path, student: Student) -> None:
    """Writes ``path`` through a temporary name."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={METADATA_KEY: student.config.model_dump_json()})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_student(path: Path, teacher_id: str) -> Student:
    """The student of a file. Raises CheckpointError if the file is missing or damaged, or its student has another teacher."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not there: the picture encoder has no gradients, so a student of it has to learn first; "
            f"run the stage student before this one"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
        config = StudentConfig.model_validate(json.loads(text or "{}"))
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} is damaged or no student: {error}; remove {path.parent}") from error
    if config.teacher_id != teacher_id:
        raise CheckpointError(
            f"{path} learned from {config.teacher_id}, and the picture encoder is {teacher_id}; remove {path.parent} so that it "
            f"learns anew"
        )
    student = Student(config)
    load_into(student, tensors, path)
    return student
