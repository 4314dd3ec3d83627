"""How the values of settings are read. Each refusal names the variable, what it got and what it takes."""

import base64
from functools import partial
from zoneinfo import ZoneInfo

import certifi
import pytest
from django.core.exceptions import ImproperlyConfigured

from batches.scheduling.quiet_hours import QuietHours
from batchserver import env

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


def refused(read, *arguments, **options):
    """The words in which a value is refused."""
    with pytest.raises(ImproperlyConfigured) as error:
        read(*arguments, **options)
    return str(error.value)


def test_blanks_around_a_value_do_not_count_and_an_empty_one_is_none():
    assert env.text({"NAME": "  gemma3:12b \n"}, "NAME", "other") == "gemma3:12b"
    assert env.text({"NAME": "   "}, "NAME", "other") == "other"
    assert env.text({}, "NAME", "other") == "other"
    assert env.text({}, "NAME") == ""


def test_a_list_has_no_empty_items():
    assert env.texts({"HOSTS": " a.example, ,b.example,"}, "HOSTS") == ["a.example", "b.example"]
    assert env.texts({}, "HOSTS") == []


def test_networks():
    assert env.networks({"NAME": " 10.0.0.5, fd00::/8 ,"}, "NAME") == ["10.0.0.5", "fd00::/8"]
    for value in ("proxy.example", "10.0.0.5/8", "10.0.0", "all"):
        told = f"NAME={value!r}: expected addresses and networks such as 10.0.0.5,192.168.0.0/24."
        assert refused(env.networks, {"NAME": f"10.0.0.1,{value}"}, "NAME") == told


def test_a_file_of_authorities_is_one(tmp_path):
    assert env.authorities({}, "AWS_S3_VERIFY") == ""
    there = certifi.where()
    assert env.authorities({"AWS_S3_VERIFY": there}, "AWS_S3_VERIFY") == there
    (tmp_path / "key.pem").write_text("no certificate")
    for path, reason in ((tmp_path / "key.pem", "it has none"), (tmp_path / "none", "No such file or directory")):
        told = f"V='{path}': expected a file with certificates of authorities (PEM): {reason}."
        assert refused(env.authorities, {"V": str(path)}, "V") == told


def test_whole_numbers_have_bounds():
    assert env.whole({"PORT": " 80 "}, "PORT", 4080, least=1, most=65535) == 80
    assert env.whole({"PORT": ""}, "PORT", 4080, least=1, most=65535) == 4080
    # A default that stands for "unset" may lie outside of them.
    assert env.whole({}, "BACKEND_PARALLEL", 0, least=1) == 0
    for value in ("0", "65536", "-1", "1.5", "1e3", "eighty", "0x50"):
        told = f"PORT={value!r}: expected a whole number from 1 to 65535."
        assert refused(env.whole, {"PORT": value}, "PORT", 4080, least=1, most=65535) == told


def test_seconds_are_above_0_unless_0_means_something():
    assert env.seconds({"S": "1.5"}, "S") == 1.5
    assert env.seconds({}, "S") is None
    assert env.seconds({"S": "0"}, "S", may_be_0=True) == 0.0
    for value in ("0", "-1", "nan", "inf", "ten", "1e7"):
        assert refused(env.seconds, {"S": value}, "S") == f"S={value!r}: expected a number of seconds above 0."
    told = "S='-1': expected a number of seconds, 0 or above."
    assert refused(env.seconds, {"S": "-1"}, "S", may_be_0=True) == told


def test_a_share_is_a_part_of_the_whole():
    assert [env.share({"S": value}, "S", 0.25) for value in ("", "0", "0.5", "1")] == [0.25, 0, 0.5, 1]
    for value in ("-0.1", "1.01", "25%", "nan", "a quarter"):
        told = f"S={value!r}: expected a number from 0 to 1, as 0.25 for a quarter."
        assert refused(env.share, {"S": value}, "S", 0.25) == told


def test_a_switch_is_true_or_false_in_these_words():
    assert env.switch({"ON": "True"}, "ON", False) is True
    assert env.switch({"ON": "False"}, "ON", True) is False
    assert env.switch({"ON": ""}, "ON", True) is True
    for value in ("true", "1", "yes", "on"):
        assert refused(env.switch, {"ON": value}, "ON", False) == f"ON={value!r}: expected True or False."


def test_pairs():
    given = {"MODEL_ALIASES": "gpt-4o-mini = gemma3:12b, gpt-4o=llama3.2:3b,"}
    assert env.pairs(given, "MODEL_ALIASES") == {"gpt-4o-mini": "gemma3:12b", "gpt-4o": "llama3.2:3b"}
    assert env.pairs({}, "MODEL_ALIASES") == {}
    for item in ("gpt-4o", "=gemma3", "gpt-4o="):
        told = f"MODEL_ALIASES: {item!r} is not of the form alias=model."
        assert refused(env.pairs, {"MODEL_ALIASES": f"a=b,{item}"}, "MODEL_ALIASES") == told


def test_an_address_is_http_and_has_no_slash_at_its_end():
    assert env.url({"URL": "https://gpu.example:8000/v9//"}, "URL", "") == "https://gpu.example:8000/v9"
    assert env.url({}, "URL", "http://localhost:11434") == "http://localhost:11434"
    for value in ("localhost:11434", "ftp://gpu", "http:///v1", "http://gpu:0", "http://gpu:99999", "http://[::1"):
        told = f"URL={value!r}: expected an address like http://localhost:11434."
        assert refused(env.url, {"URL": value}, "URL", "") == told


def test_an_address_with_a_password_in_it_is_refused_and_not_shown():
    """/health and /metrics would show it."""
    told = refused(env.url, {"BACKEND_URL": "https://me:hunter2@gpu.example:8000"}, "BACKEND_URL", "")
    assert "BACKEND_API_KEY" in told
    assert "hunter2" not in told


def test_an_address_that_may_hold_a_key_stays_as_it_was_typed_and_is_not_shown():
    typed = "https://example.org/hook/?key=hunter2"
    assert env.secret_url({"WEBHOOK_URL": typed}, "WEBHOOK_URL") == typed
    assert env.secret_url({}, "WEBHOOK_URL") == ""
    told = refused(env.secret_url, {"WEBHOOK_URL": "example.org/hook?key=hunter2"}, "WEBHOOK_URL")
    assert told == "WEBHOOK_URL (not shown, it may hold a key): expected an address like https://example.org/hook."


def test_a_bare_address_has_no_path_and_no_password():
    read = partial(env.bare_url, name="ENDPOINT")
    assert read({"ENDPOINT": "https://s3.example.org:9000/"}) == "https://s3.example.org:9000"
    assert read({}) == ""
    for value in ("s3.example.org", "https://s3.example.org/bucket", "https://me:hunter2@s3.example.org"):
        told = refused(read, {"ENDPOINT": value})
        assert told.startswith("ENDPOINT (not shown, it may hold a password): expected an address like https://")
        assert "hunter2" not in told


def test_a_signing_secret_is_never_shown():
    assert env.signing_secret({"KEY": SECRET}, "KEY", needed_by="WEBHOOK_URL") == SECRET
    assert refused(env.signing_secret, {}, "KEY", needed_by="WEBHOOK_URL").startswith("KEY is not set, and WEBHOOK_URL")
    for value in ("hunter2hunter2", "whsec_hunter2", SECRET.removeprefix("whsec_"), "whsec_" + "hunter2ü" * 8):
        told = refused(env.signing_secret, {"KEY": value}, "KEY", needed_by="WEBHOOK_URL")
        assert told.startswith("KEY: expected whsec_ and at least 24 bytes in base64; make one with: ")
        assert "hunter2" not in told


def test_a_zone_is_an_iana_name():
    assert env.zone({"TIME_ZONE": "Asia/Tokyo"}, "TIME_ZONE") == "Asia/Tokyo"
    assert ZoneInfo(env.zone({}, "TIME_ZONE"))
    for value in ("Berlin", "Europe", "../etc/passwd", "+01:00"):
        told = f"TIME_ZONE={value!r}: expected a time zone's IANA name, such as Europe/Berlin."
        assert refused(env.zone, {"TIME_ZONE": value}, "TIME_ZONE") == told


def test_quiet_hours_are_the_zones():
    read = env.quiet_hours({"QUIET_HOURS": " 22:00-07:00 "}, "QUIET_HOURS", "Asia/Tokyo")
    assert repr(read) == repr(QuietHours("22:00-07:00", ZoneInfo("Asia/Tokyo")))
    told = refused(env.quiet_hours, {"QUIET_HOURS": "9-17"}, "QUIET_HOURS", "UTC")
    assert told.startswith("QUIET_HOURS='9-17': '9-17' is not of the form 07:00-22:00. Expected hours of the day")


def test_a_database_keeps_the_options_of_its_address():
    read = env.database({"DB": "postgres://me:hunter2@db:5433/jobs?sslmode=require"}, "DB")
    assert (read["HOST"], read["PORT"], read["NAME"], read["USER"]) == ("db", 5433, "jobs", "me")
    assert read["OPTIONS"] == env.POSTGRES | {"sslmode": "require"}
    address = "postgresql://db/jobs?options=-c%20lock_timeout%3D1s&connect_timeout=3"
    assert env.database({"DB": address}, "DB")["OPTIONS"].items() >= {
        "options": f"{env.POSTGRES['options']} -c lock_timeout=1s", "connect_timeout": 3, "tcp_user_timeout": 60_000,
    }.items()  # fmt: skip
    assert "OPTIONS" not in env.database({"DB": "sqlite:////tmp/x"}, "DB")
    assert env.database({}, "DB") == {}
    told = refused(env.database, {"DB": "hunter2"}, "DB")
    assert told == "DB: expected sqlite:///path or postgres://user:password@host/name."


def test_failpoints():
    read = env.failpoints({"FAILPOINTS": "here:kill9, there:sleep=1.5@3"}, "FAILPOINTS")
    assert read == {"here": ("kill9", 1), "there": ("sleep=1.5", 3)}
    assert env.failpoints({}, "FAILPOINTS") == {}
    for item in ("here", "here:explode", "here:kill9@0", "here:sleep", "a b:stop"):
        told = f"FAILPOINTS: {item!r} is not of the form name:action or name:action@nth."
        assert refused(env.failpoints, {"FAILPOINTS": item}, "FAILPOINTS") == told


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_an_address_that_this_machine_alone_reaches(address):
    assert env.is_loopback({"HOST": address}, "HOST")


@pytest.mark.parametrize(
    "address", ["", "0.0.0.0", "::", "192.0.2.7", "gpubox", "localhost.example.org", "127.1", "127"]
)
def test_an_address_that_other_machines_may_reach(address):
    assert not env.is_loopback({"HOST": address}, "HOST")


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST", "ollama.localhost", "127.0.0.1", "127.0.0.2", "127.1")],
        *[(host, True) for host in ("[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "ip6-localhost", "localhost.")],
        *[(host, False) for host in ("192.0.2.1", "gpu.lan", "host.docker.internal", "[2001:db8::1]", "localhost.lan")],
    ],
)
def test_an_address_that_is_another_server_on_each_machine(host, is_own):
    assert env.is_of_this_machine(f"http://{host}:11434") is is_own
