"""Model → ONNX and ModelCard: recipe, weights, file, parity with torch, one atomic folder."""
