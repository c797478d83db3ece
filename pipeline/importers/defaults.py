"""The default classes of published lists, and the classes that exclude a row by default."""

from __future__ import annotations

VGGSOUND_NATURE = (
    "fire crackling",
    "hail",
    "ice cracking",
    "ocean burbling",
    "raining",
    "sea waves",
    "splashing water",
    "squishing water",
    "stream burbling",
    "thunder",
    "tornado roaring",
    "underwater bubbling",
    "volcano explosion",
    "waterfall burbling",
    "wind noise",
    "wind rustling leaves",
)
"""The default classes of VGGSound: landscapes, weather, water and fire."""

AUDIOSET_NATURE = (
    "Wind",
    "Howl (wind)",
    "Rustling leaves",
    "Thunderstorm",
    "Thunder",
    "Water",
    "Rain",
    "Raindrop",
    "Rain on surface",
    "Stream",
    "Waterfall",
    "Ocean",
    "Waves, surf",
    "Steam",
    "Gurgling",
    "Fire",
    "Crackle",
    "Wildfire",
)
"""The default classes of AudioSet: all below "Natural sounds" in the ontology, except "Wind noise (microphone)", which is a fault of the
recording, and "Hiss", which includes snakes and cats."""

AUDIOSET_EXCLUDE = (
    "Speech",
    "*speech*",
    "Conversation",
    "Narration, monologue",
    "Singing",
    "*singing*",
    "Music",
    "*music*",
    "Musical instrument",
)
"""Labels that exclude a segment of AudioSet by default, unless the class itself is chosen."""

LANDSCAPE_CLIP_SECONDS = 10.0
