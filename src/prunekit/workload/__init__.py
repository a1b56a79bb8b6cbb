"""What the model is for: its inputs, data splits, loss and per-example scoring."""
