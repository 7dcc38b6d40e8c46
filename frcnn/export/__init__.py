"""From a model to a file that other runtimes execute, with a certificate that the numbers survived.

    info -> program (torch.export) -> formats -> certificate, and stages where it fails

`FasterRCNN.export` and `frcnn export` come to export.py; `frcnn.runtime` runs the files.
"""
