"""What a training run did, for people: `record` (what the coordinator writes down, round by round)."""
