"""Model → ONNX and ModelCard: recipes from models.toml, weights, the file, parity with torch, one atomic folder."""
