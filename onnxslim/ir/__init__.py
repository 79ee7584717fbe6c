"""The intermediate representation: what a model is, how it is read and written, and how it is rewritten.

`graph` holds a model; `ops` says what its ops mean, `shapes` what they make; `onnx_io` and `text` read and write it;
`verify` keeps its invariants, and `rewrite` is what a pass is made of. Nothing here runs a model.
"""
