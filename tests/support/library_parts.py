"""The private parts of libraries that the product takes, as its files name them."""

from __future__ import annotations

import re

from sources import SOURCES

FILES = [source for name, source in SOURCES.items() if name.startswith("libraries.")]
# `module:name` -> the file that takes it
PARTS = {path: source.name for source in FILES for path in re.findall(r'\.part\(\s*"([^"]+)"', source.text)}
