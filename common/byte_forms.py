"""What bytes are that should be JSON in UTF-8 and are not: told from how they begin, and from the letters in them.

A guess, for the message that refuses them. Pure.
"""

import codecs
import re
from collections.abc import Mapping

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
    # What a file system shows of bytes that were never written, as after a power cut.
    (rb"\x00{4,}\Z", "NUL bytes", "write the file again"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", "save it as UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "save it as UTF-8"),
)
_KNOWN = [(re.compile(pattern, re.DOTALL), name, advice) for pattern, name, advice in _BEGINNINGS]

# The commonest letters of a language. Bytes that are read by the codec of another one become rarer letters.
_SIMPLIFIED = (
    "的一是不了在有人我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家"
    "种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想实日军者意无力它与长把机十民"
    "第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月"
    "话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变"
    "四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基请"
    "您吗谢写字词句章文语言译英书图片题答案需要使用步骤描述包含总结内容简单"
)
_TRADITIONAL = (
    "的一是不了在有人我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家"
    "種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心本前開但因只從想實日軍者意無力它與長把機十民"
    "第公此已工使情明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月"
    "話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變"
    "四神總何電數安少報才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社便空決治展馬科司五基請"
    "您嗎謝寫字詞句章文語言譯英書圖片題答案需要使用步驟描述包含總結內容簡單"
)
_KOREAN = (
    "이다는을의에가고하한지사도로기자어나서리시그대인를있아라만일해수들보정스게부것적전제여상주구동장국소조원위성과내오무"
    "미었했세우요안치마생유공면비선신계학경문니은습까으때것각및와거같되된할합입용될려더번역영말음점글답질설명간단요약"
)
_JAPANESE = "".join(map(chr, range(0x3041, 0x30FB))) + (
    "日一人年大十二本中長出三時行見月分後前生五間上東四今金九入学高円子外八六下来気小七山話女北午百書先名川千水半男西"
    "電校語土木聞食車何南万毎白天母火右読友左休父雨国会社事者員自動場業的問題方文章英訳内容約理用新要作成"
)
_NAMES = {
    "gb18030": "GBK",
    "big5hkscs": "Big5",
    "cp949": "EUC-KR",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "cp1251": "cp1251 or another 8-bit code page",
    "koi8_r": "KOI8-R or another 8-bit code page",
    "cp1252": "cp1252 or another 8-bit code page",
    "cp1250": "cp1250 or another 8-bit code page",
    "": "another encoding",
}
# Codecs that are told apart by the share of the language's commonest letters. Of equals, the first counts. Each is the
# one with the most letters of its family.
_OF_TWO_BYTES = {
    "gb18030": _SIMPLIFIED,
    "big5hkscs": _TRADITIONAL,
    "cp949": _KOREAN,
    "cp932": _JAPANESE,
    "euc_jp": _JAPANESE,
}
_LATIN = {"cp1252": "äöüßéèàçêôîûñáíóúåæøëïùãõìòâ", "cp1250": "ąćęłńóśźżčďěňřšťůžáéíúýőűöüâăîșşțţđ"}
_CYRILLIC = {"cp1251": "оеаинтсрвлкмдпуы", "koi8_r": "оеаинтсрвлкмдпуы"}
# The share that tells a codec of two bytes: by chance, a tenth of the letters are common ones.
_LEAST_SHARE = 0.25
_FEW_LETTERS = 4
_WITHIN_A_WORD = re.compile(rb"[A-Za-z][\x80-\xff]+|[\x80-\xff]+[A-Za-z]")


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
    return "" if is_utf8(sample) else f"{_in_words(code_page(sample), sample)}: save it as UTF-8"


def is_utf8(content: bytes) -> bool:
    """Whether most letters of the content are UTF-8, though a few may be damaged."""
    read = re.findall(r"[^\x00-\x7f]", _decoded("utf-8", content, "replace") or "")
    return read.count("\ufffd") * 2 <= len(read)


def code_page(content: bytes) -> str:
    """Python's name of the codec that a text which is not UTF-8 is in; empty if nothing tells."""
    runs = re.findall(rb"[\x80-\xff]+", content)
    has_accents = sum(len(run) == 1 for run in runs) * 2 >= len(runs)  # among plain letters
    codec, share = _likeliest(_OF_TWO_BYTES, content)
    # Big5 writes single bytes among ASCII too. A few accents may be letters of it by chance.
    if share >= _LEAST_SHARE and not (has_accents and len(_foreign(codec, content)) < _FEW_LETTERS):
        return codec
    codec, share = _likeliest(_LATIN, content)
    # Two accents may stand side by side in a short text: Grüße, créée.
    if has_accents or (share > 0.5 and all(len(run) <= 2 for run in runs) and _WITHIN_A_WORD.search(content)):
        return codec
    codec, share = _likeliest(_CYRILLIC, content)
    return codec if share >= 0.5 else ""


def _in_words(codec: str, content: bytes) -> str:
    name = _NAMES[codec]
    is_sure = codec not in _OF_TWO_BYTES or len(_foreign(codec, content)) >= _FEW_LETTERS
    return name if is_sure else f"{name} or another encoding"


def _likeliest(codecs_: Mapping[str, str], content: bytes) -> tuple[str, float]:
    """The codec by which the largest share of the letters are common ones, and this share."""
    shares = {}
    for codec, common in codecs_.items():
        letters = _foreign(codec, content)
        shares[codec] = sum(letter in common for letter in letters) / max(1, len(letters))
    return max(shares.items(), key=lambda each: each[1])


def _foreign(codec: str, content: bytes) -> list[str]:
    """The letters that are not ASCII; in a code page the signs too, since a letter of one is a sign of another."""
    text = _decoded(codec, content) or ""
    is_page = codec not in _OF_TWO_BYTES
    return [letter for letter in text if letter > "\x7f" and (is_page or letter.isalpha())]


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
