"""docs/recipes.md: each program runs as it stands, with what it names or a stand-in for that."""

import base64
import configparser
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_network
from demo_process import CAT, EXAMPLES, STREET, environment, run_demo
from live_helpers import http_server

from cli import options
from nanodet import COCO_CLASSES, NanoDet

RECIPES = {
    section.partition("\n")[0]: re.findall(r"^```(?:python|ini)\n(.*?)^```$", section, re.M | re.S)
    for section in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").split("\n## ")[1:]
}
NETWORK = "object_detection_nanodet_2022nov.onnx"


def program(words, number=0):
    """The program of the recipe whose title contains these words."""
    (title,) = (title for title in RECIPES if words in title)
    return RECIPES[title][number]


@pytest.fixture
def folder(tmp_path):
    """A folder with what all programs need."""
    for path in (ROOT / "nanodet.py", ROOT / NETWORK):
        shutil.copy(path, tmp_path)
    return tmp_path


def run(text, folder, **options):
    """The standard output of a program that succeeds."""
    options = {"encoding": "utf-8", "timeout": 120, "env": environment(), **options}
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found_in(path, **settings):
    return NanoDet(ROOT / NETWORK, **settings).detect(cv2.imread(str(path)))


def test_crops_are_the_parts_of_the_picture_in_the_boxes(folder):
    shutil.copy(STREET, folder)
    run(program("Crops"), folder)
    crops, image, found = sorted(folder.glob("crops/*")), cv2.imread(str(STREET)), found_in(STREET)
    assert len(crops) == len(found) > 5
    for path, (box, _, class_id) in zip(crops, found, strict=True):
        assert path.stem.split("_")[1] == COCO_CLASSES[class_id]
        crop = cv2.imread(str(path))
        assert crop.shape[1::-1] == pytest.approx(box[2:] - box[:2], abs=2)
        _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(image, crop, cv2.TM_SQDIFF))
        there = image[top : top + crop.shape[0], left : left + crop.shape[1]]
        np.testing.assert_array_equal(there, crop)
        assert (left, top) == pytest.approx(box[:2], abs=1)


def test_people_of_the_clip_are_counted_over_the_line(folder):
    for package in ("supervision", "trackers"):
        pytest.importorskip(package, reason="pip install supervision trackers")
    shutil.copy(EXAMPLES / "street.mp4", folder)
    # Two go to the left there: one from 398 to 296, one from 361 to 338.
    assert run(program("count them"), folder) == "to the right: 0, to the left: 2\n"


def test_web_service_answers_with_the_objects_of_a_picture(folder, monkeypatch):
    pytest.importorskip("python_multipart", reason="pip install fastapi httpx python-multipart")
    testclient = pytest.importorskip("fastapi.testclient", reason="pip install fastapi httpx")
    monkeypatch.chdir(folder)
    service = {}
    exec(program("web service"), service)  # noqa: S102
    client = testclient.TestClient(service["app"])
    answer = client.post("/detect", files={"picture": STREET.read_bytes()})
    assert answer.status_code == 200
    for found, (box, confidence, class_id) in zip(answer.json(), found_in(STREET), strict=True):
        assert found["label"] == COCO_CLASSES[class_id]
        assert found["confidence"] == pytest.approx(confidence)
        assert found["xyxy"] == pytest.approx(box)
    for data in (b"no picture", b""):
        assert client.post("/detect", files={"picture": ("x", data)}).status_code == 415


def test_notebook_cell_shows_the_picture_with_its_boxes(folder):
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient nbformat ipykernel")
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient nbformat ipykernel")
    for package in ("ipykernel", "supervision"):
        pytest.importorskip(package, reason=f"pip install {package}")
    shutil.copy(STREET, folder)
    cell = nbformat.v4.new_code_cell(program("notebook"))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    resources = {"metadata": {"path": folder}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=resources
    )
    client.execute(env=environment())
    outputs = notebook.cells[0].outputs  # and what libraries say of each other
    (output,) = (output for output in outputs if output.output_type == "display_data")
    data = np.frombuffer(base64.b64decode(output.data["image/png"]), np.uint8)
    changed = cv2.absdiff(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.imread(str(STREET))).any(axis=2)
    left, top, right, bottom = found_in(STREET).xyxy[0].astype(int)
    assert changed[top + 20 : bottom - 20, left - 3 : left + 4].any(axis=1).all()
    assert 0.01 < changed.mean() < 0.3


def test_threads_count_the_objects_of_a_folder(folder):
    (folder / "photos").mkdir()
    for path in (CAT, STREET):
        shutil.copy(path, folder / "photos")
    (folder / "photos" / "x.jpg").write_bytes(b"no picture")
    said = run(program("several threads"), folder).splitlines()
    counts = [f"photos/{path.name} {len(found_in(path))}" for path in (CAT, STREET)]
    assert [line.replace("\\", "/") for line in said] == [*counts, "photos/x.jpg can't be read"]


def test_clip_begins_before_the_person_comes_and_ends_after_the_last_is_seen(folder):
    street = cv2.resize(cv2.imread(str(STREET)), (320, 240))
    empty = np.full_like(street, 90)
    camera = cv2.VideoWriter(
        str(folder / "camera.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240)
    )
    for image in [empty] * 15 + [street] * 3 + [empty] * 30:
        camera.write(image)
    camera.release()
    text = program("Save a clip")
    assert text.count("VideoCapture(0)") == 1
    run(text.replace("VideoCapture(0)", 'VideoCapture("camera.avi")'), folder)
    (path,) = folder.glob("person_*.mp4")
    clip, shown = cv2.VideoCapture(str(path)), []
    while (image := clip.read()[1]) is not None:
        shown.append(bool(cv2.absdiff(image, empty).mean() > 20))
    assert shown == [False] * 10 + [True] * 3 + [False] * 20


@pytest.fixture(scope="module")
def lines():
    """JSON lines of the command line, of a picture with objects and one that can't be read."""
    done = run_demo(STREET, "--no-save", "--json", "-", cwd=ROOT)
    assert done.returncode == 0 and len(done.out) == 1
    return done.stdout + '{"source": "x.jpg", "error": "x.jpg: is no picture"}\n'


def take_messages(listener, messages):
    """The part of an MQTT broker that one publisher without confirmations needs (MQTT 3.1.1)."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        while kind := stream.read(1):
            size = shift = 0
            while True:  # seven bits a byte, the lowest first
                (byte,) = stream.read(1)
                size, shift = size | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
            body = stream.read(size)
            if kind[0] >> 4 == 1:  # CONNECT: accepted
                connection.sendall(b"\x20\x02\x00\x00")
            elif kind[0] >> 4 == 3:  # PUBLISH
                end = 2 + int.from_bytes(body[:2], "big")
                messages.append((body[2:end].decode(), body[end:].decode()))


def test_each_line_of_json_is_a_message_of_mqtt(folder, lines):
    pytest.importorskip("paho.mqtt", reason="pip install paho-mqtt")
    messages = []
    with socket.create_server(("localhost", 0)) as listener:
        broker = threading.Thread(target=take_messages, args=(listener, messages), daemon=True)
        broker.start()
        text = program("MQTT").replace("1883", str(listener.getsockname()[1]))
        run(text, folder, input=lines)
        broker.join(60)
    assert messages == [("street/objects", line) for line in lines.splitlines()]


def test_webhook_gets_what_was_found(folder, lines):
    pytest.importorskip("requests", reason="pip install requests")
    received = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

    with http_server(Webhook) as server:
        text = program("MQTT", 1).replace("localhost:8080", f"localhost:{server.server_port}")
        run(text, folder, input=lines)
    assert received == [("/objects", json.loads(lines.splitlines()[0]))]


def test_labels_of_a_network_are_named(folder):
    make_network(folder / "my_network.onnx", classes=3, boxes=[(96, 96, 160, 160, 0.9, 2)])
    (folder / "labels.txt").write_text("apple\npear\nquince\n", encoding="utf-8")
    cv2.imwrite(str(folder / "street.jpg"), np.zeros((416, 416, 3), np.uint8))
    assert re.fullmatch(r"quince 0\.90 \[.*\]\n", run(program("Labels"), folder))


def test_picture_of_pil_gives_what_opencv_s_gives(folder):
    pytest.importorskip("PIL", reason="pip install pillow")
    shutil.copy(EXAMPLES / "portrait.jpg", folder)
    said = run(program("PIL"), folder).splitlines()
    found = found_in(EXAMPLES / "portrait.jpg")
    assert len(said) == len(found) >= 1
    for line, (_, confidence, class_id) in zip(said, found, strict=True):
        label, certain = line.partition(" (")[0].rsplit(maxsplit=1)
        assert label == COCO_CLASSES[class_id]
        assert float(certain) == pytest.approx(confidence, abs=0.02)  # decoders of JPEG differ


def test_unit_of_systemd_is_one_and_starts_the_demo(folder):
    unit = program("Raspberry Pi")
    (command,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    python, script, *arguments = command.split()
    assert script == "demo.py" and python.startswith("/home/pi/nanodet/")
    assert options.parse(arguments, "").serve == ("0.0.0.0", 8000)  # noqa: S104
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(unit)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    if shutil.which("systemd-analyze") is None:
        return
    unit = unit.replace(python, sys.executable).replace("/home/pi/nanodet", str(folder))
    (folder / "nanodet.service").write_text(unit)
    verify = ["systemd-analyze", "verify", folder / "nanodet.service"]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_program_has_a_test_here():
    assert sum(map(len, RECIPES.values())) == 11
