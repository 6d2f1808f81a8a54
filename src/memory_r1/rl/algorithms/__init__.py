"""GRPO, PPO and SFT, an algorithm a page, over the advantages, the losses and the update that they share."""
