"""The robot's side: numpy and onnxruntime, without torch."""
