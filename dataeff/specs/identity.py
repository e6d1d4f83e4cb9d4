"""Identity: two equal specs are one run, in every study and on every machine.

A run id is a hash of canonical JSON: sorted keys, no spaces, shortest round-trip floats. Only values whose
bytes are the same everywhere may enter: None, bool, int, finite float, str, and lists and dicts of them.
Anything else is an error; nothing is ever passed through `str(x)`.
"""

import hashlib
import json
import math

from dataeff.errors import UnstableValueError

ID_LENGTH = 16  # hex digits, 64 bits: a collision among a million runs has odds of about 3e-8


def _stable(value: object, where: str) -> object:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise UnstableValueError(f"{where} is {value}: only finite numbers can enter an identity; give a number")
        return value + 0.0  # -0.0 and 0.0 are one number and must be one identity
    if isinstance(value, (list, tuple)):
        return [_stable(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UnstableValueError(f"{where} has the key {key!r}: keys must be strings")
        return {key: _stable(item, f"{where}.{key}") for key, item in value.items()}
    kinds = "None, bool, int, float, str, list or dict"
    raise UnstableValueError(f"{where} is a {type(value).__name__}: an identity takes {kinds}; convert it first")


def canonical_json(value: object) -> str:
    """Return the one JSON text of `value`. Raises `UnstableValueError` for what has no stable bytes."""
    return json.dumps(_stable(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(value: object) -> str:
    """Return the id of `value`: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_LENGTH]
