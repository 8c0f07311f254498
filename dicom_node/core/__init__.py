"""What all three packages share; imports nothing of ours."""
