"""What a plan is made of: sizes of a model, memory, this machine, speed, advice."""
