"""What bytes are that should be JSON in UTF-8 and are not: told from how they begin, and from the letters in them.

A guess, for the message that refuses them. Pure.
"""

import codecs
import re

SAMPLE_BYTES = 2**16

# How the bytes begin, what that is, and what to do.
_UNPACK, _EXPORT = "unpack it first", "export it as JSONL"
_BEGINNINGS = (
    (rb"\x1f\x8b", "gzip", _UNPACK),
    (rb"PK\x03\x04.*(?:\[Content_Types\]|mimetypeapplication/vnd)", "an Office file such as .xlsx", _EXPORT),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip file", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "zstd", _UNPACK),
    (rb"BZh[1-9]", "bzip2", _UNPACK),
    (rb"\xfd7zXZ\x00", "xz", _UNPACK),
    (rb"\x04\x22\x4d\x18", "lz4", _UNPACK),
    (rb"\xff\x06\x00\x00sNaPpY", "snappy", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z file", _UNPACK),
    (rb"Rar!\x1a\x07", "a rar file", _UNPACK),
    (rb".{257}ustar", "a tar file", _UNPACK),
    (rb"PAR1", "Parquet", _EXPORT),
    (rb"ARROW1|FEA1", "an Arrow file", _EXPORT),
    (rb"ORC", "ORC", _EXPORT),
    (rb"Obj\x01", "Avro", _EXPORT),
    (rb"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file such as .xls", _EXPORT),
    (rb"\x89HDF\r\n\x1a\n", "HDF5", _EXPORT),
    (rb"\x93NUMPY", "a NumPy array", _EXPORT),
    (rb"\x80[\x02-\x05].*\.", "a Python pickle", _EXPORT),
    (rb"%PDF-", "PDF", _EXPORT),
    (rb"\s*\{\\rtf", "RTF", "save it as plain text"),
    (rb"(?i)\s*<(?:!doctype|html)", "HTML", _EXPORT),
    (rb"\s*<\?xml", "XML", _EXPORT),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image", _EXPORT),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", "save it as UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "save it as UTF-8"),
)
_KNOWN = [(re.compile(pattern, re.DOTALL), name, advice) for pattern, name, advice in _BEGINNINGS]

_NAMES = {
    "shift_jis": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "euc_kr": "EUC-KR",
    "big5": "Big5",
    "gbk": "GBK",
    "cp1251": "cp1251 or another 8-bit code page",
    "koi8_r": "KOI8-R",
    "cp1252": "cp1252 or another 8-bit code page",
    "": "another encoding",
}
# The letters of which most texts in a code page consist, their share at least, and how many letters tell it. Each codec
# also reads texts of others, so the ones that are told by letters of their own come first.
_LETTERS = {
    "shift_jis": ("[\u3041-\u30ff]", 0.3, 1),
    "euc_jp": ("[\u3041-\u30ff]", 0.3, 1),
    "euc_kr": ("[\uac00-\ud7a3]", 0.97, 8),  # Chinese texts of a few letters read as Korean too
    "gbk": ("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", 0.9, 1),
    "cp1251": ("[\u0430-\u044f]", 0.7, 1),
    "koi8_r": ("[\u0430-\u044f]", 0.7, 1),
}


def looks_like(content: bytes) -> str:
    """What the content is, and what to do with it: "gzip: unpack it first". Empty if nothing tells.

    The content is a file, or a line of one, from its begin; SAMPLE_BYTES of it are looked at.
    """
    sample = content[:SAMPLE_BYTES]
    for pattern, name, advice in _KNOWN:
        if pattern.match(sample):
            return f"{name}: {advice}"
    if encoding := _wide(sample):
        return f"{encoding}: save it as UTF-8"
    if _has_controls(sample):
        return "binary data: export it as JSONL"
    return "" if is_utf8(sample) else f"{_NAMES[code_page(sample)]}: save it as UTF-8"


def is_utf8(content: bytes) -> bool:
    """Whether most letters of the content are UTF-8, though a few may be damaged."""
    read = re.findall(r"[^\x00-\x7f]", _decoded("utf-8", content, "replace") or "")
    return read.count("\ufffd") * 2 <= len(read)


def code_page(content: bytes) -> str:
    """Python's name of the codec that a text which is not UTF-8 is in; empty if nothing tells."""
    runs = re.findall(rb"[\x80-\xff]+", content)
    if _consists_of("shift_jis", content):
        return "shift_jis"
    if sum(len(run) == 1 for run in runs) * 2 >= len(runs):  # accents among plain letters
        return "cp1252"
    if _is_big5(content):
        return "big5"
    return next((codec for codec in _LETTERS if _consists_of(codec, content)), "")


def _consists_of(codec: str, content: bytes) -> bool:
    letters, share, least = _LETTERS[codec]
    text = _decoded(codec, content) or ""
    foreign = re.findall(r"[^\x00-\x7f]", text)
    return len(foreign) >= least and len(re.findall(letters, text)) >= share * len(foreign)


def _decoded(codec: str, content: bytes, errors: str = "strict") -> str | None:
    """None if it cannot be. The content may end within a letter."""
    try:
        return codecs.getincrementaldecoder(codec)(errors).decode(content)
    except UnicodeDecodeError:
        return None


def _wide(sample: bytes) -> str:
    """UTF-16, UTF-32 or empty. Brackets, quotes and names of members are ASCII, whatever language the texts are in."""
    nuls = sorted((sample[0::2].count(b"\x00"), sample[1::2].count(b"\x00")))
    if sum(nuls) * 8 <= len(sample):
        return ""
    if sum(nuls) * 5 > len(sample) * 3 and len(sample) > 3:
        return "UTF-32"
    return "UTF-16" if nuls[0] * 10 <= nuls[1] else ""


def _has_controls(sample: bytes) -> bool:
    return len(re.findall(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", sample)) * 20 > max(60, len(sample))


def _is_big5(content: bytes) -> bool:
    """GBK's common letters have no ASCII in their second byte; a third of Big5's have."""
    if _decoded("big5", content) is None:
        return False
    pairs = re.findall(rb"[\xa1-\xfe]([\x40-\x7e\xa1-\xfe])", content)
    return len([second for second in pairs if second < b"\x7f"]) * 8 > len(pairs)
