"""signing: what run keys sign between a coordinator, its seats, keepers and judges: EIP-712, one schema each (docs/protocols/quorum.md)."""

from __future__ import annotations

from typing import Final, Protocol

from ipos.identity.typed import Domain, Schema, signer_typed
from ipos.wire.errors import BadRecord, Refused

DOMAIN: Final = Domain("ipos", "1")
SEAT: Final = (("task", "string"), ("seat", "string"))
COMMITMENT: Final = Schema("SeatCommitment", {"SeatCommitment": (*SEAT, ("commitment", "bytes32"))})
OPENING: Final = Schema("SeatOpening", {"SeatOpening": (*SEAT, ("salt", "bytes32"), ("claim", "bytes"))})
KEPT: Final = Schema(
    "Kept",
    {"Kept": (("task", "string"), ("save", "string"), ("work", "uint64"), ("root", "bytes32"), ("holder", "address"))},
)
VERDICT: Final = Schema("Verdict", {"Verdict": (("record", "bytes"),)})


class Signer(Protocol):
    """`identity.typed.RunKey`."""

    address: str

    def sign(self, domain: Domain, schema: Schema, value: object) -> bytes: ...


def sign(key: Signer, schema: Schema, **value: object) -> str:
    """Hexadecimal digits."""
    return key.sign(DOMAIN, schema, value).hex()


def check(address: str, signature: str, schema: Schema, **value: object) -> None:
    """`Refused` unless `address` has signed this."""
    try:
        signer = signer_typed(DOMAIN, schema, value, bytes.fromhex(signature))
    except (ValueError, BadRecord) as error:
        raise Refused(f"not a signed {schema.primary}: {error}") from None
    if signer != address:
        raise Refused(f"a {schema.primary} of {address} that {signer} has signed")
