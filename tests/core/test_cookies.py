from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_hybridsession.core import ids
from flask_hybridsession.core.cookies import (
    LARGEST,
    MOST_CANDIDATES,
    candidates,
    check_value,
    shared_domain,
    sign,
    unsign,
)
from flask_hybridsession.core.errors import ConfigError


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, []),
        ("", []),
        ("session=abc", ["abc"]),
        ("session=abc; other=1", ["abc"]),
        ("other=1; session=abc", ["abc"]),
        ("other=1;session=abc", ["abc"]),
        ("other=1;  session=abc ;x=y", ["abc"]),
        (" session=abc", ["abc"]),
        ("session= abc ", ["abc"]),
        ("session=a=b==", ["a=b=="]),
        ("session=one; session=two", ["one", "two"]),
        ("session=same; session=same", ["same"]),
        ("session=; session=two", ["two"]),
        ("session=", []),
        ("session=;", []),
        ("session=   ", []),
        ("session", []),
        ("session;", []),
        ('session="quoted"', ['"quoted"']),
        ("session=%41%42", ["%41%42"]),
        ("mysession=no", []),
        ("session2=no", []),
        ("my-session=no; session=yes", ["yes"]),
        ("SESSION=no", []),
        ("other=session=no", []),
        ("other=x session=no", []),
        ("=session=no", []),
        ("= session=no", []),
        ("a=1; =session=no", []),
        ("session =no", []),
        ("a=b,session=no", []),
        ("; ; session=abc", ["abc"]),
        (";session=abc", ["abc"]),
        ("session=\xff\x00\xe9", ["\xff\x00\xe9"]),
    ],
)
def test_what_may_be_a_sid(header: str | None, found: list[str]) -> None:
    assert candidates(header, "session") == found


@pytest.mark.parametrize("name", ["__Host-session", "__Secure-s", "a.b|c", "$x"])
def test_a_nameless_cookie_is_nobodys(name: str) -> None:
    assert candidates(f"={name}=evil", name) == []
    assert candidates(f"=; ={name}=evil; {name}=mine", name) == ["mine"]


def test_few_are_looked_at() -> None:
    header = "; ".join(f"session={n}" for n in range(1000))
    assert candidates(header, "session") == ["0", "1", "2"]
    assert MOST_CANDIDATES == 3


@given(st.text(st.characters(max_codepoint=255)), st.sampled_from(["session", "s", "__Host-s"]))
def test_any_bytes_give_clean_values(header: str, name: str) -> None:
    for value in candidates(header, name):
        assert value == value.strip() != ""
        assert ";" not in value
        assert f"{name}=" in header


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["session", "session2", "mysession", "x", ""]),
            st.text('abc=" ,%', max_size=6),
        ),
        max_size=6,
    )
)
def test_pairs_are_told_apart_as_the_standard_says(pairs: list[tuple[str, str]]) -> None:
    header = "; ".join(f"{name}={value}" for name, value in pairs)
    mine = [value.strip() for name, value in pairs if name == "session"]
    expected = list(dict.fromkeys(filter(None, mine)))[:MOST_CANDIDATES]
    assert candidates(header, "session") == expected


# -- signing ------------------------------------------------------------------------------------


def test_a_signature_is_by_the_current_key() -> None:
    sid = ids.mint()
    text = sign(sid, "new", ["old", "older"])
    assert unsign(text, "new") == sid
    assert unsign(text, "old") is None
    assert unsign(text, "newer", ["new"]) == sid
    assert text.startswith(sid)
    assert check_value("session", text) == text


@pytest.mark.parametrize("text", ["", ".", "a", "a.", ".b", "é.é", "\ud800.x", "\x00", "a.b.c"])
def test_what_is_not_signed_is_nothing(text: str) -> None:
    assert unsign(text, "key") is None


def test_every_changed_character_breaks_the_signature() -> None:
    text = sign("A" * 43, b"key")
    assert unsign(text, "key") == "A" * 43, "a key of str or bytes is one key"
    for index in range(len(text) - 1):  # the last one has bits to spare
        other = "B" if text[index] != "B" else "C"
        assert unsign(text[:index] + other + text[index + 1 :], "key") is None


# -- the value ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["a", pytest.param(ids.mint(), id="a sid"), "a=b", "!#$%&'()*+-./:<=>?@[]^_`{|}~"],
)
def test_values_that_browsers_send_back(value: str) -> None:
    assert check_value("session", value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        None,
        b"abc",
        1,
        "a b",
        "a;b",
        "a,b",
        'a"b',
        "a\\b",
        "a\n",
        "\n",
        "é",
        "\x7f",
        "\x00",
        "\t",
    ],
)
def test_values_that_they_do_not(value: object) -> None:
    with pytest.raises(ConfigError, match="visible ASCII"):
        check_value("session", value)


def test_the_largest_cookie() -> None:
    name = "session"
    fits = "x" * (LARGEST - len(name))
    assert check_value(name, fits) == fits
    with pytest.raises(ConfigError, match="4096"):
        check_value(name, fits + "x")


# -- the domain ---------------------------------------------------------------------------------

DOMAINS = [
    ("localhost", None),
    ("localhost:8080", None),
    ("example.com:8080", "example.com"),
    ("example.com", "example.com"),
    ("sub.example.com", "example.com"),
    ("a.sub.localhost.com", "localhost.com"),
    ("www.sina.com.cn", "sina.com.cn"),
    ("sina.com.cn", "sina.com.cn"),
    ("com.cn", None),
    ("github.io", None),
    ("me.github.io", "me.github.io"),
    ("a.me.github.io", "me.github.io"),
    ("com", None),
    ("co.uk", None),
    ("bbc.co.uk", "bbc.co.uk"),
    ("127.0.0.1", None),
    ("127.0.0.1:80", None),
    ("0.0.0.0", None),
    ("192.168.1.10", None),
    ("192.168.1.10.", None),
    ("0x7f.1", None),
    ("1.2.3", None),
    ("example.123", None),
    ("[::1]:8080", None),
    ("[::1]", None),
    ("::1", None),
    ("[2001:db8::1]", None),
    ("example.com.", "example.com"),
    ("com.cn.", None),
    ("EXAMPLE.com", "example.com"),
    ("WWW.Example.COM:443", "example.com"),
    ("www.xn--85x722f.com.cn", "xn--85x722f.com.cn"),
    ("xn--85x722f.xn--55qx5d.cn", "xn--85x722f.xn--55qx5d.cn"),
    ("xn--55qx5d.cn", None),
    ("www.xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("www.ck", "www.ck"),
    ("a.b.ck", "a.b.ck"),
    ("b.ck", None),
]
WEIRD_HOSTS = [
    *("", ".", "..", ":", ":80", "a:b:c", ".example.com", "example..com", "-a.example.com"),
    *("a-.example.com", "a b.example.com", "exa_mple.com;", "a,b.com", "é.com", "食狮.com.cn"),
    *("\x00.com", "\n.com", "x" * 64 + ".com", "a." * 200 + "com", "user@example.com", "[::1", "]"),
    *("example.com/evil", "*.example.com", "xn--.com.cn;", "..com", "a.com; Domain=b.com"),
]


@pytest.mark.parametrize(("host", "domain"), DOMAINS)
def test_the_domain_shared_with_subdomains(host: str, domain: str | None) -> None:
    assert shared_domain(host) == domain


@pytest.mark.parametrize("host", WEIRD_HOSTS, ids=range(len(WEIRD_HOSTS)))
def test_a_weird_host_shares_nothing(host: str) -> None:
    assert shared_domain(host) is None


@given(st.text(max_size=30) | st.text("abc.-:[]0123456789xn", max_size=30))
def test_any_host_gives_a_domain_that_it_is_in_or_none(host: str) -> None:
    domain = shared_domain(host)
    if domain is not None:
        name = host.lower().partition(":")[0].removesuffix(".")
        assert name == domain or name.endswith("." + domain)
        assert "." in domain
