"""What each agent is trained on: episodes, lessons to imitate, and what replies earn."""
