"""Every error that Hearscape raises on purpose.

    HearscapeError
    ├── UserError (ValueError)      refused before any work; the message names the file or field and what to do
    │   ├── RecipeError             a recipe or a setting; lists every problem at once
    │   ├── SourceListError         a source list; lists every bad row with its line
    │   ├── OutputError             the output folder: not writable, too little space, in use
    │   ├── EncoderError            weights that are unknown, missing, damaged, or of another shape
    │   ├── ManifestError           a manifest of another version, or damaged
    │   ├── DataError               a dataset cannot be trained on as asked, or too many of its samples cannot be read
    │   ├── CalibrationError        the wanted rate gives no threshold: too few clips, or a calibration of another encoder
    │   ├── ReportError             a dataset whose tables cannot be read, so that there is nothing to report
    │   ├── CheckpointError         a checkpoint of a fit that is damaged, foreign, or of another network
    │   ├── GeneratorError          a generator's file that is damaged, foreign, hostile, or of another network
    │   └── NothingKeptError        a build that kept no clip
    ├── ClipError                   one source or clip could not be processed: one ledger entry, the rest goes on
    │   ├── DownloadError           could not be fetched
    │   │   └── TransientDownloadError (TransientError)
    │   ├── MediaError              is not, or is no longer, playable media
    │   ├── ShardError              a shard or its index cannot be read: the samples in it cannot either
    │   ├── PreviewError            the frames or sound stored for the encoders are missing or damaged (TransientError)
    │   └── WorkerError             the process that worked on it was killed or took too long
    │       └── ... TransientError  mixed in where a retry can help
    ├── DamagedStateError           state files that finishing a build needs are missing or damaged: their sources are done again
    ├── FitError                    a fit cannot go on: its loss is not finite; a checkpoint is written
    ├── LostRankError               another process of the fit has ended, or cannot be reached
    └── StoppedError                the build was stopped: sources in progress have no outcome, the next run does them

Any other exception is a bug. It stops the run or is recorded as a bug: see :mod:`pipeline.dataset.bugs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


class HearscapeError(Exception):
    """Base of everything below."""


class UserError(HearscapeError, ValueError):
    """Something that the user can correct. It is raised before any work is done."""


class RecipeError(UserError):
    """A recipe or setting cannot be used."""


class OutputError(UserError):
    """The output folder cannot be used."""


class EncoderError(UserError):
    """An encoder's weights cannot be used."""


class ManifestError(UserError):
    """A manifest cannot be read."""


class CalibrationError(UserError):
    """There is no threshold of agreement: too few clips of too few sources, or the calibration of another encoder."""


class DataError(UserError):
    """A dataset cannot be trained on as asked, or too many of its samples cannot be read."""


class CheckpointError(UserError):
    """A checkpoint cannot be continued from."""


class ReportError(UserError):
    """A dataset's tables cannot be read: there is nothing to report."""


class GeneratorError(UserError):
    """A generator's file cannot be used. None of its content was imported or run."""


class NothingKeptError(UserError):
    """A build ended without a single kept clip."""


class SourceListError(UserError):
    """A source list cannot be used.

    ``problems`` holds one line per bad row, each starting with ``FILE:LINE``.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *problems]))
        self.problems = tuple(problems)


class TransientError(HearscapeError):
    """Mixed into errors that may not occur again in a later try."""


class FitError(HearscapeError):
    """A fit cannot go on. Its checkpoint holds what was learned until then."""


class LostRankError(HearscapeError):
    """Another process of a fit has ended, or cannot be reached. Only the last checkpoint holds what was learned."""


class DamagedStateError(HearscapeError):
    """State files that finishing a build needs are missing or damaged.

    ``source_ids``: the sources to do again. ``files``: paths of the unusable files below ``state``, each with its problem.
    """

    def __init__(self, source_ids: Iterable[str], files: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name} {problem}" for name, problem in files.items()))
        self.source_ids, self.files = frozenset(source_ids), dict(files)


class StoppedError(HearscapeError):
    """The build was stopped before this work was done. Its source has no outcome; the next run does it."""


class ClipError(HearscapeError):
    """One source or one clip could not be processed.

    ``code`` is a short stable word for grouping (``http_404``, ``truncated``); the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:
        return (type(self), (self.code, str(self)))


class DownloadError(ClipError):
    """A source could not be fetched, and another try would not help."""


class TransientDownloadError(DownloadError, TransientError):
    """A source could not be fetched this time."""


class MediaError(ClipError):
    """A file is not media that can be decoded."""


class PreviewError(ClipError, TransientError):
    """The small frames or the sound stored for the encoders are missing or damaged."""


class ShardError(ClipError):
    """A shard or its index cannot be read, and with it none of its samples."""


class WorkerError(ClipError, TransientError):
    """The process that worked on this was killed or ran out of time."""
