"""From a deployed policy to a bundle that runs without torch, and back: export and verification."""
