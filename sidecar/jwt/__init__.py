"""JWTs of identity providers: from the bytes of a token to the entitlement of its caller.

- ``claims`` reads a token and maps its claims. It is pure, and trusts nothing.
- ``keys`` has the public keys of one issuer.
- ``signatures`` is the only module that uses the library.
- ``verifier`` decides about a token, and remembers its decisions.
- ``schedule`` and ``sources`` read keys in the background.
- ``service`` puts the parts together. Without issuers, it loads none of them.
"""
