"""The fast detector finds exactly what the model finds."""

import platform
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from confident_detector import DATA, SMALL, confident
from float_batch import float_batch
from torch.utils._python_dispatch import TorchDispatchMode

import frcnn_ops
from frcnn.config import BackboneConfig
from frcnn.conv import Conv
from frcnn.detector import FasterRCNN
from frcnn.inference.fast_detector import CompiledByShape, FastDetector, compare_detections
from frcnn.inference.fold import FoldedConv, fold, fold_norm
from frcnn.inference.hardware import available_cpus, check_precision, cpu_computes, limit_threads
from frcnn.preprocess import normalize, pad, resize
from frcnn.structures import Detections
from frcnn_ops import reference

FIELDS = ("boxes", "scores", "labels")
pytestmark = pytest.mark.usefixtures("one_thread")  # images this small are slower with more


def with_backbone(**changes):
    return replace(SMALL, backbone=BackboneConfig(**changes))


def with_head(**changes):
    return replace(SMALL, roi_head=replace(SMALL.roi_head, **changes))


def random_images(*sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_same(found, expected):
    """The same detections up to rounding, in whose order two that score nearly the same may differ."""
    agreement = compare_detections(found, expected, min_iou=0.99)
    assert agreement.matched == 1
    assert agreement.max_score_drift < 1e-4 and agreement.max_box_drift < 1e-2


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        with_backbone(depth=50),
        with_backbone(depth=50, style="caffe"),
        with_backbone(depth=50, groups=8, base_width=4),
        with_head(class_agnostic=True),
        with_head(max_detections=5),
        with_head(score_threshold=0.999),
    ],
    ids=lambda config: f"{config.backbone.depth}-{config.backbone.style}-{config.roi_head}"[:40],
)
def test_detections_are_the_models(config):
    model = confident(config)
    images = random_images((50, 120), (96, 64), (30, 40))
    expected = model.predict(images)
    found = model.optimize().predict(images)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        assert one.class_names == model.class_names
    most = config.roi_head.max_detections
    if config.roi_head.score_threshold > 0.9:
        assert not any(map(len, found))
    else:
        assert all(0 < len(one) <= most for one in found)


def test_batches_of_different_sizes():
    model = confident()
    fast = model.optimize()
    batch, scales = float_batch(model, random_images((50, 120), (96, 64), (90, 150)), (160, 96))
    for one, other in zip(fast.detect(batch, scales), model.detect(batch, scales), strict=True):
        assert_same(one, other)
    for one, other in zip(fast(batch), model(batch), strict=True):
        assert_same(one, other)


def random_head_outputs(generator, images, count, classes, agnostic):
    """Few distinct values, so that scores and overlaps tie."""
    corner = torch.randint(0, 5, (images, count, 2), generator=generator) * 12.0
    size = torch.randint(1, 4, (images, count, 2), generator=generator) * 16.0
    logits = torch.randint(-2, 3, (images * count, classes + 1), generator=generator) * 1.0
    columns = 4 if agnostic else 4 * classes
    deltas = torch.randint(-2, 3, (images * count, columns), generator=generator) * 0.5
    return torch.cat([corner, corner + size], -1), logits, deltas


def obvious_selection(proposals, logits, deltas, size, scale, config):
    """One image's detections, without padding: threshold, decode, NMS of each class, the best of all."""
    probabilities = logits.softmax(1)[:, :-1]
    box, label = (probabilities > config.score_threshold).nonzero(as_tuple=True)
    scores = probabilities[box, label]
    if not config.class_agnostic:
        deltas = deltas.view(len(deltas), probabilities.shape[1], 4)[box, label]
    else:
        deltas = deltas[box]
    boxes = reference.decode_boxes(proposals[box], deltas, config.stds, max_shape=size)
    boxes = boxes / boxes.new_tensor(scale * 2)
    keep = reference.nms(boxes, scores, label, config.nms_iou)[: config.max_detections]
    return boxes[keep], scores[keep], label[keep]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("count, limit", [(40, 100), (40, 6), (300, 100), (1, 100)])
@pytest.mark.parametrize("missing", ["none", "end", "most", "all"])
def test_selection_is_exact_with_ties(agnostic, count, limit, missing, monkeypatch):
    head = confident(with_head(class_agnostic=agnostic, max_detections=limit)).roi_head
    generator = torch.Generator().manual_seed(count)
    proposals, logits, deltas = random_head_outputs(generator, 2, count, 3, agnostic)
    monkeypatch.setattr(head, "forward", lambda features, boxes: (logits, deltas, logits))
    present = torch.arange(count) < torch.tensor(
        {"none": [[count], [count]], "end": [[count], [count // 2]], "most": [[1], [0]], "all": [[0], [0]]}[
            missing
        ]
    )
    sizes, scales = [(60, 70), (90, 50)], [(1.5, 1.25), (0.7, 0.9)]

    boxes, scores, labels, counts = head.detect(
        [], proposals, present, torch.tensor(sizes).float(), torch.tensor(scales)
    )
    for image in range(2):
        rows = slice(image * count, (image + 1) * count)
        expected = obvious_selection(
            proposals[image][present[image]],
            logits[rows][present[image]],
            deltas[rows][present[image]],
            sizes[image],
            scales[image],
            head.config,
        )
        kept = counts[image]
        for found, wanted in zip((boxes, scores, labels), expected, strict=True):
            assert len(wanted) == kept and torch.allclose(found[image, :kept], wanted, rtol=1e-6, atol=1e-5)
        assert not scores[image, kept:].any() and not boxes[image, kept:].any()
        assert (labels[image, kept:] == -1).all()


class ForbidSynchronization(TorchDispatchMode):
    """Raises at any operator that reads a value on the host or whose result's shape depends on values."""

    forbidden = (
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::is_nonzero",
        "aten::equal",
        "aten::nonzero",
        "aten::masked_select",
        "aten::unique",
        "aten::_unique",
        "aten::repeat_interleave.Tensor",
        "frcnn_ops::nms",
    )

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.seen.add(name)
        bool_index = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if bool_index or name in self.forbidden or name.startswith("aten::_unique"):
            raise AssertionError(f"{name} synchronizes")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [SMALL, with_head(class_agnostic=True)])
@pytest.mark.parametrize("form", [lambda model: model, fold], ids=["plain", "folded"])
def test_detection_never_synchronizes(config, form):
    model = confident(config)
    network = form(model)
    inputs = torch.zeros(2, 64, 96, 3, dtype=torch.uint8), torch.tensor([[50.0, 96.0]] * 2), torch.ones(2, 2)
    with torch.no_grad(), ForbidSynchronization() as watch:
        network.detect_padded(*inputs)
    assert {
        "frcnn_ops::select_proposals",
        "frcnn_ops::roi_align",
        "frcnn_ops::select_detections",
    } <= watch.seen

    with pytest.raises(AssertionError, match="synchronizes"), ForbidSynchronization():
        (inputs[1] > 60).nonzero()


def test_detection_needs_no_values_and_no_other_device():
    """On meta tensors, which have shapes only, reading a value or mixing in a CPU tensor raises."""
    with torch.no_grad(), torch.device("meta"):
        model = FasterRCNN(SMALL, DATA).eval()
    network = fold(model, torch.bfloat16)
    with torch.no_grad():
        boxes, scores, labels, counts = network.detect_padded(
            torch.zeros(2, 64, 96, 3, dtype=torch.uint8, device="meta"),
            torch.ones(2, 2, device="meta"),
            torch.ones(2, 2, device="meta"),
        )
    assert boxes.shape == (2, 100, 4) and scores.shape == labels.shape == (2, 100) and counts.shape == (2,)
    assert {tensor.device.type for tensor in (boxes, scores, labels, counts)} == {"meta"}


@pytest.mark.parametrize(
    "data", [DATA, replace(DATA, rgb=False, mean=(103.53, 116.28, 123.675), std=(1, 1, 1))]
)
def test_pixels_are_normalized_to_the_bit(data):
    model = confident(data=data)
    resized = [resize(image, data.size)[0] for image in random_images((50, 120), (30, 40))]
    expected = pad([normalize(image, data) for image in resized], data.pad_divisor)
    pixels = torch.zeros(2, *expected.shape[2:], 3, dtype=torch.uint8)
    for target, image in zip(pixels, resized, strict=True):
        target[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    sizes = torch.tensor([image.shape[:2] for image in resized]).float()
    assert torch.equal(model._normalize(pixels, sizes), expected)


def test_folding_is_exact():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 6, 3, 2, 1, groups=2, bias=False)
    norm = torch.nn.BatchNorm2d(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    norm.running_var.uniform_(1e-6, 2)
    x = torch.randn(2, 8, 11, 13)
    expected = norm.double()(conv.double()(x.double()))
    weight, bias = fold_norm(conv, norm)
    found = torch.nn.functional.conv2d(x.double(), weight, bias, 2, 1, groups=2)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("finish", ["apart", "onednn"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 1, 1), (3, 2, 4), (7, 2, 1), (1, 2, 1)])
def test_fused_convolutions(finish, relu, kernel, stride, groups):
    torch.manual_seed(0)
    conv = Conv(16, 32, kernel, stride, kernel // 2, groups=groups)
    folded = FoldedConv(conv, *fold_norm(conv, None), torch.float32, finish)
    is_3x3 = (kernel, stride, groups) == (3, 1, 1)
    assert folded.winograd == (is_3x3 and frcnn_ops.winograd_available())
    for height, width in ((20, 33), (50, 20)):  # the second reuses the first one's weight layout
        x = torch.randn(2, 16, height, width).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            plain = conv(x)
            add = torch.randn_like(plain)
            summed = folded(x, add=add.clone(), relu=relu)
            for found, expected in ((folded(x, relu=relu), plain), (summed, plain + add)):
                expected = expected.relu() if relu else expected
                assert torch.allclose(found, expected, atol=1e-5)
                assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_model_is_left_alone():
    model = confident()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = random_images((60, 90))[0]
    fast = model.optimize()
    found = fast.predict(image)
    assert model.training and model.rpn_head.training and model.roi_head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for field in FIELDS:
        assert torch.equal(getattr(fast.predict(image), field), getattr(found, field))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_close(precision):
    if not cpu_computes(precision):
        pytest.skip(f"this CPU has no {precision} arithmetic")
    model = confident()
    images = random_images((50, 120), (96, 64))
    agreement = compare_detections(model.predict(images), model.optimize(precision).predict(images))
    assert agreement.matched > 0.8
    assert agreement.mean_score_drift < 0.05
    assert model.optimize(precision).predict(images[0]).boxes.dtype == torch.float32


def test_compiled_in_one_graph(monkeypatch):
    """torch.compile sees the whole call as one graph (its own code generation is tested by torch)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = confident()
    fast = FastDetector(model, mode="compiled")
    for image in random_images((50, 120), (96, 64)):
        assert_same(fast.predict(image), model.predict(image))


def test_any_number_of_shapes_is_compiled(monkeypatch):
    """torch.compile gives up at the ninth unless told otherwise."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    doubled = CompiledByShape(lambda x: (2 * x,))
    for length in range(2, 14):
        x = torch.arange(length)
        assert torch.equal(doubled(x)[0], 2 * x)


def test_mistakes_are_named(monkeypatch):
    model = confident()
    with pytest.raises(ValueError, match=r"CUDA graphs.*move it to a GPU"):
        model.optimize(mode="graph")
    with pytest.raises(ValueError, match="choose eager, compiled or graph"):
        model.optimize(mode="fast")
    with pytest.raises(ValueError, match="choose one of float32, tf32"):
        model.optimize("int8")
    with pytest.raises(ValueError, match="tf32 is a format of NVIDIA GPUs"):
        model.optimize("tf32")
    features = {"architecture": "x86_64", "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    with pytest.raises(ValueError, match=r"no bfloat16 arithmetic.*avx512_bf16"):
        model.optimize("bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    check_precision("float16", torch.device("cuda"))
    with pytest.raises(ValueError, match="Tesla V100 has no tf32"):
        check_precision("tf32", torch.device("cuda"))


@pytest.mark.parametrize("has", [False, True])
def test_torch_210_is_asked_for_each_feature_of_the_cpu(monkeypatch, has):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    onednn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True, _is_mkldnn_fp16_supported=lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", onednn)
    assert cpu_computes("bfloat16") is has and cpu_computes("float16") is has


def test_threads_do_not_exceed_the_processors():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(available_cpus() + 3)
        limit_threads()
        assert torch.get_num_threads() == available_cpus()
        torch.set_num_threads(1)
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def detections(boxes, scores, labels):
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long())


def test_comparing_detections():
    a = detections([[0.0, 0, 10, 10], [0.0, 0, 10, 10], [20.0, 20, 30, 30]], [0.9, 0.8, 0.7], [0, 1, 0])
    b = detections([[0.0, 0, 10, 11], [0.0, 0, 10, 10], [50.0, 50, 60, 60]], [0.8, 0.8, 0.7], [0, 1, 0])
    same = compare_detections(a, a)
    assert same == (1.0, 0, 0, 0, 0, (3, 3))
    apart = compare_detections([a], [b])
    assert apart.matched == pytest.approx(2 / 3)
    assert apart.max_score_drift == pytest.approx(0.1) and apart.mean_score_drift == pytest.approx(0.05)
    assert apart.max_box_drift == 1 and apart.mean_box_drift == pytest.approx(1 / 8)
    none = detections([], [], [])
    assert compare_detections(a, none).matched == 0
    assert compare_detections(none, none).matched == 1
    with pytest.raises(ValueError, match="1 images with those of 2"):
        compare_detections(a, [a, b])
