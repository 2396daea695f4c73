"""Pretraining: recipe, optimizer, schedule, checkpoints, guard, metrics, the loop."""
