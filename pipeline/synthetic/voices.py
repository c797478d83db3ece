"""Synthetic speech and music: sounds that a landscape dataset must reject.

The speech is a source-filter synthesis of random English syllables with pauses: glottal pulses pass through resonators
at the formants of vowels and sonorants, and noise stands for the other consonants. The formants of the vowels are the
averages for men in Peterson and Barney, 1952.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import signal

from pipeline.synthetic.sounds import Sound, levelled
from pipeline.synthetic.textures import Floats, generator

_VOICE_RATE = 16000
"""Samples per second at which speech is synthesised."""
_Formants = tuple[float, float, float]
"""The first three formants, in Hz."""
_VOWELS = {
    "i": (270, 2290, 3010),
    "I": (390, 1990, 2550),
    "e": (530, 1840, 2480),
    "a": (660, 1720, 2410),
    "A": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "U": (440, 1020, 2240),
    "u": (300, 870, 2240),
    "V": (640, 1190, 2390),
    "r": (490, 1350, 1690),
}
_SONORANTS = {
    "m": (250, 1100, 2200),
    "n": (250, 1700, 2500),
    "l": (360, 1000, 2600),
    "w": (300, 650, 2200),
    "y": (280, 2200, 2900),
}
_FRICATIVES = {"s": (5200, 1600), "S": (2800, 1100), "f": (4500, 3500), "h": (1500, 1500)}
_STOPS = {"t": (3800, 2000), "k": (1900, 900), "p": (900, 900), "d": (3500, 2000), "b": (800, 800)}
"""Noise of the consonants: centre of its band and half of its width, in Hz."""
_BANDWIDTHS_HZ = (70.0, 90.0, 130.0, 220.0, 280.0)
"""Of the five resonators."""


@dataclass(slots=True)
class _Track:
    """The voice at control points, between which it is interpolated linearly."""

    times: list[float]
    """In seconds, rising."""
    formants: list[_Formants]
    voicing: list[float]
    """Amplitude of the glottal pulses, 0..1."""
    pitch: list[float]
    """In Hz."""

    def add(self, time: float, formants: _Formants, voicing: float, pitch: float) -> None:
        self.times.append(time)
        self.formants.append(formants)
        self.voicing.append(voicing)
        self.pitch.append(pitch)


@dataclass(frozen=True, slots=True)
class _Burst:
    """The noise of a consonant."""

    start_seconds: float
    seconds: float
    centre_hz: float
    half_width_hz: float
    gain: float


@dataclass(frozen=True, slots=True)
class _Note:
    start_seconds: float
    seconds: float
    hz: float
    gain: float
    pan: float
    """0 (left) to 1 (right)."""
    decay_seconds: float


def _sentences(rng: np.random.Generator, seconds: float, base_hz: float) -> tuple[_Track, list[_Burst]]:
    """Random sentences for ``seconds``, at a mean pitch of about ``base_hz``: the voice, and the noise of its consonants."""
    neutral = _VOWELS["V"]
    track = _Track([0.0], [neutral], [0.0], [base_hz])
    bursts: list[_Burst] = []
    now = 0.08
    while now < seconds:
        num_syllables = int(rng.integers(7, 15))
        for number in range(num_syllables):
            declination = 1.22 - 0.42 * number / num_syllables
            stress = 1.0 + (0.16 if rng.uniform() < 0.35 else 0.0) + rng.normal(0, 0.03)
            pitch = base_hz * declination * stress
            vowel = _VOWELS[str(rng.choice(list(_VOWELS)))]
            now = _add_consonant(rng, track, bursts, now, vowel=vowel, pitch=pitch)
            length = rng.uniform(0.07, 0.13) * (1.3 if stress > 1.1 else 1.0)
            length *= 1.5 if number == num_syllables - 1 else 1.0
            glide = _VOWELS[str(rng.choice(list(_VOWELS)))] if rng.uniform() < 0.3 else vowel
            end = tuple(0.6 * a + 0.4 * b for a, b in zip(vowel, glide, strict=True))
            track.add(now + 0.02, vowel, 1.0, pitch * 1.03)
            track.add(now + length, (end[0], end[1], end[2]), rng.uniform(0.75, 0.95), pitch * 0.96)
            now += length
        track.add(now + 0.05, neutral, 0.0, base_hz * 0.78)
        now += rng.uniform(0.18, 0.38)
        track.add(now, neutral, 0.0, base_hz * 1.2)
    return track, bursts


def _add_consonant(
    rng: np.random.Generator, track: _Track, bursts: list[_Burst], now: float, *, vowel: _Formants, pitch: float
) -> float:
    """Adds a random sonorant, fricative or stop at ``now``; returns when the vowel after it begins, in seconds."""
    choice = rng.uniform()
    if choice < 0.42:
        sonorant = _SONORANTS[str(rng.choice(list(_SONORANTS)))]
        track.add(now + 0.015, sonorant, 0.5, pitch)
        track.add(now + 0.055, sonorant, 0.5, pitch)
        return now + 0.08
    if choice < 0.7:
        centre, half_width = _FRICATIVES[str(rng.choice(list(_FRICATIVES)))]
        length = rng.uniform(0.06, 0.1)
        track.add(now + 0.015, vowel, 0.04, pitch)
        track.add(now + length, vowel, 0.05, pitch)
        bursts.append(_Burst(now, length + 0.01, centre, half_width, 0.16))
        return now + length + 0.015
    centre, half_width = _STOPS[str(rng.choice(list(_STOPS)))]
    locus = (vowel[0] * 0.55, 0.6 * vowel[1] + 0.4 * centre * 0.5, vowel[2])
    track.add(now + 0.012, locus, 0.0, pitch)
    track.add(now + 0.055, locus, 0.0, pitch)
    bursts.append(_Burst(now + 0.05, 0.022, centre, half_width, 0.35))
    track.add(now + 0.065, locus, 0.7, pitch)
    return now + 0.075


def _glottis(rng: np.random.Generator, pitch: Floats) -> Floats:
    """Derivative of the glottal flow (samples,): pulses of Rosenberg, 1971, at ``pitch`` (Hz), with jitter and breath noise."""
    steps = pitch * (1 + 0.012 * np.repeat(rng.standard_normal(len(pitch) // 80 + 1), 80)[: len(pitch)]) / _VOICE_RATE
    phase = np.cumsum(steps) % 1.0
    opening, closing = phase < 0.4, (phase >= 0.4) & (phase < 0.56)
    flow = np.where(opening, 0.5 * (1 - np.cos(math.pi * phase / 0.4)), 0.0)
    flow = np.where(closing, np.cos(0.5 * math.pi * (phase - 0.4) / 0.16), flow)
    breath = 0.02 * rng.standard_normal(len(pitch)) * (0.3 + flow)
    return np.asarray(np.diff(flow, prepend=0.0) * 8 + breath)


def _resonated(source: Floats, formants: Floats) -> Floats:
    """``source`` through a cascade of five resonators (Klatt, 1980); their ``formants`` (samples, 5) change every 5 ms."""
    hop = _VOICE_RATE // 200
    sound = source
    for index, bandwidth in enumerate(_BANDWIDTHS_HZ):
        radius = math.exp(-math.pi * bandwidth / _VOICE_RATE)  # of the filter's two poles
        state, filtered_blocks = np.zeros(2), []
        for start in range(0, len(source), hop):
            feedback = 2 * radius * math.cos(2 * math.pi * formants[start, index] / _VOICE_RATE)
            numerator, denominator = [1 - feedback + radius**2], [1, -feedback, radius**2]
            filtered, state = signal.lfilter(numerator, denominator, sound[start : start + hop], zi=state)
            filtered_blocks.append(filtered)
        sound = np.concatenate(filtered_blocks)
    return np.asarray(sound)


def speech_sound(seed: int, seconds: float, rate: int = 48000) -> Sound:
    """A man's voice that speaks with short pauses: (samples, 2) float32, -1..1. ``rate``: samples per second."""
    rng = generator(seed, "speech")
    base_hz = rng.uniform(105, 135)
    track, bursts = _sentences(rng, seconds, base_hz)
    count = round(seconds * _VOICE_RATE)
    t = np.arange(count) / _VOICE_RATE
    pitch = np.interp(t, track.times, track.pitch) * (1 + 0.01 * np.sin(2 * math.pi * 5.1 * t))
    formants = [np.interp(t, track.times, [f[k] for f in track.formants]) for k in range(3)]
    formants += [np.full(count, 3400.0), np.full(count, 4300.0)]
    speech = _resonated(_glottis(rng, pitch) * np.interp(t, track.times, track.voicing), np.stack(formants, axis=-1))
    speech /= np.abs(speech).max()
    for burst in bursts:
        first, length = round(burst.start_seconds * _VOICE_RATE), round(burst.seconds * _VOICE_RATE)
        if first + length > count:
            break
        low = max(200.0, burst.centre_hz - burst.half_width_hz)
        high = min(7600.0, burst.centre_hz + burst.half_width_hz)
        noise = signal.lfilter(*signal.butter(2, (low, high), "bandpass", fs=_VOICE_RATE), rng.standard_normal(length))
        speech[first : first + length] += burst.gain * noise * np.hanning(length)
    resampled = signal.resample_poly(speech, rate, _VOICE_RATE)[: round(seconds * rate)]
    room_noise = 0.004 * rng.standard_normal((len(resampled), 2))
    return levelled(resampled[:, None] + room_noise, -20.0)


def music_sound(seed: int, seconds: float, rate: int = 48000) -> Sound:
    """Chords, an arpeggio, a bass and drums at 100 to 120 beats a minute: (samples, 2) float32, -1..1."""
    rng = generator(seed, "music")
    beat_seconds = 60 / rng.uniform(100, 120)
    key_hz = 220 * 2 ** (rng.integers(-4, 4) / 12)
    count = round(seconds * rate)
    out = np.zeros((count, 2))
    for bar in range(math.ceil(seconds / (4 * beat_seconds))):
        chord, is_minor = ((0, False), (9, True), (5, False), (7, False))[bar % 4]  # semitones above the key
        for pan, interval in ((0.3, 0), (0.5, 3 if is_minor else 4), (0.7, 7), (0.45, 12)):
            hz = key_hz * 2 ** ((chord + interval) / 12)
            _add_note(out, rate, _Note(bar * 4 * beat_seconds, 4 * beat_seconds, hz, 0.16, pan, 1.6))
        for number in range(8):
            hz, pan = 2 * key_hz * 2 ** (((0, 7, 12, 7)[number % 4] + chord) / 12), 0.35 + 0.04 * number
            _add_note(out, rate, _Note((bar * 4 + number / 2) * beat_seconds, beat_seconds, hz, 0.1, pan, 0.25))
        for number in range(4):
            start_seconds = (bar * 4 + number) * beat_seconds
            hz = key_hz / 4 * 2 ** (chord / 12)
            _add_note(out, rate, _Note(start_seconds, beat_seconds, hz, 0.35, 0.5, 0.4))
            _add_drum(rng, out, rate, start_seconds, is_hat=number % 2 == 1)
    return levelled(out, -18.0)


def _add_note(out: Floats, rate: int, note: _Note) -> None:
    first = round(note.start_seconds * rate)
    t = np.arange(max(0, min(round(note.seconds * rate), len(out) - first))) / rate
    envelope = np.minimum(t / 0.012, 1) * np.exp(-t / note.decay_seconds) * np.minimum((note.seconds - t) / 0.03, 1)
    harmonics = [k for k in range(1, 7) if note.hz * k < 0.4 * rate]
    tone = sum(np.sin(2 * math.pi * note.hz * k * t) / k**1.4 for k in harmonics)
    out[first : first + len(t)] += note.gain * (envelope * tone)[:, None] * (1 - note.pan, note.pan)


def _add_drum(rng: np.random.Generator, out: Floats, rate: int, start_seconds: float, *, is_hat: bool) -> None:
    """Adds a hi-hat or a bass drum."""
    first = round(start_seconds * rate)
    t = np.arange(max(0, min(round(0.25 * rate), len(out) - first))) / rate
    hit = 0.9 * np.sin(2 * math.pi * (48 * t + 7 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.09)
    if is_hat:
        hit = 0.3 * np.diff(rng.standard_normal(len(t)), prepend=0.0) * np.exp(-t / 0.04)
    out[first : first + len(t)] += 0.5 * hit[:, None]
