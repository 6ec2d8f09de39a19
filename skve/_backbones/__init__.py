"""From a specification to a frozen module; which layers, their decomposition, the network that members share."""
