"""Self-contained HTML pages: everything is in the one file, and nothing is asked of a network."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from frcnn.draw import encoded


def page(template: str, **values: Any) -> str:
    """A page of `frcnn/pages`, filled in; text is escaped. Raises ImportError without jinja2."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("a page needs jinja2: pip install jinja2, or frcnn with its extra report") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frcnn", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def inline(image: np.ndarray) -> str:
    """An HWC uint8 BGR image as the address of an <img>, a JPEG within the address itself."""
    content = encoded(image, "inline.jpg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
