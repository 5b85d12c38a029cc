"""Makes vectors/*.json, what other implementations of our formats test themselves with; with --check, says whether a format has changed.

tests/test_vectors.py reads the same files, both ways. README.md says what the fields mean.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from ipos.identity import friends, keys, machines
from ipos.identity.machines import Machine
from ipos.identity.secret import Secret
from ipos.identity.typed import RunKey, digest_typed
from ipos.net import codes, join, lists
from ipos.pool import marks, receipt
from ipos.pool.commitment import Claim, Ending, Use
from ipos.pool.native.environment import Environment
from ipos.pool.records import Deal, EngineRun, Evidence, Limits, Mark, MarkedSave, Receipt, Result, Task
from ipos.pool.saves import HandOver
from ipos.pool.verdict import Lie, Step, Verdict, Verification, signed
from ipos.store import cid as c
from ipos.store import unixfs
from ipos.store.blocks import MemoryStore
from ipos.tree.file import Qid
from ipos.tree.ninep.codec import ALL, DIRENT, HEAD
from ipos.tree.ninep.messages import BASE, IPOS, NOFID, NOTAG, L, U
from ipos.wire import limits
from ipos.wire.record import Record, cid_of, encode

HERE = Path(__file__).parent
KEY = bytes(range(1, 33))  # an account for vectors only


# ---- 9P

TABLES = {"9P2000": BASE, "9P2000.u": U, "9P2000.L": L, "9P2000.L.ipos": IPOS}
DIRECTORY, FILE = Qid(0x80, 0, 1), Qid(0, 7, (1 << 40) + 5)
SAMPLE: dict[str, Any] = {
    "msize": limits.msize_bytes, "version": "9P2000.L", "afid": NOFID, "uname": "me", "aname": "", "n_uname": 1000,
    "fid": 1, "newfid": 2, "dfid": 3, "dirfd": 3, "olddirfid": 3, "newdirfid": 4, "oldtag": 6,
    "wname": ("home", "Grüße.txt"), "wqid": (DIRECTORY, FILE), "aqid": Qid(0x08, 0, 9), "qid": FILE, "iounit": 8168,
    "name": "Grüße.txt", "oldname": "a", "newname": "b", "ename": "'bang' is not a command of a job; it knows cancel",
    "offset": 1 << 33, "count": 4096, "data": b"\x00\x01hello\xff", "stat": b"\x05\x00stat!", "mode": 0o644, "perm": 0o755,
    "flags": 0o1002, "gid": 1000, "uid": 1000, "ecode": 22, "mask": 0x7FF, "valid": 0x7FF, "type": 0x01021997, "bsize": 4096,
    "blocks": 3, "bfree": 2, "bavail": 1, "files": 10, "ffree": 5, "fsid": 77, "namelen": limits.name_bytes, "nlink": 1, "rdev": 0,
    "length": 1234567890123, "blksize": 4096, "atime": 1800000000, "atime_ns": 1, "mtime": 1800000001, "mtime_ns": 2,
    "symtgt": "../Grüße.txt", "target": "../Grüße.txt", "major": 1, "minor": 5, "attr_size": 300, "lockflags": 1, "start": 4096,
    "proc_id": 4711, "client_id": "desk", "status": 1, "extension": "../Grüße.txt",
    "ctime": 1800000002, "ctime_ns": 999999999, "btime": 0, "btime_ns": 0, "gen": 0, "data_version": 0, "datasync": 0,
}  # fmt: skip
ONE_BYTE = {"mode": 1, "type": 1}  # Topen's and Tcreate's
LEAST = {"1": 0, "2": 0, "4": 0, "8": 0, "s": "", "d": b"", "b": b"", "q": Qid(0, 0, 0), "s*": (), "q*": ()}
BIG_QID = Qid(0xFF, 0xFFFFFFFF, (1 << 64) - 1)
MOST = {
    "1": 0xFF, "2": 0xFFFF, "4": 0xFFFFFFFF, "8": (1 << 64) - 1, "s": "é€𝄞", "d": bytes(range(256)), "b": bytes(256), "q": BIG_QID,
    "s*": tuple("x" * n for n in range(limits.walk_names)), "q*": (BIG_QID,) * limits.walk_names,
}  # fmt: skip


def rows(table: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(message, [(field, kind)]) of a table of `messages`."""
    out: list[tuple[str, list[tuple[str, str]]]] = []
    for line in table.strip().splitlines():
        _, name, *fields = line.split()
        pairs = [field.split(":") for field in fields]
        out.append((name, [(field, kind) for field, kind in pairs]))
    return out


def shown(kind: str, value: Any) -> Any:
    """A field's value in JSON: 8-byte numbers as decimal text, bytes as hex, a qid as its three fields."""
    if kind.endswith("*"):
        return [shown(kind[0], each) for each in value]
    if kind == "q":
        return [value.type, value.version, str(value.path)]
    if kind == "8":
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def ninep() -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for version, table in TABLES.items():
        dialect = ALL[version]
        for name, fields in rows(table):
            tag = NOTAG if name in ("Tversion", "Rversion") else 7
            usual = [ONE_BYTE.get(f, SAMPLE[f]) if kind == "1" else SAMPLE[f] for f, kind in fields]
            samples = [usual, [LEAST[kind] for _, kind in fields], [MOST[kind] for _, kind in fields]]
            for values in samples if fields else samples[:1]:
                message = {field: shown(kind, value) for (field, kind), value in zip(fields, values, strict=True)}
                messages.append(
                    {
                        "dialect": version, "message": name, "layout": " ".join(f"{f}:{kind}" for f, kind in fields), "tag": tag,
                        "fields": message, "hex": dialect.by_name[name].encode(tag, *values).hex(),
                    }
                )  # fmt: skip
    entries = [(DIRECTORY, "."), (Qid(0x80, 0, 0), ".."), (FILE, "Grüße.txt"), (Qid(0x02, 1, 2), "link")]
    kinds = {0x80: 4, 0x02: 10}
    listing = b"".join(
        DIRENT.pack(*qid, i + 1, kinds.get(qid.type, 8), len(name.encode())) + name.encode()
        for i, (qid, name) in enumerate(entries)
    )
    return {
        "messages": messages,
        "listings": [{"entries": [[shown("q", qid), name] for qid, name in entries], "data": listing.hex()}],
        "stats": [
            _stat(FILE, 0o644, 5, "peers"),
            _stat(DIRECTORY, 0o755 | 1 << 31, 0, "Grüße"),
            _stat(FILE, 0o644, 5, "peers", u=True),
            _stat(Qid(0x02, 1, 2), 0o777 | 1 << 25, 0, "link", u=True, target="a/b"),
        ],
        "refused": _refused_messages(),
    }


def _stat(qid: Qid, mode: int, length: int, name: str, u: bool = False, target: str = "") -> dict[str, Any]:
    """stat(5), by hand."""
    texts = (name, "ipos", "ipos", "ipos", *((target,) if u else ()))
    ids = (1000, 100, 0xFFFFFFFF) if u else (0xFFFFFFFF,) * 3
    body = b"".join(
        (
            bytes(6), bytes([qid.type]), qid.version.to_bytes(4, "little"), qid.path.to_bytes(8, "little"), mode.to_bytes(4, "little"),
            (1800000000).to_bytes(4, "little"), (1800000001).to_bytes(4, "little"), length.to_bytes(8, "little"),
            *(len(s.encode()).to_bytes(2, "little") + s.encode() for s in texts),
            *(n.to_bytes(4, "little") for n in ids if u),
        )
    )  # fmt: skip
    fields = {
        "qid": shown("q", qid), "mode": mode, "atime": 1800000000, "mtime": 1800000001, "length": str(length), "name": name,
        "uid": "ipos", "gid": "ipos", "muid": "ipos", "extension": target, "ids": ids,
    }  # fmt: skip
    dialect = "9P2000.u" if u else "9P2000"
    return {"dialect": dialect, "fields": fields, "hex": (len(body).to_bytes(2, "little") + body).hex()}


def _refused_messages() -> list[dict[str, str]]:
    walk = ALL["9P2000.L"].by_name["Twalk"].encode(7, 1, 2, ("ab",))

    def sized(body: bytes) -> bytes:
        return len(body).to_bytes(4, "little") + body[4:]

    bad = {
        "a name runs over the end": sized(walk[:-1]),
        "a byte is left over": sized(walk + b"x"),
        "more names counted than there are": walk[:15] + b"\x02\x00" + walk[17:],
        "a name that is not UTF-8": walk[:-1] + b"\xff",
        "a fid is missing": sized(walk[:10]),
        "shorter than its head": b"\x06\x00\x00\x00\x6e\x07",
        "longer than msize": HEAD.pack(limits.msize_bytes + 1, 110, 7),
    }
    return [{"why": why, "hex": body.hex()} for why, body in bad.items()]


# ---- records


def dag_json(value: Any, link: bool = False) -> Any:
    """A value as DAG-JSON has it (https://ipld.io/specs/codecs/dag-json/spec/): links {"/": CID}, bytes {"/": {"bytes": base64}}."""
    if isinstance(value, Record):
        kinds = msgspec.structs.fields(value)
        out = {f.name: dag_json(getattr(value, f.name), "link" in repr(f.type)) for f in kinds}
        return {name: each for name, each in out.items() if name != "ext" or each}
    if isinstance(value, dict):
        return {key: dag_json(each, link) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [dag_json(each, link) for each in value]
    if isinstance(value, bytes):
        return {"/": c.text(value)} if link else {"/": {"bytes": base64.b64encode(value).decode().rstrip("=")}}
    return value


def examples() -> list[Record]:
    """One of each record at least, every optional field once absent and once there."""
    program, stdin, out, none = (c.of_raw(body) for body in (b"print(input().upper())\n", b"hello\n", b"HELLO\n", b""))
    environment = Environment(python="3.11", requirements="six==1.17.0 \\\n    --hash=sha256:00\n")
    tasks = [
        Task(program=program, name="upper.py"),
        Task(
            program=program, name="upper.py", args=("-n", "3", "Grüße.txt"), environment=cid_of(environment), stdin=stdin,
            files={"Grüße.txt": stdin, "b": none, "aa": out}, platform="linux-x86_64",
            limits=Limits(output_bytes=1 << 20, memory_bytes=3 << 30, wall_ms=60_000),
            ext={"later": "may be ignored"},
        ),
    ]  # fmt: skip
    result = Result(
        task=cid_of(tasks[0]), exit=0, killed="", stdout=out, stderr=none, dir=None, cpu_ms=12, wall_ms=34, rss_bytes=9 << 20,
        node="12D3KooWvector",
    )  # fmt: skip
    killed = msgspec.structs.replace(
        result, exit=-9, killed="it printed more than 1.0 MiB", dir=c.of_dag_pb(b"\x0a\x02\x08\x01")
    )
    deal = Deal(id="7.0.1", job="7", epoch=1, grace_ms=15_000, task=tasks[0], fresh=False)
    lst = account_list()
    attic = lst.machines[1]
    engine = EngineRun(engine="0011223344556677", env={"LANG": "C"}, seed="ab" * 32, work=100_000_000_000)
    return [
        EngineRun(engine="0011223344556677"), engine,
        HandOver(task=c.of_dag_cbor(b"a task"), save=c.of_raw(b"a save"), work=12_452_208_756, engine="0011223344556677"),
        HandOver(task=c.of_dag_cbor(b"a task"), save=None, work=0, engine="0011223344556677"),
        Mark(index=1, work=1_000_000_007, root="cd" * 32), *signed_receipts(),
        MarkedSave(index=1, save=c.of_raw(b"a save")),
        Evidence(receipt=c.of_dag_cbor(b"a receipt")),
        Evidence(receipt=c.of_dag_cbor(b"a receipt"), saves=(MarkedSave(index=1, save=c.of_raw(b"a save")),)),
        msgspec.structs.replace(result, ext={"root": "cd" * 32, "work": "2748049480", "resumed_at": "0"}),
        *agreed(),
        Limits(), Limits(output_bytes=0, memory_bytes=(1 << 63) - 1, wall_ms=23), environment, *tasks, result, killed,
        deal, msgspec.structs.replace(deal, fresh=True, blocks=(b"print(input().upper())\n", b"")),
        attic, machines.MachineList(account=lst.account, version=1, machines=()), lst,
        join.Hello(number=7, spake="41"), join.Answer(spake="42", proof="00" * 32),
        join.Request(proof="", machine=attic, account=lst.account, others=0),
        join.Welcome(proof="00" * 32, machines=lst), join.Sorry(sorry="the owner of the other machine said no"),
        lists.Shown(machines=lst), lists.Shown(machines=lst, merging=True), *befriended(lst),
    ]  # fmt: skip


def befriended(lst: machines.MachineList) -> list[Record]:
    """What one account shows and grants another."""
    key, desk = keys.Key(Secret(KEY)), lst.machines[0].peer
    introduction = friends.introduce(key, lst, {desk: ("/ip4/192.0.2.7/tcp/4001",)}, "12D3KooWbob")
    return [
        introduction,
        join.Meet(proof="00" * 32, introduction=introduction),
        friends.grant(key, desk, "0x" + "55" * 20, 2, 1_900_000_000, 1),
        friends.grant(key, desk, "0x" + "55" * 20, 1, 0, 2),
    ]


def agreed() -> list[Record]:
    """What seats claim, and what is found of it."""
    ending = Ending(
        exit=0,
        killed="",
        work=2_748_049_480,
        page_work=313_277_640_720,
        root="cd" * 32,
        stdout=c.of_raw(b"out"),
        stderr=c.of_raw(b""),
        dir=None,
    )
    use = Use(cpu_ms=12, wall_ms=34, rss_bytes=9 << 20)
    seat, judge = "0x" + "33" * 20, "0x" + "44" * 20
    claim = Claim(task=c.text(c.of_dag_cbor(b"a task")), seat="1", node=seat, ending=ending, use=use)
    right = Step(work=2_000_000_007, root="ab" * 32)
    lie = Lie(seat="1", node=seat, claimed=Step(work=2_000_000_007, root="ba" * 32))
    end = Step(work=ending.work, root=ending.root, ending=cid_of(ending))
    verdict = Verdict(
        task=c.of_dag_cbor(b"a task"), mark=2, before=Step(work=1_000_000_003, root="aa" * 32), right=right, liars=(lie,), judge=judge,
        since=1_000_000_003, work=1_000_000_004,
    )  # fmt: skip
    found = signed(verdict, RunKey(keys.Key(Secret(RUN))))
    whole = Verification(
        task=verdict.task, seats=3, agreed=2, root=ending.root, work=ending.work, total=9_244_148_444, told=("seat 1 lied",), verdicts=(found,)
    )  # fmt: skip
    return [ending, use, claim, right, end, lie, msgspec.structs.replace(verdict, before=None), found, whole]


def account_list() -> machines.MachineList:
    desk = Machine(name="desk", peer="12D3KooWdesk", run="0x" + "11" * 20, machine="aa" * 8)
    attic = Machine(name="attic", peer="12D3KooWattic", run="0x" + "22" * 20, machine="bb" * 8)
    return machines.sign(keys.Key(Secret(KEY)), 2, (desk, attic))


def records() -> dict[str, Any]:
    sorry = encode(join.Sorry(sorry="no"))
    hello = encode(join.Hello(number=23, spake=""))
    task = encode(Task(program=c.of_raw(b""), name="x"))
    bad: list[tuple[str, type[Record], bytes]] = [
        ("an unknown field", join.Sorry, b"\xa3" + sorry[1:] + b"\x61z\x01"),
        ("a field is missing", join.Sorry, b"\xa1\x61v\x01"),
        (
            "an empty ext is written out",
            join.Sorry,
            sorry[:1].replace(b"\xa2", b"\xa3") + sorry[1:4] + b"\x63ext\xa0" + sorry[4:],
        ),
        ("keys in another order", join.Sorry, b"\xa2" + sorry[4:] + sorry[1:4]),
        ("a number longer than need be", join.Hello, hello.replace(b"\x17", b"\x18\x17")),
        ("a map of indefinite length", join.Sorry, b"\xbf" + sorry[1:] + b"\xff"),
        ("text where a number should be", join.Hello, hello.replace(b"\x17", b"\x6223")),
        ("bytes where a link should be", Task, task.replace(b"\xd8\x2a\x58\x25\x00", b"\x58\x24")),
        ("a byte is left over", join.Sorry, sorry + b"\x00"),
        ("cut short", join.Sorry, sorry[:-1]),
        ("a key twice", join.Sorry, b"\xa3" + sorry[1:] + b"\x61v\x01"),
    ]
    lst = account_list()
    bare = encode(msgspec.structs.replace(lst, signature=""))
    return {
        "records": [
            {"record": type(r).__name__, "value": dag_json(r), "hex": encode(r).hex(), "cid": c.text(cid_of(r))} for r in examples()
        ],
        "refused": [{"record": kind.__name__, "why": why, "hex": body.hex()} for why, kind, body in bad],
        "signatures": [{"key": KEY.hex(), "address": lst.account, "message": bare.hex(), "signature": lst.signature}],
    }  # fmt: skip


# ---- receipts

RUN = bytes(range(101, 133))  # a run key for vectors only
MARKS = ((1_000_000, ((1_000_001, "aa" * 32), (2_500_000, "bb" * 32), (5_000_000, "cc" * 32))),)


def receipt_list() -> machines.MachineList:
    run = keys.Key(Secret(RUN)).address
    return machines.sign(
        keys.Key(Secret(KEY)), 3, (Machine(name="desk", peer="12D3KooWdesk", run=run, machine="aa" * 8),)
    )


def signed_receipts() -> list[Receipt]:
    """Of a native program; of a segment; of the end of the task that it is of."""
    key, lst = keys.Key(Secret(RUN)), receipt_list()
    native = Receipt(
        task=c.of_dag_cbor(b"a native task"), result=c.of_dag_cbor(b"its result"), account=lst.account, run=key.address,
        node="12D3KooWdesk", machines=cid_of(lst), engine="", since=0, since_root="", work=0, root="", marks=None, before=None,
        page_work=0, cpu_ms=12, wall_ms=34,
    )  # fmt: skip
    first = msgspec.structs.replace(
        native, task=c.of_dag_cbor(b"a task"), result=None, engine="0011223344556677", work=2_500_000, root="bb" * 32
    )
    first = receipt.sign(RunKey(key), first)
    last = msgspec.structs.replace(
        first, result=c.of_dag_cbor(b"a result"), since=first.work, since_root=first.root, work=5_000_009, root="dd" * 32,
        marks=c.of_raw(marks.text(MARKS[0][1])), before=cid_of(first), page_work=77, signature="",
    )  # fmt: skip
    return [receipt.sign(RunKey(key), native), first, receipt.sign(RunKey(key), last)]


def receipts() -> dict[str, Any]:
    bad = ("x", "1000001 " + "aa" * 32, "01000001 " + "aa" * 32 + "\n", "1000001 " + "AA" * 32 + "\n", "1000000 " + "aa" * 32 + "\n",
           2 * ("1000001 " + "aa" * 32 + "\n"), "-1 " + "aa" * 32 + "\n")  # fmt: skip
    return {
        "receipts": [
            {
                "key": RUN.hex(), "machines": encode(receipt_list()).hex(), "value": dag_json(one), "type": receipt.SCHEMA.text(),
                "digest": digest_typed(receipt.DOMAIN, receipt.SCHEMA, receipt.message(one)).hex(), "hex": encode(one).hex(),
                "cid": c.text(cid_of(one)),
            }
            for one in signed_receipts()
        ],
        "marks": [
            {"mark_every": every, "text": marks.text(listed).decode(), "indices": [m.index for m in marks.parse(marks.text(listed), every)]}
            for every, listed in MARKS
        ],
        "refused_marks": [{"mark_every": 1_000_000, "text": text} for text in bad],
    }  # fmt: skip


# ---- joining


def joining() -> dict[str, Any]:
    code = codes.parse("7-guitar-upset")
    key = keys.Key(Secret(KEY))
    desk, attic = account_list().machines
    before = machines.sign(key, 1, (desk,))

    def dice(seed: bytes) -> join.Dice:
        return lambda n: hashlib.shake_256(seed).digest(n)

    inviter = join.Inviter(desk.peer, attic.peer, {code.number: code}, dice(b"inviter"))
    joiner = join.Joiner(code, desk.peer, attic, "0x" + "33" * 20, 0, dice(b"joiner"))
    wire: list[dict[str, str]] = []
    words = ""
    sides: dict[str, Any] = {"joiner": joiner, "inviter": inviter}
    other = {"joiner": "inviter", "inviter": "joiner"}
    todo: list[tuple[str, join.Instruction]] = [("joiner", step) for step in joiner.start()]
    while todo:
        who, step = todo.pop(0)
        match step:
            case join.Send(body):
                wire.append({"from": who, "hex": body.hex()})
                who = other[who]
                steps = sides[who].received(body)
            case join.Ask():
                words, steps = step.words, sides[who].confirmed(True)
            case join.Admit(machine):
                steps = inviter.admitted(machines.with_machine(key, before, machine))
            case join.Fail(sentence):
                raise AssertionError(sentence)
            case _:
                steps = []
        todo += [(who, one) for one in steps]
    spake = joiner._spake
    scalars = {who: _scalar(who, code, attic.peer, desk.peer, dice(who.encode())) for who in ("joiner", "inviter")}
    said = ("7-guitar-upset", " 7 Guitar_upset", "999-ACORN-acorn")
    return {
        "words_sha256": hashlib.sha256("\n".join(codes.WORDS).encode()).hexdigest(),
        "codes": [{"random": r, "code": codes.make(bytes.fromhex(r)).text} for r in ("00000000", "03e6ffff", "ffff0102")],
        "said": [{"text": text, "code": codes.parse(text).text} for text in said],
        "refused": ["guitar-upset", "0-guitar-upset", "1000-guitar-upset", "7-gitar-upset", "7-guitar", "7-guitar-upset-acorn", ""],
        "qr": [
            {"code": code.text, "peer": desk.peer, "addresses": list(a), "text": codes.qr_text(code, desk.peer, a)}
            for a in ((), ("/ip4/192.168.1.5/tcp/4001", "/ip6/::1/udp/4001/quic-v1"))
        ],
        "sessions": [
            {
                "code": code.text, "password": "-".join(code.words), "idA": attic.peer, "idB": desk.peer, "scalars": scalars,
                "account_key": KEY.hex(), "shared_key": joiner._key.hex(), "spake_joiner": (spake.side + spake.outbound_message).hex(),
                "spake_inviter": (b"B" + spake.inbound_message).hex(), "words": words, "messages": wire,
            }
        ],
    }  # fmt: skip


def _scalar(who: str, code: codes.Code, joiner: str, inviter: str, dice: join.Dice) -> str:
    """The secret scalar that a side draws from its dice, little endian."""
    spake = join._spake(who, code, joiner, inviter, dice)
    spake.start()
    return json.loads(spake.serialize())["xy_scalar"]


# ---- CIDs and UnixFS

PATTERN = bytes(i * 7 % 251 for i in range(251))
KUBO_OLD = (256 << 10, 174)


def content(size: int) -> bytes:
    """PATTERN, over and over."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def files() -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    sizes = {
        (unixfs.CHUNK, unixfs.WIDTH): (0, 1, 251, 1 << 20, (1 << 20) + 1, 3_500_000),
        KUBO_OLD: (
            256 << 10,
            (256 << 10) + 1,
            1_000_000,
            174 << 18,
            (174 << 18) + 1,
        ),  # of 174 chunks: the last tree of two levels
        (10, 4): (11, 40, 41, 160, 161, 1000),  # small chunks, to see trees of three levels and more
    }
    for (chunk, width), some in sizes.items():
        for size in some:
            store = MemoryStore()
            cid, _ = unixfs.add_stream(store, io.BytesIO(content(size)), chunk, width)
            root = store.get(cid)
            one = {"bytes": size, "chunk": chunk, "width": width, "cid": c.text(cid), "blocks": len(set(store))}
            out.append(one | {"root": root.hex() if len(root) < 600 else None})
    trees: list[dict[str, str]] = [
        {},
        {"hello.txt": "hello\n"},
        {"b": "2", "a": "1", "Grüße": "", "sub/x": "x", "sub/deeper/y": "y", "B": "3"},
        {"empty/": ""},
    ]
    return {
        "pattern": PATTERN.hex(),
        "files": out,
        "directories": [_directory(tree) for tree in trees],
        "cids": [
            {"codec": codec, "block": block.hex(), "binary": cid.hex(), "text": c.text(cid)}
            for codec, block, cid in (
                ("raw", b"hello world", c.of_raw(b"hello world")),
                ("dag-pb", b"\x0a\x02\x08\x01", c.of_dag_pb(b"\x0a\x02\x08\x01")),
                ("dag-cbor", b"\xa0", c.of_dag_cbor(b"\xa0")),
            )
        ],
        "refused_cids": [
            "", "b", "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyk",
            "BAFKREIHDWDCEFGH4DQKJV67UZCMW7OJEE6XEDZDETOJUZJEVTENXQUVYKU", "bafkqaaa", "zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA",
        ],
    }  # fmt: skip


def _directory(tree: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, text in tree.items():
            path = root / name
            if name.endswith("/"):
                path.mkdir()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        store = MemoryStore()
        cid = unixfs.add_dir(store, root)
        return {"tree": tree, "cid": c.text(cid), "root": store.get(cid).hex()}


# ---- files


def text(vectors: dict[str, Any]) -> str:
    """JSON with a vector a line, so that a change shows as the line that changed."""
    parts: list[str] = []
    for key, value in vectors.items():
        if isinstance(value, list):
            lines = ",\n    ".join(json.dumps(each, ensure_ascii=False) for each in value)
            parts.append(f"  {json.dumps(key)}: [\n    {lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def made() -> dict[Path, str]:
    parts = {"ninep": ninep, "records": records, "join": joining, "unixfs": files, "receipts": receipts}
    return {HERE / f"{name}.json": text(make()) for name, make in parts.items()}


def main() -> int:
    changed = [path for path, body in made().items() if not path.exists() or path.read_text() != body]
    if "--check" not in sys.argv:
        for path, body in made().items():
            path.write_text(body)
        return 0
    for path in changed:
        print(
            f"vectors/{path.name} is not what the code makes: a format has changed; if that is meant, vectors/make.py"
        )
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
