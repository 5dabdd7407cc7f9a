"""What is learnt: a model, its head, and how samples become its inputs."""
