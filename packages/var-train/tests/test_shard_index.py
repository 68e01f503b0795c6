"""What a shard of images holds, read in place; and what is refused of a hostile or damaged one."""

import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_tree import write_tar
from var_tokenizer.common import InputError
from var_train.listing.shard_index import NO_LABEL, index_shard
from var_train.listing.tar_walk import Member, OpenArchive

TWO = [("a.jpg", b"image a"), ("a.cls", b"3"), ("d/b.PNG", b"image b" * 99), ("d/b.cls", b" 12\n")]

LETTERS = st.text(st.sampled_from("ab.é/"), min_size=1, max_size=12)
NAMES = st.one_of(LETTERS, LETTERS.map(lambda name: name * 40)).map(lambda n: "n" + n.strip("/"))
MEMBERS = st.lists(
    st.tuples(
        NAMES,
        st.binary(max_size=1100),
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
    ),
    max_size=6,
)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
IN_ONE_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def archive_of(members, kind) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name, content, member_type in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = member_type, 0.5  # which pax notes in a header of its own
            if member_type == tarfile.REGTYPE:
                info.size = len(content)
            elif member_type != tarfile.DIRTYPE:
                info.linkname = "elsewhere" * 20
            try:
                archive.addfile(info, BytesIO(content))
            except ValueError:  # ustar has no room for the name
                continue
    return file.getvalue()


def walked(path: Path, content: bytes) -> list[Member]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(OpenArchive(path, file.fileno(), len(content)).members())


@IN_ONE_FOLDER
@given(MEMBERS, FORMATS)
def test_the_members_are_those_that_python_finds(tmp_path, members, kind):
    content = archive_of(members, kind)
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        expected = [
            (info.name, info.offset_data, info.size, not info.isreg())
            for info in archive
            if info.isreg() or info.issym() or info.islnk()
        ]
    found = walked(tmp_path / "a.tar", content)
    assert [(os.fsdecode(m.name), m.offset, m.size, m.is_link) for m in found] == expected


@IN_ONE_FOLDER
@given(MEMBERS, FORMATS, st.data())
def test_a_shard_that_is_cut_anywhere_is_refused_or_has_all_members(tmp_path, members, kind, data):
    content = archive_of(members, kind)
    whole = walked(tmp_path / "a.tar", content)
    cut = data.draw(st.integers(0, len(content)))
    try:
        assert walked(tmp_path / "a.tar", content[:cut]) == whole
    except InputError as error:
        assert str(tmp_path / "a.tar") in str(error)


@IN_ONE_FOLDER
@given(MEMBERS, FORMATS, st.data())
def test_no_byte_makes_a_member_leave_its_file(tmp_path, members, kind, data):
    content = bytearray(archive_of(members, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
        header = content[at // 512 * 512 :][:512]
        total = sum(header) - sum(header[148:156]) + 256
        if data.draw(st.booleans()) and len(header) == 512:  # a checksum that fits
            content[at // 512 * 512 :][:512] = header
            content[at // 512 * 512 + 148 : at // 512 * 512 + 156] = b"%06o\0 " % total
    try:
        for member in walked(tmp_path / "a.tar", bytes(content)):
            assert 512 <= member.offset <= member.offset + member.size <= len(content)
    except InputError as error:
        assert str(tmp_path / "a.tar") in str(error)


def test_images_have_the_label_beside_them(tmp_path):
    json = [("e.webp", b"image e"), ("e.json", b'{"label": 7}'), ("f.jpeg", b"f")]
    others = [("a.txt", b"a cat"), ("f.seg.png", b"no image: its suffix is seg.png")]
    found = index_shard(write_tar(tmp_path / "a.tar", [*TWO[:2], others[0], *TWO[2:], *json]))
    assert list(found.names) == ["a.jpg", "d/b.PNG", "e.webp", "f.jpeg"]
    assert found.labels_n.tolist() == [3, 12, 7, NO_LABEL]
    assert found.sizes_n.tolist() == [7, 693, 7, 1]
    content = (tmp_path / "a.tar").read_bytes()
    assert content[found.offsets_n[2] :][:7] == b"image e"
    assert list(index_shard(write_tar(tmp_path / "b.tar", [*json, others[1]])).names) == [
        "e.webp", "f.jpeg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "label"),
    [(b'{"cls": 5, "caption": "a cat"}', 5), (b'{"label": 4, "cls": 5}', 4), (b"{}", NO_LABEL)],
)
def test_a_label_may_be_a_field_of_a_json(tmp_path, text, label):
    found = index_shard(write_tar(tmp_path / "a.tar", [("a.json", text), ("a.png", b"image")]))
    assert found.labels_n.tolist() == [label]
    both = [("a.json", text), ("a.png", b"image"), ("a.cls", b"9")]
    assert index_shard(write_tar(tmp_path / "a.tar", both)).labels_n.tolist() == [9]


def test_hidden_members_are_passed_over(tmp_path):
    hidden = [("._a.jpg", b"x"), ("__MACOSX/._a.jpg", b"x"), (".x/c.jpg", b"x"), ("README", b"x")]
    assert len(index_shard(write_tar(tmp_path / "a.tar", [*hidden, *TWO]))) == 2
    dotted = [(f"./{name}", content) for name, content in TWO]
    assert list(index_shard(write_tar(tmp_path / "a.tar", dotted)).names) == ["a.jpg", "d/b.PNG"]


@pytest.mark.parametrize("text", [b"", b"cat", b"-1", b"1.5", b"2147483647", b"9" * 30, b"\xb2"])
def test_a_cls_that_is_no_label_is_named(tmp_path, text):
    path = write_tar(tmp_path / "a.tar", [*TWO, ("c\x1b.jpg", b"image"), ("c\x1b.cls", text)])
    with pytest.raises(InputError, match=r"a\.tar: member c\\x1b\.cls holds .*; expected an integ"):
        index_shard(path)


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ([("a.cls", b"1" * 33), ("a.jpg", b"")], "a.cls has 33 bytes"),
        ([("a.json", b" " * (2**20 + 1)), ("a.jpg", b"")], "a.json has 1048577 bytes"),
        ([("a.json", b"{"), ("a.jpg", b"")], "a.json is no JSON"),
        ([("a.json", b"[" * 10**5), ("a.jpg", b"")], "a.json is no JSON"),
        ([("a.json", b'{"label": "cat"}'), ("a.jpg", b"")], "a.json holds cat"),
        ([("a.json", b'{"label": true}'), ("a.jpg", b"")], "a.json holds True"),
        ([("a.json", b'{"label": 1, "label": 2}'), ("a.jpg", b"")], "a.json is no JSON"),
        ([*TWO, *TWO[:2]], "a.jpg is of a sample that has gone by"),
        ([TWO[0], TWO[2], TWO[1], TWO[3]], "a.cls is of a sample that has gone by"),
        ([TWO[1], *TWO[2:]], "a.cls is a label without an image"),
        ([TWO[0], ("a.png", b"x"), TWO[1]], "a.png is a second image"),
        ([TWO[0], TWO[1], TWO[1]], "a.cls is there twice"),
        ([("a.txt", b"no image")], "no image; expected"),
        ([], "no image; expected"),
    ],
)
def test_a_sample_that_is_no_sample_is_named(tmp_path, members, refusal):
    with pytest.raises(InputError, match=rf"a\.tar: (member )?{refusal}"):
        index_shard(write_tar(tmp_path / "a.tar", members))


def changed(content: bytes, at: int, field: bytes) -> bytes:
    """An archive with a field of its first header changed, and the checksum with it."""
    header = bytearray(content[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    ("at", "field", "refusal"),
    [
        (124, b"77777777777\0", "member a.jpg is cut short: 3584 of its 8589934591 bytes"),
        (124, b"\x80" + b"\xff" * 11, "member a.jpg is cut short: 3584 of its 30"),
        (124, b"\xff" * 12, "holds no tar header at byte 0"),  # a negative size
        (124, b"+0000000001\0", "holds no tar header at byte 0"),
        (156, b"S", "member a.jpg is sparse"),
        (156, b"1", "member a.jpg is a link"),
        (156, b"x", "the pax header of a.jpg is damaged"),
        (156, b"g", "the pax header of a.jpg is damaged"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, at, field, refusal):
    path = write_tar(tmp_path / "a.tar", TWO, format=tarfile.USTAR_FORMAT)
    content = path.read_bytes()[: 8 * 512] + bytes(1024)  # up to the last content, and the end
    assert len(index_shard(path)) == 2
    path.write_bytes(changed(content[: 8 * 512], at, field))
    with pytest.raises(InputError, match=rf"a\.tar: {refusal}"):
        index_shard(path)


@pytest.mark.parametrize(
    ("records", "refusal"),
    [
        (b"19 size=9999999999\n", "is cut short"),
        (b"9 size=x\n", "the size of .* is x"),
        (b"26 GNU.sparse.realsize=10\n", "is sparse"),
        (b"99 path=a\n", "is damaged"),
        (b"9 path=a.", "is damaged"),
        (b"path=a\n", "is damaged"),
        (b"12 path=a\0b\n", "has a zero in its name"),
    ],
)
def test_a_hostile_pax_header_is_refused(tmp_path, records, refusal):
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for kind, name, content in ((b"x", "pax", records), (b"0", "a.jpg", b"image")):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            archive.addfile(info, BytesIO(content))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    with pytest.raises(InputError, match=rf"a\.tar.*{refusal}"):
        index_shard(tmp_path / "a.tar")


def test_a_link_in_an_images_place_is_refused(tmp_path):
    content = archive_of([("a.jpg", b"", tarfile.LNKTYPE)], tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"member a\.jpg is a link; expected .*--hard-derefer"):
        index_shard(tmp_path / "a.tar")


def test_two_archives_in_one_file_are_refused(tmp_path):
    content = write_tar(tmp_path / "a.tar", TWO).read_bytes()
    (tmp_path / "a.tar").write_bytes(content + content)
    with pytest.raises(InputError, match="goes on after its end mark"):
        index_shard(tmp_path / "a.tar")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(InputError, match="no tar header at byte 0; expected an uncompressed tar"):
        index_shard(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(InputError, match="ends at byte 0; expected its end mark"):
        index_shard(tmp_path / "b.tar")
    os.mkfifo(tmp_path / "c.tar")
    with pytest.raises(InputError, match="no regular file"):
        index_shard(tmp_path / "c.tar")
