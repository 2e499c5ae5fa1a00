"""Text of users: its encoding, and one Unicode form of every name in it.

text, encoding = decode(path.read_bytes())     # 'UTF-8', 'UTF-16' or 'GB18030'
normalize("Cafe\\u0301.mp4")                    # 'Café.mp4' in NFC; macOS writes names of files in NFD
find_file(Path("rgb"), "Café.npy")             # this file, in whatever form the folder has its name
"""

import codecs
import re
import unicodedata
from pathlib import Path

BYTE_ORDER_MARKS = {  # mark: (name of Python's codec, name of the encoding)
    codecs.BOM_UTF8: ("utf-8", "UTF-8"),
    codecs.BOM_UTF16_LE: ("utf-16-le", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16-be", "UTF-16"),
}
# Lead bytes of GB18030 that most characters of Chinese text have: punctuation, full-width forms, and the 3755 hanzi of
# level 1. Text in Latin-1, in Cyrillic or Greek code pages, in Shift-JIS or Big5 that happens to be valid GB18030
# consists of other characters.
COMMON_LEADS = {*range(0xA1, 0xA4), *range(0xB0, 0xD8)}
COMMON_SHARE = 0.75  # of the characters that are not ASCII


def normalize(text: str) -> str:
    """Returns the text in the Unicode form NFC, in which all names are compared."""
    return unicodedata.normalize("NFC", text)


def unescape(json_text: str) -> str:
    r"""Replaces `\uNNNN` of JSON by the character, so that `normalize` sees it, unless JSON needs the escape."""

    def replace(found: re.Match) -> str:
        character = chr(int(found[2], 16))
        needed = character < " " or character in '"\\' or 0xD800 <= ord(character) < 0xE000
        return found[0] if needed else found[1] + character

    return re.sub(r"((?<!\\)(?:\\\\)*)\\u([0-9a-fA-F]{4})", replace, json_text)


def find_file(path: Path, name: str) -> Path:
    """Returns the file with this path below a folder, in any Unicode form; the path as it is if there is no file."""
    for part in name.split("/"):
        folder, path = path, path / part
        if not part.isascii() and not path.exists() and folder.is_dir():
            wanted = normalize(part)
            path = next((found for found in sorted(folder.iterdir()) if normalize(found.name) == wanted), path)
    return path


def decode(content: bytes) -> tuple[str, str]:
    """Decodes a text file; returns the text in NFC and the name of its encoding.

    A byte order mark decides. Without one the text is UTF-8; otherwise UTF-16 if it has zero bytes, which text in other
    encodings does not have; otherwise GB18030, of which GBK and GB2312 are a part, if most of its characters are common
    in Chinese. GB18030 is a guess: short texts in EUC-KR or KOI8-R may pass for it.

    Raises ValueError for any other content.
    """
    text, encoding = _decode(content)
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise ValueError("it has control characters, so it is not text in UTF-8 or UTF-16; save it as UTF-8")
    return normalize(text).replace("\r\n", "\n").replace("\r", "\n"), encoding


def _decode(content: bytes) -> tuple[str, str]:
    for mark, (codec, encoding) in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(codec), encoding
    if b"\0" in content and (text := _decode_utf_16(content)):
        return text, "UTF-16"
    try:
        return content.decode(), "UTF-8"
    except UnicodeDecodeError as error:
        if text := _decode_gb18030(content):
            return text, "GB18030"
        place = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise ValueError(f"it is not UTF-8 ({place}), nor UTF-16 or GB18030; save it as UTF-8") from None


def _decode_utf_16(content: bytes) -> str:
    """Decodes UTF-16 without a mark in the byte order that gives printable text with more ASCII characters, else ''."""
    found = {}
    for codec in ("utf-16-le", "utf-16-be"):
        try:
            text = content.decode(codec)
        except UnicodeDecodeError:
            continue
        if all(c.isprintable() or c in "\t\r\n\u3000" for c in text):
            found[sum(map(str.isascii, text))] = text
    return found[max(found)] if any(found) else ""


def _decode_gb18030(content: bytes) -> str:
    """Decodes GB18030; '' if the content is another encoding."""
    try:
        text = content.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    others = [character.encode("gb18030") for character in text if not character.isascii()]
    common = sum(len(code) == 2 and code[0] in COMMON_LEADS and code[1] > 0xA0 for code in others)
    return text if common >= COMMON_SHARE * len(others) else ""
