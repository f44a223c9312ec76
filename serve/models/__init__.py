"""Python-backend models: each is copied into a variant as 1/model.py and runs in Triton's stub."""
