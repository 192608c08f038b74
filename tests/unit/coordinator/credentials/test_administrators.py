"""The tokens of administrators."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.credentials.administrators import Administrators, TokensInvalid, parse

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no token"),
        ("\n \n", "has no token"),
        ("short", "f:1: the token has 5 characters"),
        (f"{TOKEN}\nme you {TOKEN}", "f:2: there are 3 words"),
        (f"m/e {TOKEN}", "f:1: the name may have"),
    ],
)
def test_a_wrong_file_is_an_error_that_shows_no_token(text: str, words: str) -> None:
    with pytest.raises(TokensInvalid) as caught:
        parse(text, "f")
    assert words in str(caught.value)
    assert TOKEN not in str(caught.value)


async def test_each_token_has_a_name_and_a_changed_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice {TOKEN}A\n{TOKEN}B\n")
    made = Administrators(file)
    assert [made.name(f"Bearer {TOKEN}{who}") for who in "AB"] == ["alice", "administrator"]
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}A",
        f"Bearer {TOKEN}",
        f"{TOKEN}A",
        "Bearer \udce9",
    ):
        assert made.name(wrong) is None
    assert made.name(f"bearer  {TOKEN}A ") == "alice"

    file.write_text(f"bob {TOKEN}C")
    assert await made.follow() == (file,)
    assert [made.name(f"Bearer {TOKEN}{who}") for who in "AC"] == [None, "bob"]

    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TokensInvalid, match="not a text file"):
        await made.follow()
    assert made.name(f"Bearer {TOKEN}C") == "bob"
