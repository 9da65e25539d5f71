"""What surrounds every agent: the loop, rollouts, evaluation, checkpoints, logs."""
