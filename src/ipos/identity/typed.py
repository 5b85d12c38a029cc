"""EIP-712: signatures over structs that a wallet can show and a contract can check (https://eips.ethereum.org/EIPS/eip-712).

A schema is a table, so that a format is written once: what is hashed, what is checked, and what stands in the documentation.

    RECEIPT = Schema("Receipt", {"Receipt": (("task", "bytes32"), ("work", "uint64"), ("node", "address"))})
    signature = sign_typed(key, Domain("ipos", "1"), RECEIPT, {"task": ..., "work": 7, "node": "0x..."})
    assert signer_typed(Domain("ipos", "1"), RECEIPT, {...}, signature) == key.address

Types: bool, address, string, bytes, bytes1 to bytes32, uint8 to uint256, int8 to int256, other structs of the table, and arrays of these,
`T[]` and `T[3]`. Values: bool, int, str, bytes; an address is its EIP-55 text (or 20 bytes); a struct is a mapping or an object with those
attributes (a `Record` is one); an array is a list or tuple. A value is never converted: a wrong one is `BadRecord` with its field's path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, cast

from ipos.identity.keys import Key, address_of_bytes, keccak, recover
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused

NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
ARRAY = re.compile(r"(.+)\[(\d*)\]")
NUMBER = re.compile(r"(u?)int([1-9]\d*)")
BYTES = re.compile(r"bytes([1-9]\d?)")
TYPE_WORD = re.compile(r"bool|address|string|bytes|u?int\d*|bytes\d+")

Fields = tuple[tuple[str, str], ...]
"""(name, type) of each member, in the order in which they are hashed."""


class Domain:
    """What a signature is for: a name and a version, a chain and a contract where there are any. Signatures of one domain mean nothing in another.

    `chain_id`: the ledger's number; `verifying_contract`: an address as text. A member that is None is not part of the domain's type.
    """

    __slots__ = ("chain_id", "name", "separator", "verifying_contract", "version")

    def __init__(
        self, name: str, version: str, chain_id: int | None = None, verifying_contract: str | None = None
    ) -> None:
        self.name, self.version, self.chain_id, self.verifying_contract = name, version, chain_id, verifying_contract
        given = (
            ("name", "string", name),
            ("version", "string", version),
            ("chainId", "uint256", chain_id),
            ("verifyingContract", "address", verifying_contract),
        )
        present = [(field, kind, value) for field, kind, value in given if value is not None]
        schema = Schema("EIP712Domain", {"EIP712Domain": tuple((field, kind) for field, kind, _ in present)})
        self.separator = schema.hash({field: value for field, _, value in present})


class Schema:
    """`primary` is the struct that is signed; `types` has it and every struct that it names. `Refused` if the table makes no sense."""

    def __init__(self, primary: str, types: Mapping[str, Fields]) -> None:
        self.primary = primary
        self.types = dict(types)
        self._type_hashes: dict[str, bytes] = {}
        if primary not in self.types:
            raise Refused(f"the schema has no struct {primary!r}")
        for struct, fields in self.types.items():
            names = [name for name, _ in fields]
            for word in (struct, *names):
                if NAME.fullmatch(word) is None:
                    raise Refused(f"{word!r} cannot be a name in a schema")
            if TYPE_WORD.fullmatch(struct) is not None:
                raise Refused(f"a struct cannot be called {struct!r}: that is a type")
            if len(set(names)) < len(names):
                raise Refused(f"the struct {struct} names a field twice")
            for name, kind in fields:
                self._check_type(kind, f"{struct}.{name}")
        for struct in self.types:
            if struct in self._named_by(struct):
                raise Refused(f"the struct {struct} contains itself")
        unused = set(self.types) - {primary} - self._named_by(primary)
        if unused:
            raise Refused(f"the schema's struct {min(unused)} is not part of {primary}")

    def _check_type(self, kind: str, where: str) -> None:
        bits = NUMBER.fullmatch(kind)
        width = BYTES.fullmatch(kind)
        array = ARRAY.fullmatch(kind)
        if array is not None:
            self._check_type(array[1], where)
        elif bits is not None:
            if int(bits[2]) % 8 or not 8 <= int(bits[2]) <= 256:
                raise Refused(f"{where}: there is no type {kind!r}: integers have 8, 16, ... 256 bits")
        elif width is not None:
            if int(width[1]) > 32:
                raise Refused(f"{where}: there is no type {kind!r}: it ends at bytes32")
        elif kind not in ("bool", "address", "string", "bytes") and kind not in self.types:
            raise Refused(f"{where}: there is no type {kind!r}")

    def _named_by(self, struct: str) -> set[str]:
        """All structs that one names, directly or through others."""
        found: set[str] = set()
        todo = [struct]
        while todo:
            for _, kind in self.types[todo.pop()]:
                base = kind.split("[", 1)[0]
                if base in self.types and base not in found:
                    found.add(base)
                    todo.append(base)
        return found

    def text(self, struct: str | None = None) -> str:
        """`encodeType`: the struct, then all that it names in alphabetical order."""
        first = struct or self.primary
        return "".join(
            f"{name}({','.join(f'{kind} {field}' for field, kind in self.types[name])})"
            for name in (first, *sorted(self._named_by(first)))
        )

    def type_hash(self, struct: str | None = None) -> bytes:
        """keccak of `text`, 32 bytes."""
        name = struct or self.primary
        if name not in self._type_hashes:
            self._type_hashes[name] = keccak(self.text(name).encode())
        return self._type_hashes[name]

    def hash(self, value: object) -> bytes:
        """`hashStruct` of a value of the primary struct, 32 bytes. `BadRecord` names the field that is wrong."""
        return self._struct(self.primary, value, "")

    def _struct(self, struct: str, value: object, path: str) -> bytes:
        fields = self.types[struct]
        names = [name for name, _ in fields]
        if isinstance(value, Mapping):
            mapping = cast("Mapping[Any, object]", value)
            for key in mapping:
                if key not in names:
                    raise BadRecord(_in(path, str(key)), f"{struct} has no such field")
            missing = [name for name in names if name not in mapping]
        else:
            mapping = {name: getattr(value, name) for name in names if hasattr(value, name)}
            missing = [name for name in names if name not in mapping]
        if missing:
            raise BadRecord(_in(path, missing[0]), f"{struct} needs it, it is missing")
        encoded = b"".join(self._value(kind, mapping[name], _in(path, name)) for name, kind in fields)
        return keccak(self.type_hash(struct) + encoded)

    def _value(self, kind: str, value: object, path: str) -> bytes:
        """`encodeData` of one member: always 32 bytes."""
        array = _array_of(kind)
        if array is not None:
            return self._array(*array, value, path)
        if kind in self.types:
            return self._struct(kind, value, path)
        encode = _ATOMS.get(kind)
        if encode is not None:
            return encode(value, path)
        return _integer(kind, value, path) if "int" in kind else _fixed(kind, value, path)

    def _array(self, kind: str, length: str, value: object, path: str) -> bytes:
        if not isinstance(value, (list, tuple)):
            raise BadRecord(path, f"{type(value).__name__}, a list of {kind} was due")
        items = cast("tuple[object, ...]", value)
        if length and len(items) != int(length):
            raise BadRecord(path, f"{len(items)} items, {length} were due")
        if len(items) > limits.typed_items:
            raise BadRecord(path, f"{len(items)} items, the most is {limits.typed_items}")
        return keccak(b"".join(self._value(kind, item, f"{path}[{i}]") for i, item in enumerate(items)))


@cache
def _array_of(kind: str) -> tuple[str, str] | None:
    """(type of the items, length or "") of an array's type."""
    found = ARRAY.fullmatch(kind)
    return None if found is None else (found[1], found[2])


_remembered = lru_cache(512)(keccak)  # most fields of a node's signatures are the same each time


def _hashed(data: bytes) -> bytes:
    return _remembered(data) if len(data) <= 128 else keccak(data)


def _in(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _bool(value: object, path: str) -> bytes:
    if not isinstance(value, bool):
        raise BadRecord(path, f"{value!r} is not true or false")
    return int(value).to_bytes(32, "big")


def _address(value: object, path: str) -> bytes:
    if isinstance(value, bytes) and len(value) == 20:
        return value.rjust(32, b"\0")
    if isinstance(value, str) and re.fullmatch("0x[0-9a-fA-F]{40}", value) is not None:
        raw = bytes.fromhex(value[2:])
        if value[2:] not in (value[2:].lower(), address_of_bytes(raw)[2:]):
            raise BadRecord(path, f"{value} is mistyped: its capitals are not those of EIP-55")
        return raw.rjust(32, b"\0")
    raise BadRecord(path, f"{value!r} is not an address")


def _string(value: object, path: str) -> bytes:
    if not isinstance(value, str):
        raise BadRecord(path, f"{value!r} is not a text")
    try:
        return _hashed(value.encode())
    except UnicodeEncodeError:
        raise BadRecord(path, "a text that has no UTF-8 form") from None


def _bytes(value: object, path: str) -> bytes:
    if not isinstance(value, bytes):
        raise BadRecord(path, f"{type(value).__name__}, bytes were due")
    return _hashed(value)


def _fixed(kind: str, value: object, path: str) -> bytes:
    width = int(kind[5:])
    if not isinstance(value, bytes):
        raise BadRecord(path, f"{type(value).__name__}, {width} bytes were due")
    if len(value) != width:
        raise BadRecord(path, f"{len(value)} bytes, {width} were due")
    return value.ljust(32, b"\0")


def _integer(kind: str, value: object, path: str) -> bytes:
    signed = kind.startswith("int")
    bits = int(kind.removeprefix("u")[3:])
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRecord(path, f"{value!r} is not an integer")
    if not least <= value <= most:
        raise BadRecord(path, f"{value} does not fit {kind}")
    return value.to_bytes(32, "big", signed=signed)


_ATOMS: dict[str, Callable[[object, str], bytes]] = {
    "bool": _bool,
    "address": _address,
    "string": _string,
    "bytes": _bytes,
}


def digest_typed(domain: Domain, schema: Schema, value: object) -> bytes:
    """The 32 bytes that are signed: what a contract computes with `keccak256("\\x19\\x01" ‖ domainSeparator ‖ hashStruct(message))`."""
    return keccak(b"\x19\x01" + domain.separator + schema.hash(value))


def sign_typed(key: Key, domain: Domain, schema: Schema, value: object) -> bytes:
    """65 bytes r s v, low s, v of 27 or 28. `BadRecord` if the value does not fit the schema."""
    return key.sign_digest(digest_typed(domain, schema, value))


def signer_typed(domain: Domain, schema: Schema, value: object, signature: bytes) -> str:
    """The EIP-55 address whose key signed the value. `Refused` if the signature is none; `BadRecord` as `sign_typed`."""
    return recover(digest_typed(domain, schema, value), signature)


class RunKey:
    """What the parts of a node get of this machine's run key: its name, and signatures over typed values (marks, receipts, cheques).

    Not the key, not its file; and no signature over bytes that somebody else has chosen, so none that counts as another protocol's.
    """

    def __init__(self, key: Key) -> None:
        self.address = key.address
        self._sign = key.sign_digest

    def sign(self, domain: Domain, schema: Schema, value: object) -> bytes:
        """As `sign_typed`."""
        return self._sign(digest_typed(domain, schema, value))
