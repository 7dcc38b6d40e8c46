"""`python -m frcnn_ops` prints what was built."""

from .extension import describe_build

print(describe_build())
