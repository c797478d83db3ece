"""Sounds that a landscape dataset does not want: a voice that speaks, and music.

The voice is a source-filter synthesis: glottal pulses or noise through resonators at the formants of English vowels and
consonants (the formants are the averages of Peterson and Barney, 1952, for men), in syllables, words and pauses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import signal

from pipeline.synthetic.sounds import Sound, levelled
from pipeline.synthetic.textures import Floats, generator

_VOICE_RATE = 16000
_Formants = tuple[float, float, float]
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
_BANDWIDTHS_HZ = (70.0, 90.0, 130.0, 220.0, 280.0)


@dataclass(slots=True)
class _Track:
    """Targets of the voice at control points, by time in seconds."""

    times: list[float]
    formants: list[_Formants]
    voicing: list[float]
    pitch: list[float]

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
    width_hz: float
    loud: float


@dataclass(frozen=True, slots=True)
class _Note:
    start_seconds: float
    seconds: float
    hz: float
    loud: float
    pan: float
    """0 (left) to 1 (right)."""
    decay_seconds: float


def _sentences(rng: np.random.Generator, seconds: float, base_hz: float) -> tuple[_Track, list[_Burst]]:
    """The voice's targets, and the noises."""
    track = _Track([0.0], [_VOWELS["V"]], [0.0], [base_hz])
    bursts: list[_Burst] = []
    now, neutral = 0.08, _VOWELS["V"]
    while now < seconds:
        syllables = int(rng.integers(7, 15))
        for number in range(syllables):
            declination = 1.22 - 0.42 * number / syllables
            stress = 1.0 + (0.16 if rng.uniform() < 0.35 else 0.0) + rng.normal(0, 0.03)
            pitch = base_hz * declination * stress
            vowel = _VOWELS[str(rng.choice(list(_VOWELS)))]
            now = _onset(rng, track, bursts, now, vowel=vowel, pitch=pitch)
            length = (
                rng.uniform(0.07, 0.13) * (1.3 if stress > 1.1 else 1.0) * (1.5 if number == syllables - 1 else 1.0)
            )
            glide = _VOWELS[str(rng.choice(list(_VOWELS)))] if rng.uniform() < 0.3 else vowel
            end = tuple(0.6 * a + 0.4 * b for a, b in zip(vowel, glide, strict=True))
            track.add(now + 0.02, vowel, 1.0, pitch * 1.03)
            track.add(now + length, (end[0], end[1], end[2]), rng.uniform(0.75, 0.95), pitch * 0.96)
            now += length
        track.add(now + 0.05, neutral, 0.0, base_hz * 0.78)
        now += rng.uniform(0.18, 0.38)
        track.add(now, neutral, 0.0, base_hz * 1.2)
    return track, bursts


def _onset(
    rng: np.random.Generator, track: _Track, bursts: list[_Burst], now: float, *, vowel: _Formants, pitch: float
) -> float:
    """Say the consonant before a vowel; the time at which the vowel begins."""
    kind = rng.uniform()
    if kind < 0.42:
        sound = _SONORANTS[str(rng.choice(list(_SONORANTS)))]
        track.add(now + 0.015, sound, 0.5, pitch)
        track.add(now + 0.055, sound, 0.5, pitch)
        return now + 0.08
    if kind < 0.7:
        centre, width = _FRICATIVES[str(rng.choice(list(_FRICATIVES)))]
        length = rng.uniform(0.06, 0.1)
        track.add(now + 0.015, vowel, 0.04, pitch)
        track.add(now + length, vowel, 0.05, pitch)
        bursts.append(_Burst(now, length + 0.01, centre, width, 0.16))
        return now + length + 0.015
    centre, width = _STOPS[str(rng.choice(list(_STOPS)))]
    locus = (vowel[0] * 0.55, 0.6 * vowel[1] + 0.4 * centre * 0.5, vowel[2])
    track.add(now + 0.012, locus, 0.0, pitch)
    track.add(now + 0.055, locus, 0.0, pitch)
    bursts.append(_Burst(now + 0.05, 0.022, centre, width, 0.35))
    track.add(now + 0.065, locus, 0.7, pitch)
    return now + 0.075


def _glottis(rng: np.random.Generator, pitch: Floats) -> Floats:
    """Derivative of the glottal flow: Rosenberg pulses at the pitch, with jitter and some breath."""
    steps = pitch * (1 + 0.012 * np.repeat(rng.standard_normal(len(pitch) // 80 + 1), 80)[: len(pitch)]) / _VOICE_RATE
    phase = np.cumsum(steps) % 1.0
    opening, closing = phase < 0.4, (phase >= 0.4) & (phase < 0.56)
    flow = np.where(opening, 0.5 * (1 - np.cos(math.pi * phase / 0.4)), 0.0)
    flow = np.where(closing, np.cos(0.5 * math.pi * (phase - 0.4) / 0.16), flow)
    breath = 0.02 * rng.standard_normal(len(pitch)) * (0.3 + flow)
    return np.asarray(np.diff(flow, prepend=0.0) * 8 + breath)


def _resonated(source: Floats, formants: Floats) -> Floats:
    """Five resonators in cascade, their frequencies (samples, 5) renewed every 5 ms."""
    hop = _VOICE_RATE // 200
    out = source
    for index, bandwidth in enumerate(_BANDWIDTHS_HZ):
        state, parts = np.zeros(2), []
        for start in range(0, len(source), hop):
            radius = math.exp(-math.pi * bandwidth / _VOICE_RATE)
            real = 2 * radius * math.cos(2 * math.pi * formants[start, index] / _VOICE_RATE)
            filtered, state = signal.lfilter(
                [1 - real + radius**2], [1, -real, radius**2], out[start : start + hop], zi=state
            )
            parts.append(filtered)
        out = np.concatenate(parts)
    return np.asarray(out)


def speech_sound(seed: int, seconds: float, rate: int = 48000) -> Sound:
    """Somebody talks, with short pauses: (samples, 2), -1..1."""
    rng = generator(seed, "speech")
    base_hz = rng.uniform(105, 135)
    track, bursts = _sentences(rng, seconds, base_hz)
    count = round(seconds * _VOICE_RATE)
    t = np.arange(count) / _VOICE_RATE
    pitch = np.interp(t, track.times, track.pitch) * (1 + 0.01 * np.sin(2 * math.pi * 5.1 * t))
    formants = [np.interp(t, track.times, [f[k] for f in track.formants]) for k in range(3)]
    formants += [np.full(count, 3400.0), np.full(count, 4300.0)]
    voiced = _resonated(_glottis(rng, pitch) * np.interp(t, track.times, track.voicing), np.stack(formants, axis=-1))
    voiced /= np.abs(voiced).max()
    for burst in bursts:
        first, number = round(burst.start_seconds * _VOICE_RATE), round(burst.seconds * _VOICE_RATE)
        if first + number > count:
            break
        low, high = max(200.0, burst.centre_hz - burst.width_hz), min(7600.0, burst.centre_hz + burst.width_hz)
        noise = signal.lfilter(*signal.butter(2, (low, high), "bandpass", fs=_VOICE_RATE), rng.standard_normal(number))
        voiced[first : first + number] += burst.loud * noise * np.hanning(number)
    full = signal.resample_poly(voiced, rate, _VOICE_RATE)[: round(seconds * rate)]
    room = 0.004 * rng.standard_normal((len(full), 2))
    return levelled(full[:, None] + room, -20.0)


def music_sound(seed: int, seconds: float, rate: int = 48000) -> Sound:
    """Chords, a bass and a beat at 100 to 120 beats a minute: (samples, 2), -1..1."""
    rng = generator(seed, "music")
    beat = 60 / rng.uniform(100, 120)
    root = 220 * 2 ** (rng.integers(-4, 4) / 12)
    count = round(seconds * rate)
    out = np.zeros((count, 2))
    for bar in range(math.ceil(seconds / (4 * beat))):
        degree, minor = ((0, False), (9, True), (5, False), (7, False))[bar % 4]
        for pan, step in ((0.3, 0), (0.5, 3 if minor else 4), (0.7, 7), (0.45, 12)):
            _add(out, rate, _Note(bar * 4 * beat, 4 * beat, root * 2 ** ((degree + step) / 12), 0.16, pan, 1.6))
        for number in range(8):
            hz, pan = 2 * root * 2 ** (((0, 7, 12, 7)[number % 4] + degree) / 12), 0.35 + 0.04 * number
            _add(out, rate, _Note((bar * 4 + number / 2) * beat, beat, hz, 0.1, pan, 0.25))
        for number in range(4):
            at = (bar * 4 + number) * beat
            _add(out, rate, _Note(at, beat, root / 4 * 2 ** (degree / 12), 0.35, 0.5, 0.4))
            _drum(rng, out, rate, at, hat=number % 2 == 1)
    return levelled(out, -18.0)


def _add(out: Floats, rate: int, note: _Note) -> None:
    first = round(note.start_seconds * rate)
    t = np.arange(max(0, min(round(note.seconds * rate), len(out) - first))) / rate
    envelope = np.minimum(t / 0.012, 1) * np.exp(-t / note.decay_seconds) * np.minimum((note.seconds - t) / 0.03, 1)
    overtones = [k for k in range(1, 7) if note.hz * k < 0.4 * rate]
    tone = sum(np.sin(2 * math.pi * note.hz * k * t) / k**1.4 for k in overtones)
    out[first : first + len(t)] += note.loud * (envelope * tone)[:, None] * (1 - note.pan, note.pan)


def _drum(rng: np.random.Generator, out: Floats, rate: int, start: float, *, hat: bool) -> None:
    first = round(start * rate)
    t = np.arange(max(0, min(round(0.25 * rate), len(out) - first))) / rate
    hit = 0.9 * np.sin(2 * math.pi * (48 * t + 7 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.09)
    if hat:
        hit = 0.3 * np.diff(rng.standard_normal(len(t)), prepend=0.0) * np.exp(-t / 0.04)
    out[first : first + len(t)] += 0.5 * hit[:, None]
