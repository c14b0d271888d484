"""The optional native extension; all else about the package is in setup.cfg."""

import os
from glob import glob

from setuptools import Extension, setup

# For tests on machines without AMX: its kernels on emulated tiles, far slower than any other (docs/search.md).
EMULATE_AMX = os.environ.get("VOKENRAY_EMULATE_AMX") == "1"

setup(
    ext_modules=[
        Extension(
            "_vokenray_search",
            sources=sorted(glob("native/*.cpp")),
            depends=sorted(glob("native/*.h")),
            language="c++",
            define_macros=[("VOKENRAY_EMULATE_AMX", "1")] if EMULATE_AMX else [],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-fvisibility=hidden",
                "-g0",
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
