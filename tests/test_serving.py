"""`soupray serve`: what is answered and refused, by itself; then behind Ray Serve, which runs."""

import asyncio
import csv
import http.client
import io
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import HANG_S, inside
from fastapi.openapi.models import OpenAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ray import cloudpickle
from sklearn.datasets import load_digits
from test_embedded import listening
from test_inference import LOOK, Adding, lengths, model, nothing
from test_ray_job import descendants
from tiny_text import tiny_text, write_world

import soupray
from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, EvaluationError, Refused
from soupray.core.records import encode
from soupray.distributed import serving
from soupray.inference.inputs import ImageReader, TextReader
from soupray.inference.model import Model, Runs
from soupray.inference.serve import (
    Arguments,
    Server,
    application,
    arguments,
    served,
    service,
)
from soupray.inference.service import MOST_INPUTS, Service, files_in
from soupray.inference.what import Found, find_recipe
from soupray.reporting.model_folder import write_folder
from soupray.reporting.recipe_file import RecipeFile
from soupray.services.place import find_place
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of

PNG, JSON, FORM = "image/png", "application/json", "multipart/form-data; boundary=b"

# The workers of Ray cannot import a module of tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def digit(number: int) -> bytes:
    """A digit of the UCI set as a PNG file."""
    return file_of(Image.fromarray((load_digits().images[number] * 15).astype("uint8")))


def of_images() -> Service:
    return Service(model()[0])


def of_texts(cuts: bool = False) -> Service:
    made = model()[0]
    reader = TextReader((10, 3), cuts, lengths)
    return Service(Model(made.recipe, Adding(), reader, Runs("cpu", 3)))


IMAGES, TEXTS = of_images(), of_texts()


def test_the_answer_is_that_of_the_model_with_what_was_done_to_the_input():
    service = of_images()
    wide = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    whole = Image.fromarray(np.full((16, 16, 3), 1, np.uint8))
    both = [*service.read(PNG, file_of(wide)), *service.read("IMAGE/png; a=b", file_of(whole))]
    formed = service.read(FORM, form_of([file_of(wide), file_of(whole)]))
    assert service.run(formed) == service.run(both)
    first, second = json.loads(service.answer(service.run(both)))["predictions"]
    # The sum of all pixels against its negative: 16 * 16 * 3 * (255 or 1), times two, is certain.
    assert first == {
        "class": "ant",
        "probability": 1.0,
        "probabilities": {"ant": 1.0, "bee": 0.0},
        "notes": ["transparency laid over white", "cut to its middle (16 x 16 pixels)"],
    }
    assert "notes" not in second
    assert service.model.reader.counted.done["transparency laid over white"] == 2  # was read twice


def form_of(files: Sequence[bytes], boundary: str = "b") -> bytes:
    """Files as curl sends them with -F."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()


@given(st.lists(st.lists(st.sampled_from(b"\r\n-b:\x00\xff"), max_size=30), min_size=1))
def test_files_in_a_form_are_what_was_sent(parts):
    files = [bytes(part) for part in parts]
    long = "-" * 24 + "5f0c6e4d2a"  # as curl draws them: files do not have it
    assert files_in(f'multipart/form-data; boundary="{long}"', form_of(files, long)) == files


@settings(max_examples=300)
@given(st.text() | st.just(FORM) | st.just(JSON) | st.just(PNG), st.binary() | st.just(b"--b\r\n"))
def test_whatever_is_sent_is_read_or_refused(kind, body):
    for served_model in (IMAGES, TEXTS):
        with suppress(Refused):
            assert served_model.read(kind, body)


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        (PNG, b"", 400, "the body is empty: this model reads images. Send the bytes of one image"),
        (FORM, b"--b\r\n\r\nhello\r\n--b--", 400, "the image cannot be read: not an image of a kn"),
        (FORM, b"--b\r\n\r\nhello\r\n", 400, "the body is no complete multipart/form-data"),
        (FORM, b"--b\r\nhello\r\n--b--", 400, "the body is no complete multipart/form-data"),
        (FORM[:19], b"--b\r\n\r\nhello\r\n--b--", 400, "its boundary is not in the header"),
        (FORM, b"--b\r\n\r\n\r\n" * 1001 + b"--b--", 413, "1001 images; a request has at most 10"),
        (PNG, b"hello", 400, r"the image cannot be read: not an image of a known format \(JPEG"),
        (PNG, digit(0)[:60], 400, "the image cannot be read: "),
        ("", digit(0), 415, "Content-Type '': this model reads images"),
        ("text/html", digit(0), 415, "Content-Type 'text/html': this model reads images"),
        (JSON, b'{"texts": ["a"]}', 415, "Content-Type 'application/json': this model reads image"),
    ],
)
def test_what_is_no_image_is_refused(kind, body, status, said):
    with pytest.raises(Refused, match=said) as refused:
        of_images().read(kind, body)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        (JSON, b"", 400, 'the body is empty: this model reads texts. Send application/json: {"te'),
        (PNG, digit(0), 415, "Content-Type 'image/png': this model reads texts"),
        (JSON, b"{", 400, "the body is not JSON: "),
        (JSON, b"\xff", 400, "the body is not JSON: "),
        (JSON, b"[" * 100_000, 400, r"Expected `object`, got `array`; send {\"texts\": \["),
        (JSON, b'{"texts": "a"}', 400, r"Expected `array`, got `str` - at `\$.texts`; send"),
        (JSON, b'{"texts": ["a", 1]}', 400, r"Expected `str`, got `int` - at `\$.texts\[1\]`"),
        (JSON, b'{"text": ["a"]}', 400, "unknown field `text`; send"),
        (JSON, b"{}", 400, "missing required field `texts`; send"),
        (JSON, b'{"texts": []}', 400, "there are no texts"),
        (JSON, b'{"texts": [" "]}', 400, "the text cannot be read: an empty text"),
        (JSON, b'{"texts": ["a b c d"]}', 400, "4 tokens in 7 bytes; the limits of the spec are 3"),
        (JSON, b'{"texts": ["a", "b c d e", " "]}', 400, "2 of 3 texts cannot be read, and none is "
         r"predicted: text 1: 4 tokens in 7 bytes; .*; text 2: an empty text. Positions count fr"),
        (JSON, json.dumps({"texts": ["a"] * (MOST_INPUTS + 1)}).encode(), 413, "1001 texts; .* 10"),
    ],
)  # fmt: skip
def test_what_are_no_texts_is_refused(kind, body, status, said):
    with pytest.raises(Refused, match=said) as refused:
        of_texts().read(kind, body)
    assert refused.value.status == status


def test_texts_beyond_the_limit_are_cut_where_the_evaluation_cuts_them():
    service = of_texts(cuts=True)
    samples = service.read(f"{JSON}; charset=utf-8", b'{"texts": ["a", "one two three four"]}')
    assert [bytes(sample.values).rstrip(b"\0") for sample in samples] == [b"a", b"one two th"]
    answers = [prediction.notes for prediction in service.run(samples)]
    assert answers == [(), ("cut to 3 tokens and 10 bytes",)]


@pytest.mark.parametrize("make", [of_images, of_texts])
def test_the_description_is_openapi_and_fits_what_is_answered(make):
    service = make()
    described = json.loads(service.pages["/openapi.json"])
    OpenAPI.model_validate(described)
    assert described["paths"].keys() == {"/predict", "/metadata", "/health"}
    content = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    kind, body = (JSON, b'{"texts": ["a"]}') if JSON in content else (PNG, digit(0))
    said = {
        "Answer": service.answer(service.run(service.read(kind, body))),
        "Metadata": service.pages["/metadata"],
        "Health": service.pages["/health"],
    }
    for name, answer in said.items():
        jsonschema.validate(
            json.loads(answer), {"$ref": f"#/components/schemas/{name}", **described}
        )
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, {"$ref": "#/components/schemas/Answer", **described})


def test_a_model_whose_image_size_is_not_known_is_not_served():
    made = model()[0]
    with pytest.raises(ConfigError, match=r"did not note the size .* Make the soup again"):
        Service(Model(made.recipe, Adding(), ImageReader(None, nothing), Runs("cpu", 3)))
    assert ImageReader(LOOK, nothing).facts()["size"] == 16


def test_texts_of_several_requests_get_the_probabilities_of_the_model(tmp_path):
    spec = tiny_text(write_world(tmp_path))
    task = task_of(spec.task)
    checkpoints = Checkpoints(open_store(spec.storage), tmp_path / "cache" / "weights")
    sha256 = checkpoints.save(task.init(), {}).sha256
    recipe = RecipeFile(
        name="anchor", recipe="anchor", options={}, candidate=mean_of([sha256]), ingredients={},
        statistics={}, sha256=None, spec=spec.model_dump(mode="json"),
    )  # fmt: skip
    (tmp_path / "x.recipe.json").write_bytes(encode(recipe))
    loaded = soupray.load(tmp_path / "x.recipe.json", home=tmp_path)
    service = Service(loaded)
    requests = [["the rain"], ["a", "of the bread and salt"], ["about snow and soup"]]
    bodies = [json.dumps({"texts": texts}).encode() for texts in requests]
    samples = [sample for body in bodies for sample in service.read(JSON, body)]
    expected = loaded.predict_proba([text for texts in requests for text in texts])
    found = [list(one.probabilities.values()) for one in service.run(samples)]
    assert found == expected.tolist()
    assert json.loads(service.pages["/metadata"])["reads"]["max_tokens"] == 8


@pytest.mark.parametrize(
    ("wanted", "cpus", "gpus", "share"),
    [
        (serving.Wanted(), 2, 0, 2),
        (serving.Wanted(3), 8, 0, 2),
        (serving.Wanted(2, gpus=0.5), 4, 1, 2),
        (serving.Wanted(4, gpus=0.4), 4, 2, 1),  # two on each GPU: no replica is on two
        (serving.Wanted(3), 2, 0, None),
        (serving.Wanted(2, gpus=1), 8, 1, None),
        (serving.Wanted(5, gpus=0.4), 8, 2, None),
    ],
)
def test_replicas_share_the_machine_or_are_refused(wanted, cpus, gpus, share):
    if share is not None:
        assert serving.shared(wanted, cpus, gpus) == share
        return
    with pytest.raises(ConfigError, match=rf"{wanted.replicas} replicas of .* has {cpus} CPU and"):
        serving.shared(wanted, cpus, gpus)


def test_a_serve_config_is_understood_or_refused():
    assert arguments({"what": "x@champion", "replicas": "2"}).replicas == 2  # of `serve run`
    for wrong in ({"what": "x", "gpus": 2}, {"what": "x", "cpu": 1}, {"replicas": 1}):
        with pytest.raises(ConfigError, match=r"args: .*; there are: what, home, batch_size, cal"):
            application(wrong)


class Counting:
    """A model that answers with the number of samples in the forward pass, and takes its time."""

    batch_size, most_bytes = 4, 1000

    def __init__(self) -> None:
        self.pages = {"/health": b"{}"}

    def read(self, content_type: str, body: bytes) -> Sequence[int]:
        if content_type == "odd/type":
            raise RuntimeError("not foreseen")
        return [0] * int(body)

    def run(self, samples: Sequence[int]) -> Sequence[int]:
        time.sleep(0.3)
        return [len(samples)] * len(samples)

    def answer(self, results: Sequence[int]) -> bytes:
        return json.dumps(results).encode()


NO_CPU = serving.Wanted(cpus=0)
"""Beside a replica that has all CPUs."""


def broken() -> Counting:
    raise ConfigError("this model cannot be loaded. Do something.")


def of_ensemble(run, **more: float) -> Arguments:
    return Arguments(what="mini:ensemble", home=str(run.home), **more)


def test_a_replica_loads_what_was_found_and_a_model_folder_needs_no_store(run, tmp_path):
    """An entry is another model after the next soup: what was found is not looked for again."""
    recipe = find_recipe("mini:greedy", run.home)
    gone = Arguments(what="mini:gone", home=str(run.home))
    loaded = service(gone, "cpu", pickle.loads(pickle.dumps(Found(recipe))))
    write_folder(recipe, lambda spec: find_place(spec, run.home), tmp_path / "model")
    folder = service(Arguments(what=str(tmp_path / "model"), home=str(tmp_path)), "cpu")
    sample = loaded.read(PNG, digit(3))
    assert folder.run(sample) == loaded.run(sample)
    assert folder.run(sample)[0].label == "three"


def test_the_next_forward_pass_takes_all_that_wait_while_one_runs():
    sizes, first, go = list[int](), threading.Event(), threading.Event()

    def run(samples: Sequence[int]) -> list[int]:
        sizes.append(len(samples))
        first.set()
        assert go.wait(HANG_S)
        if 13 in samples:
            raise RuntimeError("unlucky")
        return [sample + 1 for sample in samples]

    async def ask_all() -> list[object]:
        batches = serving.Batches(run, 4)
        asked = [asyncio.create_task(batches.result(0))]
        await asyncio.to_thread(first.wait, HANG_S)
        asked += [asyncio.create_task(batches.result(sample)) for sample in range(1, 8)]
        asked.append(asyncio.create_task(batches.result(13)))
        await asyncio.sleep(0)
        asked[2].cancel()
        await asyncio.sleep(0)
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [*found, await batches.result(20)]

    first_one, second, cancelled, *others, unlucky, later = asyncio.run(ask_all())
    # Of 1 2 3 4, 2 was given up; of 5 6 7 13, none has a result.
    assert sizes == [1, 3, 4, 1]
    assert (first_one, second, others[:2], later) == (1, 2, [4, 5], 21)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert all(isinstance(one, RuntimeError) for one in (*others[2:], unlucky))


@pytest.fixture(scope="module")
def server(run):
    """An ensemble of the main job behind HTTP, and the port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    before = torch.get_num_threads()
    with served(of_ensemble(run), port) as running:
        serving.deploy(serving.application(Counting, NO_CPU, True), "count", "/count")
        yield running
    torch.set_num_threads(before)


def ask(server: Server, body: bytes | None, kind: str = PNG, path: str = "/predict", **more: str):
    """(status, answer, headers) of a POST; of a GET if there is no body."""
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=HANG_S)
    headers = more | ({"Content-Type": kind} if kind else {})
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


@pytest.mark.slow
def test_the_answers_are_those_of_predict_however_many_ask_at_a_time(run, server, tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(digit(number))
    inside(
        "predict", "mini:ensemble", tmp_path, *run.where, "--probabilities", "--output",
        tmp_path / "said.csv",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "said.csv").open()))
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda number: ask(server, digit(number)), range(40)))
    torch.set_num_threads(os.cpu_count() or 1)  # as the only replica has; it may change low bits
    loaded = soupray.load("mini:ensemble", home=run.home)
    expected = loaded.predict_proba([digit(number) for number in range(40)])
    for (status, said, headers), row, wanted in zip(answers, rows, expected, strict=True):
        assert (status, headers["Content-Type"]) == (200, JSON)
        (found,) = json.loads(said)["predictions"]
        assert found["class"] == row["class"]
        shares = found["probabilities"]
        assert tuple(shares) == loaded.classes
        assert list(shares.values()) == wanted.tolist()
        for name, share in shares.items():
            assert float(row[f"p({name})"]) == pytest.approx(share, abs=1e-5)


def test_an_ensemble_decodes_an_image_once(run):
    service = Service(soupray.load("mini:ensemble", home=run.home))
    clear = file_of(Image.new("LA", (8, 8), (0, 0)))
    assert len(service.model.recipe.candidate.members) == 4
    service.run(service.read(PNG, clear))
    assert service.model.reader.counted.done == {"transparency laid over white": 1}


@pytest.mark.slow
def test_requests_of_many_clients_share_forward_passes(server):
    with ThreadPoolExecutor(9) as clients:
        answers = list(clients.map(lambda _: ask(server, b"1", path="/count/predict"), range(9)))
    sizes = sorted(size for _, said, _ in answers for size in json.loads(said))
    assert max(sizes) == 4  # never more than the batch size
    assert sizes.count(1) <= 3
    files = form_of([digit(number) for number in range(3)])
    status, said, _ = ask(server, files, FORM)
    assert [one["class"] for one in json.loads(said)["predictions"]] == ["zero", "one", "two"]
    status, said, _ = ask(server, b"6", path="/count/predict")  # several samples of one request
    assert (status, sorted(json.loads(said))) == (200, [2, 2, 4, 4, 4, 4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "kind", "path", "status", "said"),
    [
        (b"hello", PNG, "/predict", 400, "the image cannot be read: not an image"),
        (b"{}", JSON, "/predict", 415, "this model reads images"),
        (b"", PNG, "/predict", 400, "the body is empty"),
        (b"1" * 1001, PNG, "/count/predict", 413, "1001 bytes; a request has at most 1000."),
        (b"1", "odd/type", "/count/predict", 500, "RuntimeError: not foreseen"),
        (None, "", "/predict", 405, "no GET /predict here. There are: POST /predict, GET /health"),
        (b"x", PNG, "/nothing", 404, "no POST /nothing here. There are: POST /predict"),
    ],
)
def test_a_bad_request_gets_a_status_and_a_message_in_json(server, body, kind, path, status, said):
    found, answer, headers = ask(server, body, kind, path)
    assert (found, headers["Content-Type"]) == (status, JSON)
    assert said in json.loads(answer)["error"]


@pytest.mark.slow
def test_a_page_of_another_name_gets_no_answer(server):
    assert ask(server, None, path="/metadata", Host="localhost:1")[0] == 200
    status, said, _ = ask(server, None, path="/metadata", Host="rebound.example")
    assert (status, said) == (400, b"Invalid host header")


@pytest.mark.slow
def test_a_request_that_is_much_too_large_hears_why(server):
    status, said, _ = ask(server, bytes(40 * 2**20))
    assert status == 413
    assert json.loads(said)["error"] == "41943040 bytes; a request has at most 33554432."


@pytest.mark.slow
def test_the_pages_say_what_is_served(run, server):
    status, said, _ = ask(server, None, path="/metadata")
    found, recipe = json.loads(said), json.loads((run.output / "ensemble.recipe.json").read_text())
    assert status == 200
    for name in ("name", "recipe", "options", "candidate", "ingredients", "sha256", "digests"):
        assert found[name] == recipe[name]
    assert found["classes"] == list(soupray.load("mini:ensemble", home=run.home).classes)
    assert found["reads"]["kind"] == "images"
    assert "spec" not in found
    assert ask(server, None, path="/health")[1] == b'{"status":"ok"}'
    assert json.loads(ask(server, None, path="/openapi.json")[1])["openapi"] == "3.1.0"


@pytest.mark.slow
def test_a_taken_port_a_missing_gpu_and_a_broken_model_are_told(run, server):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used: .* --port"):
        served(of_ensemble(run), port).__enter__()
    wrong = inside("serve", "mini:ensemble", *run.where, "--port", port, check=False)
    assert (wrong.returncode, f"error: port {port}" in wrong.stderr) == (2, True)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--gpus 1: torch sees no GPU here"):
            served(of_ensemble(run, gpus=1), 1024).__enter__()
    with pytest.raises(EvaluationError, match=r"start: .*ConfigError: this model cannot be "):
        serving.deploy(serving.application(broken, NO_CPU, True), "broken", "/broken")


@pytest.mark.slow
def test_nothing_of_it_listens_on_another_address(server):
    heard_on = list[str]()
    for pid in descendants(os.getpid())[1:]:
        with suppress(OSError):  # it has ended meanwhile
            heard_on += listening(pid)
    assert len(heard_on) >= 5
    # As the kernel writes 127.0.0.1, and the same in IPv6.
    known = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert {address.rpartition(":")[0] for address in heard_on} <= known


@pytest.mark.slow
def test_a_replica_that_is_killed_under_load_loses_no_request_that_is_sent_again(server):
    (victim,) = [
        pid
        for pid in descendants(os.getpid())
        if "ServeReplica:soupray" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    over, done, wrong = threading.Event(), [], []

    def client(number: int) -> None:
        while not over.is_set():
            answer = ask(server, digit(number))
            if answer[0] >= 500:  # it was in the replica, and Ray has not sent it to another one
                answer = ask(server, digit(number))
            (done if answer[0] == 200 else wrong).append(answer)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for one in clients:
        one.start()
    until = time.monotonic() + HANG_S
    while len(done) < 30 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    while Path(f"/proc/{victim}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    back = len(done)
    while len(done) < back + 30 and time.monotonic() < until:
        time.sleep(0.05)
    over.set()
    for one in clients:
        one.join(HANG_S)
    assert not wrong
    assert len(done) >= back + 30
    assert not Path(f"/proc/{victim}").exists()
