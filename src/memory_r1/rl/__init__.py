"""Outcome-driven training of the agents: rollouts, rewards, advantages, losses and the loop around them."""
