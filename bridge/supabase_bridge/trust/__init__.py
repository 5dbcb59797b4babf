"""Signatures: keys, signed manifests, signed releases, and the verification of both.

Entry points: `verify.verify_manifest` for readers, `signer.SigningPolicy` for writers, and `load`, which reads the keys
that the settings name.
It imports core; it reads no settings itself.
"""
