"""What is uploaded in place of JSON lines in UTF-8 is named as what it is."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.byte_forms import looks_like
from tests.common.sentences import (
    CHINESE,
    CZECH,
    FRENCH,
    GERMAN,
    HUNGARIAN,
    JAPANESE,
    KOREAN,
    POLISH,
    RUSSIAN,
    TRADITIONAL_CHINESE,
    UNCERTAIN,
)
from tests.generated import steady

TEXTS = {
    "de": "Schöne Grüße aus München, wo die Straßen groß sind",
    "fr": "C'est l'été à la forêt, où le garçon dort — déjà",
    "pl": "Zażółć gęślą jaźń",
    "ru": "Переведите этот текст на английский язык",
    "zh": "你好请把这段文字翻译成英文谢谢",
    "hello": "你好",
    "tw": "請把這段文字翻譯成英文謝謝您的幫助我們明天見",
    "ja": "次の文章を英語に翻訳してください。ありがとう",
    "kr": "다음 문장을 영어로 번역해 주세요 감사합니다",
    "en": "Translate this text",
}


def lines(text):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": "a", "method": "POST", "body": body}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("language", "codec", "name"),
    [
        *((language, codec, "UTF-16") for language in TEXTS for codec in ("utf-16", "utf-16-le", "utf-16-be")),
        *((language, codec, "UTF-32") for language in ("en", "zh") for codec in ("utf-32", "utf-32-le", "utf-32-be")),
        *(("de", codec, "cp1252") for codec in ("cp1252", "latin-1", "iso8859-15")),
        ("fr", "cp1252", "cp1252"),
        ("zh", "gbk", "GBK"),
        ("zh", "gb18030", "GBK"),
        ("hello", "gbk", "GBK"),
        ("tw", "big5", "Big5"),
        ("ja", "shift_jis", "Shift-JIS"),
        ("ja", "euc_jp", "EUC-JP"),
        ("kr", "euc_kr", "EUC-KR"),
        ("ru", "cp1251", "cp1251"),
        ("ru", "koi8_r", "KOI8-R"),
        ("pl", "cp1250", "another encoding"),
    ],
)
def test_an_encoding_is_named_for_a_file_and_for_each_line(language, codec, name):
    content = (lines(TEXTS[language]) * 3).encode(codec)
    for each in (content, content[: len(content) // 2 + 1], *content.split(b"\n")[:3]):
        said = looks_like(each)
        assert said.startswith(name), (each, said)
        assert said.endswith(": save it as UTF-8")


ASIAN = [
    ("GBK", CHINESE, ("gbk", "gb18030")),
    ("Big5", TRADITIONAL_CHINESE, ("big5", "cp950")),
    ("EUC-KR", KOREAN, ("euc_kr", "cp949")),
    ("Shift-JIS", JAPANESE, ("shift_jis", "cp932")),
    ("EUC-JP", JAPANESE, ("euc_jp",)),
]
EIGHT_BIT = [
    ("cp1251", RUSSIAN, ("cp1251",)),
    ("KOI8-R", RUSSIAN, ("koi8_r", "koi8_u")),
    ("cp1252", GERMAN, ("cp1252", "iso8859-15")),
    ("cp1252", FRENCH, ("cp1252",)),
    ("cp125", POLISH, ("cp1250",)),
    ("cp125", CZECH, ("cp1250",)),
    ("cp125", HUNGARIAN, ("cp1250",)),
]
WIDE = [(name, CHINESE + KOREAN + JAPANESE + RUSSIAN + POLISH, codecs) for name, codecs in (
    ("UTF-16", ("utf-16", "utf-16-le", "utf-16-be")),
    ("UTF-32", ("utf-32", "utf-32-le", "utf-32-be")),
)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sentences", "codec", "vague"),
    [
        (name, sentences, codec, vague)
        for group, vague in ((ASIAN, ""), (WIDE, ""), (EIGHT_BIT, " or another 8-bit code page"))
        for name, sentences, codecs in group
        for codec in codecs
    ],
)
def test_each_of_ten_sentences_names_its_encoding_or_says_that_it_may_be_another(name, sentences, codec, vague):
    together = "".join(map(lines, sentences))
    for text in (*map(lines, sentences), together, together[: len(together) // 2]):
        said = looks_like(text.encode(codec))
        assert said.startswith(name), (text, said)
        assert said.endswith(f"{vague}: save it as UTF-8"), (text, said)


@pytest.mark.parametrize(("text", "codec"), UNCERTAIN)
def test_what_is_not_known_for_certain_is_said_to_be_perhaps_another(text, codec):
    assert "another" in looks_like(lines(text).encode(codec))


@pytest.mark.parametrize(
    "text", ["Grüße", "Viele Grüße 2", "Eine Füße-Übung", "une idée créée", "süß", "São João", "Põõsas", "Größe?"]
)
@pytest.mark.parametrize("codec", ["cp1252", "latin-1"])
def test_two_accents_side_by_side_are_of_a_code_page(text, codec):
    assert looks_like(lines(text).encode(codec)).startswith("cp1252")


@pytest.mark.parametrize("text", ["用Python写", "比较A和B", "Q: 你", "是"])
def test_single_signs_among_latin_letters_are_not_taken_for_accents(text):
    assert not looks_like(lines(text).encode("gbk")).startswith("cp1252 or")


def packed(kind):
    content = lines("hello").encode() * 20
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("in.jsonl")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("[Content_Types].xml" if kind == "xlsx" else "in.jsonl", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(b"{}", mtime=0), "gzip"),
        (bz2.compress(b"{}"), "bzip2"),
        (lzma.compress(b"{}"), "xz"),
        (b"\x28\xb5\x2f\xfd\x04\x58\x11\x00\x00{}", "zstd"),
        (packed("zip"), "a zip file"),
        (packed("xlsx"), "an Office file"),
        (packed("tar"), "a tar file"),
        (b"SQLite format 3\x00\x10\x00\x01", "an SQLite database"),
        (b"PAR1\x15\x04\x15\x10", "Parquet"),
        (b"ARROW1\x00\x00\xff\xff", "an Arrow file"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        (b"{\\rtf1\\ansi {}}", "RTF"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (gzip.compress(bytes(range(256)) * 9, mtime=0)[10:], "binary data"),
        (bytes(20), "NUL bytes"),
        (bytes(4096), "NUL bytes"),
    ],
)
def test_a_kind_of_file_is_named(content, name):
    assert looks_like(content).startswith(name)


@pytest.mark.parametrize(
    "content", [b"", b"{'a': 1}", b"custom_id,method", b'{"a": "\xff"}' + "äöü".encode(), "ä".encode()]
)
def test_nothing_is_named_where_nothing_tells(content):
    assert looks_like(content) == ""


@steady
@given(st.binary() | st.text().map(str.encode))
@example(b"\x00")
@example(b"\x80")
def test_any_bytes_are_looked_at(content):
    assert isinstance(looks_like(content), str)
