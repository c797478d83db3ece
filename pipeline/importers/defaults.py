"""Which classes of published lists are taken, and which left out, when none are named."""

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
"""The classes of VGGSound that are taken when none are named: landscapes, weather, water and fire."""

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
"""The classes taken when none are named: all that the ontology has below "Natural sounds", but for the fault of
recording "Wind noise (microphone)", and for "Hiss", which is the sound of snakes and cats as well."""

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
"""A segment that has one of these labels too is left out, unless told otherwise or that class itself is chosen."""

LANDSCAPE_CLIP_SECONDS = 10.0
