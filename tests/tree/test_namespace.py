"""The mount table alone: its text, and what Plan 9's manual says of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipos.tree.namespace import (
    USAGE,
    Bind,
    Clear,
    Line,
    Member,
    Order,
    Path,
    Place,
    Table,
    Unmount,
    parse,
    written,
)
from ipos.wire import limits
from ipos.wire.errors import Refused

NAMES = st.one_of(
    st.sampled_from(["a", "b", "srv", "x y", "it's", "#", "''", "-b", "ü", "a" * limits.name_bytes]),
    st.text(st.characters(exclude_characters="/", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8),
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= limits.name_bytes)
PLACES = st.lists(NAMES, max_size=3).map(tuple)
PATHS = st.builds(Path, PLACES, st.booleans())
LINES: st.SearchStrategy[Line] = st.one_of(
    st.builds(Bind, PATHS, PATHS, st.sampled_from(Order), st.booleans(), st.just("bind")),
    st.builds(Unmount, st.none() | PATHS, PATHS),
    st.just(Clear()),
)


def after(*commands: str) -> Table:
    """An empty table after these commands, where no union has to be searched."""
    table = Table()
    for line in parse("\n".join(commands)):
        table = applied(table, line)
    return table


def applied(table: Table, line: Line) -> Table:
    def at(path: Path, cross: bool) -> tuple[Member, ...]:
        search = table.found(path, cross)
        try:
            places, _ = next(search)
            while True:
                places, _ = search.send(places[0])
        except StopIteration as found:
            return found.value

    match line:
        case Clear():
            return Table()
        case Unmount(new, old):
            places = () if new is None else (at(new, False)[0].place, *(m.place for m in at(new, True)))
            return table.unmount(line, places, at(old, False)[0].place)
        case Bind(new, old):
            return table.bind(line, at(new, True), at(old, False)[0].place)


def members(table: Table, *place: str) -> list[tuple[str, bool]]:
    return [("/".join(member.place), member.create) for member in table.heads[place]]


# ---- the text


@given(LINES)
def test_a_command_is_read_as_it_was_written(line: Line) -> None:
    assert parse(written(line)) == [line]


@given(
    st.lists(st.tuples(PLACES, st.lists(st.builds(Member, PLACES, st.booleans()), min_size=1, max_size=4)), max_size=5)
)
def test_a_table_is_read_as_it_was_written(heads: list[tuple[Place, list[Member]]]) -> None:
    table = Table({place: tuple(union) for place, union in heads})
    again = Table()
    for line in parse(str(table)):
        assert isinstance(line, Bind)
        assert again.known(line.new) is not None, "its own text asks for nothing"
        again = applied(again, line)
    assert again == table


@given(st.text(max_size=200))
def test_any_text_is_commands_or_refused_with_its_line(text: str) -> None:
    refused = ""
    try:
        parse(text)
    except Refused as error:
        refused = str(error)
    assert refused == "" or refused.startswith("line ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bing /a /b", "'bing' is not a command of a namespace; it knows bind, mount, unmount, clear"),
        ("bind /a", USAGE["bind"]),
        ("bind -d /a /b", "'-d' is not a flag"),
        ("bind -ab /a /b", "either before or after"),
        ("bind a /b", "'a' is not a path from the root"),
        ("bind '/a /b", "a quote that does not end"),
        ("mount /home/a /b", "/srv/NAME"),
        ("mount /srv/a /b tree", "'tree'"),
        ("unmount -a /b", USAGE["unmount"]),
        ("bind /" + "n" * 256 + " /b", "a name of 256 bytes"),
        ("bind /a\0b /b", "control character"),
        ("bind /a /" + "x/" * 300, "a path of"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number_and_the_value(line: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(f"# mine\n\nbind /a /b\n{line}\n")
    assert str(refused.value).startswith("line 4: ")
    assert words in str(refused.value)


def test_dots_are_taken_out_by_name_and_stop_at_the_root() -> None:
    assert parse("bind /a/./b/../c/ /../../d")[0] == Bind(Path(("a", "c")), Path(("d",)))


# ---- what the manual says


def test_replace_before_and_after() -> None:
    assert members(after("bind /x /a"), "a") == [("x", False)]
    assert members(after("bind -b /x /a"), "a") == [("x", False), ("a", False)]
    assert members(after("bind -ac /x /a", "bind -b /y /a"), "a") == [("y", False), ("a", False), ("x", True)]
    assert members(after("bind -b /x /a", "bind /y /a"), "a") == [("y", False)]


def test_new_is_evaluated_when_it_is_bound() -> None:
    """bind(1): "The evaluation of new happens at the time of the bind, not when the binding is later used." """
    table = after("bind /x /a", "bind /a /b", "unmount /a")
    assert members(table, "b") == [("x", False)]


def test_what_is_mounted_upon_is_the_original() -> None:
    table = after("bind /x /a", "bind -a /y /a")
    assert members(table, "a") == [("x", False), ("y", False)]
    assert list(table.heads) == [("a",)]


def test_a_mount_point_is_met_by_every_way_to_it() -> None:
    table = after("bind /x /a/b", "bind /a /c")
    assert table.known(Path(("c", "b"))) == (("x",),)
    assert table.known(Path(("c", "b", "d"))) == (("x", "d"),)


def test_binding_a_union_copies_it() -> None:
    table = after("bind -a /x /a", "bind -b /a /b")
    assert members(table, "b") == [("a", False), ("x", False), ("b", False)]
    with pytest.raises(Refused, match="-c cannot tell where to create"):
        applied(table, parse("bind -c /a /d")[0])


def test_a_loop_of_binds_has_no_end_but_every_path_has() -> None:
    table = after("bind /a /a/b", "bind /a/b /a")
    assert table.known(Path(("a", "b", "b", "b"))) == (("a",),)


def test_unmount_undoes() -> None:
    assert after("bind -a /x /a", "unmount /a") == Table()
    assert after("bind -a /x /a", "unmount /x /a") == Table()
    assert members(after("bind -a /x /a", "bind -b /y /a", "unmount /y /a"), "a") == [("a", False), ("x", False)]
    with pytest.raises(Refused, match="nothing is mounted there"):
        after("unmount /a")
    with pytest.raises(Refused, match="/y is not mounted on /a: /a, /x"):
        after("bind -a /x /a", "unmount /y /a")


def test_a_path_that_would_lead_elsewhere_is_written_bare() -> None:
    table = after("bind /x /a", "bind '#/a' /b")
    assert members(table, "b") == [("a", False)]
    assert str(table) == "bind /x /a\nbind #/a /b\n"
    assert str(after("bind -a '/srv/o''clock' /home")) == "mount -a '/srv/o''clock' /home\n"


def test_limits() -> None:
    table = Table({(str(i),): (Member(("x",)),) for i in range(limits.mount_points)})
    with pytest.raises(Refused, match=f"more than {limits.mount_points} mount points"):
        applied(table, parse("bind /a /b")[0])
    union = Table({("a",): (Member(("x",)),) * limits.union_members})
    with pytest.raises(Refused, match=f"more than {limits.union_members} members"):
        applied(union, parse("bind -a /y /a")[0])
    with pytest.raises(Refused, match=f"line {limits.namespace_lines + 1}: "):
        parse("clear\n" * (limits.namespace_lines + 1))
