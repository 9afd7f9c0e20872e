"""Environment substitution in topology files, as containerlab does it before it reads the YAML. Pure.

Its rules are those of the ``envsubst`` library that containerlab uses, not those of a shell: a variable without a
value and without a default stays in the text as ``$NAME`` (so that fragments for a shell in a node survive), a
variable set to nothing counts as one without a value, and names that begin with a digit are no variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from calipy.containerlab.errors import TopologyError

_TOKEN = re.compile(
    r"""
    \$\$                                      # a literal dollar
  | \$\{(?=[^\W\d])                           # start of a substitution
  | \$(?P<plain>[^\W\d]\w*)
    """,
    re.VERBOSE,
)
_BRACED = re.compile(r"(?P<name>[^\W\d]\w*)(?P<operator>:[-=+]|[-=+])?(?P<word>[^}\n\r]*)\}")


def substitute(text: str, environ: Mapping[str, str], *, place: str = "") -> str:
    """Replace ``$V``, ``${V}``, ``${V:-word}``, ``${V-word}``, ``:=``, ``=``, ``:+``, ``+`` and ``$$``.

    Args:
        text: a whole topology file.
        environ: the variables.
        place: name of the file, for the error.

    Raises:
        TopologyError: a ``${`` without its closing brace on the same line.
    """
    out, position = [], 0
    while match := _TOKEN.search(text, position):
        out.append(text[position : match.start()])
        position = match.end()
        if match.group() == "$$":
            out.append("$")
        elif name := match.group("plain"):
            out.append(_value(name, environ) if name != "_" else match.group())
        else:
            braced = _BRACED.match(text, position)
            if braced is None:
                line = text.count("\n", 0, match.start()) + 1
                start = text[match.start() : match.start() + 20].split("\n", maxsplit=1)[0]
                raise TopologyError(
                    f"bad substitution {start!r}: closing brace expected",
                    place=f"{place}:{line}",
                    remedy="close it on the same line, or write $$ for a literal dollar",
                )
            out.append(_expand(braced["name"], braced["operator"] or "", braced["word"], environ))
            position = braced.end()
    out.append(text[position:])
    return "".join(out)


def _value(name: str, environ: Mapping[str, str]) -> str:
    return environ.get(name, "") or f"${name}"


def _expand(name: str, operator: str, word: str, environ: Mapping[str, str]) -> str:
    default: Callable[[], str] = lambda: word  # noqa: E731 -- evaluated only where the rule asks for it
    if inner := re.fullmatch(r"\$(\w+)", word):
        default = lambda: _value(inner[1], environ)  # noqa: E731
    if not word or not operator:
        return _value(name, environ)
    if operator.endswith("+"):
        return default() if name in environ else ""
    if operator.startswith(":"):
        return environ.get(name, "") or default()
    return _value(name, environ) if name in environ else default()
