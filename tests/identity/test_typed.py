"""EIP-712, against eth-account and against the example of the standard."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from ipos.identity import keys
from ipos.identity.keys import Key, address_of_bytes, recover
from ipos.identity.secret import Secret
from ipos.identity.typed import Domain, Schema, digest_typed, sign_typed, signer_typed
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record

MAIL = Schema(
    "Mail",
    {
        "Person": (("name", "string"), ("wallet", "address")),
        "Mail": (("from", "Person"), ("to", "Person"), ("contents", "string")),
    },
)
COW = {"name": "Cow", "wallet": "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"}
BOB = {"name": "Bob", "wallet": "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB"}
LETTER = {"from": COW, "to": BOB, "contents": "Hello, Bob!"}
ETHER = Domain("Ether Mail", "1", 1, "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC")


def test_the_example_of_the_standard() -> None:
    """https://github.com/ethereum/EIPs/blob/master/assets/eip-712/Example.js"""
    key = Key(Secret(keys.keccak(b"cow")))
    assert key.address == COW["wallet"]
    assert MAIL.text() == "Mail(Person from,Person to,string contents)Person(string name,address wallet)"
    assert ETHER.separator.hex() == "f2cee375fa42b42143804025fc449deafd50cc031ca257e0b194a650a912090f"
    assert MAIL.hash(LETTER).hex() == "c52c0ee5d84264471806290a3f2c4cecfc5490626bf912d01f240d7a274b371e"
    assert digest_typed(ETHER, MAIL, LETTER).hex() == "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"
    signature = sign_typed(key, ETHER, MAIL, LETTER)
    assert signature.hex() == (
        "4355c47d63924e8a72e509b65029052eb6c299d53a04e167c5775fd466751c9d"
        "07299936d304c153f6443dfa05f40ff007d72911b6f72307f996231605b915621c"
    )
    assert signer_typed(ETHER, MAIL, LETTER, signature) == key.address


# ---- against eth-account, on tables and values that hypothesis makes up

FLAT = ["bool", "address", "string", "bytes", "bytes1", "bytes32", "uint8", "uint64", "uint256", "int8", "int256"]


def values(kind: str, structs: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind.endswith("]"):
        base, _, length = kind[:-1].rpartition("[")
        least, most = (int(length), int(length)) if length else (0, 3)
        return st.lists(values(base, structs), min_size=least, max_size=most)
    if kind in structs:
        return st.fixed_dictionaries({name: values(one, structs) for name, one in structs[kind]})
    if kind == "address":
        return st.binary(min_size=20, max_size=20).map(address_of_bytes)
    if kind == "bool":
        return st.booleans()
    if kind == "string":
        return st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    if kind == "bytes":
        return st.binary(max_size=40)
    if kind.startswith("bytes"):
        return st.binary(min_size=int(kind[5:]), max_size=int(kind[5:]))
    bits = int(kind.removeprefix("u")[3:])
    if kind.startswith("u"):
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Domain, Schema, Any]:
    structs: dict[str, Any] = {}
    for name in ("Zebra", "Inner", "Main"):  # each may hold those before it
        kinds = draw(st.lists(st.sampled_from([*FLAT, *structs]), min_size=1, max_size=5))
        kinds = [kind + draw(st.sampled_from(("", "", "[]", "[2]", "[][1]"))) for kind in kinds]
        structs[name] = tuple((f"f{i}", kind) for i, kind in enumerate(kinds))
    used, todo = {"Main"}, ["Main"]
    while todo:
        for _, kind in structs[todo.pop()]:
            base = kind.split("[")[0]
            if base in structs and base not in used:
                used.add(base)
                todo.append(base)
    structs = {name: fields for name, fields in structs.items() if name in used}
    domain = Domain(
        draw(st.text("ab é", max_size=5)),
        draw(st.text("12", max_size=2)),
        draw(st.none() | st.integers(0, 2**256 - 1)),
        draw(st.none() | values("address", {})),
    )
    return domain, Schema("Main", structs), draw(values("Main", structs))


SECRET = keys.keccak(b"a key for tests")


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equal_to_eth_account(case: tuple[Domain, Schema, Any]) -> None:
    domain, schema, value = case
    key = Key(Secret(SECRET))
    ours = sign_typed(key, domain, schema, value)
    named: dict[str, Any] = {"name": domain.name, "version": domain.version}
    if domain.chain_id is not None:
        named["chainId"] = domain.chain_id
    if domain.verifying_contract is not None:
        named["verifyingContract"] = domain.verifying_contract
    full = {
        "types": {
            "EIP712Domain": [
                {"name": name, "type": {"chainId": "uint256", "verifyingContract": "address"}.get(name, "string")}
                for name in named
            ],
            **{
                struct: [{"name": name, "type": kind} for name, kind in fields]
                for struct, fields in schema.types.items()
            },
        },
        "primaryType": "Main", "domain": named, "message": value,
    }  # fmt: skip
    theirs = Account.sign_typed_data(SECRET, full_message=full)
    assert ours == theirs.signature
    assert signer_typed(domain, schema, value, ours) == key.address


# ---- what is refused

FEW = Schema("Few", {"Few": (("n", "uint64"), ("b", "bytes32"), ("who", "address"), ("l", "uint8[2]"))})
GOOD: dict[str, Any] = {"n": 1, "b": bytes(32), "who": COW["wallet"], "l": [1, 2]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n": 2**64}, "n: 18446744073709551616 does not fit uint64"),
        ({"n": -1}, "n: -1 does not fit uint64"),
        ({"n": True}, "n: True is not an integer"),
        ({"n": 1.0}, "n: 1.0 is not an integer"),
        ({"b": bytes(31)}, "b: 31 bytes, 32 were due"),
        ({"b": "00" * 32}, "b: str, 32 bytes were due"),
        ({"who": COW["wallet"][:-1]}, "is not an address"),
        ({"who": COW["wallet"].replace("D8", "d8")}, "capitals are not those of EIP-55"),
        ({"l": [1, 2, 3]}, "l: 3 items, 2 were due"),
        ({"l": [1, 256]}, r"l\[1\]: 256 does not fit uint8"),
        ({"l": "12"}, "l: str, a list of uint8 was due"),
        ({"more": 1}, "more: Few has no such field"),
    ],
)
def test_values_that_do_not_fit(change: dict[str, Any], sentence: str) -> None:
    FEW.hash(GOOD)
    with pytest.raises(BadRecord, match=sentence):
        FEW.hash(GOOD | change)


def test_missing_fields_and_records() -> None:
    with pytest.raises(BadRecord, match="who: Few needs it, it is missing"):
        FEW.hash({"n": 1, "b": bytes(32), "l": [1, 2]})
    with pytest.raises(BadRecord, match=r"from\.wallet: Person needs it"):
        MAIL.hash(LETTER | {"from": {"name": "Cow"}})

    class Few(Record, frozen=True, kw_only=True):
        n: int
        b: bytes
        who: bytes
        l: tuple[int, ...]  # noqa: E741

    record = Few(n=1, b=bytes(32), who=bytes.fromhex(COW["wallet"][2:]), l=(1, 2))
    assert FEW.hash(record) == FEW.hash(GOOD)


@pytest.mark.parametrize(
    ("primary", "types", "sentence"),
    [
        ("A", {}, "has no struct 'A'"),
        ("A", {"A": (("x", "uint7"),)}, "integers have 8, 16"),
        ("A", {"A": (("x", "uint264"),)}, "integers have 8, 16"),
        ("A", {"A": (("x", "bytes33"),)}, "ends at bytes32"),
        ("A", {"A": (("x", "B"),)}, "no type 'B'"),
        ("A", {"A": (("x", "uint"),)}, "no type 'uint'"),
        ("A", {"A": (("x", "A[]"),)}, "contains itself"),
        ("A", {"A": (("x", "bool"), ("x", "bool"))}, "names a field twice"),
        ("A", {"A": (("x y", "bool"),)}, "cannot be a name"),
        ("A", {"A": (("x", "bool"),), "B": (("x", "bool"),)}, "struct B is not part of A"),
        ("bytes32", {"bytes32": (("x", "bool"),)}, "cannot be called 'bytes32'"),
    ],
)
def test_tables_that_make_no_sense(primary: str, types: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        Schema(primary, types)


def test_signatures_of_another_domain_or_value_name_another_signer() -> None:
    key = Key(Secret(SECRET))
    signature = sign_typed(key, ETHER, MAIL, LETTER)
    others = [
        signer_typed(Domain("Ether Mail", "2", 1, ETHER.verifying_contract), MAIL, LETTER, signature),
        signer_typed(Domain("Ether Mail", "1", 2, ETHER.verifying_contract), MAIL, LETTER, signature),
        signer_typed(Domain("Ether Mail", "1", 1), MAIL, LETTER, signature),
        signer_typed(ETHER, MAIL, LETTER | {"contents": "Hello, Bob"}, signature),
        signer_typed(ETHER, MAIL, LETTER | {"to": COW}, signature),
    ]
    assert key.address not in others


def test_a_signature_has_one_form() -> None:
    """The twin with the high s is the same to the mathematics and would give one receipt two identities."""
    key = Key(Secret(SECRET))
    digest = digest_typed(ETHER, MAIL, LETTER)
    signature = key.sign_digest(digest)
    s = int.from_bytes(signature[32:64], "big")
    assert s <= keys.ORDER // 2
    twin = signature[:32] + (keys.ORDER - s).to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    with pytest.raises(Refused, match="high s"):
        recover(digest, twin)
    with pytest.raises(Refused, match="65 bytes"):
        recover(digest, signature[:64])
    with pytest.raises(Refused, match="cannot be read"):
        recover(digest, bytes(64) + b"\x1b")
