"""Keeps clear of faults of the libraries that compute, on the processors that have them. Import this module before anything computes.

oneDNN 3.11 (in torch 2.11 and 2.12), on processors with AMX: its newest instruction set (avx10_1_512_amx) convolves bf16 maps that
are one wide with what lies behind them in memory. Where NaN was freed there, the result is NaN. Seen with (24, 64, 8, 2) to
(24, 96, 4, 1), stride 2, on an Intel Xeon; right with the set before it, which has AMX too. Faults of the same kernels were mended in
oneDNN 3.13 (uxlfoundation/oneDNN#5494, #5717). With a torch that carries 3.13 or later, run ``python -m tests.machines`` on such a
processor without this limit; if tests/trainer/model/test_half_precision_convolution.py passes, take the limit out.

oneDNN reads the limit when it first computes. What the user has set stays.
"""

from __future__ import annotations

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
