"""The training loops (RL, SFT) and their shared run directory, policy and checkpoint handling."""
