"""Hashes of ids."""

import hashlib

MODULUS = 2**128


def fingerprint(keys):
    """A number of 128 bits that tells sets of ids apart: the sum of their hashes, in any order, in parts or at once."""
    return sum(map(_hash, keys)) % MODULUS


def hash_of(key):
    """64 bits of the fingerprint of one id."""
    return _hash(key) >> 64


def _hash(key):
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "little")
