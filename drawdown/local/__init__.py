"""Everything on this machine: embedded servers, services, traffic, files of spend, and the screen that shows them."""
