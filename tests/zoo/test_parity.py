"""The same numbers as MMDetection: features, proposals, detections, losses and gradients of every case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from frcnn.zoo import verify as verification
from frcnn.zoo.reference_case import CASES, case_names, case_recipe, draw_weights
from frcnn.zoo.verify import Result, unmatched, verify, verify_case

EXPECTED = ["r101", "r50", "r50_bounded_iou", "r50_caffe", "r50_ciou", "r50_giou", "r50_iou", "x101_32x4d"]


def test_all_kinds_of_model_have_a_case():
    assert case_names(CASES) == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_case(name, device):
    results = verify_case(CASES / f"{name}.npz", device)
    assert all(result.passed for result in results), results
    with np.load(CASES / f"{name}.npz") as case:
        assert [result.form for result in results] == (["plain", "folded"] if "fpn0" in case else ["plain"])
    for result in results:
        assert (result.losses is not None) == (result.form == "plain")
        assert result.form == "plain" or (result.features is not None and result.detections > 0)


def test_the_packages_cases_pass_and_are_certified(capsys):
    assert verify(["r50_giou"])
    lines = capsys.readouterr().out.splitlines()
    assert "MMDetection 3.3.0" in lines[0] and torch.__version__ in lines[0]
    assert [line.split()[0] for line in lines[3:]] == ["r50_giou", "all"]
    assert lines[3].endswith("pass")


def test_weights_are_drawn_as_the_reference_draws_them():
    """The first entries and the sum of every tensor, drawn by the script that drew the cases' weights."""
    shapes = json.loads((Path(__file__).parent / "cases" / "r50.json").read_text())
    with np.load(Path(__file__).parent / "cases" / "drawn_weights.npz") as theirs:
        seed, input_std = int(theirs["seed"]), float(theirs["input_std"])
        ours = draw_weights({name: tuple(shape) for name, shape in shapes.items()}, seed, input_std)
        assert list(ours) == theirs["names"].tolist()
        for value, first, total in zip(ours.values(), theirs["first8"], theirs["sums"], strict=True):
            entries = value.flatten()[:8].double().numpy()
            np.testing.assert_allclose(entries, first[: len(entries)], rtol=1e-6)
            assert float(value.double().sum()) == pytest.approx(total, rel=1e-6, abs=1e-5)


class TwoParameters(torch.nn.Module):
    """Losses that are plain functions of two parameters, so that right numbers are known."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        self.b = torch.nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, batch):
        return {"loss_cls": (self.a**2).sum() / 2, "loss_bbox": self.b.sum() * 5}


RIGHT = {
    "train_loss_cls": 12.5,
    "train_loss_bbox": 10.0,
    "grad_names": np.array(["a", "b"]),
    "grad_norms": np.array([5.0, 5.0]),
    "grad_first8": np.array([[3.0, 4.0, 0, 0, 0, 0, 0, 0], [5.0, 0, 0, 0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_loss_bbox": 10.0002},
        {"train_loss_cls": float("nan")},
        {"grad_norms": np.array([5.0, 5.006])},
        {"grad_first8": RIGHT["grad_first8"][:, ::-1]},
        {"grad_names": np.array(["a", "c"])},
    ],
)
def test_a_wrong_number_fails(wrong):
    good = verification._compare_training(TwoParameters(), RIGHT, None, Result("case"))
    assert good.passed and good.losses < 1e-7 and good.gradients < 1e-7
    assert not verification._compare_training(
        TwoParameters(), {**RIGHT, **wrong}, None, Result("case")
    ).passed


def test_the_certificate_names_the_cases_that_fail(monkeypatch, capsys):
    monkeypatch.setattr(
        verification,
        "verify_case",
        lambda path, device, format: [
            Result(path.stem, losses=1e-6),
            Result(path.stem, "folded", features=1e-4),
        ],
    )
    assert not verify(["r50", "r101"])
    assert capsys.readouterr().out.splitlines()[-1] == "FAILED: r50 (folded), r101 (folded)"


def test_unknown_cases_are_named(tmp_path):
    with pytest.raises(ValueError, match="no case 'r152'; did you mean r50 or r101"):
        verify(["r152"])
    with pytest.raises(FileNotFoundError, match="no case at all"):
        verify(reference=tmp_path)
    with pytest.raises(ValueError, match="r152"):
        case_recipe("r152")


def test_the_recipe_of_a_case_follows_from_its_name():
    assert case_recipe("r50_seed1").name == "faster_rcnn_r50_fpn_1x_coco"
    assert case_recipe("r50_caffe_two_images").name == "faster_rcnn_r50_caffe_fpn_1x_coco"
    assert case_recipe("x101_64x4d").name == "faster_rcnn_x101_64x4d_fpn_1x_coco"
    assert case_recipe("r50_caffe_mstrain_3x").name == "faster_rcnn_r50_caffe_fpn_mstrain_3x_coco"
    assert case_recipe("r50_ciou").model.roi_head.box_loss == "ciou"


def test_nan_does_not_pass():
    assert Result("good").passed
    for field in ("features", "losses", "gradients"):
        assert not Result("bad", **{field: float("nan")}).passed
    assert Result("one", proposals=1000, proposals_missed=1).passed
    assert not Result("two", proposals=1000, proposals_missed=2).passed
    assert not Result("one", detections=100, detections_missed=1).passed


def test_boxes_are_matched_one_to_one():
    boxes = np.array([[0, 0, 100, 100], [0, 0, 100, 100.2], [50, 50, 60, 60]], np.float32)
    scores = np.array([0.9, 0.9, 0.5], np.float32)
    labels = np.array([1, 1, 2])
    assert unmatched((boxes, scores, labels), (boxes[::-1], scores[::-1], labels[::-1])) == 0
    assert unmatched((boxes, scores, labels), (boxes[:1], scores[:1], labels[:1])) == 2
    assert unmatched((boxes[:1], scores[:1], labels[:1]), (boxes, scores, labels)) == 2
    assert unmatched((boxes, scores, labels), (boxes, scores, labels + 1)) == 3
    assert unmatched((boxes, scores, labels), (boxes, scores + 2e-4, labels)) == 3
    assert unmatched((boxes, scores, labels), (boxes + np.float32(0.1), scores, labels)) == 1
