#!/usr/bin/env python3
"""Verifies KLP's signed objects (SPEC sections 2 to 4, 9) with none of KLP's code, and refuses altered ones."""
import hashlib, json, pathlib, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

def head(major, n):
    width = 0 if n < 24 else next(w for w in (1, 2, 4, 8) if n < 1 << 8 * w)
    return bytes([major << 5 | (n if width == 0 else 23 + width.bit_length())]) + (n.to_bytes(width, "big") if width else b"")

def check(fact, why):
    if not fact:
        raise ValueError(why)

def item(data, at, depth=16):
    """One item in the one form of SPEC section 2: its value, and where it ends."""
    major, info = data[at] >> 5, data[at] & 31
    if major == 7:
        check(info in (20, 21, 22), "a float, a break or another simple value")
        return {20: False, 21: True, 22: None}[info], at + 1
    check(info < 28 and major != 6, "a reserved or indefinite length, or a tag")
    width = 0 if info < 24 else 1 << info - 24
    n, start, at = info, at, at + 1 + width
    n = int.from_bytes(data[start + 1:at], "big") if width else info
    check(data[start:at] == head(major, n), "not the shortest form")
    if major < 2:
        return (n if major == 0 else -1 - n), at
    if major < 4:
        check(at + n <= len(data), "cut short")
        return (data[at:at + n] if major == 2 else data[at:at + n].decode()), at + n
    check(depth > 0, "nested too deeply")
    values, last = [] if major == 4 else {}, (-1, b"")
    for _ in range(n):
        if major == 5:
            check(data[at] >> 5 == 3, "a key that is not text")
            key, at = item(data, at)
            check(last < (len(key.encode()), key.encode()), "keys out of order")
            last = (len(key.encode()), key.encode())
        value, at = item(data, at, depth - 1)
        values.append(value) if major == 4 else values.update({key: value})
    return values, at

def decode(data):
    value, end = item(data, 0)
    check(end == len(data), "bytes behind the item")
    return value

# The longest envelopes of the kinds in SPEC 9 that are not the 4096 of records and of the vectors' own kind.
LIMITS = {"kos/act/1": 61440, "kos/invite/1": 1024, "kos/discovery-secret/1": 512, "kos/agent-cert/1": 2048}

def verify(envelope, domain, federation, key):
    """The object id, or an exception."""
    check(len(envelope) <= LIMITS.get(domain, 4096), "above its limit")
    protected, unprotected, payload, signature = decode(envelope)
    check(protected == b"\xa1\x01\x27" and unprotected == {} and len(signature) == 64, "not an envelope of KLP")
    check(isinstance(decode(payload), dict), "a payload that is no map")
    parts = b"".join(head(2, len(part)) + part for part in (protected, domain.encode() + federation, payload))
    signed = head(4, 4) + head(3, 10) + b"Signature1" + parts
    Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    return hashlib.sha256(signed).hexdigest()

def verdict(vector, envelope):
    try:
        return verify(envelope, vector["domain"], bytes.fromhex(vector["federation"] or ""), bytes.fromhex(vector["key"]))
    except (ValueError, TypeError, IndexError, InvalidSignature):
        return None

def objects():
    """Every signed object of the vectors, and how many bits apart the altered ones are to be: all, or some."""
    for path in sorted(pathlib.Path(__file__).parent.glob("*.json")):
        for vector in json.loads(path.read_text())["vectors"]:
            for part in vector.get("acts") or [vector]:
                if "envelope" in part and "domain" in part:
                    yield part | {"name": f"{path.stem}: {vector['name']}"}, 1 if path.stem == "objects" else 35

count, altered, faults = 0, 0, []
for vector, step in objects():
    count, envelope = count + 1, bytes.fromhex(vector["envelope"])
    genuine = vector.get("genuine", vector.get("valid"))
    if verdict(vector, envelope) != (vector["id"] if genuine else None):
        faults.append(vector["name"])
    for bit in range(0, 8 * len(envelope) if genuine else 0, step):
        at, altered = bit // 8, altered + 1
        if verdict(vector, envelope[:at] + bytes([envelope[at] ^ 1 << bit % 8]) + envelope[at + 1:]):
            faults.append(f"{vector['name']} with bit {bit} flipped")
print(f"{count} objects and {altered} altered ones, disagreements: {faults or 'none'}")
sys.exit(bool(faults))
