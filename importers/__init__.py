"""Importers: one file a framework, all ending in an ONNX ModelProto."""
