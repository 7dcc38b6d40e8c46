"""Few input shapes for images of many, where each costs something: a CUDA graph is of one shape."""

from __future__ import annotations

from functools import cache

from frcnn.preprocess import padded

Shape = tuple[int, int]
"""(height, width)."""

MOST_SHAPES = 8
LONGEST = 0.5
"""Short side over long side of the images that are thought of: square to twice as long, all of them alike.
Longer ones have a shape too, which costs them more padding."""


@cache
def few_shapes(size: tuple[int, int], divisor: int) -> tuple[Shape, ...]:
    """At most MOST_SHAPES that hold every image resized to fit `size`, chosen for the least padding.

    size: (long side, short side); divisor: sides of shapes are its multiples. Half are upright, half lie.
    """
    height, width = padded((min(size), max(size)), divisor)
    # what lying images are padded to, from the square one to the longest: ever wider, then ever lower
    chain = [(height, w) for w in range(height, width + 1, divisor)]
    chain += [(h, width) for h in range(height - divisor, 0, -divisor)]
    ratios = [max(h / w, LONGEST) for h, w in chain] + [LONGEST]

    # least[count][i]: what it costs to cover chain[i:] with `count` shapes, and where the first of them ends
    last = len(chain)

    def cost(first: int, end: int) -> float:
        """Of one shape for chain[first:end]: its area, by how many images there are; rare ones count too."""
        area = chain[first][0] * chain[end - 1][1]
        return area * (ratios[first] - ratios[end] + 1e-6 * (end - first))

    least = [[(0.0 if i == last else float("inf"), last) for i in range(last + 1)]]
    for _ in range(MOST_SHAPES // 2):
        after, row = least[-1], [(0.0, last)]
        for i in reversed(range(last)):
            row.append(min((cost(i, end) + after[end][0], end) for end in range(i + 1, last + 1)))
        least.append(row[::-1])
    lying, first = [], 0
    for count in range(MOST_SHAPES // 2, 0, -1):
        if first < last:
            end = least[count][first][1]
            lying.append((chain[first][0], chain[end - 1][1]))
            first = end
    return tuple(dict.fromkeys([*lying, *((w, h) for h, w in lying)]))


def smallest_holding(size: Shape, shapes: tuple[Shape, ...]) -> Shape | None:
    """The smallest of the shapes that an image of this (height, width) fits into; None if none holds it."""
    holding = [shape for shape in shapes if shape[0] >= size[0] and shape[1] >= size[1]]
    return min(holding, key=lambda shape: shape[0] * shape[1], default=None)
