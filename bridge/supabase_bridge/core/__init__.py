"""Pure rules and values of the product: no I/O, no clock and no random numbers.

Paths and names (`layout`), documents (`documents`), release criteria (`criteria`, `verdict`), the release log
(`release_log`), registry events (`events`), MLflow tags (`tags`), escaping (`text`), `backoff`, root `errors`.
It imports no other package of the product.
"""
