"""What to say of a device that has too little memory for a step."""

from __future__ import annotations

import math

from trainer.engine.ranks import num_ranks


def out_of_memory(
    stage: str, settings: object, error: BaseException, *, samples_per_step: int | None, group_size: int = 1
) -> str:
    """What to say of a device that is full: the setting to change, its value and the one to try.

    ``samples_per_step``: of all ranks; a rank has its share at once if no micro-batch is set. None: not known. A micro-batch is a
    multiple of ``group_size``, or smaller.
    """
    batch: int | None = getattr(settings, "batch_size", None)
    own: int | None = getattr(settings, "micro_batch_size", None)
    share = own if samples_per_step is None else math.ceil(samples_per_step / num_ranks())
    now = share if own is None or share is None else min(own, share)
    first_line = str(error).strip().partition("\n")[0]
    problem = f"{stage}: the device has too little memory ({first_line})"
    if not hasattr(settings, "micro_batch_size"):
        return f"{problem}: set {stage}.batch_size to {max(1, (batch or 2) // 2)}, it is {batch}"
    if now is None:
        return f"{problem}: set {stage}.micro_batch_size, which is none, to a part of reader.batch_size; the losses see the whole batch"
    if now == 1:
        return f"{problem}: {stage}.micro_batch_size is 1 already; lower reader.num_frames, invert.guide.num_cutouts or the pictures' side"
    half = now // 2 if now // 2 <= group_size else now // 2 // group_size * group_size
    value = f"it is {now}" if own is not None else f"it is none, so that {now} are computed at once"
    return f"{problem}: set {stage}.micro_batch_size to {half}, {value}; a step learns from the same batch, in smaller parts"
