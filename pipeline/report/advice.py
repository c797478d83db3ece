"""What can be done about each reason and each error, in a sentence."""

from __future__ import annotations

REASONS: dict[str, tuple[str, str]] = {
    # reason: what it means, what to do
    "no_video": ("The file has no moving picture.", "Leave such sources out of the list."),
    "no_audio": ("The file has no sound track.", "Leave such sources out of the list."),
    "portrait": ("Higher than wide.", "Set probe.allow_portrait = true to keep them."),
    "too_small": ("The picture is too small.", "Lower probe.min_short_side_px, or find larger versions."),
    "too_short": ("The video is shorter than a clip.", "Lower clips.min_seconds or probe.min_seconds."),
    "too_long": ("The video is very long.", "Raise probe.max_seconds, or name sections with start and end."),
    "no_clip_fits": ("No scene between two cuts holds a clip.", "Lower clips.min_seconds or clips.margin_seconds."),
    "no_clip_kept": ("Every clip of the source was rejected.", "See the reasons of its clips."),
    "black": ("The picture is black.", "Raise judge.max_black_share for night scenes."),
    "white": ("The picture is white.", "Raise judge.max_white_share for snow and fog."),
    "flat": ("Hardly any contrast.", "Lower judge.min_luma_std for fog and plain skies."),
    "still": ("The picture stands still.", "Raise judge.max_still_share or lower judge.min_motion; most are photographs."),
    "blurred": ("Out of focus.", "Lower judge.min_sharpness for soft footage."),
    "cropped_too_small": ("Too little picture is left between black bars.", "Lower judge.min_cropped_share."),
    "sound_missing": ("The sound ends before the picture, or is not there.", "Lower judge.min_covered_share."),
    "silent": ("Silence.", "Raise judge.max_silent_share for very quiet places."),
    "quiet": ("Very quiet.", "Lower judge.min_loudness_lufs."),
    "clipped_sound": ("The sound is cut off at full scale.", "Raise judge.max_clipped_share; wind in the microphone is the usual cause."),
    "dc_offset": ("The sound is off centre: a fault of the recorder.", "Raise judge.max_dc_offset."),
    "speech": ("Somebody speaks.", "Raise judge.max_speech_share; listen to a few first."),
    "music": ("Music.", "Raise judge.max_music_share; listen to a few first."),
    "disagrees": ("The sound does not fit the picture.", "Lower the asked agreement, or allow more false accepts; look and listen first."),
    "duplicate": ("The same material is there already.", "Set dedup.reject_duplicates = false to keep them; they share a split anyhow."),
    "class_full": ("Its class has enough clips.", "Raise balance.max_clips_per_class."),
    "source_full": ("Its source gave enough clips.", "Raise balance.max_clips_per_source."),
    "withdrawn": ("Withdrawn after the dataset had been built.", "Take its id out of withdrawn.json to build it again."),
}  # fmt: skip

_COOKIES = "Set download.cookies_file or download.cookies_browser."
_AGAIN = "Run the build again: only these are tried once more."
FAILURES: dict[str, str] = {
    "bug": "An error of this program, not of the source: report it with the traceback that the log of the run has. Another version tries "
    "these again, this one with execution.try_failed_again=true.",
    "bad_row": "Put the row right in the source list, and run the build again.",
    "bot_check": _COOKIES,
    "login_required": _COOKIES,
    "cookies": "Check the cookies file that the recipe names.",
    "drm": "Cannot be fetched; leave it out of the list.",
    "geo_blocked": "Not available from here; use download.proxy, or leave it out.",
    "private": "Leave it out of the list.",
    "unavailable": "The site has taken it down; leave it out of the list.",
    "live": "Run the build again when the broadcast is over.",
    "no_format": "The site offers no file that fits; raise download.height.",
    "needs_javascript_runtime": "Install Deno 2.3 or later (pip install deno), then build with execution.try_failed_again=true.",
    "http_404": "The link is dead; leave it out of the list.",
    "http_410": "The link is dead; leave it out of the list.",
    "http_403": "The server refuses; cookies (download.cookies_file) may help.",
    "http_429": "The server wants fewer requests: raise download.sleep_seconds, lower download.max_per_host, and run again later.",
    "http_5xx": f"The server was ill. {_AGAIN}",
    "connection": f"The connection broke. {_AGAIN}",
    "stalled": f"The server fell silent. {_AGAIN}",
    "timed_out": f"It took too long. {_AGAIN}",
    "host_unknown": "There is no such host: check the link's spelling.",
    "certificate": "The server's certificate is not valid; find another link.",
    "proxy": "Check download.proxy.",
    "disk_full": "Make room, or set execution.store_budget_bytes, and run the build again.",
    "file_system": f"A file could not be written or read. {_AGAIN}",
    "not_media": "A web page or something else came where a video was expected: open the link in a browser.",
    "empty": "The file has zero bytes; find another link.",
    "truncated": "The file ends too early; find a whole one.",
    "changing": "The file was written to, replaced or removed while it was worked on: run the build again when it rests.",
    "missing_file": "The path is not there: check the source list.",
    "unsupported_url": "Nothing here can follow such a link: check the source list.",
    "no_frames": "No picture could be decoded; the file is damaged.",
    "worker_killed": "Decoding took too much memory or crashed; lower execution.workers, and run the build again.",
    "too_large": "Raise download.max_bytes.",
    "too_long": "Raise download.max_duration_seconds, or name a section with start and end.",
    "ffmpeg_failed": "The message has ffmpeg's last lines; the file is probably damaged.",
    "clips_failed": "Every clip of the source failed: see their errors in the ledger.",
    "previews_gone": "The previews were cleared away: see the message for the setting to change.",
}


def about_reason(reason: str) -> tuple[str, str]:
    """What a reason means, and what to do; words of its own for one that is not known here."""
    return REASONS.get(reason, (reason.replace("_", " ").capitalize() + ".", "See the detail of each clip."))


def about_failure(code: str) -> str:
    return FAILURES.get(
        code, "See the message; where it was put right, run the build again with execution.try_failed_again=true."
    )
