"""Makes a dataset's report: page, facts, card and Croissant, each file written atomically."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.tables import SAMPLES_NAME
from pipeline.errors import OutputError, ReportError
from pipeline.report import card, croissant
from pipeline.report.catalogue import MEASURES, thresholds_of
from pipeline.report.clip_files import ClipFiles
from pipeline.report.compare import compare
from pipeline.report.facts import gather, read_manifest_if_any
from pipeline.report.gallery import GallerySettings, gallery
from pipeline.report.page import render_page
from pipeline.report.tables import Tables, TableSettings
from pipeline.report.whatif import for_page, what_if
from pipeline.runtime.folder import Folder
from pipeline.runtime.remote_folder import read_folder
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

PAGE_NAME = "report.html"
FACTS_NAME = "report.json"
MAX_PAGE_BYTES = 15_000_000


class ReportSettings(Settings):
    """How a report is made."""

    tables: TableSettings = TableSettings()
    """Memory and cores for the statistics."""
    gallery: GallerySettings = GallerySettings()
    """How many clips the page shows."""
    max_page_bytes: int = Field(MAX_PAGE_BYTES, ge=2_000_000)
    """Maximum size of the page: thumbnails and clips of the gallery are left out of a larger one."""


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report: its files and facts."""

    name: str
    page: str
    """Location of the HTML page."""
    files: tuple[str, ...]
    """Locations of all files, the page first."""
    facts: Mapping[str, Any]

    def to_markdown(self) -> str:
        """A short summary in Markdown."""
        head = self.facts["headline"]
        rejected = [f"{r['reason']} {r['count']}" for r in self.facts["rejections"] if r["what"] == "clips"]
        failed = [f"{f['code']} {f['count']}" for f in self.facts["failures"]]
        lines = [
            f"# Report on {self.name}",
            "",
            f"- {head['num_kept']} of {head['num_clips']} clips kept, {head['kept_hours'] * 3600:.0f} s",
            f"- {head['num_kept_sources']} of {head['num_sources']} sources gave clips",
            f"- rejected: {', '.join(rejected) or 'nothing'}",
            f"- failed: {', '.join(failed) or 'nothing'}",
            *[f"- {note}" for note in self.facts["notes"]],
            "",
            f"Page: `{self.page}`",
            "",
            f"Look and listen: `python -m pipeline.report serve {self.facts['location']}`",
            "",
        ]
        return "\n".join(lines)


def make_report(
    location: str,
    out: str | None = None,
    compare_with: str | None = None,
    settings: ReportSettings | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Report:
    """Writes the report of the dataset in the folder ``location`` into ``out`` (None: the dataset's own folder).

    ``recipe``: that of a build which kept nothing, and so has no manifest. Raises ReportError or ManifestError where the
    dataset, or the one of ``compare_with``, cannot be read, and OutputError where ``out`` cannot be written.
    """
    settings = settings or ReportSettings()
    folder, target = read_folder(location), Folder(out or location)
    manifest = _manifest(folder)
    target.check_writable()
    with ExitStack() as stack:
        tables = stack.enter_context(Tables(folder, settings.tables))
        made_of = [[file.path, file.sha256] for file in manifest.files] if manifest else None
        facts = {**gather(folder, manifest, tables, recipe), "location": location, "made_of": made_of, "compare": None}
        if compare_with is not None:
            facts["compare"] = _compared(compare_with, tables, manifest, facts["name"], settings)
        page = _page(folder, manifest, tables, facts, settings)
        stored = tables.stored
    written = {
        PAGE_NAME: page.encode("utf-8", "replace"),
        FACTS_NAME: (json.dumps(facts, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode(
            "utf-8", "replace"
        ),
        card.NAME: card.dataset_card(facts, manifest).encode("utf-8", "replace"),
    }
    if manifest is not None:
        written[croissant.NAME] = croissant.croissant(facts, manifest, stored).encode("utf-8", "replace")
    for name, content in written.items():
        try:
            target.write_bytes(name, content)
        except OSError as error:
            raise OutputError(
                f"{target}/{name} cannot be written: {error.strerror or error}; remove it, or choose another folder with --out"
            ) from error
    places = tuple(f"{target.url.rstrip('/')}/{name}" for name in written)
    return Report(facts["name"], places[0], places, facts)


def _manifest(folder: Folder) -> Manifest | None:
    manifest = read_manifest_if_any(folder)
    if folder.local_path is not None and not folder.local_path.is_dir():
        raise ReportError(f"{folder} is no folder; name that of a built dataset, manifests/NAME")
    if manifest is None and not folder.exists(SAMPLES_NAME):
        raise ReportError(f"{folder} holds neither a manifest nor {SAMPLES_NAME}: no dataset was built there")
    return manifest


def _compared(
    other: str, tables: Tables, manifest: Manifest | None, name: str, settings: ReportSettings
) -> dict[str, Any]:
    folder = read_folder(other)
    before = _manifest(folder)
    shown = before.name if before else folder.url.rstrip("/").rsplit("/", 1)[-1]
    with Tables(folder, settings.tables) as other_tables:
        return compare(tables, other_tables, manifest, before, f"{shown} in {other}" if shown == name else shown)


def _page(
    folder: Folder, manifest: Manifest | None, tables: Tables, facts: Mapping[str, Any], settings: ReportSettings
) -> str:
    """The page, with as many thumbnails as ``max_page_bytes`` allows."""
    thresholds = thresholds_of(facts["recipe"], getattr(manifest, "agreement_rule", None))
    what_if_result = what_if(tables, thresholds)
    for_sliders = for_page(what_if_result) if what_if_result is not None else None
    measures = [{"name": m.name, "label": m.label, "unit": m.unit} for m in MEASURES]
    files = ClipFiles(folder, manifest, facts["recipe"])
    chosen = gallery(tables, files, manifest, settings.gallery)
    page = render_page(facts, chosen, for_sliders, measures)
    excess = len(page.encode("utf-8", "replace")) - settings.max_page_bytes
    while excess > 0 and chosen["clips"]:
        logger.warning("the page would be %d bytes too large: some clips are shown without frames", excess)
        for clip in reversed(chosen["clips"]):
            if excess <= 0:
                break
            excess -= len(clip["strip"] or "") + len(clip["spectrum"] or "")
            clip["strip"] = clip["spectrum"] = None
        if excess > 0:
            chosen["clips"] = chosen["clips"][: len(chosen["clips"]) // 2]
        page = render_page(facts, chosen, for_sliders, measures)
        excess = len(page.encode("utf-8", "replace")) - settings.max_page_bytes
    return page
