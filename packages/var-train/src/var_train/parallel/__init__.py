"""Many workers as one: averaged gradients, a sharded optimizer, and watching each other."""
