"""Quotas in the pool file."""

from __future__ import annotations

import re

import pytest

from tests.unit.tokenpool.poolfile.test_poolfile import GOOD
from tokenpool.entitlements import Quota, Window
from tokenpool.leases.wire import decode_file, encode_file
from tokenpool.poolfile import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse

LAST = "    api_keys: [{file: /etc/keys/rest}]\n"
ZONE = ", timezone: Europe/Berlin"


def with_quotas(text: str) -> str:
    return GOOD.replace(LAST, f"{LAST}    quotas: {text}\n")


def test_several_quotas_become_records() -> None:
    parsed = parse(with_quotas("[{tokens: 50M, per: month" + ZONE + "}, {tokens: 2000000, per: day}]"))

    expected = (Quota(50e6, Window.MONTH, "Europe/Berlin"), Quota(2e6, Window.DAY))
    assert parsed.file.entitlements[1].quotas == expected
    assert decode_file(encode_file(parsed.file)[1]).entitlements[1].quotas == expected
    assert "quota      5e+07 tokens per month in Europe/Berlin" in explain(parsed)
    assert parsed.file.entitlements[0].quotas == ()


def test_keys_and_groups_have_quotas() -> None:
    key = "{file: /etc/keys/rest, quotas: [{tokens: 1k, per: hour}]}"
    text = GOOD.replace("{file: /etc/keys/rest}", key)
    text += "groups:\n  - {name: org, pool: chat, quotas: [{tokens: 1M, per: week}]}\n"

    file = parse(text).file

    assert file.entitlements[1].api_keys[0].quotas == (Quota(1000, Window.HOUR),)
    assert file.groups[0].quotas == (Quota(1e6, Window.WEEK),)
    assert decode_file(encode_file(file)[1]).entitlements[1].api_keys[0].quotas == (Quota(1000, Window.HOUR),)
    assert "quota      1e+06 tokens per week in UTC" in explain(parse(text))


@pytest.mark.parametrize(("text", "tokens"), [("1.5k", 1500), ("2 G", 2e9), ("'7'", 7), ("0.5", 0.5)])
def test_numbers_of_tokens(text: str, tokens: float) -> None:
    [quota] = parse(with_quotas(f"[{{tokens: {text}, per: hour}}]")).file.entitlements[1].quotas
    assert quota.tokens == tokens


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("[{tokens: 1M, per: fortnight}]", "is 'fortnight', which is not one of hour, day", "use one of"),
        ("[{tokens: 1M, per: months}]", "is 'months'", "did you mean 'month'?"),
        ("[{tokens: 0, per: day}]", "quotas[0].tokens is 0", "more than 0 tokens"),
        ("[{tokens: 0k, per: day}]", "is '0k'", "more than 0 tokens"),
        ("[{tokens: -1, per: day}]", "is -1", "more than 0"),
        ("[{tokens: 5B, per: day}]", "is '5B'", "k, M or G"),
        ("[{tokens: [1], per: day}]", "is not a text but a list", "write a text"),
        ("[{tokens: 1M, per: day, timezone: Mars/Base}]", "'Mars/Base', which is no time zone", "Berlin"),
        ("[{tokens: 1M, per: day, timezone: 3}]", "timezone is not a text but '3'", "in quotes"),
        ("[{tokens: 1M}]", "has no per", "add 'per:'"),
        ("[{per: day}]", "has no tokens", "add 'tokens:'"),
        ("[{tokens: 1M, per: day, every: day}]", "every is not a known field", "use one of tokens"),
        ("{tokens: 1M, per: day}", "is not a list but a mapping", "'- '"),
        ("[{tokens: 1, per: day}, {tokens: 2, per: day}]", "is the second quota per day in UTC", "smaller"),
        ("[" + ", ".join(["{tokens: 1, per: day}"] * 9) + "]", "has 9 quotas", "at most 8"),
    ],
)
def test_mistakes_name_their_line_and_fix(text: str, message: str, fix: str) -> None:
    with pytest.raises(PoolFileError) as raised:
        parse(with_quotas(text))
    [found] = [line for line in str(raised.value).splitlines() if re.search(re.escape(message), line)]
    assert ":18: " in found
    assert fix in found
