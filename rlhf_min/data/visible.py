"""Text with control and invisible characters shown, so that a terminal does not obey it."""

import re

# Control characters but tab and line end, bidi controls, zero-width and tag characters, surrogates.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]|\r(?!\n)"
)


def visible(text: str, form: str = "<{}>") -> str:
    """The text with each such character as its code, for example <U+001B>."""
    return INVISIBLE.sub(lambda match: form.format(f"U+{ord(match[0]):04X}"), text)
