"""Whether Brim tells the truth: known servers, simulated ones and networks, each figure beside its bound."""
