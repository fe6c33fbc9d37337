"""The verdict on a task, computed from the tensors and reports of its ranks."""
