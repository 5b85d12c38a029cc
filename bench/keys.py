"""What keys cost, in CPU time of one core: opening a keystore, signing and checking. `python bench/keys.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

from ipos.identity import keys, keystore
from ipos.identity.keys import Key
from ipos.identity.secret import Secret
from ipos.identity.typed import Domain, RunKey, Schema, signer_typed

CHEQUE = Schema(
    "Cheque", {"Cheque": (("payee", "address"), ("book", "bytes32"), ("amount", "uint256"), ("n", "uint64"))}
)


def best(call: Callable[[], object], times: int, rounds: int = 5) -> float:
    """Seconds of CPU of one call: the best of some rounds."""
    took: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            call()
        took.append((time.process_time() - began) / times)
    return min(took)


def main() -> None:
    secret = keys.fresh()
    for words, passphrase in (("with a passphrase", Secret(b"a passphrase")), ("without", Secret(b""))):
        sealed = keystore.seal(secret, passphrase)
        opening = best(lambda sealed=sealed, passphrase=passphrase: keystore.unseal(sealed, passphrase), 1)
        print(f"open a keystore {words}: {1000 * opening:.0f} ms")
    key, domain = Key(secret), Domain("a bench", "1", 7)
    value = {"payee": key.address, "book": bytes(32), "amount": 10**18, "n": 1}
    signature = RunKey(key).sign(domain, CHEQUE, value)
    for words, call in (
        ("hash a struct of four fields (EIP-712)", lambda: CHEQUE.hash(value)),
        ("sign it", lambda: RunKey(key).sign(domain, CHEQUE, value)),
        ("find its signer", lambda: signer_typed(domain, CHEQUE, value, signature)),
    ):
        print(f"{words}: {1e6 * best(call, 300):.0f} us")


if __name__ == "__main__":
    main()
