"""From a block of a network to a layer in its place: sampled, solved, each a function of its own."""
