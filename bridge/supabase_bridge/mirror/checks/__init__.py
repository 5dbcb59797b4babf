"""Check a version's files before a release is made of them: a sandbox process parses, joins and tries them.

Entry point: `sandbox.Checks`. The worker imports neither `onnx` nor `pickle`: only sandbox processes do.
It may import what mirror may, and of mirror `errors`, `onnx_file` and `source_files`.
"""
