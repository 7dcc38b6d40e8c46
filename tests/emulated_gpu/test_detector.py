"""The detector on the emulated device: the CPU's numbers, and no needless wait."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulated_gpu import record
from small_recipe import small
from tiny_coco import write_tiny
from tiny_recipe import STAGE_CHANNELS, tiny_recipe

from frcnn.detector import FasterRCNN
from frcnn.engine.detect import detect
from frcnn.engine.evaluate import evaluate
from frcnn.preprocess import prepare
from frcnn.zoo.recipes import recipe
from frcnn.zoo.reference_case import CASES, case_names
from frcnn.zoo.verify import verify_case


@pytest.fixture(scope="module")
def entry():
    made = small(recipe("faster_rcnn_r50_fpn_1x_coco"))
    rpn = replace(made.model.rpn, pre_nms_test=50, post_nms_test=50)  # a thousand take minutes
    return replace(made, model=replace(made.model, rpn=rpn))


def model(entry, device):
    torch.manual_seed(0)
    made = FasterRCNN(entry.model, entry.data)
    with torch.no_grad():
        made.roi_head.bbox_head.fc_cls.weight *= 30  # or nothing would be found: it was not trained
    return made.to(device).eval()


def images(count):
    generator = np.random.default_rng(0)
    shapes = [(90, 120), (120, 90), (90, 120), (100, 100)]
    return [generator.integers(0, 255, (*shapes[index % 4], 3), dtype=np.uint8) for index in range(count)]


def same(ours, wanted):
    assert any(map(len, wanted))
    for a, b in zip(ours, wanted, strict=True):
        assert len(a) == len(b)
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_detections_are_the_cpus(entry, mode):
    """Several shapes, batches, and in graph mode replays."""
    wanted = model(entry, "cpu").predict(images(6), (128, 96))
    fast = model(entry, "cuda").optimize(mode=mode)
    same(list(fast.stream(images(6), (128, 96), batch_size=2)), wanted)
    same(fast.predict(images(6), (128, 96)), wanted)


def test_forty_shapes_need_eight_graphs_and_no_more_memory(entry):
    """Images of 40 padded shapes, twice, in batches of two; those that have no partner are filled up."""
    data = replace(entry.data, size=(128, 96), pad_divisor=4)
    plain = model(replace(entry, data=data), "cuda")
    random = np.random.default_rng(0)
    shapes = [(96, width) for width in range(96, 129, 4)] + [(height, 128) for height in range(92, 46, -4)]
    shapes += [(width, height) for height, width in shapes[1:]]
    many = [random.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
    assert len({prepare(image, data).padded_size for image in many}) >= 40
    fast = plain.optimize(mode="graph", few_shapes=True)
    graphs, found, held = [], [], []
    for _ in range(2):
        _, rows = record(lambda: found.append(list(fast.stream(many, batch_size=2))))
        graphs.append(sum(row.name == "end capture" for row in rows))
        held.append(torch.cuda.memory_reserved())
    assert 0 < graphs[0] <= 8 and graphs[1] == 0
    assert held[1] == held[0]
    eager = list(plain.optimize(few_shapes=True).stream(many, batch_size=2))
    same(found[0], eager)
    same(found[1], eager)


def test_a_batch_waits_once(entry):
    fast = model(entry, "cuda").optimize()
    fast.predict(images(1), (128, 96))
    _, rows = record(lambda: fast.predict(images(1), (128, 96)))
    kinds = Counter(row.kind for row in rows)
    assert kinds["sync"] == 1
    assert kinds["layout"] == 0 and kinds["conv"] > 20
    copies = [row for row in rows if row.kind == "memcpy"]
    assert not [row for row in copies if "pageable" in row.name]
    assert max(row.bytes for row in copies if row.name == "pinned to device") == 96 * 128 * 3  # as uint8


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_whole_runs_wait_once_for_each_batch(form, tmp_path, monkeypatch):
    """Four wide and two tall images by twos, with all that is read, drawn and written."""
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", STAGE_CHANNELS)
    made = tiny_recipe()
    made = replace(made, model=replace(made.model, num_classes=2))
    annotations, folder = write_tiny(tmp_path / "data")
    results = {}
    for device in ("cpu", "cuda"):
        ours = model(made, device)
        ours = ours.optimize() if form == "fast" else ours
        ours.predict(images(2), (64, 48), batch_size=2)  # what is made once
        output, file = tmp_path / device, tmp_path / f"{device}.json"
        _, of_detect = record(lambda: detect(ours, [folder], output, min_score=0.0, batch_size=2))  # noqa: B023
        scored, of_evaluate = record(
            lambda: evaluate(ours, annotations, folder, batch_size=2, threads=3, output=file, progress=False)  # noqa: B023
        )
        entries = json.loads((output / "detections.json").read_text())
        results[device] = entries, json.loads(file.read_text()), scored.metrics
        waits = sum(row.kind == "sync" for row in record(ours.fingerprint)[1])  # of the weights, once a run
        batches = 3 if device == "cuda" else 0
        for rows, expected in ((of_detect, batches + waits), (of_evaluate, batches)):
            kinds = Counter(row.kind for row in rows)
            assert kinds["sync"] == expected and kinds["layout"] == 0
    (entries, listed, metrics), (entries_cuda, listed_cuda, metrics_cuda) = results["cpu"], results["cuda"]
    assert [len(entry["detections"]) for entry in entries] == [
        len(entry["detections"]) for entry in entries_cuda
    ]
    assert len(listed) == len(listed_cuda) > 0
    for one, other in zip(listed, listed_cuda, strict=True):
        assert other["image_id"] == one["image_id"] and other["category_id"] == one["category_id"]
        assert other["bbox"] == pytest.approx(one["bbox"], abs=1e-3)
    assert metrics_cuda == pytest.approx(metrics, abs=1e-6)


def test_evaluation_in_graphs_with_threads(tmp_path, monkeypatch):
    """By threads that read ahead, and by two evaluations of one model at once: what an eager model finds."""
    monkeypatch.setattr("frcnn.backbone.STAGE_CHANNELS", STAGE_CHANNELS)
    made = tiny_recipe()
    rpn = replace(made.model.rpn, pre_nms_test=30, post_nms_test=20)
    made = replace(made, model=replace(made.model, num_classes=2, rpn=rpn))
    annotations, folder = write_tiny(tmp_path / "data", images=4)
    plain = model(made, "cuda")

    def evaluated(fast, name, **options):
        file = tmp_path / f"{name}.json"
        scored = evaluate(fast, annotations, folder, output=file, progress=False, **options)
        return json.loads(file.read_text()), scored.metrics

    def alike(found, wanted):
        (entries, metrics), (wanted_entries, wanted_metrics) = found, wanted
        assert len(entries) == len(wanted_entries) > 0
        for one, other in zip(entries, wanted_entries, strict=True):
            assert one["image_id"] == other["image_id"] and one["category_id"] == other["category_id"]
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert metrics == pytest.approx(wanted_metrics, abs=1e-6)

    wanted = evaluated(plain.optimize(few_shapes=True), "eager", batch_size=1, threads=1)
    fast = plain.optimize(mode="graph", few_shapes=True)
    found, rows = record(lambda: evaluated(fast, "graph", batch_size=2, threads=3))
    alike(found, wanted)
    names = Counter(row.name for row in rows if row.kind == "graph")
    assert 0 < names["end capture"] < names["cudaGraphLaunch"]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(evaluated, fast, f"graph{i}", batch_size=2, threads=2) for i in range(2)]
        for one in both:
            alike(one.result(timeout=300), wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_a_model_on_the_second_device(entry):
    """cuda:0 is current all the while."""
    wanted = model(entry, "cpu").predict(images(4), (128, 96))
    for mode in ("eager", "graph"):
        fast = model(entry, "cuda:1").optimize(mode=mode)
        same(list(fast.stream(images(4), (128, 96))), wanted)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", case_names(CASES))
def test_a_reference_case_is_reached_through_cudnn(name):
    results, rows = record(lambda: verify_case(CASES / f"{name}.npz", torch.device("cuda")))
    assert all(result.passed for result in results)
    convolutions = [row for row in rows if row.kind == "conv"]
    assert any(row.op == "aten::cudnn_convolution" for row in convolutions)
    assert not [row for row in convolutions if row.name.endswith(", tf32")]
