"""Files, named tensors, labels and batch norms: what several rooms of tensors stand on."""
