"""What a machine with a GPU shows in eight minutes: CUDA tests, a language mixture, speed."""
