"""The train step: state, optimizer, forward pass, RL and SFT losses over packed batches."""
