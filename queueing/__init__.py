"""The simulator of Triton's dynamic batcher, arrival laws, and the closed forms that both are tested against: pure."""
