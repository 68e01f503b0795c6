"""Sets to judge: what is read as it is, and what is refused before a network looks at an image."""

import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from var_tokenizer.common import InputError, write_tensors
from var_train.judging.networks import load_network
from var_train.judging.npz_files import NpzFile
from var_train.judging.sets import FolderImages, NpzImages
from var_train.judging.statistics import load_statistics

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path, pixels_nyxc: np.ndarray = PIXELS) -> Path:
    path.mkdir()
    for n, pixels_yxc in enumerate(pixels_nyxc):
        Image.fromarray(pixels_yxc).save(path / f"{n}.png")
    return path


def read(path: Path) -> tuple[NpzImages | FolderImages, tuple[int, int]]:
    images = FolderImages(path) if path.is_dir() else NpzImages(NpzFile(path))
    counts = []
    size = images.check(counts.append)
    assert sum(counts) == len(images)
    return images, size


def compressed(path: Path) -> Path:
    np.savez_compressed(path, arr_0=PIXELS)
    return path


@pytest.mark.parametrize("kind", ["stored", "compressed", "folder"])
def test_images_come_as_they_are_in_batches_and_one_by_one(kind, tmp_path):
    if kind == "folder":
        path = folder(tmp_path / "images")
    elif kind == "stored":
        path = npz(tmp_path / "a.npz", arr_0=PIXELS)
    else:
        path = compressed(tmp_path / "a.npz")
    images, size = read(path)
    assert len(images) == 7 and size == (5, 6) and images.labels_n is None
    batches = list(images.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert (np.concatenate(batches) == PIXELS).all()
    assert (np.stack(images.chosen(np.array([6, 0, 6]))) == PIXELS[[6, 0, 6]]).all()


def test_an_npz_file_may_have_labels(tmp_path):
    labels = np.arange(7, dtype=np.int32)
    images, _ = read(npz(tmp_path / "a.npz", arr_0=PIXELS, arr_1=labels))
    assert images.labels_n.dtype == np.int64 and (images.labels_n == labels).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": PIXELS / 255}, r"float64 in \[0, 1\].*multiply by 255 and round to uint8"),
        ({"arr_0": np.float32(PIXELS / 127.5 - 1)}, r"in \[-1, 1\].*add 1, multiply by 127.5"),
        ({"arr_0": PIXELS.astype(np.int64)}, r"int64 in \[0, 255\]; expected uint8"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"shape \(7, 3, 5, 6\); expected uint8"),
        ({"arr_0": PIXELS[..., :1]}, r"shape \(7, 5, 6, 1\); expected"),
        ({"arr_0": PIXELS[:0]}, r"shape \(0, 5, 6, 3\); expected .* N at least 1"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "Fortran's order"),
        ({"arr_0": PIXELS, "arr_1": np.zeros(6, int)}, r"arr_1 is int64 \(6,\); expected 7 int"),
        ({"arr_0": PIXELS, "arr_1": np.zeros(7)}, r"arr_1 is float64 \(7,\); expected 7 integers"),
        ({"arr_0": np.array(["a"])}, "arr_0 has dtype <U1; expected plain numbers"),
    ],
)
def test_arrays_of_another_kind_are_refused_by_name(arrays, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        read(npz(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(error.value)


def test_the_range_of_large_images_is_that_of_their_first_values(tmp_path):
    path = npz(tmp_path / "a.npz", arr_0=np.ones((2, 1600, 1600, 3)))  # 123 MB
    tracemalloc.start()
    with pytest.raises(InputError, match=r"float64 in \[1, 1\].*multiply by 255"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def claiming(path: Path, shape: tuple[int, ...], compression: int, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", header(shape) + data)
    return path


def lying(path: Path) -> Path:
    """Its directory claims 16 GB that the file does not have."""
    claiming(path, (2**20, 72, 72, 3), zipfile.ZIP_DEFLATED, bytes(100))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    size = 2**20 * 72 * 72 * 3 % 2**32
    data[entry + 24 : entry + 28] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


def test_nothing_is_unpickled(tmp_path):
    objects = np.empty(1, object)
    objects[0] = Trap()
    with pytest.raises(InputError, match="dtype object; expected plain numbers"):
        read(npz(tmp_path / "a.npz", arr_0=objects))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"b\.npz: not a readable \.npz file"):
        read(tmp_path / "b.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_is_not_believed_before_there_are_as_many_bytes(compression, tmp_path):
    path = claiming(tmp_path / "a.npz", (10**9, 64, 64, 3), compression, bytes(1000))
    with pytest.raises(InputError, match=r"shape \(1000000000, 64, 64, 3\), uint8, but 1000 bytes"):
        read(path)
    with pytest.raises(InputError, match=r"claims \d+ bytes and has"):
        read(lying(tmp_path / "b.npz"))


def test_long_and_damaged_headers_are_refused(tmp_path):
    magic = b"\x93NUMPY\x02\x00"
    cases = {
        "has a header of 1000000000 bytes": magic + struct.pack("<I", 10**9),
        "has a damaged header": magic + struct.pack("<I", 9000) + b"(" * 9000,
        "is no array": b"nonsense",
    }
    for n, (message, data) in enumerate(cases.items()):
        with zipfile.ZipFile(tmp_path / f"{n}.npz", "w") as archive:
            archive.writestr("arr_0.npy", data)
        with pytest.raises(InputError, match=message):
            NpzFile(tmp_path / f"{n}.npz")


@pytest.mark.parametrize("where", [0.5, 0.2])
def test_a_damaged_file_is_found_before_a_network_looks(where, tmp_path):
    path = npz(tmp_path / "a.npz", arr_0=np.tile(PIXELS, (100, 1, 1, 1)))
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: not a readable \.npz file: .*CRC"):
        read(path)


@pytest.mark.parametrize("kept", [1000, 40, 0])
def test_a_file_that_was_cut_off_is_refused(kept, tmp_path):
    path = npz(tmp_path / "a.npz", arr_0=PIXELS)
    path.write_bytes(path.read_bytes()[: min(kept, path.stat().st_size - 30)])
    with pytest.raises(InputError, match=r"a\.npz: not a readable \.npz file"):
        read(path)


def test_a_folder_of_different_sizes_names_two_files(tmp_path):
    path = folder(tmp_path / "images")
    Image.new("RGB", (6, 4)).save(path / "5.png")
    with pytest.raises(InputError, match=r"5\.png: 4 x 6 pixels, but 0\.png has 5 x 6"):
        read(path)


def test_a_folder_with_a_damaged_image_names_it(tmp_path):
    path = folder(tmp_path / "images")
    (path / "4.png").write_bytes((path / "4.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"1 of 7 images are unreadable; expected none.*4\.png"):
        read(path)


def test_headers_of_both_versions_are_read(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, PIXELS, version=(2, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue())
        archive.writestr("notes.txt", json.dumps({}))  # which is no array
    images, _ = read(tmp_path / "a.npz")
    assert (next(images.batches(9)) == PIXELS).all()


class Inception:
    name, identity = "FID", "unknown"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "1e4000"])
@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_numbers_out_of_range_are_refused_and_numpy_does_not_warn_of_them(
    tmp_path, dtype, value, name
):
    arrays = {"mu": np.zeros(3, dtype), "sigma": np.eye(3, dtype=dtype)}
    with np.errstate(all="ignore"):
        arrays[name][:] = np.longdouble(value)
    path = npz(tmp_path / "a.npz", **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=f"{name} holds NaN, infinity or numbers above"):
            load_statistics(NpzFile(path), Inception)


def test_a_network_of_weights_beyond_float32_is_refused_without_a_warning(tmp_path):
    arrays = {"features.0.weight": np.full((4, 3, 3, 3), 1e300), "features.0.bias": np.zeros(4)}
    write_tensors(tmp_path / "network.safetensors", arrays, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="NaN or infinit"):
            load_network(tmp_path / "network.safetensors")
