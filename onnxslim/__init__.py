"""onnxslim: an ONNX file in, a small, accurate, mobile-ready int8 model out."""

__version__ = "0.1.0"
