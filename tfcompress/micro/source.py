"""C++ source of a file, as projects of microcontrollers compile it in."""

import os
import re
from collections.abc import Sequence

from tfcompress.version import __version__

SUFFIXES = (".cc", ".cpp")
_BYTES_PER_LINE = 12

_HEADER = """\
// Written by tfcompress {version}. Do not edit.
#ifndef {guard}
#define {guard}

#include <cstddef>

// A model for tflite::GetModel, aligned to 16 bytes.
extern const unsigned char {name}_data[];
constexpr std::size_t {name}_size = {size};

// The smallest arena, as measured on x86-64. Align it to 16 bytes.
constexpr std::size_t {name}_arena_size = {arena};

// The operators, for a tflite::MicroMutableOpResolver<{name}_operators>.
constexpr unsigned int {name}_operators = {count};

// Returns whether the resolver has taken all of them.
template <typename Resolver>
bool {name}_add_operators(Resolver& resolver) {{
  return {calls};
}}

#endif  // {guard}
"""

_SOURCE = """\
// Written by tfcompress {version}. Do not edit.
#include "{header}"

alignas(16) const unsigned char {name}_data[] = {{
{data}
}};
"""


def header_path(path: str | os.PathLike) -> str:
    """Returns the path of the header that belongs to a source file."""
    return os.path.splitext(os.fspath(path))[0] + ".h"


def sources(
    path: str | os.PathLike, content: bytes, arena: int, operators: Sequence[str]
) -> tuple[str, str]:
    """Returns the texts of a header and of its source file.

    Args:
        path: path of the source file. Names in C++ begin with its stem.
        content: the `.tflite`.
        arena: bytes of the arena.
        operators: methods of a MicroMutableOpResolver.
    """
    header = os.path.basename(header_path(path))
    name = re.sub(r"\W", "_", header.removesuffix(".h"), flags=re.ASCII)
    if not name or name[0].isdigit():
        name = "model_" + name
    rows = [
        ", ".join(f"0x{byte:02x}" for byte in content[start : start + _BYTES_PER_LINE])
        for start in range(0, len(content), _BYTES_PER_LINE)
    ]
    values = {
        "version": __version__,
        "name": name,
        "guard": name.upper() + "_H_",
        "header": header,
        "size": len(content),
        "arena": arena,
        "count": len(operators),
        "calls": " &&\n         ".join(f"resolver.{x}() == 0" for x in operators),
        "data": "\n".join(f"    {row}," for row in rows),
    }
    return _HEADER.format(**values), _SOURCE.format(**values)
