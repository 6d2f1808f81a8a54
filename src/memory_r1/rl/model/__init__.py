"""The weights that learn, the policy's and the critic's, and how a group of replies shares one prompt."""
