"""What `ipos doctor` says of machines that lack something."""

from __future__ import annotations

from ipos.node import doctor
from ipos.vm.sandbox import confine, landlock

LAYERS = dict.fromkeys(confine.LAYERS, "")
HIDDEN = "mount, network and IPC namespace"


def by_name(lines: list[doctor.Line]) -> dict[str, doctor.Line]:
    return {line.what: line for line in lines}


def test_every_layer_has_a_line() -> None:
    assert set(doctor.WORKER) == set(confine.LAYERS)
    lines = doctor.workers(LAYERS, HIDDEN)
    assert all(line.ok and not line.fix for line in lines)
    assert len(lines) == 2 + len(LAYERS)


def test_what_a_kernel_lacks_is_said_in_its_words() -> None:
    why = "this kernel has no Landlock, or it is not in its list of security modules"
    lines = by_name(
        doctor.workers({**LAYERS, "files": why}, "none: this kernel refuses user namespaces (Operation not permitted)")
    )
    assert (lines["worker files"].ok, lines["worker files"].says) == (False, why)
    assert "lsm=" in lines["worker files"].fix
    assert lines["worker namespaces"].says == "this kernel refuses user namespaces (Operation not permitted)"
    assert not lines["worker namespaces"].needed
    assert by_name(doctor.workers({}, HIDDEN))["worker calls"].says == "it was not tried"


def test_only_what_is_needed_is_needed() -> None:
    assert doctor.no_worker("why")[0].needed
    assert doctor.disk(0).needed
    assert not doctor.disk(0).ok
    assert doctor.disk(2 << 30).ok
    assert not doctor.netd(None, 3).ok
    assert not doctor.netd(1, 0).ok
    assert doctor.netd(1, 2).ok
    assert not doctor.overcommit("2", None).ok
    assert not doctor.overcommit("0", confine.ENGINE_ADDRESSES - 1).ok
    assert doctor.overcommit("0", None).ok
    rest = [doctor.ptrace(None), doctor.landlock_line(0), doctor.seccomp_line("why"), doctor.user(0, own_uids=False), doctor.cgroup(None),
            doctor.clock(None), doctor.fuse(device=False, helper=False), doctor.native("none: why")]  # fmt: skip
    assert not any(line.ok or line.needed for line in rest)
    assert all(line.fix for line in rest)


def test_shades() -> None:
    assert "but not signals" in doctor.landlock_line(3).says
    assert "but not signals" not in doctor.landlock_line(max(landlock.abi(), doctor.LANDLOCK_GOOD)).says
    assert [doctor.ptrace(scope).ok for scope in ("0", "1", "2", "3")] == [False, True, True, True]
    assert doctor.clock(0).ok
    assert not doctor.clock(doctor.CLOCK_UNSYNCHRONISED).ok
    assert doctor.cgroup("cpu memory").ok
    assert not doctor.cgroup("").ok
    assert doctor.user(0, own_uids=True).ok
    assert doctor.user(1000, own_uids=False).ok
