"""Avoids a bug of oneDNN on processors with AMX. This module must be imported before anything computes.

oneDNN 3.11 (in torch 2.11 and 2.12) with its newest instruction set (avx10_1_512_amx) reads memory behind the input when it convolves
bf16 maps of width 1; if that memory holds NaN, the result is NaN. Seen with (24, 64, 8, 2) to (24, 96, 4, 1), stride 2, on an Intel
Xeon. The instruction set before it, which has AMX as well, gives right results. Bugs of the same kernels were fixed in oneDNN 3.13
(uxlfoundation/oneDNN#5494, #5717). With a torch that contains 3.13 or later, run ``python -m tests.machines`` on such a processor
without this limit; if tests/trainer/model/test_half_precision_convolution.py passes, remove the limit.

oneDNN reads the limit at its first computation. A value that the user has set is not changed.
"""

from __future__ import annotations

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
