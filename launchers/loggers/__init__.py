"""Each trial as a run elsewhere too: Weights & Biases, MLflow, TensorBoard."""
