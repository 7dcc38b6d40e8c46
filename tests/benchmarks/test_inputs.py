import cv2
import numpy as np
import pytest

from benchmarks.inputs import annotations, make_images


def test_images_fill_the_canvas_at_their_own_size(tmp_path):
    for value in (110, 150, 190):
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((20, 30, 3), value, np.uint8))
    made, described = make_images(2, 30, 50, tmp_path)
    assert made.shape == (2, 30, 50, 3)
    assert "images" in described and tmp_path.name in described
    first = made[0, :, :, 0]
    assert (first[:20, :30] == 110).all() and (first[:20, 30:] == 150).all()
    assert (first[20:, :30] == 190).all() and (first[20:, 30:] == 110).all()
    assert (made[1, :20, :30] == 150).all()  # goes on where the first image stopped


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*no image"):
        make_images(1, 20, 20, tmp_path)


def test_generated_images_are_reproducible_and_differ_from_each_other():
    made, described = make_images(2, 96, 160)
    assert made.dtype == np.uint8 and made.shape == (2, 96, 160, 3)
    assert "generated" in described
    assert np.array_equal(made, make_images(2, 96, 160)[0])
    assert not np.array_equal(made[0], made[1])
    # a natural image: neighbors are alike, the whole is not flat
    steps = np.abs(np.diff(made[0].astype(int), axis=1)).mean()
    assert made[0].std() > 20 and steps < made[0].std() / 2


def test_annotated_boxes_lie_inside_the_image():
    boxes, labels = annotations(3, 100, 200, num_classes=5)
    for of_image, names in zip(boxes, labels, strict=True):
        array = np.array(of_image)
        assert array.shape == (8, 4) and len(names) == 8
        assert (array[:, :2] >= 0).all() and (array[:, 2:] <= [200, 100]).all()
        assert ((array[:, 2:] - array[:, :2]) > 1).all()
        assert set(names) <= set(range(5))
