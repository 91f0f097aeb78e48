"""Networks: the registry, their tasks, input features, packages, inference."""
