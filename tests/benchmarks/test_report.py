import pytest

import frcnn
from benchmarks.report import markdown, number, plot, published

PEER = "torchvision 0.26.0 float32"


def timing(median_ms, peak_bytes=500e6, images=1):
    return {
        "median_ms": median_ms,
        "quartiles_ms": [median_ms * 0.98, median_ms * 1.02],
        "p95_ms": median_ms * 1.1,
        "fps": 1e3 * images / median_ms,
        "samples": 9,
        "peak_bytes": peak_bytes,
    }


def row(name, ours_ms, peer_ms=None):
    peer = {} if peer_ms is None else {PEER: timing(peer_ms)}
    counts = {"proposals": 1000.0, "detections": 60.0}
    stage = {"gflop": 10.0, "mbyte": 20.0, "floor_ms": 25.0, "ms": 50.0, "share_of_floor": 0.5}
    return {
        "name": name,
        "parameters": 41_500_000,
        "gflop": 432.0,
        "inference": [{"batch": 1, "ours": timing(ours_ms), **peer}],
        "from_images": {"batch": 1, "ours": timing(ours_ms + 10), **peer},
        "training": {"batch": 2, "ours": timing(4 * ours_ms, 2e9, images=2)},
        "counts": {"ours": counts, **{key: counts for key in peer}},
        "drift": {
            "matched": 0.99,
            "mean_score_drift": 1e-4,
            "max_score_drift": 1e-3,
            "mean_box_drift": 0.01,
            "max_box_drift": 0.2,
        },
        "rates": {"matrix": 300e9, "copy": 20e9},
        "stages": [{"stage": "backbone", **stage}, {"stage": "NMS", **stage}],
    }


@pytest.fixture
def result():
    return {
        "date": "2026-01-02",
        "machine": {
            "name": "cpu-2core-avx512",
            "cpu": "A CPU",
            "threads": 2,
            "vector_units": ["avx512"],
            "load_average": 0.1,
            "torch": "2.13.0",
            "commit": "abc1234",
        },
        "settings": {
            "precision": "bf16",
            "mode": "eager",
            "size": [800, 1333],
            "batches": [1],
            "quick": False,
            "seconds": 1.0,
        },
        "images": "generated images",
        "weights": "generated",
        "peer": "torchvision 0.26.0",
        "start_up": {"torch": 1.0, "frcnn": 0.001, "detector": 0.1, "first_prediction": 0.9},
        "recipes": [
            row("faster_rcnn_r50_fpn_1x_coco", 100.0, 250.0),
            row("faster_rcnn_r50_caffe_fpn_1x_coco", 90.0),
        ],
    }


def cells(text, heading, recipe):
    """Column name -> cell of a recipe's line in the first table after a heading; repeated names count up."""
    lines = text[text.index(heading) :].splitlines()
    header = next(line for line in lines if line.startswith("| recipe"))
    line = next(line for line in lines if line.startswith(f"| {recipe} "))
    found = {}
    for name, cell in zip(
        *([part.strip() for part in text.split("|")[1:-1]] for text in (header, line)), strict=True
    ):
        found[name if name not in found else f"{name} 2"] = cell
    return found


def test_published_figures_stand_beside_ours(result):
    found = cells(markdown(result), "## Detection", "faster_rcnn_r50_fpn_1x_coco")
    assert found["fps"] == "10" and found["V100 fps (published)"] == "21.4"
    assert found["ours / published"] == "0.467x"
    assert found["box AP (published)"] == "37.4"
    assert found["box AP"] == "needs --coco and --weights"
    training = cells(markdown(result), "## Training", "faster_rcnn_r50_fpn_1x_coco")
    assert training["GB on a V100 (published)"] == "4.0"
    assert training["images/s"] == "5" and training["peak MB"] == "2000"


def test_measured_box_ap_replaces_the_remark(result):
    result["recipes"][0]["box_ap"] = 37.41
    assert cells(markdown(result), "## Detection", "faster_rcnn_r50_fpn_1x_coco")["box AP"] == "37.4"


def test_the_peer_s_ratio_and_a_recipe_without_peer(result):
    text = markdown(result)
    found = cells(text, "## Detection", "faster_rcnn_r50_fpn_1x_coco")
    assert found[f"{PEER} fps"] == "4" and found["ours / peer"] == "2.50x"
    found = cells(text, "## Detection", "faster_rcnn_r50_caffe_fpn_1x_coco")
    assert found[f"{PEER} fps"] == "-" and found["ours / peer"] == "-"
    assert found["V100 fps (published)"] == "-" and found["box AP (published)"] == "37.8"


def test_gpu_columns_are_empty_until_a_gpu_was_there(result):
    found = cells(markdown(result), "## Detection", "faster_rcnn_r50_fpn_1x_coco")
    assert found["GPU fps"] == found["GPU peak MB"] == "not yet measured"
    result["machine"]["gpu"] = "Some GPU"
    assert "not yet measured" not in markdown(result)


def test_stages_drift_and_counts_are_told(result):
    text = markdown(result)
    assert cells(text, "## Stages", "faster_rcnn_r50_fpn_1x_coco")["backbone"] == "50 (50%)"
    assert "| whole | 20 | 40 | 50 | 100 | 50% |" in text
    assert "300 GFLOP/s" in text and "20.0 GB/s" in text
    found = cells(text, "## Drift", "faster_rcnn_r50_fpn_1x_coco")
    assert found["matched"] == "99.0%" and found["max"] == "1.0e-03" and found["max 2"] == "0.2"
    assert found["proposals"] == "1000" and found["detections"] == "60"


def test_a_failed_recipe_is_listed_and_the_others_stay(result, tmp_path):
    result["recipes"].append({"name": "faster_rcnn_r101_fpn_1x_coco", "error": "out of memory\ntrace"})
    text = markdown(result)
    assert "- faster_rcnn_r101_fpn_1x_coco: out of memory\n" in text
    assert cells(text, "## Detection", "faster_rcnn_r50_fpn_1x_coco")["fps"] == "10"
    plot(result, tmp_path / "fps.png")


def test_no_recipe_that_worked_still_makes_a_report(result, tmp_path):
    result["recipes"] = [{"name": "faster_rcnn_r50_fpn_1x_coco", "error": "out of memory"}]
    assert "out of memory" in markdown(result)
    plot(result, tmp_path / "fps.png")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Plots a result; returns the axes."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(result):
        plot(result, tmp_path / "fps.png")
        figure = plt.gcf()
        figure.canvas.draw()
        return figure.axes[0]

    yield draw
    monkeypatch.undo()
    plt.close("all")


def test_the_plot_has_a_bar_and_its_number_for_every_speed(result, drawn):
    axes = drawn(result)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "r50_fpn_1x_coco",
        "r50_caffe_fpn_1x_coco",
    ]
    numbers = sorted(text.get_text() for text in axes.texts)
    assert numbers == sorted(["10", "11.1", "4", "21.4"])  # ours, ours, the peer, the published
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx([4, 10, 1000 / 90, 21.4])


@pytest.mark.parametrize("recipes", [1, 2, 15])
def test_the_plot_s_numbers_are_inside_its_frame(recipes, result, drawn):
    result["recipes"] = [row(name, 100.0 + i, 250.0) for i, name in enumerate(frcnn.list_recipes()[:recipes])]
    axes = drawn(result)
    frame = axes.get_window_extent()
    assert len(axes.texts) >= 2 * recipes
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert len(ticks) > 2 and all(ticks)


def test_a_quick_plot_has_no_published_speeds(result, drawn):
    result["settings"]["size"] = [128, 224]
    assert sorted(text.get_text() for text in drawn(result).texts) == sorted(["10", "11.1", "4"])


def test_a_recipe_outside_the_zoo_has_nothing_published(result):
    result["recipes"][0]["name"] = "my_own"
    assert published("my_own") is None
    assert cells(markdown(result), "## Detection", "my_own")["box AP (published)"] == "-"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.00012, "1.2e-04"), (0.0512, "0.0512"), (12.345, "12.3"), (1234.5, "1234")],
)
def test_numbers_have_three_digits(value, expected):
    assert number(value) == expected
