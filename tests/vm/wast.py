"""Runs scripts of WebAssembly's own tests (as JSON, from `wasm-tools json-from-wast`) against plain or instrumented modules.

Values go in and out as bits: Python's floats would lose a NaN's payload.
"""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import wasmtime
from wasmtime import _bindings as ffi
from wasmtime import _func

from ipos.vm.instrument import OPEN, instrument
from ipos.wire.errors import Refused

from .machine import ENGINE, ENOUGH, WASM_TOOLS

World = Literal["plain", "at once", "every safepoint"]
KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "v128": 4}
WIDTHS = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}


class Failed(Exception):
    """A call that trapped."""


@dataclass
class Report:
    passed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stops: int = 0
    refused: list[str] = field(default_factory=list)


def bits(width: int, value: str) -> bytes:
    return (int(value) & ((1 << 8 * width) - 1)).to_bytes(width, "little")


VALUE_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref", 0x6F: "externref"}
Signature = tuple[list[str], list[str]]


def signatures(module: bytes) -> dict[str, Signature]:
    """The exported functions' types. Wasmtime's C interface aborts when it is asked for one with a v128."""
    at = 8

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = module[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def name() -> str:
        nonlocal at
        n = number()
        at += n
        return module[at - n : at].decode()

    def limits() -> None:
        if number() & 1:
            number()
        number()

    types: list[Signature] = []
    functions: list[int] = []
    found: dict[str, Signature] = {}
    while at < len(module):
        section, size = number(), number()
        end = at + size
        match section:
            case 1:
                for _ in range(number()):
                    at += 1
                    types.append(
                        (
                            [VALUE_TYPES[number()] for _ in range(number())],
                            [VALUE_TYPES[number()] for _ in range(number())],
                        )
                    )
            case 2:
                for _ in range(number()):
                    name(), name()
                    match number():
                        case 0:
                            functions.append(number())
                        case 1:
                            at += 1
                            limits()
                        case 2:
                            limits()
                        case _:
                            at += 2
            case 3:
                functions += [number() for _ in range(number())]
            case 7:
                for _ in range(number()):
                    what, kind, index = name(), number(), number()
                    if kind == 0:
                        found[what] = types[functions[index]]
            case _:
                pass
        at = end
    return found


def raw_call(store: wasmtime.Store, func: wasmtime.Func, signature: Signature, args: Sequence[Any]) -> list[Any]:
    """Arguments and results: (kind, bytes) for numbers, anything for references."""
    references = {"funcref": wasmtime.ValType.funcref(), "externref": wasmtime.ValType.externref()}
    params = (ffi.wasmtime_val_t * len(args))()
    for i, (arg, kind) in enumerate(zip(args, signature[0], strict=True)):
        if isinstance(arg, tuple):
            params[i].kind = KINDS[arg[0]]
            ctypes.memmove(ctypes.addressof(params[i].of), arg[1], len(arg[1]))
        else:
            params[i] = wasmtime.Val._convert_to_raw(store, references[kind], arg)
    results = (ffi.wasmtime_val_t * len(signature[1]))()
    try:
        with _func.enter_wasm(store) as trap:
            error = ffi.wasmtime_func_call(
                store._context(), ctypes.byref(func._func), params, len(params), results, len(results), trap
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)
    except (wasmtime.Trap, wasmtime.WasmtimeError, Refused, RuntimeError) as error:
        raise Failed(str(error)) from None
    out: list[Any] = []
    for value in results:
        if value.kind <= 4:
            name = next(n for n, k in KINDS.items() if k == value.kind)
            out.append(
                (
                    name,
                    ctypes.string_at(
                        ctypes.addressof(value.of), {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}[name]
                    ),
                )
            )
        else:
            out.append(wasmtime.Val._from_raw(store, value).value)
    return out


def zero(name: str) -> Any:
    return (name, bytes({"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}[name])) if name in KINDS else None


def is_nan(width: int, data: bytes, canonical: bool) -> bool:
    value = int.from_bytes(data, "little") & ((1 << (8 * width - 1)) - 1)
    quiet = 0x7FC00000 if width == 4 else 0x7FF8000000000000
    return value == quiet if canonical else value & quiet == quiet


def lane_matches(width: int, wanted: str, data: bytes) -> bool:
    if wanted.startswith("nan:"):
        return is_nan(width, data, wanted == "nan:canonical")
    return bits(width, wanted) == data


def matches(expected: dict[str, Any], got: Any) -> bool:
    kind = expected["type"]
    if kind == "either":
        return any(matches(e, got) for e in expected["values"])
    if kind == "v128":
        width = WIDTHS[expected["lane_type"]]
        return all(
            lane_matches(width, lane, got[1][i * width : i * width + width]) for i, lane in enumerate(expected["value"])
        )
    if kind in KINDS:
        return got[0] == kind and lane_matches(WIDTHS[kind], expected["value"], got[1])
    value = expected.get("value")
    if value == "null" or kind in ("refnull", "nullref"):
        return got is None
    if kind == "externref" and value is not None:
        return got == int(value)
    return got is not None


def argument(arg: dict[str, Any]) -> Any:
    kind = arg["type"]
    if kind == "v128":
        return ("v128", b"".join(bits(WIDTHS[arg["lane_type"]], lane) for lane in arg["value"]))
    if kind in KINDS:
        return (kind, bits(WIDTHS[kind], arg["value"]))
    return None if arg["value"] == "null" else int(arg["value"])


class Script:
    def __init__(self, world: World) -> None:
        self.world = world
        self.store = wasmtime.Store(ENGINE)
        self.report = Report()
        self.registered: dict[str, dict[str, Any]] = {
            "spectest": self.spectest(),
            "ipos": {"trap": self.host([wasmtime.ValType.i32()], self.trap)},
        }
        self.named: dict[str, wasmtime.InstanceExports] = {}
        self.current: wasmtime.InstanceExports | None = None
        self.alive: list[wasmtime.InstanceExports] = []
        self.signatures: dict[int, dict[str, Signature]] = {}

    def trap(self, code: int) -> None:
        raise RuntimeError(f"trap {code}")

    def host(self, params: list[wasmtime.ValType], function: Callable[..., Any]) -> wasmtime.Func:
        return wasmtime.Func(self.store, wasmtime.FuncType(params, []), function)

    def spectest(self) -> dict[str, Any]:
        v = wasmtime.ValType
        values = {"i32": (v.i32(), 666), "i64": (v.i64(), 666), "f32": (v.f32(), 666.6), "f64": (v.f64(), 666.6)}
        given: dict[str, Any] = {
            f"global_{name}": wasmtime.Global(self.store, wasmtime.GlobalType(kind, False), x)
            for name, (kind, x) in values.items()
        }
        given["table"] = wasmtime.Table(self.store, wasmtime.TableType(v.funcref(), wasmtime.Limits(10, 20)), None)
        given["memory"] = wasmtime.Memory(self.store, wasmtime.MemoryType(wasmtime.Limits(1, 2)))
        for name, params in {"print": [], "print_i32": [v.i32()], "print_i64": [v.i64()], "print_f32": [v.f32()], "print_f64": [v.f64()],
                             "print_i32_f32": [v.i32(), v.f32()], "print_f64_f64": [v.f64(), v.f64()]}.items():  # fmt: skip
            given[name] = self.host(params, lambda *_: None)
        return given

    def instantiate(self, data: bytes) -> wasmtime.InstanceExports:
        original = data
        if self.world != "plain":
            data = instrument(data, flags=OPEN)
        module = wasmtime.Module(ENGINE, data)
        externs = []
        for wanted in module.imports:
            try:
                externs.append(self.registered[wanted.module][wanted.name or ""])
            except KeyError:
                raise Failed(f"no {wanted.module}.{wanted.name}") from None
        try:
            exports = wasmtime.Instance(self.store, module, externs).exports(self.store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            raise Failed(str(error)) from None
        self.signatures[id(exports)] = signatures(original)
        self.alive.append(exports)
        if self.world != "plain":
            exports["ipos_enter"](self.store, ENOUGH)
            if "ipos_begin" in exports:
                self.call(exports, "ipos_begin", [], ([], []))
        return exports

    def call(self, exports: wasmtime.InstanceExports, name: str, args: list[Any], signature: Signature) -> list[Any]:
        func = exports[name]
        if self.world == "plain":
            return raw_call(self.store, func, signature, args)
        enter, left, state = (exports["ipos_" + n] for n in ("enter", "left", "state"))
        stopping = self.world == "every safepoint"
        try:
            enter(self.store, -left(self.store) if stopping else 0)
            out = raw_call(self.store, func, signature, args)
            zeros = [zero(p) for p in signature[0]]
            n = 0
            while state(self.store) == 1:
                n += 1
                # a test that loops a million times is stopped a thousand times
                enter(self.store, -left(self.store) if n < 1000 else 10 * n * n)
                out = raw_call(self.store, func, signature, zeros)
            self.report.stops += n
            return out
        finally:  # others call its functions without a grant
            enter(self.store, ENOUGH - left(self.store))

    def act(self, action: dict[str, Any]) -> list[Any]:
        exports = self.named[action["module"]] if "module" in action else self.current
        if exports is None:
            raise Refused("the module was refused")
        item = exports[action["field"]]
        if action["type"] == "get":
            value = item.value(self.store)
            kind = str(item.type(self.store).content)
            packed = {"i32": "<i", "i64": "<q", "f32": "<f", "f64": "<d"}.get(kind)
            return [(kind, struct.pack(packed, value)) if packed else value]
        return self.call(
            exports,
            action["field"],
            [argument(a) for a in action["args"]],
            self.signatures[id(exports)][action["field"]],
        )

    def run(self, command: dict[str, Any], folder: Path) -> None:
        match command["type"]:
            case "module" | "module_definition":
                self.current = None
                if command["type"] == "module_definition":
                    raise Refused("module definitions are not supported by this runner")
                source = folder / command["filename"]
                binary = source.read_bytes()
                if command["module_type"] == "text":
                    binary = subprocess.run([WASM_TOOLS, "parse", source], check=True, capture_output=True).stdout
                exports = self.instantiate(binary)
                self.current = exports
                if "name" in command:
                    self.named[command["name"]] = exports
            case "register":
                exports = self.named[command["name"]] if "name" in command else self.current
                if exports is None:
                    raise Refused("the module was refused")
                self.registered[command["as"]] = {name: exports[name] for name in list(exports)}
            case "action":
                self.act(command["action"])
            case "assert_return":
                got = self.act(command["action"])
                assert len(got) == len(command["expected"]), (got, command)
                assert all(map(matches, command["expected"], got)), (got, command["expected"])
            case "assert_trap" | "assert_exhaustion":
                self.expect_trap(lambda: self.act(command["action"]))
            case "assert_uninstantiable" | "assert_unlinkable":
                self.expect_trap(lambda: self.instantiate((folder / command["filename"]).read_bytes()))
            case "assert_invalid" | "assert_malformed":
                if command["module_type"] != "binary":
                    raise Refused("a text")
                try:
                    self.instantiate((folder / command["filename"]).read_bytes())
                except (Refused, wasmtime.WasmtimeError):
                    return
                raise AssertionError("an invalid module was accepted")
            case other:
                raise Refused(f"unknown command {other}")

    def expect_trap(self, what: Callable[[], Any]) -> None:
        try:
            got = what()
        except Failed:
            return
        raise AssertionError(f"no trap, but {got}")


def run_script(wast: Path, world: World, folder: Path) -> Report:
    target = folder / f"{wast.stem}.json"
    if not target.exists():
        subprocess.run(
            [WASM_TOOLS, "json-from-wast", wast, "-o", target, "--wasm-dir", folder], check=True, capture_output=True
        )
    script = Script(world)
    for command in json.loads(target.read_text())["commands"]:
        where = f"{wast.name}:{command.get('line')} {command['type']} {command.get('action', {}).get('field', '')}"
        try:
            script.run(command, folder)
            script.report.passed += 1
        except Refused as refusal:
            if command["type"] == "module" and not command.get("name", "").startswith("?"):
                script.report.refused.append(f"{where}: {refusal}")
            script.report.skipped.append(f"{where}: {refusal}")
        except Exception as error:
            script.report.failed.append(f"{where}: {type(error).__name__}: {error}"[:400])
    script.store.close()
    return script.report
