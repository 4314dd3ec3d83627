"""Guesses at the admin's login: how many are hashed, and who is kept out by them."""

import threading

import pytest
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_login_failed
from django.test import Client, RequestFactory

from common import logins

PASSWORD = "the owner's own"


@pytest.fixture(autouse=True)
def clock(db, monkeypatch, settings):
    """No counts of other tests, a hash that takes no time, and a clock that a test moves."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    logins.ATTEMPTS.clear()
    User.objects.create_superuser("owner", password=PASSWORD)
    now = [1000.0]
    monkeypatch.setattr(logins.ATTEMPTS, "clock", lambda: now[0])
    yield now
    logins.ATTEMPTS.clear()


@pytest.fixture
def hashed():
    """The names whose passwords were looked at in vain."""
    names = []

    def note(credentials, **_):
        names.append(credentials["username"])

    user_login_failed.connect(note)
    yield names
    user_login_failed.disconnect(note)


def attempt(password="guess", *, name="owner", address="10.0.0.1", client=None, **headers):
    return (client or Client()).post(
        "/admin/login/", {"username": name, "password": password}, REMOTE_ADDR=address, **headers
    )


def test_the_owner_logs_in_and_may_mistype(hashed):
    for _ in range(3):
        for _ in range(logins.OF_BOTH - 1):
            assert attempt().status_code == 200
        assert attempt(PASSWORD).status_code == 302  # and starts anew


def test_further_guesses_are_a_429_that_hashes_nothing(hashed):
    for _ in range(logins.OF_BOTH):
        assert attempt().status_code == 200
    for password in ("guess", PASSWORD):
        refused = attempt(password)
        assert (refused.status_code, refused["Retry-After"]) == (429, "300")
        assert "Too many attempts. Try again in 300 seconds." in refused.content.decode()
    assert attempt(name="OWNER").status_code == 429
    assert len(hashed) == logins.OF_BOTH
    # Who comes from elsewhere is not meant.
    assert attempt(PASSWORD, address="10.0.0.2").status_code == 302


def test_nobody_is_kept_out_for_good(clock):
    for _ in range(logins.OF_BOTH):
        attempt()
        clock[0] += 10
    # A refused attempt does not count, so the one that is allowed next comes at its time.
    for _ in range(50):
        assert attempt().status_code == 429
    assert attempt()["Retry-After"] == "200"
    clock[0] += 200
    assert attempt(PASSWORD).status_code == 302


def test_many_names_from_one_address_are_one_guesser(hashed):
    for number in range(logins.OF_ADDRESS):
        attempt(name=f"user{number}")
    assert attempt(name="another").status_code == 429
    assert len(hashed) == logins.OF_ADDRESS


@pytest.mark.slow
def test_many_addresses_that_guess_at_one_name_are_bounded_and_the_owners_browser_is_not_meant(hashed):
    browser = Client()
    assert attempt(PASSWORD, address="10.0.0.1", client=browser).status_code == 302
    for number in range(logins.OF_NAME):
        attempt(address=f"10.1.0.{number}")
    assert attempt(address="10.2.0.1").status_code == 429
    # Beside a guesser too, at the same address.
    for _ in range(logins.OF_BOTH + 1):
        attempt(address="10.0.0.1")
    assert attempt(PASSWORD, address="10.0.0.1", client=browser).status_code == 302
    assert attempt(PASSWORD, address="10.3.0.1", client=browser).status_code == 302


def test_a_known_browser_is_no_way_to_guess(hashed):
    browser = Client()
    attempt(PASSWORD, client=browser)
    cookie = browser.cookies[logins.KNOWN]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/admin/login/")
    for _ in range(logins.OF_BOTH):
        assert attempt(client=browser).status_code == 200
    assert attempt(PASSWORD, client=browser).status_code == 429
    # Nor for other names, nor made up.
    other = Client()
    other.cookies[logins.KNOWN] = "WyJvd25lciIsICJ4Il0:1uuuuu:forged"
    for _ in range(logins.OF_BOTH):
        attempt(client=other, address="10.0.0.9")
    assert attempt(client=other, address="10.0.0.9").status_code == 429


def test_an_address_of_ipv6_is_its_network():
    for number in range(logins.OF_BOTH):
        attempt(address=f"2001:db8::{number:x}")
    assert attempt(address="2001:db8::ffff").status_code == 429
    assert attempt(address="2001:db8:0:1::1").status_code == 200
    assert attempt(address="::ffff:10.0.0.5").status_code == 200


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9", "10.0.0.1"),  # anybody can send that
        ("172.18.0.2", "9.9.9.9", "9.9.9.9"),
        ("172.18.0.2", "6.6.6.6, 9.9.9.9", "9.9.9.9"),  # the client's own claim stands before
        ("172.18.0.2", "6.6.6.6, 9.9.9.9, 172.18.0.3", "9.9.9.9"),
        ("172.18.0.2", "", "172.18.0.2"),
        ("172.18.0.2", "9.9.9.9:50123", "9.9.9.9"),  # as some proxies put it, another one each time
        ("172.18.0.2", "9.9.9.9, 172.18.0.3:443", "9.9.9.9"),
        ("172.18.0.2", "2001:db8::1", "2001:db8::1"),
        ("172.18.0.2", "[2001:db8::1]:50123", "2001:db8::1"),
        ("172.18.0.2", "[2001:db8::1]", "2001:db8::1"),
        ("172.18.0.2", "nonsense", "nonsense"),
        ("127.0.0.1", "9.9.9.9", "127.0.0.1"),
        ("", "9.9.9.9", ""),
    ],
)
def test_a_trusted_proxy_names_the_client(settings, remote, forwarded, expected):
    settings.TRUSTED_PROXIES = ["172.18.0.0/16"]
    request = RequestFactory().get("/", REMOTE_ADDR=remote, HTTP_X_FORWARDED_FOR=forwarded)
    assert logins.client_address(request) == expected


def test_a_tls_proxy_on_this_machine_is_trusted(settings):
    settings.BEHIND_TLS = True
    request = RequestFactory().get("/", REMOTE_ADDR="127.0.0.1", HTTP_X_FORWARDED_FOR="9.9.9.9")
    assert logins.client_address(request) == "9.9.9.9"


def test_few_passwords_are_hashed_at_once(monkeypatch, hashed):
    monkeypatch.setattr(logins, "_places", threading.BoundedSemaphore(1))
    with logins._place_to_hash():
        refused = attempt(PASSWORD)
        assert (refused.status_code, refused["Retry-After"]) == (429, str(logins.AGAIN_S))
    assert attempt(PASSWORD).status_code == 302
    assert hashed == []


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(logins, "MOST_KEYS", 20)
    guessed = [(("both", "1", "owner"), 10)]
    for _ in range(10):
        assert logins.ATTEMPTS.begin(guessed) == 0
    for number in range(100):
        logins.ATTEMPTS.begin([(("name", str(number)), 10)])
    assert len(logins.ATTEMPTS._failed) <= 20
    assert logins.ATTEMPTS.begin(guessed) == logins.WITHIN_S
