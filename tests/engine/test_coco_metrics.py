"""The metrics are pycocotools', to the last digit."""

import numpy as np
import pytest
from by_pycocotools import by_pycocotools, crowded_data

from frcnn.engine.evaluate import score


def assert_same(dataset, results):
    ours, theirs = score(dataset, results), by_pycocotools(dataset, results)
    # older versions of numpy, which pycocotools' means are of, may end in another last bit
    exact = np.lib.NumpyVersion(np.__version__) >= "2.3.0"
    np.testing.assert_array_max_ulp(
        np.array(list(ours.metrics.values())), theirs.stats, maxulp=0 if exact else 2
    )
    np.testing.assert_array_equal(ours.evaluator.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.evaluator.eval["recall"], theirs.eval["recall"])


@pytest.mark.parametrize("levels", [2**24, 5], ids=["all scores differ", "ties"])
@pytest.mark.parametrize("seed", range(4))
def test_random_data_score_as_in_pycocotools(seed, levels):
    assert_same(*crowded_data(images=12, objects=90, detections=700, classes=3, seed=seed, levels=levels))


def test_more_detections_than_count():
    """Of one class in one image the best 100 count, whatever the order in which they come."""
    dataset, results = crowded_data(images=2, objects=40, detections=900, classes=1)
    assert_same(dataset, results)
    assert score(dataset, results[::-1]).metrics == score(dataset, results).metrics


def test_nothing_found_and_nothing_annotated():
    dataset, results = crowded_data(images=5, objects=3, detections=60, classes=4)
    assert_same(dataset, [])
    assert_same(dataset, results[:1])


@pytest.mark.stress
def test_as_many_as_in_coco(stress, record_property):
    """The long form has COCO's 5,000 images with 100 detections each, which take pycocotools a minute."""
    images = 5000 if stress else 50
    assert_same(*crowded_data(images, 7 * images, 100 * images, classes=80))
    record_property("tried", f"{100 * images:,} detections in {images:,} images scored as by pycocotools")
