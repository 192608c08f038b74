"""LiteLLM's keys with their limits, from keys.json in the same folder. LiteLLM imports it (`custom_auth`).

So the keys need no database. LiteLLM enforces the limits of the returned object.
"""

from __future__ import annotations

import json
from pathlib import Path

from litellm.proxy._types import UserAPIKeyAuth

KEYS = json.loads(Path(__file__).with_name("keys.json").read_text())


async def user_api_key_auth(request: object, api_key: str) -> UserAPIKeyAuth:
    """The key's limits. Raises ``ValueError`` for an unknown key."""
    key = api_key.removeprefix("Bearer ")
    if key not in KEYS:
        raise ValueError("unknown key")
    return UserAPIKeyAuth(api_key=key, **KEYS[key])
