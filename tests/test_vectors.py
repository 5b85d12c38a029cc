"""The published vectors, read as another implementation would: what they say is what this code writes and what it reads.

A change of a format fails here by the line that it changes. The vectors come from this code, so a few are compared with bytes from
elsewhere too: taken from the specifications by hand, and CIDs that Kubo gives (netd/vectors_test.go compares the files with boxo).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipos.identity import friends, keys
from ipos.identity.machines import MachineList, check
from ipos.identity.secret import Secret
from ipos.net import codes, join, lists
from ipos.pool import commitment, marks, receipt, verdict
from ipos.pool import records as _pool
from ipos.pool import saves as _saves
from ipos.pool.native import environment as _environment
from ipos.pool.records import Receipt
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.tree.file import Caller, File, Handle, Qid
from ipos.tree.ninep.codec import ALL, HEAD, Framer, ProtocolError
from ipos.tree.ninep.fids import Fid, Step
from ipos.tree.ninep.linux import readdir
from ipos.tree.ninep.messages import DIALECTS
from ipos.tree.ninep.session import Session
from ipos.tree.ninep.stat import Stat, unpack
from ipos.wire import limits
from ipos.wire.errors import BadRecord, Refused
from ipos.wire.record import Record, cid_of, decode, encode

FOLDER = Path(__file__).parents[1] / "vectors"
NINEP, RECORDS, JOIN, UNIXFS, RECEIPTS = (
    json.loads((FOLDER / f"{name}.json").read_text()) for name in ("ninep", "records", "join", "unixfs", "receipts")
)
KINDS = {kind.__name__: kind for module in (_pool, _saves, _environment, commitment, verdict, join, lists, friends, sys.modules[MachineList.__module__])
         for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record}  # fmt: skip


# ---- 9P


def value(kind: str, shown: Any) -> Any:
    if kind.endswith("*"):
        return tuple(value(kind[0], each) for each in shown)
    if kind == "q":
        return Qid(shown[0], shown[1], int(shown[2]))
    if kind == "8":
        return int(shown)
    return bytes.fromhex(shown) if kind in ("d", "b") else shown


LINEAGE = {
    "9P2000": ["9P2000"],
    "9P2000.u": ["9P2000", "9P2000.u"],
    "9P2000.L": ["9P2000", "9P2000.L"],
    "9P2000.L.ipos": ["9P2000", "9P2000.L", "9P2000.L.ipos"],
}


def speaks(dialect: str, of: str, name: str) -> bool:
    """Whether a dialect uses the row of this message of an older one: it descends from it and nothing between replaces the row."""
    line = LINEAGE[dialect]
    return of in line and not any(
        v["message"] == name for v in NINEP["messages"] if v["dialect"] in line[line.index(of) + 1 :]
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_messages(dialect: str) -> None:
    covered: set[str] = set()
    for vector in NINEP["messages"]:
        name = vector["message"]
        if not speaks(dialect, vector["dialect"], name):
            continue
        covered.add(name)
        row, body = ALL[dialect].by_name[name], bytes.fromhex(vector["hex"])
        layout = [field.split(":") for field in vector["layout"].split()]
        assert tuple(field for field, _ in layout) == row.fields == tuple(vector["fields"])
        values = tuple(value(kind, vector["fields"][field]) for field, kind in layout)
        assert row.encode(vector["tag"], *values) == body, vector
        assert row.decode(memoryview(body)) == values, vector
        assert HEAD.unpack_from(body) == (len(body), row.code, vector["tag"])
        if len(body) <= limits.msize_bytes:
            assert [bytes(m) for m in Framer(limits.msize_bytes).feed(body)] == [body]
    assert covered == set(ALL[dialect].by_name), "a message of the table has no vector"


def test_messages_by_hand() -> None:
    """From intro(5), version(5) and diod's protocol.md, byte for byte."""
    found = {vector["hex"] for vector in NINEP["messages"]}
    tversion = b"\x15\0\0\0\x64\xff\xff\x18\x00\x10\x00\x08\x009P2000.L"
    rclunk = b"\x07\0\0\0\x79\x07\x00"
    tlopen = b"\x0f\0\0\0\x0c\x07\x00\x01\0\0\0\x02\x02\x00\x00"
    assert {tversion.hex(), rclunk.hex(), tlopen.hex()} <= found


@pytest.mark.parametrize("vector", NINEP["refused"], ids=lambda v: v["why"])
def test_refused_messages(vector: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        for message in Framer(limits.msize_bytes).feed(bytes.fromhex(vector["hex"])):
            ALL["9P2000.L"].by_code[message[4]].decode(message)


def test_stats() -> None:
    for vector in NINEP["stats"]:
        u, fields = vector["dialect"] == "9P2000.u", vector["fields"]
        want = Stat(
            **{**fields, "qid": value("q", fields["qid"]), "length": int(fields["length"]), "ids": tuple(fields["ids"])}
        )
        assert unpack(bytes.fromhex(vector["hex"]), u=u) == (want, len(vector["hex"]) // 2)
        assert want.pack(u) == bytes.fromhex(vector["hex"])


async def first(work: Any) -> Any:
    """What a message's function gives that has nothing to wait for."""
    try:
        while True:
            work.send(None)
    except StopIteration as done:
        return done.value


def test_listings() -> None:
    """What Treaddir gives for these entries; the first two are the directory itself and the one above it."""

    class Stub(File):
        def __init__(self, shown: Any) -> None:
            self.qid = value("q", shown)

    class Listing(Handle):
        async def entries(self) -> list[tuple[str, File]]:
            return files[2:]

    for vector in NINEP["listings"]:
        files = [(name, Stub(qid)) for qid, name in vector["entries"]]
        session = Session(lambda *_: None, Caller("", "", own=True, local=True), lambda _: None)  # type: ignore[arg-type,return-value]
        session.fids[1] = fid = Fid((Step("/", files[1][1]), Step("d", files[0][1])))
        fid.handle = Listing()
        assert asyncio.run(first(readdir(session, 1, 0, 8000))) == (bytes.fromhex(vector["data"]),)


# ---- records


def plain(shown: Any) -> Any:
    """DAG-JSON to values."""
    match shown:
        case {"/": str(cid)}:
            return c.parse(cid)
        case {"/": {"bytes": body}}:
            return base64.b64decode(body + "=" * (-len(body) % 4))
        case dict():
            return {key: plain(each) for key, each in shown.items()}
        case list():
            return [plain(each) for each in shown]
        case _:
            return shown


@pytest.mark.parametrize("vector", RECORDS["records"], ids=lambda v: v["record"])
def test_records(vector: dict[str, Any]) -> None:
    kind, body = KINDS[vector["record"]], bytes.fromhex(vector["hex"])
    record = msgspec.convert(plain(vector["value"]), kind, builtin_types=(bytes,))
    assert encode(record) == body
    assert decode(kind, body) == record
    assert c.text(cid_of(record)) == vector["cid"]


def test_every_record_has_a_vector() -> None:
    everywhere: set[str] = set()
    todo = [Record]
    while todo:
        found = [kind for kind in todo.pop().__subclasses__() if kind.__module__.startswith("ipos.")]
        everywhere |= {kind.__name__ for kind in found}
        todo += found
    assert everywhere == set(KINDS) == {vector["record"] for vector in RECORDS["records"]}


def test_a_record_by_hand() -> None:
    """RFC 8949 and the rules of DAG-CBOR: shorter keys first, smallest numbers, definite lengths."""
    body = b"\xa2\x61v\x01\x65sorry\x62no"
    assert encode(join.Sorry(sorry="no")) == body
    by_hand = base64.b32encode(b"\x01\x71\x12\x20" + hashlib.sha256(body).digest()).decode().lower().rstrip("=")
    assert c.text(cid_of(join.Sorry(sorry="no"))) == "b" + by_hand


@pytest.mark.parametrize("vector", RECORDS["refused"], ids=lambda v: v["why"])
def test_refused_records(vector: dict[str, str]) -> None:
    with pytest.raises(BadRecord):
        decode(KINDS[vector["record"]], bytes.fromhex(vector["hex"]))


def test_signatures() -> None:
    for vector in RECORDS["signatures"]:
        key, message = keys.Key(Secret(bytes.fromhex(vector["key"]))), bytes.fromhex(vector["message"])
        signature = bytes.fromhex(vector["signature"])
        assert key.address == vector["address"]
        assert key.sign(message) == signature
        assert keys.signer(message, signature) == vector["address"]
        check(msgspec.structs.replace(decode(MachineList, message), signature=vector["signature"]))


# ---- joining


def test_receipts() -> None:
    """The digest by hand of the published type; the signature is that of the run key; the list has it."""
    for vector in RECEIPTS["receipts"]:
        one = decode(Receipt, bytes.fromhex(vector["hex"]))
        assert c.text(cid_of(one)) == vector["cid"]
        receipt.check(one, decode(MachineList, bytes.fromhex(vector["machines"])))
        assert keys.Key(Secret(bytes.fromhex(vector["key"]))).address == one.run
        domain = keys.keccak(
            keys.keccak(b"EIP712Domain(string name,string version)") + keys.keccak(b"IPOS receipt") + keys.keccak(b"1")
        )
        words: list[bytes] = [keys.keccak(vector["type"].encode())]
        for value in receipt.message(one).values():
            if isinstance(value, int):
                words.append(value.to_bytes(32, "big"))
            elif isinstance(value, str) and value.startswith("0x"):
                words.append(bytes(12) + bytes.fromhex(value[2:]))
            else:
                words.append(keys.keccak(value.encode() if isinstance(value, str) else value))
        assert keys.keccak(b"\x19\x01" + domain + keys.keccak(b"".join(words))).hex() == vector["digest"]
    for vector in RECEIPTS["marks"]:
        assert [m.index for m in marks.parse(vector["text"].encode(), vector["mark_every"])] == vector["indices"]
    for vector in RECEIPTS["refused_marks"]:
        with pytest.raises(BadRecord):
            marks.parse(vector["text"].encode(), vector["mark_every"])


def test_codes() -> None:
    assert hashlib.sha256("\n".join(codes.WORDS).encode()).hexdigest() == JOIN["words_sha256"]
    for vector in JOIN["codes"]:
        assert codes.make(bytes.fromhex(vector["random"])).text == vector["code"]
    for vector in JOIN["said"]:
        assert codes.parse(vector["text"]).text == vector["code"]
    for text in JOIN["refused"]:
        with pytest.raises(Refused):
            codes.parse(text)
    for vector in JOIN["qr"]:
        fields = codes.parse(vector["code"]), vector["peer"], tuple(vector["addresses"])
        assert codes.qr_text(*fields) == vector["text"]
        assert codes.parse_qr(vector["text"]) == fields


class Drawn:
    """Dice that give the scalar of a vector: the library reduces 64 bytes modulo the order of the group."""

    def __init__(self, scalar: str) -> None:
        self.bytes = bytes.fromhex(scalar)[::-1]

    def __call__(self, n: int) -> bytes:
        return self.bytes.rjust(n, b"\0")


@pytest.mark.parametrize("vector", JOIN["sessions"], ids=lambda v: v["code"])
def test_sessions(vector: dict[str, Any]) -> None:
    """Each side alone, with the vector's scalar: fed what the other says, it says what the vector says."""
    code = codes.parse(vector["code"])
    said = [bytes.fromhex(message["hex"]) for message in vector["messages"]]
    assert [message["from"] for message in vector["messages"]] == ["joiner", "inviter"] * 2
    hello, answer, request, welcome = said
    asked, adopted = decode(join.Request, request), decode(join.Welcome, welcome).machines
    assert decode(join.Hello, hello).spake == vector["spake_joiner"]
    assert decode(join.Answer, answer).spake == vector["spake_inviter"]

    dice = Drawn(vector["scalars"]["joiner"])
    joiner = join.Joiner(code, vector["idB"], asked.machine, asked.account, asked.others, dice)
    assert joiner.start() == [join.Send(hello)]
    assert joiner.received(answer) == [join.Ask(vector["words"], "")]
    assert joiner.confirmed(True) == [join.Send(request)]
    assert joiner.received(welcome) == [join.Adopt(adopted)]
    assert joiner._key.hex() == vector["shared_key"]

    inviter = join.Inviter(vector["idB"], vector["idA"], {code.number: code}, Drawn(vector["scalars"]["inviter"]))
    assert inviter.received(hello) == [join.Burn(code.number), join.Send(answer), join.Show(vector["words"])]
    assert inviter.received(request) == [join.Ask(vector["words"], asked.machine.name)]
    assert inviter.confirmed(True) == [join.Admit(asked.machine)]
    assert inviter.admitted(adopted) == [join.Send(welcome)]
    assert inviter._key == joiner._key
    assert keys.Key(Secret(bytes.fromhex(vector["account_key"]))).address == adopted.account
    check(adopted)


# ---- CIDs and UnixFS


@pytest.mark.parametrize("vector", UNIXFS["files"], ids=lambda v: f"{v['bytes']} in {v['chunk']}")
def test_files(vector: dict[str, Any]) -> None:
    pattern, store = bytes.fromhex(UNIXFS["pattern"]), MemoryStore()
    body = (pattern * (vector["bytes"] // len(pattern) + 1))[: vector["bytes"]]
    cid, size = unixfs.add_stream(store, io.BytesIO(body), vector["chunk"], vector["width"])
    assert (c.text(cid), size, len(set(store))) == (vector["cid"], vector["bytes"], vector["blocks"])
    assert vector["root"] in (None, store.get(cid).hex())
    assert unixfs.read(store, c.parse(vector["cid"])) == body
    if vector["root"] is not None and cid[:4] == c.DAG_PB:
        assert unixfs.parse(bytes.fromhex(vector["root"])).size == vector["bytes"]


@pytest.mark.parametrize("vector", UNIXFS["directories"], ids=lambda v: f"{len(v['tree'])} entries")
def test_directories(vector: dict[str, Any], tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for name, text in {"": "", **vector["tree"]}.items():
        path = source / name
        (path if name in ("", name.rstrip("/") + "/") else path.parent).mkdir(parents=True, exist_ok=True)
        if name and not name.endswith("/"):
            path.write_text(text)
    store = MemoryStore()
    cid = unixfs.add_dir(store, source)
    assert (c.text(cid), store.get(cid).hex()) == (vector["cid"], vector["root"])
    unixfs.export(store, cid, target)
    for name, text in vector["tree"].items():
        assert (target / name).is_dir() if name.endswith("/") else (target / name).read_text() == text


def test_cids() -> None:
    for vector in UNIXFS["cids"]:
        make = {"raw": c.of_raw, "dag-pb": c.of_dag_pb, "dag-cbor": c.of_dag_cbor}[vector["codec"]]
        cid = make(bytes.fromhex(vector["block"]))
        assert (cid.hex(), c.text(cid)) == (vector["binary"], vector["text"])
        assert c.parse(vector["text"]) == cid
    for text in UNIXFS["refused_cids"]:
        with pytest.raises(Refused):
            c.parse(text)


def test_known_cids() -> None:
    """As Kubo gives them for `hello world`, an empty file and an empty directory."""
    known = {
        "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354",
    }
    assert known <= {
        vector.get("cid") or vector["text"] for part in ("files", "directories", "cids") for vector in UNIXFS[part]
    }


# ---- planted: a changed format is seen


def test_a_changed_format_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that changed places, another codec in a CID, another proof, other words, longer numbers: each fails its test."""
    from ipos.tree.ninep import codec

    moved = codec.Dialect("9P2000")
    row = moved.by_name["Ropen"]
    moved.by_name["Ropen"] = row._replace(
        encode=lambda tag, qid, iounit: row.encode(tag, qid, iounit)[:7] + row.encode(tag, qid, iounit)[:6:-1]
    )
    with monkeypatch.context() as patch:
        patch.setitem(ALL, "9P2000", moved)
        with pytest.raises((AssertionError, codec.struct.error, ProtocolError)):
            test_messages("9P2000")
    with monkeypatch.context() as patch:
        patch.setattr("ipos.wire.record.DAG_CBOR", c.RAW)
        with pytest.raises(AssertionError):
            test_records(RECORDS["records"][0])
    with monkeypatch.context() as patch:
        patch.setattr(join, "_proof", lambda key, who, body=b"": hashlib.sha256(key + who.encode() + body).hexdigest())
        with pytest.raises(AssertionError):
            test_sessions(JOIN["sessions"][0])
    with monkeypatch.context() as patch:
        patch.setattr(codes, "WORDS", codes.WORDS[::-1])
        with pytest.raises(AssertionError):
            test_codes()
    with monkeypatch.context() as patch:
        patch.setattr("ipos.store.unixfs.varint", lambda n: bytes((n & 127 | 128, n >> 7)))
        with pytest.raises(AssertionError):
            test_files(UNIXFS["files"][-1])


@pytest.mark.real
def test_the_check_of_make_check(tmp_path: Path) -> None:
    """`vectors/make.py --check` is content with what is there, and not with another byte."""
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "make.py"), "--check"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert (run().returncode, run().stdout) == (0, "")
    changed = tmp_path / "records.json"
    changed.write_text(changed.read_text().replace("upper.py", "lower.py", 1))
    assert run().returncode == 1
    assert "vectors/records.json is not what the code makes" in run().stdout
