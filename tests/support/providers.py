"""Identity providers for tests: their documents and JWTs in the shapes of real ones, with keys made here.

The shapes are those of Google, Microsoft Entra, Keycloak and Kubernetes: which fields a discovery document, a
key set, a header and the claims have.
"""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

NOW = 1_800_000_000.0
"""The time in the tests, in seconds since 1970."""
Key = RSAKey | ECKey | OKPKey


@cache
def rsa(name: str = "a", bits: int = 2048) -> RSAKey:
    """An RSA key; the same one for each name. Making one takes 50 ms."""
    return RSAKey.generate_key(bits)


@cache
def ec(name: str = "a", curve: str = "P-256") -> ECKey:
    """A key for ECDSA; the same one for each name."""
    return ECKey.generate_key(curve)  # type: ignore[arg-type]


@cache
def ed(name: str = "a") -> OKPKey:
    """A key for Ed25519; the same one for each name."""
    return OKPKey.generate_key("Ed25519")


def b64(content: bytes | str | dict[str, Any]) -> str:
    """Base64url without padding, of bytes, a text, or a JSON object."""
    if isinstance(content, dict):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed(claims: dict[str, Any] | str, key: Key, header: dict[str, Any] | str, algorithm: str = "") -> str:
    """A signed JWT. A text in place of an object is used as it is, so that it may be no JSON.

    ``algorithm`` makes the signature; by default the one that the header states.
    """
    name = algorithm or str(header["alg"]) if isinstance(header, dict) else algorithm
    content = f"{b64(header)}.{b64(claims)}"
    return f"{content}.{b64(JWSRegistry.algorithms[name].sign(content.encode(), key))}"


def signed_by_secret(claims: dict[str, Any], secret: bytes, header: dict[str, Any]) -> str:
    """A JWT with an HMAC. joserfc refuses to make one with a public key as its secret."""
    content = f"{b64(header)}.{b64(claims)}"
    return f"{content}.{b64(hmac.digest(secret, content.encode(), 'sha' + header['alg'][2:]))}"


def published(key: Key, **fields: Any) -> dict[str, Any]:
    """The public part of a key, as a key set has it."""
    made = dict(key.as_dict(private=False))
    made.pop("kid", None)
    return made | fields


def key_set(*keys: dict[str, Any]) -> bytes:
    """A key set."""
    return json.dumps({"keys": keys}).encode()


@dataclass
class Provider:
    """One identity provider: its documents, and the header and claims of a JWT that it makes."""

    issuer: str
    discovery: dict[str, Any]
    keys: tuple[dict[str, Any], ...]
    header: dict[str, Any]
    claims: dict[str, Any]
    key: Key = field(default_factory=rsa)

    def token(self, **claims: Any) -> str:
        """A JWT of this provider, with these claims changed."""
        return signed(self.claims | claims, self.key, self.header)

    def key_set(self) -> bytes:
        """Its key set."""
        return key_set(*self.keys)


def _lifetime(seconds: int) -> dict[str, int]:
    return {"iat": int(NOW) - 60, "exp": int(NOW) - 60 + seconds}


def google() -> Provider:
    """Google: two RSA keys with ``alg``, and an ID token of a user of a domain."""
    client = "123456789012-client.apps.googleusercontent.com"
    return Provider(
        "https://accounts.google.com",
        {
            "issuer": "https://accounts.google.com",
            "authorization_endpoint": "https://accounts.google.com/o/oauth2/v2/auth",
            "token_endpoint": "https://oauth2.googleapis.com/token",
            "jwks_uri": "https://www.googleapis.com/oauth2/v3/certs",
            "response_types_supported": ["code", "token", "id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        },
        (
            published(rsa("google"), alg="RS256", use="sig", kid="0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"),
            published(rsa("next"), alg="RS256", use="sig", kid="89abcdef0123456789abcdef0123456789abcdef"),
        ),
        {"alg": "RS256", "kid": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "typ": "JWT"},
        {
            "iss": "https://accounts.google.com",
            "azp": client,
            "aud": client,
            "sub": "110000000000000000001",
            "hd": "example.com",
            "email": "someone@example.com",
            "email_verified": True,
            "at_hash": "AAAAAAAAAAAAAAAAAAAAAA",
            **_lifetime(3600),
        },
        rsa("google"),
    )


def entra() -> Provider:
    """Microsoft Entra, v2.0: keys without ``alg`` and with certificates, and the token of an application."""
    tenant = "11111111-2222-3333-4444-555555555555"
    issuer = f"https://login.microsoftonline.com/{tenant}/v2.0"
    certificate = {"x5t": "x5tx5tx5tx5tx5tx5tx5tx5tx5t", "x5c": ["MIIC" + "A" * 1000]}
    extra = {"cloud_instance_name": "microsoftonline.com", "issuer": issuer}
    return Provider(
        issuer,
        {
            "token_endpoint": f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
            "jwks_uri": f"https://login.microsoftonline.com/{tenant}/discovery/v2.0/keys",
            "response_modes_supported": ["query", "fragment", "form_post"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "issuer": issuer,
            "tenant_region_scope": "WW",
            "cloud_instance_name": "microsoftonline.com",
        },
        (
            published(rsa("entra"), use="sig", kid="x5tx5tx5tx5tx5tx5tx5tx5tx5t", **certificate, **extra),
            published(rsa("next"), use="sig", kid="nextnextnextnextnextnextnex", **certificate, **extra),
        ),
        {
            "typ": "JWT",
            "alg": "RS256",
            "x5t": "x5tx5tx5tx5tx5tx5tx5tx5tx5t",
            "kid": "x5tx5tx5tx5tx5tx5tx5tx5tx5t",
        },
        {
            "aud": "66666666-7777-8888-9999-000000000000",
            "iss": issuer,
            **_lifetime(3900),
            "nbf": int(NOW) - 60,
            "aio": "E2ZgYAgAAAAA",
            "azp": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "azpacr": "1",
            "groups": ["00000000-aaaa-0000-0000-000000000001", "00000000-aaaa-0000-0000-000000000002"],
            "oid": "12121212-3434-5656-7878-909090909090",
            "roles": ["Models.Use"],
            "sub": "12121212-3434-5656-7878-909090909090",
            "tid": tenant,
            "ver": "2.0",
        },
        rsa("entra"),
    )


def keycloak() -> Provider:
    """Keycloak: a key for encryption beside the key for signatures, and roles in nested claims."""
    issuer = "https://sso.example.com/realms/ai"
    certificate = {"x5c": ["MIIC" + "A" * 900], "x5t": "aaaa", "x5t#S256": "bbbb"}
    return Provider(
        issuer,
        {
            "issuer": issuer,
            "token_endpoint": f"{issuer}/protocol/openid-connect/token",
            "jwks_uri": f"{issuer}/protocol/openid-connect/certs",
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "id_token_signing_alg_values_supported": ["PS384", "RS384", "EdDSA", "ES384", "HS256", "ES256"],
        },
        (
            published(rsa("encryption"), kid="encryption", alg="RSA-OAEP", use="enc", **certificate),
            published(rsa("keycloak"), kid="UWzZ8HoWpVGsjEbQ7Xl6VN3", alg="RS256", use="sig", **certificate),
        ),
        {"alg": "RS256", "typ": "JWT", "kid": "UWzZ8HoWpVGsjEbQ7Xl6VN3"},
        {
            **_lifetime(300),
            "jti": "trrtcc:0b0b0b0b-0000-1111-2222-333333333333",
            "iss": issuer,
            "aud": ["tokenpool", "account"],
            "sub": "c0ffee00-1111-2222-3333-444444444444",
            "typ": "Bearer",
            "azp": "checkout-service",
            "acr": "1",
            "realm_access": {"roles": ["offline_access", "ml-premium", "default-roles-ai"]},
            "resource_access": {"account": {"roles": ["view-profile"]}},
            "scope": "profile email",
            "clientHost": "10.0.0.7",
            "preferred_username": "service-account-checkout-service",
            "client_id": "checkout-service",
        },
        rsa("keycloak"),
    )


def kubernetes() -> Provider:
    """Kubernetes: the token of a service account, bound to a pod and to one audience."""
    issuer = "https://kubernetes.default.svc.cluster.local"
    return Provider(
        issuer,
        {
            "issuer": issuer,
            "jwks_uri": "https://172.18.0.2:6443/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        },
        (published(rsa("kubernetes"), use="sig", kid="DHZ0kGXEiRyb6pQyu3Y4IKLV5zfPW4Yd1Hcx", alg="RS256"),),
        {"alg": "RS256", "kid": "DHZ0kGXEiRyb6pQyu3Y4IKLV5zfPW4Yd1Hcx"},
        {
            "aud": ["tokenpool"],
            **_lifetime(3607),
            "iss": issuer,
            "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936",
            "kubernetes.io": {
                "namespace": "shop",
                "node": {"name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
                "pod": {"name": "checkout-5c7d9", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
                "serviceaccount": {"name": "checkout", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
                "warnafter": int(NOW) + 3600,
            },
            "nbf": int(NOW) - 60,
            "sub": "system:serviceaccount:shop:checkout",
        },
        rsa("kubernetes"),
    )
