"""Uploads over HTTP: large, hostile and malformed ones."""

import re
import secrets
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import picture_files
import pytest
from http_page import API, png
from PIL import Image

pytestmark = pytest.mark.slow


def png_bomb(side):
    """A PNG of side x side pixels that are all black: 1 bit each, and nearly no bytes."""
    return picture_files.png(side, side, 1, 0, bytes(1 + (side + 7) // 8) * side)


def test_picture_bombs_are_refused_before_they_are_decoded(page):
    small = page.file(png())
    mark = page.file(png((6, 6), (255, 0, 0, 255)))
    assert page.call("redraw", picture={"background": small, "layers": [mark]})[0] == "complete"
    idle = page.idle_memory()

    bomb = page.file(png_bomb(13_300), "bomb.png")
    largest = page.file(png_bomb(2896), "largest.png")
    jpeg = picture_files.saved(Image.new("L", (8, 8)), "JPEG")
    size = re.compile(rb"(?<=\xff\xc0...)....", re.DOTALL)
    sized = size.sub(b"\xff\xff\xff\xff", jpeg)
    large_jpeg = page.file(sized, "large.jpg")
    many = {"background": largest, "layers": [largest] * 4}
    attacks = [
        ({"background": bomb}, "expected at most 8388608"),
        ({"background": bomb, "layers": [bomb] * 4, "composite": bomb}, "expected at most 8388608"),
        ({"background": large_jpeg}, "expected at most 8388608"),
        ({"background": small, "layers": [bomb]}, "expected at most 8388608"),
        ({"background": small, "layers": [mark] * 200}, "at most 4 pictures"),
        ({"background": small, "layers": [largest]}, "expected (6, 6), the picture's"),
        (many, None),  # as much as is allowed
    ]

    for picture, message in attacks:
        with ThreadPoolExecutor(3) as attackers:
            calls = [attackers.submit(page.call, "redraw", picture=picture) for _ in range(3)]
        for event, answer in (call.result() for call in calls):
            if message is None:
                assert event == "complete", answer
            else:
                assert event == "error" and message in answer["error"], answer
    assert page.memory("VmHWM") - idle < 300


def tiff_of_claims(size, count):
    """A TIFF file of 6 x 6 pixels, with ``count`` entries that each claim ``size`` bytes of it."""
    data = bytearray(picture_files.saved(Image.new("RGB", (6, 6)), "TIFF"))
    (begin,) = struct.unpack_from("<I", data, 4)
    (known,) = struct.unpack_from("<H", data, begin)
    entries = data[begin + 2 : begin + 2 + 12 * known]
    data[4:8] = struct.pack("<I", len(data))
    data += struct.pack("<H", known + count) + entries
    data += b"".join(struct.pack("<HHII", 40_000 + n, 7, size, 8) for n in range(count))
    return bytes(data.ljust(size + 8, b"\0"))


def test_metadata_of_a_picture_costs_neither_memory_nor_time(page):
    plain = png((6, 6), (255, 0, 0, 0))
    mark = page.file(plain)
    assert page.call("redraw", picture={"background": mark})[0] == "complete"
    idle = page.idle_memory()

    text = picture_files.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**23), 9))
    talkative = page.file(plain[:33] + text + plain[33:])
    gif, start = picture_files.saved(Image.new("L", (6, 6)), "GIF"), 13 + 3 * 256
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 2**15 + b"\0"
    comments = page.file(gif[:start] + comment + gif[start:])
    greedy = page.file(tiff_of_claims(2**23, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    lying = Image.new("RGBA", (6, 3), (255, 0, 0, 0))
    turned = page.file(picture_files.saved(lying, exif=exif))
    begun = page.processor_seconds()
    for file in (talkative, comments, greedy, turned):
        event, answer = page.call("redraw", picture={"background": file, "layers": [file]})
        assert event == "complete", answer
    assert page.processor_seconds() - begun < 45  # two minutes where the comment is joined
    assert page.memory("VmHWM") - idle < 300


def test_uploads_of_an_address_are_bounded_until_they_are_deleted(page):
    address, size = "127.0.0.7", 19 * 2**20
    assert page.upload(bytes(size + 2**21), address=address)[0] == 413
    taken = 0
    for _ in range(16):
        status, answer = page.upload(secrets.token_bytes(size), address=address)
        if status != 200:
            break
        taken += 1
    assert status == 429 and "Too much was uploaded" in answer and taken == 13
    assert page.upload(png((7, 7)))[0] == 200  # others may
    headers = {"Content_Type": "multipart/form-data; boundary=x", "Transfer_Encoding": "chunked"}
    assert page.post(f"{API}/upload", b"3\r\n--x\r\n0\r\n\r\n", **headers)[0] == 411
    for path in page.own_folder.glob("*/picture.png"):
        if path.stat().st_size > 2**20:
            path.unlink()  # as Gradio does after an hour
    assert page.upload(secrets.token_bytes(size), address=address)[0] == 200


def test_uploads_that_break_off_or_are_refused_leave_nothing(page):
    def held():
        return sum(path.stat().st_size for path in page.own_folder.rglob("*") if path.is_file())

    before = held()
    head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n'
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", page.port)) as broken:
            request = f"POST {API}/upload HTTP/1.1\r\nHost: localhost\r\n"
            request += f"Content-Length: 9000000\r\nContent-Type: {form['Content_Type']}\r\n\r\n"
            broken.sendall(request.encode() + head % b"files" + bytes(2**22))
            time.sleep(0.2)  # a part is read before the rest is found missing
    page.post(f"{API}/upload", head % b"files" + bytes(2**22), **form)  # has no end
    page.post(f"{API}/upload", head % b"other" + bytes(2**22) + b"\r\n--x--\r\n", **form)
    assert page.upload(png((9, 9)))[0] == 200
    assert held() - before < 2**20


def test_a_malformed_upload_is_no_error_of_the_server(page):
    form = "multipart/form-data; boundary=x"
    name = b'--x\r\nContent-Disposition: form-data; name="files"'
    for kind, body in (
        (form, b""),
        (form, b"nonsense"),
        (form, name + b"\r\n\r\nno file\r\n--x--\r\n"),
        (form, name + b'; filename="a.png"\r\n\r\nbroken off'),
        (form, b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
        (form, name + b'; filename="../../../../tmp/a.png"\r\n\r\n1\r\n--x--\r\n'),
        ("multipart/form-data", b"x"),
        ("text/plain", b"x"),
        ("multipart/form-data; boundary=x; charset=nothing", name + b"\r\n\r\n1\r\n--x--\r\n"),
    ):
        for query in ("", "?upload_id=a"):
            page.post(f"{API}/upload{query}", body, Content_Type=kind)
    page.call("generate")
    below = [path for path in page.own_folder.rglob("*") if path.is_file()]
    assert not list((page.folder / "temporary").glob("*.png")) and below


def test_a_file_that_is_no_picture_is_answered_with_a_sentence(page):
    for data in (b"", b"GIF89a", b"<svg onload=alert(1)>", png()[:40], secrets.token_bytes(500)):
        event, answer = page.call("redraw", picture={"background": page.file(data, "x.svg")})
        assert event == "error" and "not a readable image" in answer["error"]
