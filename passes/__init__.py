"""The passes of onnxslim: everything that rewrites a graph."""
